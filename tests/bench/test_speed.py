"""``rsd bench speed``: what it runs, how it counts, what it saves. No time decides a test."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

from rsd_integrations.backends.torch.yardsticks.bandwidth import copy_bandwidth, model_bytes
from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio, Workload
from rsd_integrations.backends.torch.yardsticks.shapes import SHAPES, byte_tokenizer, random_trio
from rsd_integrations.bench.results import Interval
from rsd_integrations.bench.speed import Setting, SpeedBench, open_shape
from rsd_integrations.bench.speed_checks import required_speeds
from rsd_integrations.bench.speed_results import Breakdown, Growth, Limit, SpeedReport, Timing
from rsd_integrations.cli import main
from rsd_integrations.errors import ConfigError

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
    both = ["generate", "target only", "RSD 0.5", "RSD 0.5, no guesses"]
    alone = ["assisted generate", "reference's way 0.8"]
    assert sorted(names) == sorted([*product(both, (1, 2)), *product(alone, (1,))])
    assert {timing.tokens for timing in speeds.timings} == {2 * 12}
    for timing in speeds.timings:
        assert timing.against_generate is not None
        assert timing.seconds.low <= timing.seconds.value <= timing.seconds.high
    followed = [(growth.prompt_tokens, growth.steps) for growth in speeds.growth]
    assert followed == [(8, 6), (8, 7), (40, 6), (40, 7)]
    assert [limit.role for limit in speeds.limits] == ["draft", "target", "prm"]
    assert speeds.breakdown.wall > 0
    assert speeds.left_out == {}
    assert said


def test_steps_are_followed_behind_the_prompts_named(trio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain = trio
    prompts: dict[str, list[str]] = {"ours": [], "reference": []}
    stream, reference_times = pipe.stream, plain.reference_times

    def watched_stream(prompt: str, **given: Any) -> Any:
        prompts["ours"].append(prompt)
        return stream(prompt, **given)

    def watched_times(work: Workload) -> list[float]:
        prompts["reference"] += work.prompts
        return reference_times(work)

    monkeypatch.setattr("rsd_integrations.bench.speed.GROWTH_STEPS", (6, 7))
    monkeypatch.setattr(pipe, "stream", watched_stream)
    monkeypatch.setattr(plain, "reference_times", watched_times)
    SpeedBench(pipe, plain, SETTING)._growth(8, "And now?")
    # One to warm up, and each repeat.
    assert prompts == {"ours": ["And now?"] * 2, "reference": ["And now?"] * 2}


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
    assert not caplog.records and not capfd.readouterr().err
    assert logging.get_verbosity() == logging.INFO


def test_what_does_not_run_is_told_and_spoils_nothing(trio: Any) -> None:
    pipe, plain = trio

    class Broken(PlainTrio):
        def generate(self, work: Workload, *, assisted: bool = False, compiled: bool = False) -> int:
            if assisted:
                raise OSError("no such thing here")
            return super().generate(work)

    broken = Broken({role: (model, plain._tokenizer) for role, model in plain._models.items()})
    bench = SpeedBench(pipe, broken, SETTING)
    speeds: Any = type("Speeds", (), {"left_out": {}})()
    names = [timing.name for timing in bench._side_by_side(1, speeds)]
    assert "assisted generate" not in names
    assert speeds.left_out == {"assisted generate, batch 1": "OSError: no such thing here"}


def test_the_same_text_as_generate(trio: Any) -> None:
    """The yardstick measures the models that the engine runs."""
    pipe, _ = trio
    text = pipe.generate(SETTING.prompts[0], config=SETTING.config(threshold=2.0)).text
    again = pipe.generate(SETTING.prompts[0], config=SETTING.config(threshold=2.0)).text
    assert text == again
    assert len(pipe.generate(SETTING.prompts[0], config=SETTING.config(threshold=2.0)).steps) == 3


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


def timing(name: str, batch: int, rate: float, **ratios: float) -> Timing:
    return Timing(
        name=name, batch=batch, seconds=Interval(value=1, low=1, high=1), tokens=int(rate), **ratios
    )


def report(shape: str, **more: Any) -> SpeedReport:
    given: dict[str, Any] = {
        "timings": (
            timing("RSD 0.8", 1, 100, against_generate=1.5, against_target=1.2),
            timing("RSD 0.8", 16, 290),
            timing("RSD 0.9", 16, 100, against_target=1.1),
        ),
        "limits": (Limit(role="draft", bytes_per_token=1, milliseconds=1, share=0.8),),
        "breakdown": Breakdown(draft=1, score=1, target=1, wall=4, host_share=0.25),
    } | more
    return SpeedReport(
        command="", date="", versions={}, hardware={}, shape=shape, settings={}, bandwidth=1e9, **given
    )


def test_required_speeds() -> None:
    pocket = {check.name: check for check in required_speeds(report("pocket"), on_gpu=False)}
    assert pocket["RSD 0.8 against generate"].passed
    assert not pocket["RSD 0.8, 16 requests"].passed
    assert pocket["RSD 0.8, 16 requests"].measured == "x 2.90"
    grown = tuple(
        Growth(prompt_tokens=length, steps=steps, ours=ours, reference=reference)
        for length, last, reference in ((256, 1.3, 2.6), (4096, 1.1, 6.6))
        for steps, ours, reference in ((10, 1.0, None), (20, last, reference))
    )
    tiny = {check.name: check for check in required_speeds(report("tiny", growth=grown), on_gpu=False)}
    # Of each length: one that is reached does not hide one that is missed.
    assert not tiny["time of a step, 10 to 80 steps, prompt 256"].passed
    assert tiny["time of a step, 10 to 80 steps, prompt 4096"].passed
    assert tiny["reference's way at 20 steps, prompt 256"].measured == "x 2.00"
    assert not tiny["reference's way at 20 steps, prompt 256"].passed
    assert tiny["reference's way at 20 steps, prompt 4096"].passed
    gpu = {check.name: check for check in required_speeds(report("1.5b-32b-prm7b"), on_gpu=True)}
    assert gpu["RSD 0.8 against target only"].required == ">= x 3.5"
    assert not gpu["host's share of a step"].passed
    assert gpu["draft decode, share of bandwidth"].passed


def test_the_command(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_integrations.bench.speed.GROWTH_STEPS", (6, 20))
    monkeypatch.setenv("COLUMNS", "120")
    command = "bench speed --shape tiny --steps 2 --step-tokens 2 --prompt-tokens 16 --repeats 1 --prompts 1"
    command += " --growth 40,8"
    assert main([*command.split(), "--batches", "1", "--acceptances", "0.5,0.8", "--out", str(tmp_path)]) == 0
    saved = sorted(file.name for file in tmp_path.iterdir())
    assert saved == ["speed-tiny.json", "speed-tiny.png", "speed-tiny.svg"]
    loaded = SpeedReport.model_validate_json((tmp_path / "speed-tiny.json").read_text())
    assert loaded.timing("RSD 0.8") is not None
    assert {"device", "steps", "repeats"} <= set(loaded.settings)
    shown = capsys.readouterr().out
    for part in ("tokens/s", "reference's way", "against the memory", "outside of the models", "required"):
        assert part in shown


def test_without_growth(capsys: Any) -> None:
    command = "bench speed --shape tiny --steps 2 --step-tokens 2 --prompt-tokens 16 --repeats 1 --prompts 1"
    assert main([*command.split(), "--batches", "1", "--acceptances", "0.5", "--growth", "none"]) == 0
    shown = capsys.readouterr().out
    assert "against the memory" in shown
    assert "as an answer grows" not in shown
    assert "required" not in shown, "nothing is required of a single batch without growth"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batches 0", "--batches '0' must be numbers above 0"),
        ("--acceptances 1.5", "--acceptances '1.5' must be"),
        ("--growth 1,x", "--growth '1,x' must be numbers above 0"),
        ("--acceptances x", "--acceptances 'x' must be"),
        ("--shape zzz", "shape 'zzz' is not known"),
        ("--device cuda", "the pocket shape is measured on the CPU"),
    ],
)
def test_nonsense_is_refused(arguments: str, message: str, capsys: Any) -> None:
    assert main(["bench", "speed", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
