"""The same equalities on a GPU: nothing here runs where there is none. First thing to run where there is."""

from __future__ import annotations

import copy
import random
import threading
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.backends.torch import efficient
from rsd_integrations.backends.torch.forwards import Compiled
from rsd_integrations.backends.torch.launch import launcher_of
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Read, read_logits
from rsd_integrations.backends.torch.recording import Recorded, recorder_for
from rsd_integrations.backends.torch.recurrent import RecurrentRunner
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.states import is_recurrent
from tests.backends.test_slots import run_a_history
from tests.backends.test_speculation import FIELDS, PAIRS, check_equal
from tests.oracle import Party, plain_generate
from tests.tiny_models import ARCHITECTURES, RECURRENT, causal, tokenizer, trio

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    # What torch advises about GPUs (TensorFloat32, small ones). Ours are RuntimeWarnings, and fail a test.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 cuDNN rounds them to TF32 unless it is told not to, which is 5e-4 of their size."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


PROMPT = "Ava has 12 marbles. She buys 9 more."
WAYS = ("called", "recorded", "compiled", "recorded and compiled")


def runner_on_gpu(model: Any, way: str, dtype: torch.dtype = torch.float32, slots: int = 4) -> SlotRunner:
    launcher = launcher_of(
        model, compile="compiled" in way, cuda_graphs="recorded" in way, slots=slots, capacity=96
    )
    kind = RecurrentRunner if is_recurrent(model.config) else SlotRunner
    return kind(
        model.config,
        read_logits(model),
        device=CUDA,
        dtype=dtype,
        slots=slots,
        capacity=96,
        launcher=launcher,
        model=model,
    )


def test_the_launcher_is_what_was_asked_for() -> None:
    model = copy.deepcopy(causal("Qwen2", 3)).to(CUDA)
    made = [runner_on_gpu(model, way)._launcher for way in WAYS]
    assert [type(one) for one in made] == [type(None), Recorded, Compiled, Recorded]
    assert recorder_for(CUDA) is not None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *RECURRENT])
def test_any_history_gives_what_a_full_forward_gives(architecture: str, way: str) -> None:
    if "compiled" in way and architecture not in ("Qwen2", "Gemma3Text"):
        pytest.skip("two stand for all: compiling takes long")
    if "recorded" in way and architecture == "Qwen3Next":
        pytest.skip("experts are recorded in bfloat16 only")
    model = copy.deepcopy(causal(architecture, 3)).to(CUDA)
    run_a_history(model, runner_on_gpu(model, way), random.Random(architecture))


@pytest.mark.parametrize("way", WAYS[:2])
def test_half_precision_differs_by_rounding(way: str) -> None:
    exact = causal("Qwen2", 3)
    model = copy.deepcopy(exact).to(CUDA, torch.bfloat16)
    runner = runner_on_gpu(model, way, torch.bfloat16)
    slot, tokens = runner.pool.claim()[0], [5, 9, 13, 21, 34]
    for length in range(1, 6):
        (output,) = runner.run([SlotFeed(slot, length - 1, tokens[length - 1 : length])])
        assert isinstance(output, Read)
        with torch.no_grad():
            expected = exact(torch.tensor([tokens[:length]])).logits[0, -1]
        got = output.kept_R[-1].float().cpu()
        assert float((got - expected).abs().max() / expected.abs().max()) < 0.1


class Operations(TorchDispatchMode):
    """Names what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["Qwen2", "GPT2"])
def test_attention_is_not_cudnns(architecture: str) -> None:
    """Which makes a plan for every new number of rows, tokens and positions."""
    newest = torch.version.cuda is not None and torch.cuda.get_device_capability(CUDA)[0] in (9, 10)
    assert efficient.preferred(CUDA, torch.bfloat16) == newest
    model = copy.deepcopy(causal(architecture, 3)).to(CUDA, torch.bfloat16)
    runner = runner_on_gpu(model, "called", torch.bfloat16)
    slots = [runner.pool.claim()[0] for _ in range(2)]
    with Operations() as seen:
        for tokens in ([5, 9, 13], [21]):
            runner.run([SlotFeed(slot, 0, tokens) for slot in slots])
    assert any("efficient_attention" in name for name in seen.names)
    assert not any("cudnn_attention" in name for name in seen.names)


@pytest.mark.parametrize("way", WAYS[:2])
def test_changed_weights_count(way: str) -> None:
    model = copy.deepcopy(causal("Qwen2", 3)).to(CUDA)
    runner, tokens = runner_on_gpu(model, way), [5, 9, 13, 21, 34]
    changes = (
        lambda: None,
        lambda: model.lm_head.weight.data.mul_(-1.5),  # A recording reads them where they are.
        lambda: model.load_state_dict(copy.deepcopy(causal("Qwen2", 4).state_dict()), assign=True),
        lambda: model.to(CUDA),
    )
    for change in changes[:2], changes[2:]:
        for one in change:
            one()
        slot, _ = runner.claim()
        for length in range(1, 6):
            (output,) = runner.run([SlotFeed(slot, length - 1, tokens[length - 1 : length])])
            assert isinstance(output, Read)
            with torch.no_grad():
                expected = model(torch.tensor([tokens[:length]], device=CUDA)).logits[0, -1]
            assert torch.allclose(output.kept_R[-1].float(), expected, rtol=1e-3, atol=1e-3)
        runner.release(slot)


def load(pair: str, **options: Any) -> RSDPipeline:
    kinds, flavours = zip(*PAIRS[pair], strict=True)
    models = copy.deepcopy(trio(*kinds, (*flavours, "ascii")))
    for model, _ in models.values():
        model.to(CUDA)
    return RSDPipeline.from_pretrained(**models, device="cuda", **options)


def answers(pipe: RSDPipeline) -> list[Generation]:
    """Of all kinds, alone and then together."""
    asked: list[dict[str, Any]] = [
        {"seed": 0},
        {"seed": 1, "temperature": 0.8, "top_p": 0.9},
        {"seed": 2, "speculation": False},
        {"seed": 3, "temperature": 0.8, "draft_candidates": 3},
        {"seed": 4, "acceptance_rate": 0.0},
    ]
    alone = [pipe.generate(PROMPT, **{**FIELDS, **given}) for given in asked]
    streams = [pipe.stream(PROMPT, **{**FIELDS, **given}) for given in asked]
    return alone + [stream.result() for stream in streams]


@pytest.mark.parametrize("pair", PAIRS)
def test_answers_are_the_same_recorded_and_called(pair: str) -> None:
    with load(pair) as recorded, load(pair, cuda_graphs=False) as called:
        for one, other in zip(answers(recorded), answers(called), strict=True):
            check_equal(one, other)


def test_target_and_draft_alone_are_plain_generate() -> None:
    with load("same tokenizer") as pipe:
        for threshold, kind, seed in ((0.0, "Qwen2", 0), (2.0, "Llama", 1)):
            model = copy.deepcopy(causal(kind, seed, "ascii", max_position_embeddings=512)).to(CUDA)
            _, text = plain_generate(Party(model, tokenizer("ascii")), PROMPT, 40)
            got = pipe.generate(
                PROMPT, threshold=threshold, max_tokens=40, max_step_tokens=9, step_delimiter="e"
            )
            assert got.text == text


def test_others_use_the_gpu_while_forwards_are_recorded() -> None:
    """An embedding model of a RAG pipeline, say, on another thread. It does not draw: while a graph is
    recorded, torch before 2.12 or so refuses that to the whole process.
    """
    going, failed = threading.Event(), []
    big = torch.randn(256, 256, device=CUDA)

    def compute() -> None:
        try:
            while not going.is_set():
                float((big @ big).sum())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        with load("same tokenizer") as pipe:
            assert pipe.generate(PROMPT, **FIELDS, seed=0).steps
    finally:
        going.set()
        thread.join()
    assert not failed
