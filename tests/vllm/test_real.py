"""The same answers over real vLLM servers: run by hand, with ``RSD_VLLM_PYTHON`` naming their Python.

::

    RSD_VLLM_PYTHON=/path/to/vllm/bin/python python -m pytest -m slow tests/vllm/test_real.py
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rsd_integrations import Output, RSDPipeline
from rsd_integrations.backends.vllm import writer
from rsd_integrations.backends.vllm.writer import VLLMWriter
from rsd_integrations.errors import BackendError
from rsd_integrations.pocket import pocket_paths
from tests.vllm.real import serve
from tests.vllm.servable import make_servable
from tests.vllm.test_answers import FORM, QUESTIONS, told

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("RSD_VLLM_PYTHON" not in os.environ, reason="RSD_VLLM_PYTHON names no Python"),
]

GUIDED = ["--structured-outputs-config", '{"backend": "guidance"}']
TAGS = ["--pooler-config", '{"tok_pooling_type": "STEP", "step_tag_id": 349}']
LAST = ["--pooler-config", '{"task": "classify"}', "--enable-prefix-caching"]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder, paths = tmp_path_factory.mktemp("vllm"), pocket_paths()
    models = {
        role: make_servable(Path(getattr(paths, role)), folder / role) for role in ("draft", "target", "prm")
    }
    tokens = ["--enable-prompt-tokens-details"]
    wanted = [
        ("draft", GUIDED + tokens),
        ("target", tokens),  # It chooses the backend of grammars itself.
        ("prm", []),
        ("prm", TAGS),
        ("prm", LAST),
    ]
    served = [(models[role], flags) for role, flags in wanted]
    with serve(os.environ["RSD_VLLM_PYTHON"], served, folder) as found:
        yield dict(zip(("draft", "target", "prm", "tags", "last"), found, strict=True))


@pytest.fixture(scope="module")
def pipes(urls: dict[str, str]) -> Iterator[dict[str, RSDPipeline]]:
    """Over each way of pooling; and the same models in this process."""
    with ExitStack() as stack:
        over = {
            pools: stack.enter_context(RSDPipeline.from_vllm(urls["draft"], urls["target"], urls[pools]))
            for pools in ("prm", "tags", "last")
        }
        yield {**over, "within": stack.enter_context(RSDPipeline.pocket())}


@pytest.mark.parametrize("pools", ["prm", "tags", "last"])
def test_rewards_are_equal_however_they_pool(pipes: dict[str, RSDPipeline], pools: str) -> None:
    for question in QUESTIONS:
        over, within = pipes[pools].generate(question), pipes["within"].generate(question)
        assert told(over) == told(within)
        rewards = [step.reward for step in within.steps]
        assert [step.reward for step in over.steps] == pytest.approx(rewards, abs=1e-4)


def test_what_servers_do_with_grammars_is_found_out(pipes: dict[str, RSDPipeline]) -> None:
    backend: Any = pipes["last"].backend
    assert (backend.draft.holds_grammars, backend.target.holds_grammars) == (True, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 0.0},
        {"threshold": 1.1},
        {"weighting": "constant", "acceptance_rate": 0.5, "seed": 1},
        {
            "weighting": "constant",
            "acceptance_rate": 0.5,
            "seed": 2,
            "repetition_penalty": 1.2,
            "max_tokens": 90,
        },
        {"temperature": 2.0, "min_p": 1.0, "seed": 1},  # None but the likeliest.
        {"max_tokens": 17},
        {"max_step_tokens": 3, "max_steps": 9},
        {"step_delimiter": [".", "\n"]},
        {"stop": "minutes"},
        {"output": FORM},
        {"output": FORM, "threshold": 0.0},
        {"output": FORM, "threshold": 1.1},
        {"output": FORM, "max_step_tokens": 4},
    ],
    ids=str,
)
def test_answers_are_equal(pipes: dict[str, RSDPipeline], fields: dict[str, Any]) -> None:
    over, within = (pipes[which].generate(QUESTIONS[0], **fields) for which in ("last", "within"))
    assert told(over) == told(within)


def test_bans_hold_an_answer_to_its_form(
    pipes: dict[str, RSDPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trio's vocabulary is small, so few tokens may be named. With top_p none is drawn freely first."""
    banning, asked = VLLMWriter._banning, [0]

    def counting(*given: Any) -> Any:
        asked[0] += 1
        return banning(*given)

    monkeypatch.setattr(writer, "_MOST_NAMED", 70)
    monkeypatch.setattr(VLLMWriter, "_banning", counting)
    note = {
        "type": "object",
        "properties": {"note": {"type": "string", "maxLength": 12}},
        "required": ["note"],
    }
    fields: dict[str, Any] = {"output": Output(schema=note), "threshold": 1.1, "top_p": 0.9}
    over, within = (pipes[which].generate(QUESTIONS[0], **fields) for which in ("last", "within"))
    assert told(over) == told(within)
    assert asked[0] > 1


def test_sampled_answers_repeat_side_by_side(pipes: dict[str, RSDPipeline]) -> None:
    fields: dict[str, Any] = {"temperature": 2.0, "max_tokens": 30, "weighting": "constant"}

    async def together() -> list[Any]:
        seeds = [seed % 4 for seed in range(8)]
        return await asyncio.gather(
            *(pipes["last"].agenerate(QUESTIONS[0], seed=seed, **fields) for seed in seeds)
        )

    texts = [one.text for one in asyncio.run(together())]
    assert texts[:4] == texts[4:]
    assert len(set(texts)) > 1


def test_a_cancelled_question_frees_its_server(pipes: dict[str, RSDPipeline]) -> None:
    pipe = pipes["last"]
    endless: dict[str, Any] = {"step_delimiter": "\0", "max_step_tokens": 900, "threshold": 1.1}
    begun = time.monotonic()
    assert pipe.generate("44 44 44 44", timeout=0.3, **endless).finish_reason == "cancelled"
    assert time.monotonic() - begun < 5
    assert pipe.generate(QUESTIONS[0], max_tokens=3).text


def test_servers_of_the_wrong_kind_are_found_out(urls: dict[str, str]) -> None:
    with pytest.raises(BackendError, match="answered 404 to /v1/completions"):
        RSDPipeline.from_vllm(urls["prm"], urls["target"], urls["prm"])
    with pytest.raises(BackendError, match="answered 404 to /pooling"):
        RSDPipeline.from_vllm(
            urls["draft"],
            urls["target"],
            urls["target"],
            prm_format="trl",
            prm_kwargs={"source": str(pocket_paths().prm)},
        )
