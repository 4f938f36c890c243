"""``rsd bench speed`` from the command line: what it asks for, what is required, what it shows and saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.bench import speed_table
from rsd_integrations.bench.speed_checks import anything_required, required_speeds
from rsd_integrations.bench.speed_results import Breakdown, Growth, Limit, SpeedReport, Spread, Timing
from rsd_integrations.bench.speed_setting import Setting
from rsd_integrations.bench.speed_table import draw
from rsd_integrations.cli import main, speed
from rsd_integrations.cli.models import ModelChoice
from tests.processes import interrupted

FAST = "bench speed --shape tiny --steps 2 --step-tokens 2 --prompt-tokens 16 --repeats 1 --prompts 1"


def timing(name: str, batch: int, rate: float, **more: Any) -> Timing:
    seconds = Spread(median=1, fastest=1, slowest=1)
    return Timing(name=name, batch=batch, seconds=seconds, tokens=int(rate), **more)


TIMINGS = (
    timing("RSD 0.8", 1, 100, against_generate=1.5, against_target=1.2),
    timing("RSD 0.8", 16, 290),
    timing("RSD 0.9", 16, 100, against_target=1.1),
)


def report(shape: str, **more: Any) -> SpeedReport:
    parts: dict[str, Any] = {
        "timings": TIMINGS,
        "limits": (Limit(role="draft", bytes_per_token=1, milliseconds=1, share=0.8),),
        "breakdown": Breakdown(kept=0.8, draft=1, score=1, target=1, host=1, wall=4),
    } | more
    return SpeedReport(
        command="", date="", versions={}, hardware={}, shape=shape, settings={}, bandwidth=1e9, **parts
    )


def checks(made: SpeedReport, batches: Sequence[int] = (1, 16), *, on_gpu: bool = False) -> dict[str, Any]:
    return {check.name: check for check in required_speeds(made, batches, on_gpu=on_gpu)}


def grown(length: int, last: float, reference: float | None) -> list[Growth]:
    return [
        Growth(prompt_tokens=length, steps=10, ours=1.0),
        Growth(prompt_tokens=length, steps=20, ours=last, reference=reference),
    ]


def test_what_is_required_of_the_pocket_trio() -> None:
    pocket = checks(report("pocket"))
    assert pocket["RSD 0.8 against generate"].passed
    assert not pocket["RSD 0.8, 16 requests"].passed
    assert pocket["RSD 0.8, 16 requests"].measured == "2.90x"


def test_growth_is_required_of_each_length() -> None:
    """One that is reached does not hide one that is missed."""
    tiny = checks(report("tiny", growth=(*grown(256, 1.3, 2.6), *grown(4096, 1.1, 6.6))))
    assert not tiny["steps 10 to 80, prompt 256"].passed
    assert tiny["steps 10 to 80, prompt 4096"].passed
    assert tiny["reference's way, prompt 256"].measured == "2.00x"
    assert not tiny["reference's way, prompt 256"].passed
    assert tiny["reference's way, prompt 4096"].passed


def test_what_is_required_of_a_gpu() -> None:
    gpu = checks(report("1.5b-32b-prm7b"), on_gpu=True)
    assert gpu["RSD 0.8 against target only"].required == ">= 3.5x"
    assert gpu["host's share of a step"].measured == "25.0 %"
    assert not gpu["host's share of a step"].passed
    assert gpu["draft, share of bandwidth"].passed


@pytest.mark.parametrize(
    ("missing", "shape", "on_gpu", "check"),
    [
        ("RSD 0.8", "pocket", False, "RSD 0.8 against generate"),
        ("RSD 0.8", "tiny", False, "RSD 0.8, 16 requests"),
        ("RSD 0.8", "1.5b-7b-prm7b", True, "RSD 0.8 against generate"),
        ("RSD 0.9", "1.5b-7b-prm7b", True, "RSD 0.9, 16 requests"),
    ],
)
def test_what_did_not_run_is_missed(missing: str, shape: str, on_gpu: bool, check: str) -> None:
    timings = tuple(one for one in TIMINGS if one.name != missing)
    found = checks(report(shape, timings=timings), on_gpu=on_gpu)[check]
    assert (found.measured, found.passed) == ("did not run", False)


def test_a_reference_that_did_not_run_is_missed() -> None:
    found = checks(report("tiny", growth=tuple(grown(256, 1.1, None))))["reference's way, prompt 256"]
    assert (found.measured, found.passed) == ("did not run", False)


@pytest.mark.parametrize(
    ("shape", "batches", "growth", "on_gpu"),
    [
        ("pocket", (1,), {}, False),
        ("tiny", (1,), {}, False),
        ("tiny", (1, 16), {}, False),
        ("tiny", (1,), {256: "x"}, False),
        ("tiny", (1,), {}, True),
    ],
)
def test_whether_anything_is_required_is_known_beforehand(
    shape: str, batches: Sequence[int], growth: dict[int, str], on_gpu: bool
) -> None:
    asked = Setting(shape=shape, prompts=["a"] * 16, batches=batches, growth=growth)
    made = report(shape, growth=tuple(grown(256, 1.0, 1.0)) if growth else ())
    assert anything_required(asked, on_gpu=on_gpu) == bool(checks(made, batches, on_gpu=on_gpu))


def test_the_command(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_integrations.bench.speed.GROWTH_STEPS", (6, 20))
    options = ["--growth", "40,8", "--batches", "1", "--acceptances", "0.5,0.8", "--out", str(tmp_path)]
    assert main([*FAST.split(), *options]) == 0
    saved = sorted(file.name for file in tmp_path.iterdir())
    assert saved == ["speed-tiny.json", "speed-tiny.png", "speed-tiny.svg"]
    loaded = SpeedReport.model_validate_json((tmp_path / "speed-tiny.json").read_bytes())
    half = loaded.timing("RSD 0.5, no guesses")
    assert half is not None
    assert (half.acceptance, half.guesses, half.kept, half.tokens) == (0.5, False, 0.5, 4)
    assert loaded.settings == {
        "device": "cpu",
        "dtype": "float32",
        "acceptances": "0.5,0.8",
        "batches": "1",
        "steps": 2,
        "step_tokens": 2,
        "prompt_tokens": 16,
        "prompts": 1,
        "repeats": 1,
        "compile": False,
        "growth": "40,8",
    }
    assert loaded.settings["compile"] is False
    shown = capsys.readouterr().out
    for part in ("tokens/s", "reference's way", "against the memory", "outside of the models", "required"):
        assert part in shown


def test_without_growth(capsys: Any) -> None:
    assert main([*FAST.split(), "--batches", "1", "--acceptances", "0.5", "--growth", "none"]) == 0
    shown = capsys.readouterr().out
    assert "against the memory" in shown
    assert "as an answer grows" not in shown
    assert "required" not in shown, "nothing is required of a single batch without growth"


class Stop(Exception):
    """Far enough."""


def asked_for(arguments: str) -> ModelChoice:
    """What ``rsd bench speed`` of the pocket trio would load."""
    choices: list[ModelChoice] = []

    def opener(choice: ModelChoice) -> Any:
        choices.append(choice)
        raise Stop

    assert main(["bench", "speed", *arguments.split()], open_pipeline=opener) == 1
    (choice,) = choices
    return choice


@pytest.mark.parametrize("compile", [False, True])
def test_the_pocket_trio_is_loaded_as_asked(compile: bool) -> None:
    """Without what is known of earlier prompts: the others read them each time."""
    choice = asked_for("--batches 1,3 --prompts 3" + " --compile" * compile)
    assert choice == ModelChoice(device="cpu", max_batch_size=3, compile=compile, prefix_caching=False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[SpeedReport], list[Any]]:
    """Brings a report without a measurement, and tells what was to be measured."""
    asked: list[Any] = []

    def bring(made: SpeedReport) -> list[Any]:
        monkeypatch.setattr(speed, "_measure", lambda state, *what: (asked.append(what), made)[1])
        return asked

    return bring


@pytest.mark.parametrize(("flags", "rate", "code"), [("--check", 290, 1), ("--check", 310, 0), ("", 290, 0)])
def test_check_fails_a_run_that_misses_a_number(
    flags: str, rate: int, code: int, measured: Any, capsys: Any
) -> None:
    measured(report("tiny", timings=(timing("RSD 0.8", 1, 100), timing("RSD 0.8", 16, rate))))
    assert main(["bench", "speed", "--shape", "tiny", *flags.split()]) == code
    assert ("MISSED" in capsys.readouterr().out) == (rate == 290)


def test_check_fails_a_batch_that_was_asked_for_and_did_not_run(measured: Any, capsys: Any) -> None:
    measured(report("tiny", timings=(timing("RSD 0.8", 1, 100),)))
    assert main(["bench", "speed", "--shape", "tiny", "--check", "--growth", "none"]) == 1
    assert "did not run" in capsys.readouterr().out


def test_the_setting_of_the_pocket_trio(measured: Any) -> None:
    asked = measured(report("pocket"))
    assert main(["bench", "speed", "--prompts", "20"]) == 0
    ((setting, given),) = asked
    assert (setting.forced, setting.growth, len(setting.prompts)) == (False, {}, 20)
    assert setting.usual_steps[:7] == [4, 5, 6, 7, 8, 9, 4]
    assert set(given) == {"device", "acceptances", "batches", "prompts", "repeats", "compile"}


@pytest.mark.parametrize("columns", ["40", "80"])
def test_numbers_are_whole_in_any_terminal(
    columns: str, measured: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    seconds = Spread(median=1234.567, fastest=1, slowest=1)
    long = Timing(
        name="RSD 0.95, no guesses", batch=16, kept=0.938, seconds=seconds, tokens=9_876_543,
        against_generate=12.34, against_target=56.78,
    )  # fmt: skip
    measured(report("tiny", timings=(long,), growth=tuple(grown(4096, 1.3, 1.0))))
    assert main(["bench", "speed", "--shape", "tiny"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "RSD 0.95, no speculation 16 93.8 % 1235 8000 12.34 56.78" in lines
    assert "4096 20 1.3 1.0 0.77" in lines
    assert "reference's way, prompt 4096 >= 5x ours 0.77x MISSED" in lines


def test_where_nobody_watches_numbers_are_told_as_they_come(capsys: Any) -> None:
    """So that a time limit loses the rest and not all."""
    options = ["--batches", "1", "--acceptances", "0.5", "--growth", "none"]
    assert main([*FAST.split(), *options]) == 0
    told = capsys.readouterr().err
    assert "RSD 0.5, sampled, 1 request: " in told
    assert "of the bandwidth" in told


def test_tables_fit_eighty_columns(measured: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ratios = {"kept": 0.95, "against_generate": 1.23, "against_target": 1.2}
    timings = (timing("RSD 0.95, no guesses", 16, 123456, **ratios),)
    measured(report("tiny", timings=timings, growth=tuple(grown(4096, 1.3, 1.0))))
    assert main(["bench", "speed", "--shape", "tiny"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    (sentence,) = [line for line in lines if line.startswith("A step, ")]
    assert sentence.endswith(" in all."), "a pipe has no width to break it at"
    assert max(len(line) for line in lines if line != sentence) <= 80


def test_a_model_that_did_not_run_has_no_time(measured: Any, capsys: Any) -> None:
    step = Breakdown(kept=1.0, draft=2.0, score=1.0, target=None, host=1.0, wall=4.0)
    measured(report("tiny", breakdown=step))
    assert main(["bench", "speed", "--shape", "tiny"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A step, 100 % kept: draft 2.0 ms, score 1.0 ms, target - ms, 1.0 ms (25 %) outside" in said
    assert "4.0 ms in all." in said


def test_the_plot_is_by_the_share_kept_in_fact() -> None:
    timings = tuple(
        timing("any name", batch, 1, acceptance=0.5, guesses=guesses, kept=kept, against_target=height)
        for batch, guesses, kept, height in (
            (1, True, 0.52, 2.0),
            (1, True, 0.81, 3.0),
            (1, False, 0.81, 2.5),
            (16, True, 0.81, 1.5),
        )
    )
    (axes,) = draw(report("tiny", timings=timings)).axes
    drawn = {bars.get_label(): bars[0].get_xydata().tolist() for bars in axes.containers}
    assert drawn == {
        "1 request at once, with speculation": [[0.52, 2.0], [0.81, 3.0]],
        "1 request at once, without speculation": [[0.81, 2.5]],
        "16 requests at once, with speculation": [[0.81, 1.5]],
    }
    assert axes.get_xlabel() == "steps kept"


def test_the_plot_shows_the_slowest_and_the_fastest_run() -> None:
    seconds = Spread(median=2, fastest=1, slowest=4)
    made = Timing(name="RSD", batch=1, seconds=seconds, tokens=1, guesses=True, kept=0.8, against_target=1.5)
    (axes,) = draw(report("tiny", timings=(made,))).axes
    ((bar,),) = (bars[2] for bars in axes.containers)
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([0.75, 3.0])
    assert "slowest run" in axes.get_xlabel()


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
def test_a_single_run_is_its_slowest_and_its_fastest(seconds: float, ratio: float) -> None:
    """Exactly: bars of negative length cannot be drawn."""
    one = Spread(median=seconds, fastest=seconds, slowest=seconds)
    made = Timing(name="RSD", batch=1, seconds=one, tokens=1)
    assert speed_table._range(made, ratio) == (ratio, ratio, ratio)


def test_the_plot_compares_generate_with_as_many_requests() -> None:
    timings = [timing("generate", 1, 1, against_target=0.9), timing("generate", 16, 1, against_target=0.5)]
    timings += [timing("generate", 4, 1), timing("assisted generate", 1, 1, against_target=0.7)]
    (axes,) = draw(report("tiny", timings=tuple(timings))).axes
    told = [(line.get_label(), line.get_ydata()[0]) for line in axes.lines]
    assert told == [("target only", 1.0), ("generate of the target", 0.9), ("generate of the target", 0.5)]
    assert "as many requests" in axes.get_ylabel()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batches 0", "--batches '0' must be whole numbers above 0."),
        ("--batches 1.5", "--batches '1.5' must be whole numbers above 0."),
        ("--acceptances 1.5", "--acceptances '1.5' must be numbers above 0 and up to 1."),
        ("--acceptances inf", "--acceptances 'inf' must be numbers above 0 and up to 1."),
        ("--acceptances nan", "--acceptances 'nan' must be numbers above 0 and up to 1."),
        ("--acceptances 0.5,nan", "--acceptances '0.5,nan' must be numbers above 0 and up to 1."),
        ("--acceptances x", "--acceptances 'x' must be"),
        ("--shape tiny --growth 1,x", "--growth '1,x' must be whole numbers above 0."),
        ("--shape zzz", "shape 'zzz' is not known"),
        ("--shape tiny --device banana", "--device 'banana' is no device"),
        ("--shape tiny --device cuda:99", "--device 'cuda:99' is not available here"),
        ("--device cuda", "the pocket shape is measured on the CPU"),
        ("--prompts 4", "4 prompts never make a batch of 16. Give at least 16 --prompts"),
        ("--steps 5", "--steps 5 plays no part in --shape pocket"),
        ("--step-tokens 5", "--step-tokens 5 plays no part"),
        ("--prompt-tokens 50", "--prompt-tokens 50 plays no part"),
        ("--growth none", "--growth 'none' plays no part"),
        ("--dtype bfloat16", "--dtype 'bfloat16' plays no part"),
        ("--shape tiny --batches 1 --growth none --check", "--check has nothing to check"),
    ],
)
def test_nonsense_is_refused(arguments: str, message: str, capsys: Any) -> None:
    assert main(["bench", "speed", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_shapes_named_are_those_there_are() -> None:
    from rsd_integrations.backends.torch.yardsticks.shapes import SHAPES

    assert tuple(SHAPES) == speed._RANDOM


INTERRUPTED = """
import sys
from dataclasses import replace
from rsd_integrations.backends.torch.yardsticks.plain import PlainTrio
from rsd_integrations.cli import main
generate, told = PlainTrio._generate, []
def watched(self, work, *given):
    generate(self, replace(work, max_tokens=2), *given)  # All is imported by now.
    if not told:
        told.append(print("ready", flush=True))
    return generate(self, work, *given)
PlainTrio._generate = watched
sys.exit(main("bench speed --shape tiny --steps 500 --prompts 1 --batches 1 --growth none".split()))
"""


@pytest.mark.slow
def test_an_interrupt_in_mid_measurement_is_quiet() -> None:
    assert interrupted(INTERRUPTED) == (130, "", "")
