"""Forwards that are recorded or compiled change nothing but the time they take."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.torch import forwards
from rsd_integrations.backends.torch.forwards import Compiled, LaunchOptions
from rsd_integrations.backends.torch.heads import RewardModel
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Output, read_hidden, read_logits
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.errors import ConfigError
from tests.backends.test_slots import close, run_a_history, runner_of
from tests.backends.test_speculation import FIELDS, PAIRS, check_equal, load
from tests.recording import Recordings
from tests.tiny_models import ARCHITECTURES, causal, token_classifier, tokenizer

PROMPT = "Ava has 12 marbles. She buys 9 more."


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """The CPU records as a GPU does."""
    made = Recordings()
    monkeypatch.setattr(forwards, "recorder_for", lambda device: made)
    return made


@pytest.mark.parametrize("pair", PAIRS)
def test_answers_are_the_same_recorded_and_called(pair: str, recordings: Recordings) -> None:
    """Token for token, alone and in company, with guesses, with candidates, past rejected steps."""
    asked: list[dict[str, Any]] = [
        {"seed": 0},
        {"seed": 1, "temperature": 0.8},
        {"seed": 2, "speculation": False},
        {"seed": 3, "temperature": 0.8, "draft_candidates": 3},
        {"seed": 4, "acceptance_rate": 0.0},
    ]

    def ask(pipe: RSDPipeline, given: dict[str, Any]) -> Generation:
        return pipe.generate(PROMPT, **{**FIELDS, **given})

    with load(*PAIRS[pair]) as pipe:
        recorded = [ask(pipe, given) for given in asked]
        with ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(lambda given: ask(pipe, given), asked))
        assert recordings.replayed > 2 * recordings.recorded > 0
    with RSDPipeline.from_pretrained(*_sources(pair), cuda_graphs=False, device="cpu") as pipe:
        count = recordings.recorded
        for one, company, given in zip(recorded, together, asked, strict=True):
            expected = ask(pipe, given)
            check_equal(one, expected)
            check_equal(company, expected)
        assert recordings.recorded == count


def _sources(pair: str) -> list[Any]:
    draft, target = PAIRS[pair]
    return [
        *(
            (causal(kind, seed, flavour, max_position_embeddings=512), tokenizer(flavour))
            for (kind, flavour), seed in zip((draft, target), (0, 1), strict=True)
        ),
        (token_classifier(0, "ascii"), tokenizer("ascii")),
    ]


def _reading_on_the_host(model: Any) -> Any:
    """A model that looks at a number on its way, as data-dependent code does."""
    made = copy.deepcopy(model)
    forward = made.forward

    def looks(input_ids: torch.Tensor, **more: Any) -> Any:
        return forward(input_ids=input_ids + (0 if int(input_ids.sum()) >= 0 else 1), **more)

    made.forward = looks
    return made


def test_a_model_that_cannot_be_recorded_runs_without_and_says_so_once(recordings: Recordings) -> None:
    sources = _sources("same tokenizer")
    odd = [(_reading_on_the_host(sources[0][0]), sources[0][1]), *sources[1:]]
    with (
        pytest.warns(RuntimeWarning, match="cannot be recorded as CUDA graphs.*cuda_graphs=False") as told,
        RSDPipeline.from_pretrained(*odd, device="cpu") as pipe,
    ):
        one = pipe.generate(PROMPT, **FIELDS, seed=0)
    assert len(told) == 1
    with warnings.catch_warnings(), load(*PAIRS["same tokenizer"]) as pipe:
        warnings.simplefilter("error")
        check_equal(one, pipe.generate(PROMPT, **FIELDS, seed=0))


def test_a_lack_of_memory_is_no_reason_to_give_recording_up(recordings: Recordings) -> None:
    model = causal("Qwen2", 3)
    short = [True]

    def recorder(work: Callable[[], None]) -> Callable[[], None]:
        if short:
            short.clear()
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return recordings(work)

    runner = runner_of(
        model,
        launcher=lambda slots, capacity: (
            lambda compute: forwards.Recorded(compute, recorder, slots=slots, capacity=capacity)
        ),
    )
    feeds = [SlotFeed(runner.claim(), 0, [1, 2, 3]), SlotFeed(runner.claim(), 0, [4, 5, 6])]
    for _ in range(2):
        for feed, output in zip(feeds, runner.run(feeds), strict=True):
            assert close(model, output, list(feed.tokens))
    assert recordings.recorded == 1


def test_a_failed_row_leaves_the_others_their_own_outputs(recordings: Recordings) -> None:
    """Rows that are run again alone have one shape, and replays of one shape share their outputs."""
    model = causal("Qwen2", 3)
    runner = runner_of(model, launcher=recordings.launcher)
    feeds = [SlotFeed(runner.claim(), 0, tokens) for tokens in ([1, 2], [10**6, 2], [3, 4], [5, 6])]
    outputs = runner.run(feeds)
    assert isinstance(outputs[1], Exception)
    for index in (0, 2, 3):
        assert close(model, outputs[index], list(feeds[index].tokens))


class _OffDevice(TorchDispatchMode):
    """Notes what is not on the device, which a recording could not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, made)) if isinstance(one, torch.Tensor)]
        self.found += [f"{func}: {one.device}" for one in tensors if one.device.type != "meta"]
        return made


@pytest.mark.parametrize("name", [*ARCHITECTURES, "reward head"])
def test_nothing_of_a_forward_is_made_on_the_host(name: str) -> None:
    """A copy from the host would break a CUDA graph. "meta" stands for the device."""
    if name == "reward head":
        rewarding = RewardModel(copy.deepcopy(token_classifier()), "token").to("meta")
        model, readout = rewarding.body, read_hidden(rewarding.body, rewarding.reader((1,)))
    else:
        model = copy.deepcopy(causal(name, 3)).to("meta")
        readout = read_logits(model)
    device = torch.device("meta")
    runner = SlotRunner(model.config, readout, device=device, dtype=torch.float32, slots=4, capacity=96)
    for rows, tokens, block in ((1, 1, 0), (2, 8, None)):
        head_N3, ids_NT = (torch.zeros(rows, size, dtype=torch.long, device=device) for size in (3, tokens))
        with torch.inference_mode(), _OffDevice() as watch:
            kept, fetched = runner._compute(head_N3, ids_NT, runner._key_L[:64], block=block)
        assert not watch.found
        assert kept.shape[:2] == fetched.shape[:2] == (rows, tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "yes"}, r"compile='yes' is no choice\. Use True or False"),
        ({"cuda_graphs": 1}, r"cuda_graphs=1 is no choice\. Use True or False or None"),
        ({"cuda_graphs": True}, r"cuda_graphs=True, but the model is on cpu\. Put it on one CUDA device"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RSDPipeline.from_pretrained(*_sources("same tokenizer"), device="cpu", **options)


def test_a_compiler_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: Any, **options: Any) -> Any:
        def fails(*given: Any, **more: Any) -> Any:
            raise RuntimeError("no C++ compiler found\nand so on")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(
        ConfigError, match=r"torch.compile failed: RuntimeError: .*no C\+\+ compiler found.* It needs"
    ):
        RSDPipeline.from_pretrained(*_sources("same tokenizer"), device="cpu", compile=True)


def test_by_default_nothing_is_launched_on_a_cpu() -> None:
    assert LaunchOptions().launcher(causal("Qwen2", 3), slots=1, capacity=9) is None
    assert LaunchOptions(compile=True).launcher(causal("Qwen2", 3), slots=1, capacity=9) is Compiled


def test_a_compiled_token_is_the_same() -> None:
    """What most forwards are: one token behind a prompt, which is called."""
    model = causal("Qwen2", 3)
    runner = runner_of(model, launcher=lambda slots, capacity: Compiled)
    slot, tokens = runner.claim(), list(range(1, 103))
    runner.run([SlotFeed(slot, 0, tokens[:100])])
    for length in (101, 102):
        output = runner.run([SlotFeed(slot, length - 1, tokens[length - 1 : length])])[0]
        assert isinstance(output, Output)
        assert close(model, output, tokens[:length])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["Qwen2", "Mistral", "Gemma3Text"])
def test_any_history_compiled(architecture: str) -> None:
    model = causal(architecture, 3)
    runner = runner_of(model, capacity=96, launcher=lambda slots, capacity: Compiled)
    run_a_history(model, runner, random.Random(7))


@pytest.mark.slow
def test_answers_are_the_same_compiled() -> None:
    sources = _sources("same tokenizer")
    with (
        RSDPipeline.from_pretrained(*sources, device="cpu", compile=True) as compiled,
        RSDPipeline.from_pretrained(*sources, device="cpu") as called,
    ):
        for given in ({"seed": 0}, {"seed": 1, "temperature": 0.8}, {"seed": 2, "acceptance_rate": 0.0}):
            one, other = (pipe.generate(PROMPT, **{**FIELDS, **given}) for pipe in (compiled, called))
            check_equal(one, other)
