"""``rsd bench speed``: what it runs, how it counts, what it saves. No time decides a test."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from transformers.utils import logging

from rsd_integrations.backends.torch.yardsticks.bandwidth import copy_bandwidth, model_bytes
from rsd_integrations.backends.torch.yardsticks.shapes import SHAPES, byte_tokenizer, random_trio
from rsd_integrations.bench.share import ExactShare
from rsd_integrations.bench.speed import SpeedBench
from rsd_integrations.bench.speed_setting import Setting, open_shape
from rsd_integrations.errors import ConfigError
from rsd_integrations.pipeline import RSDPipeline

SETTING = Setting(
    shape="tiny",
    prompts=["What is it? " * 4, "And then? " * 4],
    acceptances=(0.5,),
    batches=(1, 2),
    steps=3,
    step_tokens=4,
    repeats=1,
    growth={8: "And now?", 40: "And then? " * 4},
)


@pytest.fixture(scope="module")
def trio() -> Any:
    pipe, plain = open_shape(SETTING, device="cpu", dtype="float32", window=4096)
    with pipe:
        yield pipe, plain


def test_every_contender_writes_what_it_must(trio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_integrations.bench.speed.GROWTH_STEPS", (6, 7))
    said: list[str] = []
    speeds = SpeedBench(*trio, SETTING).measure(1e9, said.append)
    names = [(timing.name, timing.batch) for timing in speeds.timings]
    both = ["generate", "target only", "RSD 0.5", "RSD 0.5, no guesses", "RSD 0.5, sampled"]
    alone = ["assisted generate", "reference's way 0.8"]
    assert sorted(names) == sorted([*product(both, (1, 2)), *product(alone, (1,))])
    assert {timing.tokens for timing in speeds.timings} == {2 * 12}
    for timing in speeds.timings:
        assert timing.against_generate is not None
        assert timing.seconds.fastest <= timing.seconds.median <= timing.seconds.slowest
    followed = [(growth.prompt_tokens, growth.steps) for growth in speeds.growth]
    assert followed == [(8, 6), (8, 7), (40, 6), (40, 7)]
    assert [limit.role for limit in speeds.limits] == ["draft", "target", "prm"]
    assert speeds.breakdown.wall > 0
    assert speeds.left_out == {}
    assert said


def test_assisted_generation_s_own_warnings_are_not_shown(
    trio: Any, caplog: Any, capfd: Any, request: Any
) -> None:
    _, plain = trio
    before = logging.get_verbosity()
    request.addfinalizer(lambda: logging.set_verbosity(before))
    logging.set_verbosity_info()
    # What another test was warned of already would not be said again.
    logging.warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        assert plain.generate(SETTING.work(SETTING.prompts[:1]), assisted=True) == 12
    # Asyncio may speak of what another test left behind.
    assert not [one for one in caplog.records if one.name != "asyncio"] and not capfd.readouterr().err
    assert logging.get_verbosity() == logging.INFO


@pytest.mark.parametrize("assisted", [False, True])
def test_the_same_text_as_generate(trio: Any, assisted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The yardstick measures the models that the engine runs, and forces lengths as the engine does."""
    pipe, plain = trio
    target, written = plain._models["target"], []
    generate = target.generate

    def watched(**given: Any) -> Any:
        output = generate(**given)
        assert "min_new_tokens" not in given
        written.extend(output[:, given["input_ids"].shape[1] :])
        return output

    monkeypatch.setattr(target, "generate", watched)
    # Assisted generation takes one prompt at a time.
    for work in SETTING.works(1 if assisted else 2):
        plain.generate(work, assisted=assisted)
    ours = [pipe.generate(prompt, config=SETTING.config(threshold=2.0)) for prompt in SETTING.prompts]
    assert [plain._tokenizer.decode(tokens) for tokens in written] == [answer.text for answer in ours]
    assert [len(answer.steps) for answer in ours] == [3, 3]


def test_the_reference_s_way(trio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is drafted, scored and, unless it is kept, written again, each from the whole text."""
    _, plain = trio
    prompt = plain._batch(SETTING.prompts[:1])["input_ids"].shape[1]
    read: dict[str, list[int]] = {"draft": [], "target": [], "prm": []}

    def watch(role: str) -> None:
        generate = plain._models[role].generate

        def watched(tokens: Any, **how: Any) -> Any:
            read[role].append(tokens.shape[1] - prompt)
            return generate(tokens, **how)

        monkeypatch.setattr(plain._models[role], "generate", watched)

    watch("draft")
    watch("target")
    hook = plain._models["prm"].register_forward_pre_hook(
        lambda _, given, named: read["prm"].append(named["input_ids"].shape[1] - prompt), with_kwargs=True
    )
    weighting = ExactShare(0.8)
    try:
        work = SETTING.work(SETTING.prompts[:1], steps=10)
        assert plain.reference(work, weighting) == 40
    finally:
        hook.remove()
    assert read == {"draft": [*range(0, 40, 4)], "target": [8, 28], "prm": [*range(4, 44, 4)]}
    assert (weighting.asked, weighting.kept) == (10, 8)


def test_a_step_that_ends_early_is_no_yardstick(trio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = trio
    monkeypatch.setattr(plain._models["draft"], "generate", lambda tokens, **how: tokens)
    with pytest.raises(RuntimeError, match="the draft ended a step that was to have 4 tokens"):
        plain.reference_times(SETTING.work(SETTING.prompts[:1]), ExactShare(0.8))


@pytest.mark.parametrize("compile", [False, True])
def test_models_are_loaded_as_the_setting_says(compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read each time, as the others read them."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(RSDPipeline, "from_pretrained", lambda *models, **options: given.update(options))
    open_shape(replace(SETTING, compile=compile), device="cpu", dtype="bfloat16", window=99)
    assert given == {
        "prm_format": "trl",
        "device": "cpu",
        "max_batch_size": 2,
        "max_length": 99,
        "compile": compile,
        "prefix_caching": False,
    }


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("banana", "float32", "device='banana' is no device"),
        ("cuda:99", "float32", "device='cuda:99' is not available here"),
        ("cpu", "float3", "dtype='float3' is no dtype"),
        ("cpu", "int8", "dtype='int8' is no dtype"),
    ],
)
def test_a_place_that_is_not_here(device: str, dtype: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_shape(SETTING, device=device, dtype=dtype, window=64)


def test_the_prm_reads_a_step_of_as_many_tokens_as_were_written(trio: Any) -> None:
    """Whatever the vocabulary holds beside: bytes that are no text would be three for it."""
    pipe, _ = trio
    answer = pipe.generate(SETTING.prompts[0], config=SETTING.config(steps=8, threshold=0.0))
    assert answer.text.isascii() and answer.text.isprintable()
    assert len(answer.text) == answer.usage.completion_tokens == 32


@pytest.mark.parametrize("tied", [True, False])
def test_random_models_write_printable_characters(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {role: replace(size, tied=tied) for role, size in SHAPES["tiny"].items()}
    monkeypatch.setitem(SHAPES, "tiny", sizes)
    model, tokenizer = random_trio("tiny", device="cpu", dtype="float32", window=64)["draft"]
    inputs = tokenizer("What is it? ", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=9)[0, inputs["input_ids"].shape[1] :]
    assert len(output) == 9 and tokenizer.decode(output).isprintable()
    written = model.get_output_embeddings().weight.abs().sum(dim=1).nonzero().flatten().tolist()
    assert tokenizer.convert_ids_to_tokens(written) == sorted(tokenizer.decode(written))


def test_shapes_are_the_true_ones() -> None:
    sizes = SHAPES["1.5b-7b-prm7b"]
    assert (sizes["draft"].layers, sizes["target"].hidden, sizes["prm"].inner) == (28, 3584, 18_944)
    with pytest.raises(ConfigError, match="shape 'zzz' is not known"):
        random_trio("zzz", device="cpu", dtype="float32", window=64)
    with pytest.raises(ConfigError, match="dtype 'float3' is not known"):
        random_trio("tiny", device="cpu", dtype="float3", window=64)
    words = byte_tokenizer()
    assert len(words("Hello, wörld\n")["input_ids"]) == len("Hello, wörld\n".encode())


def test_bandwidth_and_bytes() -> None:
    assert copy_bandwidth("cpu", repeats=1) > 1e8
    model, _ = random_trio("tiny", device="cpu", dtype="float32", window=64)["target"]
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert model_bytes(model) == 4 * (weights - model.get_input_embeddings().weight.numel())
