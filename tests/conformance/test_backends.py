"""The kit on the backends of this package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rsd_integrations import RSDPipeline
from rsd_integrations.conformance import ConstraintKit, ScorerKit, WriterKit
from rsd_integrations.protocols import Scorer, Writer
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter
from tests.tiny_models import trio


def script(prompt: Any, index: int, text: str) -> str:
    return f"say{len(str(prompt))}:{len(text)} then more\n\n"


class TestScriptedWriter(WriterKit):
    @pytest.fixture
    def writer(self) -> Writer:
        return ScriptedWriter(script)

    def continues(self, writer: Writer) -> bool:
        return False


class TestScriptedScorer(ScorerKit):
    @pytest.fixture
    def scorer(self) -> Scorer:
        return ScriptedScorer(_length_reward)


def _length_reward(prompt: Any, index: int, body: str) -> float:
    return (len(body) % 7) / 7


@pytest.fixture(
    scope="module",
    params=["Qwen2", "Gemma3Text", "GPT2", pytest.param("Mistral", marks=pytest.mark.slow)],
)
def torch_backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    with RSDPipeline.from_pretrained(**trio(request.param, request.param), device="cpu") as pipe:
        yield pipe.backend


class TestTorchWriter(WriterKit):
    @pytest.fixture
    def writer(self, torch_backend: Any) -> Iterator[Writer]:
        yield torch_backend.draft
        assert torch_backend.draft.runner.pool.free == 8


class TestTorchScorer(ScorerKit):
    @pytest.fixture
    def scorer(self, torch_backend: Any) -> Iterator[Scorer]:
        yield torch_backend.prm
        assert torch_backend.prm.runner.pool.free == 8


@pytest.fixture(scope="module", params=["Qwen2", "Gemma3Text"])
def tool_backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    models = trio(request.param, request.param, ("tools", "tools", "ascii"), max_position_embeddings=2048)
    with RSDPipeline.from_pretrained(**models, device="cpu") as pipe:
        yield pipe.backend


class TestTorchConstraints(ConstraintKit):
    @pytest.fixture
    def writer(self, tool_backend: Any) -> Iterator[Writer]:
        yield tool_backend.target
        assert tool_backend.target.runner.pool.free == 8
