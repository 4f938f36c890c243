"""Forwards that are recorded or compiled change nothing but the time they take."""

from __future__ import annotations

import copy
import functools
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch import launch
from rsd_integrations.backends.torch.forwards import Compiled, alike
from rsd_integrations.backends.torch.heads import RewardModel
from rsd_integrations.backends.torch.launch import launcher_of
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Read, read_hidden, read_logits
from rsd_integrations.backends.torch.recording import NotRecordable, Recorded, Watch, recorder_for
from rsd_integrations.backends.torch.recurrent import RecurrentRunner
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.states import is_recurrent
from rsd_integrations.errors import ConfigError
from tests.backends.test_slots import close, recomputed, run_a_history, runner_of
from tests.backends.test_speculation import ASKED, FIELDS, PAIRS, ask, check_equal, load, pairs
from tests.recording import Recordings
from tests.tiny_models import ARCHITECTURES, EXPERTS, causal, token_classifier, trio
from tests.warned import own

PROMPT = "Ava has 12 marbles. She buys 9 more."


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """The CPU records as a GPU does."""
    made = Recordings()
    monkeypatch.setattr(launch, "recorder_for", lambda device: made)
    return made


# The others are recorded in storms of requests (test_ahead.py) and in histories (test_slots.py) as well.
@pairs("other tokenizer", "sliding window", "kinds of layers")
def test_answers_are_the_same_recorded_and_called(pair: str, recordings: Recordings) -> None:
    """Token for token, alone and in company, with guesses, with candidates, past rejected steps."""
    with load(*PAIRS[pair]) as pipe:
        recorded = [ask(pipe, given) for given in ASKED]
        with ThreadPoolExecutor(len(ASKED)) as pool:
            together = list(pool.map(lambda given: ask(pipe, given), ASKED))
        assert recordings.replayed > 2 * recordings.recorded > 0
    with RSDPipeline.from_pretrained(*_sources(pair), cuda_graphs=False, device="cpu") as pipe:
        count = recordings.recorded
        for one, company, given in zip(recorded, together, ASKED, strict=True):
            expected = ask(pipe, given)
            check_equal(one, expected)
            check_equal(company, expected)
        assert recordings.recorded == count


def _sources(pair: str) -> list[Any]:
    kinds, flavours = zip(*PAIRS[pair], strict=True)
    return list(trio(*kinds, (*flavours, "ascii")).values())


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
    assert len(own(told)) == 1
    with load(*PAIRS["same tokenizer"]) as pipe:
        check_equal(one, pipe.generate(PROMPT, **FIELDS, seed=0))


def test_graphs_of_replaced_weights_share_nothing_with_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU their pool of memory is gone with them, and nothing can be recorded into it."""
    made: list[Recordings] = []

    def recorder(device: torch.device) -> Recordings:
        made.append(Recordings())
        return made[-1]

    monkeypatch.setattr(launch, "recorder_for", recorder)
    model = copy.deepcopy(causal("Qwen2", 3))
    options: dict[str, Any] = {"compile": False, "cuda_graphs": None}
    runner = runner_of(
        model, launcher=lambda slots, capacity: launcher_of(model, slots=slots, capacity=capacity, **options)
    )
    check_tokens_one_by_one(runner, model)
    assert runner.launches
    first = made[-1]
    count = first.recorded
    assert count
    model.load_state_dict(copy.deepcopy(causal("Qwen2", 4).state_dict()), assign=True)
    slot, _ = runner.claim()
    assert close(model, runner.run([SlotFeed(slot, 0, [5])])[0], [5])
    assert (first.recorded, made[-1].recorded) == (count, 1)


class Cuda:
    """What of torch.cuda a recorder uses: which stream is current, and what is done on which."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.pools, self.streams, self.done = self, 0, 0, list[Any]()
        for name in ("Stream", "CUDAGraph", "graph", "device", "graph_pool_handle", "set_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)

    def Stream(self, device: torch.device) -> Any:
        self.streams += 1
        return object()

    def CUDAGraph(self) -> Any:
        return type("Graph", (), {"replay": lambda graph: self.done.append("replayed")})()

    def device(self, device: torch.device) -> Any:
        return nullcontext()

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    def synchronize(self) -> None:
        self.done.append("waited")

    def wait_stream(self, other: Any) -> None:
        self.done.append("joined")

    @contextmanager
    def graph(self, graph: Any, *, pool: int, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.set_stream(stream)
        self.done.append(("captures into", pool))
        yield


def test_graphs_are_recorded_on_a_stream_on_which_nothing_else_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cuBLAS keeps for a stream is then made while recording, in the pool, where nobody frees it."""
    cuda = Cuda(monkeypatch)
    streams: list[Any] = []
    for pool in (1, 2):
        record = recorder_for(torch.device("cuda"))
        assert record is not None
        cuda.done.clear()
        streams.clear()
        replay = record(lambda: streams.append(cuda.current))
        assert cuda.done == ["waited", ("captures into", pool), "joined"]
        assert streams[0] is cuda.current is cuda
        assert streams[1] is not cuda
        replay()
        assert cuda.done[-1] == "replayed"


def test_a_launcher_takes_one_stream_and_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """And another of each for the graphs of replaced weights."""
    cuda, model = Cuda(monkeypatch), torch.nn.Module()
    parameter = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(model, "parameters", lambda: iter([parameter]))
    make = launcher_of(model, compile=False, cuda_graphs=None, slots=1, capacity=9)
    assert make is not None
    for count in (1, 2):
        make(lambda *given, **more: None)  # type: ignore[arg-type, return-value]
        assert (cuda.streams, cuda.pools) == (count, count)


def recorded_with(recorder: Any) -> Any:
    return lambda slots, capacity: lambda compute: Recorded(compute, recorder, slots=slots, capacity=capacity)


def check_tokens_one_by_one(runner: SlotRunner, model: Any) -> None:
    slot, tokens = runner.pool.claim()[0], [5, 9, 13, 21]
    for length in range(1, 5):
        feed = SlotFeed(slot, length - 1, tokens[length - 1 : length])
        assert close(model, runner.run([feed])[0], tokens[:length])


def test_without_memory_for_a_recording_there_are_no_more_of_them(recordings: Recordings) -> None:
    tried = [0]

    def short(work: Callable[[], None]) -> Callable[[], None]:
        tried[0] += 1
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    model = causal("Qwen2", 3)
    check_tokens_one_by_one(runner_of(model, launcher=recorded_with(short)), model)
    assert tried == [1]


def test_a_shape_of_several_tokens_is_recorded_when_it_is_met_again(recordings: Recordings) -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model, launcher=recordings.launcher)
    feed = SlotFeed(runner.pool.claim()[0], 0, [5, 9, 13])
    counts = []
    for _ in range(4):
        assert close(model, runner.run([feed])[0], [5, 9, 13])
        counts.append(recordings.recorded)
    assert counts == [0, 0, 1, 1]


def test_replays_that_compute_something_else_are_found_when_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: None  # As kernels that were launched past the recording.

    monkeypatch.setattr(launch, "recorder_for", lambda device: forgetful)
    with (
        pytest.warns(
            RuntimeWarning, match="computes something else .* neither compiled nor recorded"
        ) as told,
        RSDPipeline.from_pretrained(*_sources("same tokenizer"), device="cpu") as pipe,
    ):
        one = pipe.generate(PROMPT, **FIELDS, seed=0)
    assert len(own(told)) == 3
    monkeypatch.setattr(launch, "recorder_for", lambda device: None)
    with load(*PAIRS["same tokenizer"]) as pipe:
        check_equal(one, pipe.generate(PROMPT, **FIELDS, seed=0))


def test_a_model_that_only_runs_when_it_is_called_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of some quantizers do not go through a dispatch mode, say."""

    def fails(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError("no dispatch mode, please")

    monkeypatch.setattr(launch, "recorder_for", lambda device: Recordings())
    monkeypatch.setattr(Watch, "__torch_dispatch__", fails)
    with (
        pytest.warns(
            RuntimeWarning, match="no dispatch mode, please.* neither compiled nor recorded"
        ) as told,
        RSDPipeline.from_pretrained(*_sources("same tokenizer"), device="cpu") as pipe,
    ):
        assert pipe.generate(PROMPT, **FIELDS, seed=0).steps
    assert len(own(told)) == 3


def test_a_failure_ahead_of_the_host_does_not_fail_what_it_follows(recordings: Recordings) -> None:
    model = causal("Qwen2", 3)
    runner = runner_of(model, launcher=recordings.launcher)
    runner._launcher.again = lambda shape: 1 / 0  # type: ignore[union-attr]
    slot = runner.pool.claim()[0]
    (output,) = runner.run([SlotFeed(slot, 0, [5])], ahead=True)
    assert isinstance(output, Read)
    assert not output.followed
    assert close(model, output, [5])


def test_a_row_without_a_likeliest_token_does_not_keep_others_from_running_ahead(
    recordings: Recordings,
) -> None:
    """On a GPU the -1 that stands for none would end all that run there, if it were fed."""
    model: Any = copy.deepcopy(causal("Qwen2", 3))
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    runner = runner_of(model, launcher=recordings.launcher)
    feeds = [SlotFeed(runner.pool.claim()[0], 0, [token]) for token in (5, 7)]
    fine, none = runner.run(feeds, ahead=True)
    assert isinstance(fine, Read)
    assert isinstance(none, Read)
    assert fine.fetched == [int(recomputed(model, [5]).argmax())]
    assert none.fetched == [-1]
    assert fine.followed


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.to("meta"),
        lambda x: x if x.sum() else None,
    ],
)
def test_what_a_recording_cannot_hold_is_named_before_it_is_tried(work: Callable[[Any], Any]) -> None:
    with pytest.raises(NotRecordable, match=r"aten\."), Watch(torch.device("cpu")):
        work(torch.ones(3))


NUMBERS_OF_THE_HOST: dict[str, Callable[[Any], Any]] = {
    "a number": lambda x: x * torch.tensor(2.0, device=x.device),
    "numbers": lambda x: x + torch.tensor([1, 2, 3], device=x.device),
    "as_tensor": lambda x: x + torch.as_tensor([1, 2, 3], device=x.device),
    "as_tensor by name": lambda x: x + torch.as_tensor(data=[1, 2, 3], device=x.device),
    "asarray": lambda x: x + torch.asarray([1, 2, 3], device=x.device),
    "new_tensor": lambda x: x.new_tensor(2.0),
    "a list as index": lambda x: x[[0, 1]],
    "a range as index": lambda x: x[range(2)],
    "a tuple among indices": lambda x: x[(0, 1),],
    "a list among indices": lambda x: x[None][:, [0, 1]],
    "an array as index": lambda x: x[np.array([0, 1])],
    "a list to write to": lambda x: x.__setitem__([0, 1], 1.0),
}
ONLY_ON_ANOTHER_DEVICE: dict[str, Callable[[Any], Any]] = {
    "to": lambda x: x * torch.tensor(2.0).to(x.device),
    "to, also of type": lambda x: x * torch.tensor(2.0).to(x.device, torch.float64),
    "copy_": lambda x: x.copy_(torch.tensor(2.0)),
    "where": lambda x: torch.where(x > 0, torch.tensor(2.0), x),
    "index_put": lambda x: x.index_put_((x.long(),), torch.tensor(2.0)),
}


@pytest.mark.parametrize("name", NUMBERS_OF_THE_HOST)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@torch.inference_mode()
def test_numbers_of_the_host_are_not_recorded(name: str, device: str) -> None:
    """A GPU's recording would copy them from memory that is gone, and the copy would wait for the stream."""
    x = torch.ones(3, device=device)
    with pytest.raises(NotRecordable, match=r"of the host to the device|works on cpu"), Watch(x.device):
        NUMBERS_OF_THE_HOST[name](x)
    if device == "cpu":
        with Watch(x.device, constants=True):
            NUMBERS_OF_THE_HOST[name](x)


@pytest.mark.parametrize("name", ONLY_ON_ANOTHER_DEVICE)
@torch.inference_mode()
def test_nor_are_copies_of_a_lone_number(name: str) -> None:
    x = torch.ones(3, device="meta")
    with pytest.raises(NotRecordable, match=r"aten\..* works on .*cpu"), Watch(x.device):
        ONLY_ON_ANOTHER_DEVICE[name](x)


@torch.inference_mode()
def test_what_it_can_hold_is_let_through() -> None:
    place = torch.tensor([0, 1])
    with Watch(torch.device("cpu")):
        made = torch.ones(3)[place].where(torch.ones(()) > 0, 0) + torch.arange(2)
        made[place] = 4.0
    assert made.tolist() == [4.0, 4.0]
    x = torch.ones(3, device="meta")
    with Watch(x.device):  # A lone number goes along with the launch.
        made = x * torch.tensor(2.0) + 1
        made[0], made[1:] = 3.0, made[0]
        made = torch.as_tensor(data=made) + torch.asarray(made) + made[None, ..., np.int64(0)]
        torch.where(made > 0, 2.0, made)


def test_a_model_that_brings_numbers_of_the_host_is_called_and_says_so(recordings: Recordings) -> None:
    sources = _sources("same tokenizer")
    model = copy.deepcopy(sources[0][0])
    model.model.norm.register_forward_hook(lambda _module, _inputs, made: made * made.new_tensor(1.0))
    with (
        pytest.warns(RuntimeWarning, match=r"cannot be recorded.*aten\.detach_.* of the host") as told,
        RSDPipeline.from_pretrained((model, sources[0][1]), *sources[1:], device="cpu") as pipe,
    ):
        one = pipe.generate(PROMPT, **FIELDS, seed=0)
    assert len(own(told)) == 1
    with load(*PAIRS["same tokenizer"]) as pipe:
        check_equal(one, pipe.generate(PROMPT, **FIELDS, seed=0))


@pytest.mark.parametrize("architecture", [*EXPERTS, "Qwen3Next"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_experts_are_recorded_in_bfloat16(architecture: str, dtype: torch.dtype) -> None:
    """In others torch reads on the host where each expert's tokens end. "meta" stands for the device."""
    model = copy.deepcopy(causal(architecture, 3)).to("meta", dtype)
    device = torch.device("meta")
    kind = RecurrentRunner if is_recurrent(model.config) else SlotRunner
    runner = kind(model.config, read_logits(model), device=device, dtype=dtype, slots=4, capacity=96)
    head_N3, ids_NT = (torch.zeros(2, size, dtype=torch.long, device=device) for size in (3, 1))
    fails = pytest.raises(NotRecordable, match=r"_grouped_mm.* depends on numbers")
    with torch.inference_mode(), nullcontext() if dtype is torch.bfloat16 else fails, Watch(device):
        runner._compute(head_N3, ids_NT, runner._key_L[:64], block=0)


@pytest.mark.parametrize("major", [8, 9, 10, 12])
def test_and_on_gpus_that_torch_has_a_kernel_for(major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    tensors = [torch.empty(1, dtype=dtype) for dtype in (torch.bfloat16, torch.bfloat16, torch.int32)]
    name = "aten._grouped_mm.default"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert Watch(torch.device("cuda"))._reads_groups(name, tensors) == (major not in (9, 10))
    assert not Watch(torch.device("cuda"))._reads_groups(name, tensors[:2])
    monkeypatch.setattr(torch.version, "cuda", None)  # On an AMD, whose numbers are others.
    assert Watch(torch.device("cuda"))._reads_groups(name, tensors)


def test_a_failed_row_leaves_the_others_their_own_outputs(recordings: Recordings) -> None:
    """Rows that are run again alone have one shape, and replays of one shape share their outputs."""
    model = causal("Qwen2", 3)
    runner = runner_of(model, launcher=recordings.launcher)
    feeds = [SlotFeed(runner.pool.claim()[0], 0, tokens) for tokens in ([1, 2], [10**6, 2], [3, 4], [5, 6])]
    outputs = runner.run(feeds)
    assert isinstance(outputs[1], Exception)
    for index in (0, 2, 3):
        assert close(model, outputs[index], list(feeds[index].tokens))


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
        with torch.inference_mode(), Watch(device):
            kept, fetched = runner._compute(head_N3, ids_NT, runner._key_L[:64], block=block)
        assert kept.shape[:2] == fetched.shape[:2] == (rows, tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "yes"}, r"compile='yes' is no choice\. Use True or False"),
        ({"cpu_traces": None}, r"cpu_traces=None is no choice\. Use True or False"),
        ({"cuda_graphs": 1}, r"cuda_graphs=1 is no choice\. Use True or False or None"),
        ({"cuda_graphs": True}, r"cuda_graphs=True, but the model is on cpu\. Put it on one CUDA device"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RSDPipeline.from_pretrained(*_sources("same tokenizer"), device="cpu", **options)


def test_what_is_alike_up_to_rounding() -> None:
    one = torch.tensor([[1.0, torch.nan, -torch.inf, 40.0]])
    for other, same in (
        (one + 0.03, True),
        (one + 0.05, False),
        (one.nan_to_num(torch.nan, neginf=-1e9), False),
        (one.nan_to_num(0.0), False),
        (one.double(), False),
        (one[:, :3], False),
    ):
        assert alike((other, other), (one, one)) is same


@pytest.mark.parametrize("recorded", [False, True])
def test_a_compiler_that_fails_is_told_of(recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: Any, **options: Any) -> Any:
        def fails(*given: Any, **more: Any) -> Any:
            raise RuntimeError("no C++ compiler found\nand so on")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(launch, "recorder_for", lambda device: Recordings() if recorded else None)
    with pytest.raises(
        ConfigError, match=r"torch.compile failed: RuntimeError: .*no C\+\+ compiler found.* It needs"
    ):
        RSDPipeline.from_pretrained(*_sources("same tokenizer"), device="cpu", compile=True)


def test_what_finds_no_memory_while_compiling_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the compiler that failed."""

    def short(*given: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    monkeypatch.setattr(torch, "compile", lambda function, **options: short)
    model = causal("Qwen2", 3)
    runner = runner_of(model, launcher=lambda slots, capacity: Compiled)
    (output,) = runner.run([SlotFeed(runner.pool.claim()[0], 0, [5])])
    assert close(model, output, [5])


def test_by_default_nothing_is_launched_on_a_cpu() -> None:
    for compile, launcher in ((False, None), (True, Compiled)):
        made = launcher_of(causal("Qwen2", 3), compile=compile, cuda_graphs=None, slots=1, capacity=9)
        assert made is launcher


@pytest.mark.parametrize(
    "backend",
    ["eager", *(pytest.param(name, marks=pytest.mark.slow) for name in ("aot_eager", "inductor"))],
)
def test_a_compiled_token_is_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What most forwards are: one token behind a prompt, which is called."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    model = causal("Qwen2", 3)
    runner = runner_of(model, launcher=lambda slots, capacity: Compiled)
    slot, tokens = runner.pool.claim()[0], list(range(1, 103))
    runner.run([SlotFeed(slot, 0, tokens[:100])])
    for length in (101, 102):
        output = runner.run([SlotFeed(slot, length - 1, tokens[length - 1 : length])])[0]
        assert isinstance(output, Read)
        assert close(model, output, tokens[:length])


def test_each_kind_of_forward_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a code object of its own, and wherever its rows lie: each has only so many compilations."""
    kinds: dict[Any, set[tuple[bool, bool, int | None]]] = {}

    def compile(method: Any, **options: Any) -> Any:
        def run(*given: torch.Tensor, block: int | None) -> Any:
            rows, tokens = given[1].shape
            kinds.setdefault(method.__func__.__code__, set()).add((rows == 1, tokens == 1, block))
            return method(*given, block=block)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    model = causal("Qwen2", 3)
    runner = runner_of(model, capacity=96, launcher=lambda slots, capacity: Compiled)
    prompts = [((0, 1), [5, 9]), ((0,), [7] * 65)]  # They are called.
    for slots, tokens in [
        *prompts,
        *((rows, [5]) for rows in ((0,), (1,), (2,), (0, 1), (1, 2))),
        ((2,), [5, 9]),
    ]:
        feeds = [SlotFeed(slot, 0, tokens) for slot in slots]
        for output in runner.run(feeds):
            assert close(model, output, tokens)
    made = [kind for found in kinds.values() for kind in found]
    alone = [(True, True, 0), (True, True, None)]
    assert made == [*alone, (False, True, 0), (False, True, None), (True, False, None)]
    assert len(kinds) == len(made)


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


@pytest.mark.slow
def test_closing_frees_what_was_compiled_without_pythons_collector() -> None:
    model = copy.deepcopy(causal("Qwen2", 3))
    runner = runner_of(model, launcher=lambda slots, capacity: Compiled)
    runner.run([SlotFeed(runner.pool.claim()[0], 0, [5])])
    held = [weakref.ref(one) for one in (model, runner, runner._launcher, runner.cache.layers[0].keys)]
    gc.collect()
    gc.disable()
    try:
        runner.close()
        del runner, model
        assert [one() for one in held] == [None] * 4
    finally:
        gc.enable()
