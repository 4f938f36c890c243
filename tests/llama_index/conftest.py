"""A scripted pipeline and a model over it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pipeline import RSDPipeline
from tests.counting import counting_pipeline


@pytest.fixture
def pipe() -> Iterator[RSDPipeline]:
    """Three steps, the second one rejected."""
    with counting_pipeline() as made:
        yield made


@pytest.fixture
def llm(pipe: RSDPipeline) -> Any:
    """A model over it."""
    return RSDLLM.from_pipeline(pipe, threshold=0.7)
