"""Forwards that are traced on a CPU change nothing but the time they take."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch import interpreter, traced
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.traced import Traced
from tests.backends.test_slots import close, run_a_history, runner_of
from tests.backends.test_speculation import ASKED, PAIRS, ask, check_equal, load, pairs
from tests.tiny_models import ARCHITECTURES, causal

PROMPT = "Ava has 12 marbles. She buys 9 more."


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second forward of a kind is traced."""
    monkeypatch.setattr(traced, "PAYS", 1)


def kinds(runner: SlotRunner) -> list[Any]:
    assert isinstance(runner._call, Traced)
    return list(runner._call._kinds.values())


def runners(pipe: RSDPipeline) -> list[SlotRunner]:
    models: list[Any] = [pipe.backend.draft, pipe.backend.target, pipe.backend.prm]
    return [model.runner for model in models]


def write(model: Any, runner: SlotRunner, count: int = 8) -> None:
    """One token at a time, each as a full forward would have it."""
    slot, tokens = runner.pool.claim()[0], [5, 9, 13, 21, 34, 2, 17, 8, 11, 3, 29, 23][:count]
    for length in range(1, count + 1):
        feed = SlotFeed(slot, length - 1, tokens[length - 1 : length])
        assert close(model, runner.run([feed])[0], tokens[:length])
    runner.release(slot)


@pytest.mark.parametrize(
    "architecture",  # That each kind of all of them can be traced is seen in test_bursts.py as well.
    [
        pytest.param(one, marks=[] if one in ("Qwen2", "GPT2", "Phi3", "Gemma4Text") else pytest.mark.slow)
        for one in ARCHITECTURES
    ],
)
def test_any_history_gives_what_a_full_forward_gives(architecture: str) -> None:
    """And no architecture is refused: each kind that is met twice is traced."""
    model = causal(architecture, 3)
    runner = runner_of(model, capacity=96, traces=True)
    for seed in range(2):
        run_a_history(model, runner, random.Random(seed))
        for slot in range(4):
            runner.release(slot)
    met = [kind for kind in kinds(runner) if kind.called > 1]
    assert len(met) >= 3
    assert all(kind.trace is not None and not kind.refused for kind in met)


@pairs("sliding window", "other tokenizer", "kinds of layers")  # test_bursts.py has another, traced as well.
def test_answers_are_the_same_traced_and_called(pair: str) -> None:
    """Token for token, alone and in company, with guesses, with candidates, past rejected steps."""
    with load(*PAIRS[pair]) as pipe, ThreadPoolExecutor(len(ASKED)) as pool:
        alone = [ask(pipe, given) for given in ASKED]
        together = list(pool.map(lambda given: ask(pipe, given), ASKED))
        for runner in runners(pipe):
            assert any(kind.trace is not None for kind in kinds(runner))
            assert not any(kind.refused for kind in kinds(runner))
    with load(*PAIRS[pair], cpu_traces=False) as pipe:
        for one, company, given in zip(alone, together, ASKED, strict=True):
            expected = ask(pipe, given)
            check_equal(one, expected)
            check_equal(company, expected)
        assert not any(isinstance(runner._call, Traced) for runner in runners(pipe))


def changed(change: Callable[..., Any]) -> Any:
    """A model whose forward goes through ``change(forward, **inputs)``."""
    model = copy.deepcopy(causal("Qwen2", 3))
    forward = model.forward
    model.forward = lambda **inputs: change(forward, **inputs)
    return model


def looking(forward: Any, **inputs: Any) -> Any:
    """Decides by a number in a tensor."""
    if int(inputs["input_ids"].max()) > 20:
        inputs["input_ids"] = inputs["input_ids"] - 1
    return forward(**inputs)


def measuring(forward: Any, **inputs: Any) -> Any:
    """Decides by the number of positions."""
    if inputs["attention_mask"] is not None and inputs["attention_mask"].shape[-1] > 6:
        inputs["input_ids"] = inputs["input_ids"] - 1
    return forward(**inputs)


@pytest.mark.parametrize("decides", [looking, measuring])
def test_a_model_that_decides_on_its_way_is_called(decides: Callable[..., Any]) -> None:
    model = changed(decides)
    tokens = [5, 9, 13, 21, 34, 2, 17, 8, 11, 3, 29, 23]
    outputs = []
    for traces in (False, True):
        runner = runner_of(model, traces=traces)
        feeds = [SlotFeed(0, place, [token]) for place, token in enumerate(tokens)]
        outputs.append([runner.run([feed])[0].kept_R for feed in feeds])  # type: ignore[union-attr]
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other)
    assert [kind.refused for kind in kinds(runner)] == [True]


def test_a_trace_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = interpreter.traced
    used = [0]

    def wrong(*given: Any, **more: Any) -> Any:
        trace = real(*given, **more)

        def run(*inputs: Any) -> Any:
            used[0] += 1
            kept, fetched = trace(*inputs)
            return (kept, fetched) if used[0] < 3 else (kept + 0.5, fetched)

        return run

    monkeypatch.setattr(interpreter, "traced", wrong)
    model = causal("Qwen2", 3)
    write(model, runner := runner_of(model, traces=True))
    assert used == [3]
    assert [kind.refused for kind in kinds(runner)] == [True]


@pytest.mark.parametrize("where", ["making", "running"])
def test_what_fails_traced_is_called(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tries = causal("Qwen2", 3), [0]
    real = interpreter.traced

    def failing(*inputs: Any) -> Any:
        tries[0] += 1
        raise RuntimeError("the interpreter broke")

    def trace(*given: Any, **more: Any) -> Any:
        return failing() if where == "making" else real(*given, **more)

    monkeypatch.setattr(interpreter, "traced", trace)
    runner = runner_of(model, traces=True)
    write(model, runner)
    for kind in kinds(runner):
        kind.trace = failing
    write(model, runner)
    assert tries == [1]


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_are_called(kind: str) -> None:
    model, calls = copy.deepcopy(causal("Qwen2", 3)), []
    getattr(model.model.layers[0], f"register_{kind}")(lambda *given: calls.append(1))
    runner = runner_of(model, traces=True)
    for place in range(5):
        runner.run([SlotFeed(0, place, [5])])
    assert len(calls) == 5


def test_weights_are_shared_with_the_traces() -> None:
    """Nothing of them is folded into constants: changed in place they count at once."""
    for architecture in ("Qwen2", "Gemma3Text"):
        model = copy.deepcopy(causal(architecture, 3))
        runner = runner_of(model, traces=True)
        write(model, runner)
        assert kinds(runner)[0].trace is not None
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.25)
        write(model, runner)


def test_a_bad_row_fails_alone_and_does_not_end_tracing() -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model, traces=True)
    for _ in range(3):
        outputs = runner.run([SlotFeed(0, 0, [1, 2]), SlotFeed(1, 0, [10**6, 2]), SlotFeed(2, 0, [3, 4])])
        assert isinstance(outputs[1], Exception)
        assert close(model, outputs[0], [1, 2])
        assert close(model, outputs[2], [3, 4])
    assert not any(kind.refused for kind in kinds(runner))


def test_traces_go_with_their_runner() -> None:
    model = copy.deepcopy(causal("Qwen2", 3))
    runner = runner_of(model, traces=True)
    write(model, runner)
    gone = [weakref.ref(model), weakref.ref(runner.cache.states()[0])]
    del model, runner
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_rare_forwards_are_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "PAYS", 8)
    model = causal("Qwen2", 3)
    runner = runner_of(model, traces=True)
    write(model, runner)
    assert [kind.trace for kind in kinds(runner)] == [None]
    write(model, runner, count=1)
    assert [kind.trace is None for kind in kinds(runner)] == [False]
