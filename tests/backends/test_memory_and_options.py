"""Loading options of each role, running out of memory, and giving memory back."""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rsd_integrations import Output, RSDPipeline
from rsd_integrations.backends.shared.describe import AttentionKinds, model_info
from rsd_integrations.backends.torch import launch, loading, traced
from rsd_integrations.backends.torch.failures import failure
from rsd_integrations.backends.torch.plan import PREFILL_CHUNK, SlotFeed
from rsd_integrations.backends.torch.recording import LOCK
from rsd_integrations.errors import (
    BackendError,
    ConfigError,
    DeviceMemoryError,
    EngineClosedError,
    ModelError,
)
from rsd_integrations.types import Prompt
from tests.backends.test_slots import runner_of
from tests.recording import Recordings
from tests.tiny_models import causal, memory_of, saved, token_classifier, tokenizer, trio

PROMPT: Prompt = "Ava has 12 marbles. She buys 9 more."
FIELDS: dict[str, Any] = {"threshold": 0.5, "max_tokens": 40, "step_delimiter": ["e", "\n\n"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return saved(trio(), tmp_path_factory.mktemp("models"))


def test_folders_and_loaded_models_give_the_same(folders: dict[str, str]) -> None:
    # AutoTokenizer would make a Qwen2 tokenizer of any tokenizer beside a Qwen2 config.
    own: dict[str, Any] = {f"{role}_kwargs": {"tokenizer": tokenizer("ascii")} for role in folders}
    with (
        RSDPipeline.from_pretrained(**trio()) as loaded,
        RSDPipeline.from_pretrained(**folders, **own) as read,
    ):
        ours, theirs = loaded.generate(PROMPT, seed=0, **FIELDS), read.generate(PROMPT, seed=0, **FIELDS)
    assert ours.text == theirs.text
    assert [step.reward for step in ours.steps] == pytest.approx([step.reward for step in theirs.steps])


def test_each_role_has_its_own_options(folders: dict[str, str]) -> None:
    with RSDPipeline.from_pretrained(
        **folders,
        dtype="float32",
        draft_kwargs={"attn_implementation": "eager"},
        target_kwargs={"dtype": torch.bfloat16, "device_map": {"": "cpu"}},
        prm_kwargs={"use_safetensors": True, "model_kwargs": {"low_cpu_mem_usage": True}},
    ) as pipe:
        pipe.generate(PROMPT, **FIELDS)
        layers = [model.runner.cache.layers[0] for model in (pipe.backend.draft, pipe.backend.target)]  # type: ignore[attr-defined]
        assert [layer.dtype for layer in layers] == [torch.float32, torch.bfloat16]


def test_eager_and_sdpa_agree(folders: dict[str, str]) -> None:
    texts = []
    for attention in ("sdpa", "eager"):
        options = {"attn_implementation": attention}
        with RSDPipeline.from_pretrained(
            **folders, draft_kwargs=options, target_kwargs=options, prm_kwargs=options
        ) as pipe:
            texts.append(pipe.generate(PROMPT, **FIELDS).text)
    assert texts[0] == texts[1]


def test_an_unknown_option_is_refused_by_name(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"unknown target_kwargs 'dtpye'\. Did you mean 'dtype'\?"):
        RSDPipeline.from_pretrained(**folders, target_kwargs={"dtpye": "float16"})


@pytest.mark.parametrize(
    "options",
    [
        {"device": "bogus"},
        {"dtype": "float17"},
        {"dtype": "nn"},
        {"draft_kwargs": {"device": "bogus"}},
        {"prm_kwargs": {"dtype": 16}},
    ],
)
def test_placement_is_checked_up_front(folders: dict[str, str], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is no d(evice|type)\. Use"):
        RSDPipeline.from_pretrained(**folders, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_missing_gpu_is_named(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"device='cuda' is not available here\. Use device=\"cpu\""):
        RSDPipeline.from_pretrained(**folders, device="cuda")


def test_attention_that_takes_no_mask_is_refused_before_loading(folders: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="flash_attention_2"):
        RSDPipeline.from_pretrained(**folders, draft_kwargs={"attn_implementation": "flash_attention_2"})


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ModelError, match=r"draft='\./nowhere'"):
        RSDPipeline.from_pretrained(**(trio() | {"draft": "./nowhere"}))


class _Short:
    """A readout that runs out of memory above some number of tokens, or always for one token."""

    def __init__(self, readout: Any, most: int) -> None:
        self.readout, self.most, self.failed = readout, most, 0

    def __call__(self, inputs: dict[str, Any], *places: list[int]) -> torch.Tensor:
        if inputs["input_ids"].numel() > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        result: torch.Tensor = self.readout(inputs, *places)
        return result


def test_out_of_memory_halves_a_prefill_once_and_changes_nothing() -> None:
    with RSDPipeline.from_pretrained(**trio(), prefix_caching=False) as pipe:
        want = pipe.generate(PROMPT, **FIELDS).text
        runner = pipe.backend.draft.runner  # type: ignore[attr-defined]
        prompt = pipe.backend.draft.open(PROMPT).prompt_tokens
        runner._readout = short = _Short(runner._readout, most=(prompt + 1) // 2)
        assert pipe.generate(PROMPT, **FIELDS).text == want
        assert short.failed == 1


def test_out_of_memory_fails_that_request_alone() -> None:
    with RSDPipeline.from_pretrained(**trio()) as pipe:
        want = pipe.generate("Hi.", **FIELDS).text
        runner = pipe.backend.draft.runner  # type: ignore[attr-defined]
        runner._readout = _Short(runner._readout, most=40)
        streams = [pipe.stream(prompt, **FIELDS) for prompt in ("Hi.", "long " * 60, "Hi.")]
        with pytest.raises(DeviceMemoryError, match=r"max_batch_size.* close\(\) pipelines"):
            streams[1].result()
        assert [streams[0].result().text, streams[2].result().text] == [want, want]
        assert runner.pool.free == pipe.backend.max_batch_size


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to ...",
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to ...",
        "MPS backend out of memory (MPS allocated: 7.64 GiB, other allocations: 68.91 GiB, ...)",
    ],
)
def test_out_of_memory_is_known_by_each_system_s_words(said: str) -> None:
    assert type(failure(RuntimeError(said))) is DeviceMemoryError
    assert type(failure(RuntimeError(said.replace("memory", "patience")))) is BackendError


def test_any_other_failure_has_its_cause() -> None:
    with RSDPipeline.from_pretrained(**trio()) as pipe:
        runner = pipe.backend.draft.runner  # type: ignore[attr-defined]

        def broken(inputs: Any, *places: Any) -> torch.Tensor:
            raise ValueError("boom")

        runner._readout = broken
        with pytest.raises(BackendError, match="ValueError: boom") as caught:
            pipe.generate(PROMPT, **FIELDS)
        assert isinstance(caught.value.__cause__, ValueError)


def fails() -> None:
    raise RuntimeError("boom")


def fails_anew() -> None:
    try:
        fails()
    except RuntimeError:
        raise ValueError("told anew") from None


def is_interrupted() -> None:
    main = threading.main_thread().ident
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main or 0), ctypes.py_object(KeyboardInterrupt))
    while True:
        time.sleep(0.001)


@pytest.mark.parametrize("ends", [fails, fails_anew, is_interrupted])
@pytest.mark.parametrize("apart", [True, False])
def test_a_load_that_ends_early_keeps_nothing_though_its_error_is_kept(
    folders: dict[str, str], ends: Callable[[], None], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook keeps the last error, and a load that is tried again needs the memory."""
    if not apart:  # As on a GPU, where an interrupt ends the load itself.
        monkeypatch.setattr(loading, "apart", lambda device, work: work())
        ends = (lambda: signal.raise_signal(signal.SIGINT)) if ends is is_interrupted else ends
    held: list[weakref.ref[Any]] = []

    def judged(*args: Any, **kwargs: Any) -> Any:
        scorer = load_scorer(*args, **kwargs)
        held.append(weakref.ref(scorer))
        ends()
        return scorer

    def written(*args: Any, **kwargs: Any) -> Any:
        writer = load_writer(*args, **kwargs)
        held.append(weakref.ref(writer.runner))
        return writer

    load_writer, load_scorer = loading._load_writer, loading._load_scorer
    monkeypatch.setattr(loading, "_load_writer", written)
    monkeypatch.setattr(loading, "_load_scorer", judged)
    gc.disable()
    try:
        with pytest.raises((RuntimeError, ValueError, KeyboardInterrupt)) as kept:
            RSDPipeline.from_pretrained(**folders)
        assert [one() for one in held] == [None] * 3
    finally:
        gc.enable()
    assert kept.value.__traceback__ is not None


def test_a_load_that_fails_leaves_alone_what_failed_before(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine() -> None:
        kept = "to be looked at"
        raise LookupError(kept)

    def handled() -> None:
        try:
            mine()
        except LookupError:
            with pytest.raises(RuntimeError, match="boom"):
                RSDPipeline.from_pretrained(**folders)
            raise

    monkeypatch.setattr(loading, "_load_scorer", lambda *args, **kwargs: fails())
    with pytest.raises(LookupError) as caught:
        handled()
    assert caught.traceback[-1].frame.f_locals["kept"] == "to be looked at"


def test_closing_gives_the_memory_back() -> None:
    pipe = RSDPipeline.from_pretrained(**trio())
    stream = pipe.stream(PROMPT, **FIELDS)
    stream.result()
    caches = [
        weakref.ref(model.runner.cache)  # type: ignore[attr-defined]
        for model in (pipe.backend.draft, pipe.backend.target, pipe.backend.prm)
    ]
    pipe.close()
    gc.collect()
    # Though the pipeline and a finished stream are still held.
    assert [cache() for cache in caches] == [None, None, None]
    for output in (Output(), Output.of(response_format={"type": "json_object"})):
        with pytest.raises(EngineClosedError, match="closed"):
            pipe.generate(PROMPT, output=output)


@pytest.mark.parametrize(
    "way",
    [*(pytest.param(way, marks=pytest.mark.slow) for way in ("called", "recurrent")), "recorded", "traced"],
)
def test_closing_does_not_wait_for_pythons_collector(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU what is loaded next needs the memory, and graphs are to go on the thread that made them."""
    monkeypatch.setattr(launch, "recorder_for", lambda device: Recordings() if way == "recorded" else None)
    monkeypatch.setattr(traced, "PAYS", 1)
    kind = "Qwen3_5Text" if way == "recurrent" else "Qwen2"
    models = [copy.deepcopy(model) for model in (causal(kind, 1), causal(kind, 2), token_classifier())]
    pipe = RSDPipeline.from_pretrained(
        *((model, tokenizer()) for model in models), cpu_traces=way == "traced"
    )
    pipe.generate(PROMPT, seed=0, **FIELDS)
    roles: list[Any] = [pipe.backend.draft, pipe.backend.target, pipe.backend.prm]
    held = [weakref.ref(one) for one in (*models, *(role.runner for role in roles))]
    if way != "recorded":  # What stands for a graph holds the keys, in a cycle of its own.
        held += [weakref.ref(role.runner.cache.layers[-1].keys) for role in roles]
    launched = [role.runner._call if way == "traced" else role.runner._launcher for role in roles]
    held += [weakref.ref(one) for one in launched if one is not None]
    assert len(held) == (12 if way == "traced" else 9)
    del roles, models, launched
    gc.collect()
    gc.disable()
    try:
        pipe.close()
        assert [one() for one in held] == [None] * len(held)
    finally:
        gc.enable()


def test_closing_waits_for_no_recording() -> None:
    """Python's collector may close a pipeline on a thread that records, which waits for its end."""
    pipe = RSDPipeline.from_pretrained(**trio())
    closing = threading.Thread(target=pipe.close)
    with LOCK:
        closing.start()
        closing.join(20)
        assert not closing.is_alive()


def test_a_dropped_pipeline_closes_but_a_held_stream_keeps_it_open() -> None:
    stream = RSDPipeline.from_pretrained(**trio()).stream(PROMPT, **FIELDS)
    gc.collect()
    assert stream.result().steps
    pipe = RSDPipeline.from_pretrained(**trio())
    cache = weakref.ref(pipe.backend.draft.runner.cache)  # type: ignore[attr-defined]
    del pipe
    gc.collect()
    assert cache() is None


def test_options_that_only_loading_can_honour_are_refused_for_loaded_models() -> None:
    with pytest.raises(ConfigError, match=r"draft_kwargs \['dtype'\] are for loading"):
        RSDPipeline.from_pretrained(**trio(), draft_kwargs={"dtype": "float16"})


@pytest.mark.parametrize("options", [{"max_batch_size": 2.5}, {"max_length": "8"}, {"max_batch_size": 0}])
def test_sizes_are_whole_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is not valid"):
        RSDPipeline.from_pretrained(**trio(), **options)


def test_ids_without_a_token_are_never_written() -> None:
    import copy

    wide, tok = copy.deepcopy(causal("Llama", 1, "ascii")), tokenizer("ascii")
    wide.resize_token_embeddings(len(tok) + 64)
    with torch.no_grad():
        wide.lm_head.weight[len(tok) :] = wide.lm_head.weight[:64] * 3
    with RSDPipeline.from_pretrained(**trio(target=wide)) as pipe:
        plain = pipe.generate(PROMPT, threshold=1.1, max_tokens=40)
    with RSDPipeline.from_pretrained(**trio()) as pipe:
        assert pipe.generate(PROMPT, threshold=1.1, max_tokens=40).text == plain.text


def test_memory_and_flops_of_latent_attention() -> None:
    """What is kept are no keys and values, and queries are longer than values."""
    model = causal("DeepseekV3", 0, "ascii")
    memory = memory_of("draft", (model, tokenizer("ascii")), max_length=64)
    runner = runner_of(model, slots=2, capacity=64)
    runner.run([SlotFeed(0, 0, [1, 2, 3])])
    assert runner.cache.bytes == 2 * 65 * memory.cache_per_token
    attention: AttentionKinds = {"full_attention": (None, None)}
    info = model_info("latent", model.config, parameters=1, window=64, attention=attention)
    layers, heads, query, value = 2, 4, 16 + 8, 12
    assert info.pair_flops == 2 * layers * heads * (query + value)


def test_any_temperature_above_zero_can_be_sampled() -> None:
    with RSDPipeline.from_pretrained(**trio()) as pipe:
        greedy = pipe.generate(PROMPT, **FIELDS)
        assert pipe.generate(PROMPT, temperature=5e-324, seed=0, **FIELDS).text == greedy.text


def test_a_failed_batch_does_not_hold_its_tensors_while_it_is_tried_again() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    with RSDPipeline.from_pretrained(**trio()) as pipe:
        runner = pipe.backend.draft.runner  # type: ignore[attr-defined]
        readout = runner._readout

        def failing(inputs: dict[str, Any], *places: list[int]) -> torch.Tensor:
            alive.extend(ref() is not None for ref in held)
            if not held:
                big = torch.zeros(10)
                held.append(weakref.ref(big))
                raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
            result: torch.Tensor = readout(inputs, *places)
            return result

        runner._readout = failing
        pipe.generate(PROMPT, **FIELDS)
    assert alive
    assert not any(alive)


def test_a_long_prompt_is_scored_in_chunks_of_its_own() -> None:
    with RSDPipeline.from_pretrained(**trio()) as pipe:
        scorer: Any = pipe.backend.prm
        rounds: list[int] = []
        run = scorer.runner.run

        def counted(feeds: Any) -> Any:
            rounds.append(max(len(feed.tokens) for feed in feeds))
            return run(feeds)

        scorer.runner.run = counted
        short = pipe.generate("word " * 60, **FIELDS)
        assert max(rounds) <= PREFILL_CHUNK
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rsd_integrations.backends.torch.slot_session.PREFILL_CHUNK", 32)
            rounds.clear()
            again = pipe.generate("word " * 60, **FIELDS)
    assert max(rounds) <= 32
    assert again.text == short.text
    assert [s.reward for s in again.steps] == pytest.approx([s.reward for s in short.steps], abs=1e-4)


def test_a_closed_pipeline_counts_no_tokens() -> None:
    pipe = RSDPipeline.from_pretrained(**trio())
    assert pipe.count_tokens(PROMPT) > 0
    pipe.close()
    for use in (pipe.count_tokens, pipe.token_ids):
        with pytest.raises(EngineClosedError):
            use("Hi.")  # type: ignore[operator]


def test_a_closed_model_opens_no_session() -> None:
    pipe = RSDPipeline.from_pretrained(**trio())
    pipe.close()
    for model in (pipe.backend.draft, pipe.backend.prm):
        told = rf"'{model.info.name}' was closed with its pipeline\. Load it anew"
        with pytest.raises(EngineClosedError, match=told):
            model.open(PROMPT)  # type: ignore[union-attr]


def test_a_repositorys_code_is_not_run_and_nobody_is_asked(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders["draft"], tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    config |= {
        "model_type": "odd",
        "auto_map": {"AutoConfig": "odd.Odd", "AutoModelForCausalLM": "odd.Model"},
    }
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    (tmp_path / "odd" / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelError, match="custom code"):
        RSDPipeline.from_pretrained(**{**trio(), "target": tmp_path / "odd"})
    with pytest.raises(ModelError, match="custom code"):
        memory_of("target", tmp_path / "odd")
    # The config can be read, and transformers has no language model of that family.
    known = {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "odd.Model"}}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(known))
    with pytest.raises(ModelError, match=r"no model can be made|custom code"):
        memory_of("target", tmp_path / "odd")
    assert not (tmp_path / "ran").exists()
