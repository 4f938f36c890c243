"""Outputs that are not finite fail nobody where the text does not depend on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rsd_integrations import RSDPipeline
from rsd_integrations.errors import BackendError
from rsd_integrations.protocols import GuessStep
from tests.backends.test_speculation import FIELDS, PAIRS, load

PROMPT = "Ava has 12 marbles."


def overflowing(runner: Any, token: int) -> Any:
    """The readout of a model whose logits are not finite behind one token."""
    real = runner._readout

    def call(inputs: dict[str, Any], columns: torch.Tensor | None) -> Any:
        kept, fetched = real(inputs, columns)
        hit = inputs["input_ids"] == token
        hit = hit if columns is None else hit[:, columns]
        return kept.masked_fill(hit[..., None], torch.nan), fetched.masked_fill(hit, -1)

    return call


def fed_and_guessed(pipe: RSDPipeline, **given: Any) -> tuple[set[int], set[int], str]:
    """Tokens that the target read as text and as guesses, and the answer."""
    runner: Any = pipe.backend.target.runner  # type: ignore[union-attr]
    fed, guessed, run = set[int](), set[int](), runner.run

    def spy(feeds: Any, **more: Any) -> Any:
        for feed in feeds:
            length = len(feed.tokens) - feed.more
            fed.update(feed.tokens[:length])
            guessed.update(feed.tokens[length:])
        return run(feeds, **more)

    runner.run = spy
    text = pipe.generate(PROMPT, **given).text
    runner.run = run
    return fed, guessed, text


def test_an_overflow_behind_a_wrong_guess_costs_nothing() -> None:
    given = {**FIELDS, "seed": 1}
    with load(*PAIRS["same tokenizer"], prefix_caching=False, cpu_traces=False) as pipe:
        fed, guessed, text = fed_and_guessed(pipe, **given)
        assert guessed - fed
        runner: Any = pipe.backend.target.runner  # type: ignore[union-attr]
        runner._readout = overflowing(runner, min(guessed - fed))
        assert pipe.generate(PROMPT, **given, speculation=False).text == text
        assert pipe.generate(PROMPT, **given).text == text


def test_an_overflow_in_the_text_fails_the_request() -> None:
    """With guesses as without."""
    given = {**FIELDS, "seed": 1, "max_tokens": 60}
    with load(*PAIRS["same tokenizer"], prefix_caching=False, cpu_traces=False) as pipe:
        fed, _, _ = fed_and_guessed(pipe, **given)
        runner: Any = pipe.backend.target.runner  # type: ignore[union-attr]
        runner._readout = overflowing(runner, max(fed))
        for speculation in (True, False):
            with pytest.raises(BackendError, match="NaN or infinite logits"):
                pipe.generate(PROMPT, **given, speculation=speculation)


def test_an_overflow_in_tokens_written_on_leaves_nothing_behind() -> None:
    """The step is rejected perhaps, and goes on elsewhere from where it was."""
    with load(*PAIRS["same tokenizer"], prefix_caching=False, cpu_traces=False) as pipe:
        draft: Any = pipe.backend.draft
        session = draft.open(PROMPT)
        session.begin(GuessStep((5, 9, 13), 4))
        draft.advance([session])
        slot, before = session._slot, session.cached
        run = draft.runner.run

        def broken(feeds: Any, **more: Any) -> Any:
            outputs = run(feeds, **more)
            for layer in draft.runner.cache.layers:
                layer.values[slot, :, feeds[0].start] = torch.inf
            outputs[0].fetched[:] = [-1]
            return outputs

        draft.runner.run = broken
        with torch.inference_mode():
            (failed,) = draft.advance([session])
        assert isinstance(failed, BackendError)
        assert session.cached == before
        for layer in draft.runner.cache.layers:
            assert layer.values[slot].isfinite().all()
            assert not layer.values[slot, :, before:].any()
