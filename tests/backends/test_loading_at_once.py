"""Two loads at the same moment: transformers patches its classes while it makes a model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.shared.bars import no_progress_bars
from rsd_integrations.pocket import EXAMPLE_QUESTIONS


def test_both_succeed_and_leave_transformers_as_it_was() -> None:
    before = PreTrainedModel.tie_weights, PreTrainedModel.init_weights, torch.get_default_dtype()
    start, made, failed = threading.Barrier(3), [], []

    def load(**options: Any) -> None:
        start.wait(30)
        try:
            made.append(RSDPipeline.pocket(**options))
        except Exception as error:
            failed.append(error)

    options: list[dict[str, Any]] = [{}, {"max_length": 2048}, {"dtype": "bfloat16"}]
    threads = [threading.Thread(target=load, kwargs=given) for given in options]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (PreTrainedModel.tie_weights, PreTrainedModel.init_weights, torch.get_default_dtype()) == before
    for pipe in made:
        with pipe:
            assert pipe.generate(EXAMPLE_QUESTIONS[0], max_steps=1).steps


@pytest.mark.parametrize("first_ends", [True, False])
def test_bars_are_away_until_the_last_load_ends(first_ends: bool) -> None:
    logging.enable_progress_bar()
    try:
        first, second = no_progress_bars(anywhere=True), no_progress_bars(anywhere=True)
        first.__enter__()
        second.__enter__()
        (first if first_ends else second).__exit__(None, None, None)
        assert not logging.is_progress_bar_enabled()
        (second if first_ends else first).__exit__(None, None, None)
        assert logging.is_progress_bar_enabled()
    finally:
        logging.disable_progress_bar()
