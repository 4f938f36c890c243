"""The kit on models behind servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rsd_integrations.backends.vllm.loading import load_remote
from rsd_integrations.conformance import ConstraintKit, ScorerKit, WriterKit
from rsd_integrations.protocols import Scorer, Writer
from tests.tiny_models import causal, token_classifier, tokenizer
from tests.vllm.double import double
from tests.vllm.rounds import Rounds


@pytest.fixture(scope="module", params=["all", "last"])
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Rounds]]:
    """Servers that hold grammars and pool all tokens; others pass grammars over and pool the last one."""
    folder = tmp_path_factory.mktemp("models")
    model, tok = causal("Qwen2", 7, "tools", max_position_embeddings=1024), tokenizer("tools")
    model.save_pretrained(folder / "writer")
    tok.save_pretrained(folder / "writer")
    token_classifier(0, "ascii").save_pretrained(folder / "prm")
    tokenizer("ascii").save_pretrained(folder / "prm")
    with ExitStack() as stack:
        grammars = request.param == "all"
        writer = stack.enter_context(double(folder / "writer", grammars=grammars))
        prm = stack.enter_context(double(folder / "prm", pools=request.param))
        given = {"draft": (writer.url, None), "target": (writer.url, None), "prm": (prm.url, None)}
        remote = load_remote(given, prm_format="auto", max_batch_size=256, max_length=None)
        rounds = [Rounds(model) for model in (remote.draft, remote.target, remote.prm)]
        yield rounds
        for one in rounds:
            one.close()


class TestVLLMWriter(WriterKit):
    @pytest.fixture
    def writer(self, backend: list[Rounds]) -> Writer:
        return backend[0]  # type: ignore[return-value]

    def test_closing_in_mid_step(self, writer: Writer) -> None:
        pytest.skip("a round is a step here; leaving one is tested with the engine")


class TestVLLMConstraints(ConstraintKit):
    @pytest.fixture
    def writer(self, backend: list[Rounds]) -> Writer:
        return backend[1]  # type: ignore[return-value]


class TestVLLMScorer(ScorerKit):
    @pytest.fixture
    def scorer(self, backend: list[Rounds]) -> Scorer:
        return backend[2]  # type: ignore[return-value]
