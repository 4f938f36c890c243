"""What the speed bench runs and how it counts, on a fake engine and a fake clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rsd_integrations.bench.speed import SpeedBench
from rsd_integrations.bench.speed_alone import measure_breakdown, measure_limits
from rsd_integrations.bench.speed_results import Spread, Timing
from rsd_integrations.bench.speed_setting import Setting
from rsd_integrations.errors import BackendError, ConfigError
from tests.bench.fakes import COSTS, STEP_TOKENS, Clock, FakePipe, FakePlain

HOST = COSTS["host"]


def setting(prompts: int = 1, **fields: Any) -> Setting:
    given: dict[str, Any] = {"acceptances": (0.5,), "batches": (1,), "repeats": 1, "step_tokens": STEP_TOKENS}
    names = [f"question {number}" for number in range(prompts)]
    return Setting(shape="tiny", prompts=names, **{**given, **fields})


class Bench:
    """A bench on fakes, and the fakes."""

    def __init__(self, asked: Setting, *, pipe: dict[str, Any] | None = None, **plain: Any) -> None:
        self.clock, self.setting = Clock(), asked
        self.pipe, self.plain = FakePipe(self.clock, **(pipe or {})), FakePlain(self.clock, **plain)
        self.bench = SpeedBench(self.pipe, self.plain, asked, self.clock)  # type: ignore[arg-type]

    def timings(self, batch: int = 1) -> dict[str, Timing]:
        return {one.name: one for one in self.bench._side_by_side(batch)}

    def growth(self) -> Any:
        return self.bench._growth(8, "grow")


def test_the_median_of_warm_runs_counts() -> None:
    bench = Bench(setting(repeats=3), seconds={"generate": [100.0, 1.0, 9.0, 2.0]})
    timing = bench.timings()["generate"]
    assert timing.seconds == Spread(median=2.0, fastest=1.0, slowest=9.0)
    assert timing.tokens == 10 * STEP_TOKENS
    assert timing.tokens_per_second == 10 * STEP_TOKENS / 2.0


def test_ours_is_warmed_up_too() -> None:
    asked = setting(repeats=3, acceptances=())
    timings = Bench(asked, pipe={"slowness": [100.0, 1.0, 9.0, 2.0]}).timings()
    base = 10 * (COSTS["guessing"] + HOST)
    assert timings["target only"].seconds == Spread(median=2 * base, fastest=base, slowest=9 * base)


def test_what_is_measured_against_what() -> None:
    asked = setting(acceptances=(0.8,), repeats=3)
    timings = Bench(asked, seconds={"generate": [4.0, 1.0, 9.0, 4.0]}).timings()
    rates = {name: timing.tokens_per_second for name, timing in timings.items()}
    assert rates["generate"] == 10.0
    assert rates["target only"] == pytest.approx(40 / (10 * (COSTS["guessing"] + HOST)))
    for name, timing in timings.items():
        assert timing.against_generate == pytest.approx(rates[name] / rates["generate"])
        assert timing.against_target == pytest.approx(rates[name] / rates["target only"])


def test_the_target_alone_is_the_target() -> None:
    bench = Bench(setting(prompts=2, acceptances=()))
    timing = bench.timings()["target only"]
    assert {config.mode for _, config in bench.pipe.asked} == {"target"}
    assert [prompt for prompt, _ in bench.pipe.asked] == 2 * ["question 0", "question 1"]
    assert (timing.acceptance, timing.guesses, timing.kept) == (None, None, None)


@pytest.mark.parametrize("prompts", [1, 16])
def test_acceptances_are_kept_to_the_step(prompts: int) -> None:
    bench = Bench(setting(prompts=prompts, acceptances=(0.5, 0.8, 0.9)))
    timings = bench.timings()
    for share in (0.5, 0.8, 0.9):
        for guesses, name in ((True, f"RSD {share:g}"), (False, f"RSD {share:g}, no guesses")):
            timing = timings[name]
            assert (timing.acceptance, timing.guesses) == (share, guesses)
            assert timing.kept == pytest.approx(share)
            rewrite = COSTS["guessing" if guesses else "target"]
            step = COSTS["draft"] + COSTS["prm"] + HOST + (1 - share) * rewrite
            assert timing.seconds.median == pytest.approx(10 * prompts * step)


def test_what_was_kept_in_fact_is_told() -> None:
    """Answers that end elsewhere than expected keep another share, and say so."""
    timings = Bench(setting(acceptances=(0.5,)), pipe={"steps": 3}).timings()
    assert timings["RSD 0.5"].kept == pytest.approx(2 / 3)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_so_many_requests_at_once(batch: int) -> None:
    bench = Bench(setting(prompts=4, batches=(1, 2, 4)))
    timings = bench.timings(batch)
    assert bench.pipe.most == batch
    assert {timing.batch for timing in timings.values()} == {batch}
    assert {len(work.prompts) for name, work in bench.plain.runs if name == "generate"} == {batch}
    assert ("assisted generate" in timings, "reference's way 0.8" in timings) == (batch == 1,) * 2


def test_the_reference_keeps_the_same_share() -> None:
    bench = Bench(setting(prompts=4))
    timing = bench.timings()["reference's way 0.8"]
    assert (timing.kept, timing.acceptance, timing.guesses) == (pytest.approx(0.8), 0.8, None)
    assert timing.tokens == 4 * 10 * STEP_TOKENS
    assert [work.prompts for name, work in bench.plain.runs if name == "reference"][:4] == [
        [f"question {number}"] for number in range(4)
    ]


def test_compiled_generate_is_for_gpus() -> None:
    timings = Bench(setting(), on_gpu=True).bench.measure(1e9).timings
    assert "generate, compiled" in [one.name for one in timings]
    assert "generate, compiled" not in [one.name for one in Bench(setting()).bench.measure(1e9).timings]


def test_it_comes_behind_all_else() -> None:
    """Its graphs make torch clear what libraries keep for the whole process."""
    bench = Bench(setting(prompts=2, batches=(1, 2), repeats=2), on_gpu=True)
    # What our engine is asked (prompts) and what the yardsticks run (names), in one list.
    done: list[Any] = []
    bench.pipe.asked = bench.plain.runs = done
    speeds = bench.bench.measure(1e9)
    names = [name for name, _ in done]
    first = names.index("compiled")
    assert {"question 0", "generate"} < set(names[:first])
    assert set(names[first:]) == {"compiled"} and len(names[first:]) == 3 * (2 + 1)
    made = {one.batch: one for one in speeds.timings if one.name == "generate, compiled"}
    generate = {one.batch: one for one in speeds.timings if one.name == "generate"}
    for batch in (1, 2):
        ratio = made[batch].tokens_per_second / generate[batch].tokens_per_second
        assert made[batch].against_generate == pytest.approx(ratio)


def test_one_contender_samples() -> None:
    bench = Bench(setting(acceptances=(0.5, 0.8)))
    timing = bench.timings()["RSD 0.5, sampled"]
    assert (timing.acceptance, timing.guesses, timing.kept) == (0.5, None, pytest.approx(0.5))
    assert [config.temperature for _, config in bench.pipe.asked if config.temperature] == [0.7, 0.7]


def test_numbers_are_told_as_they_come() -> None:
    bench, told = Bench(setting(repeats=2)), list[str]()
    bench.bench.measure(1e9, on_result=told.append)
    assert [line for line in told if line.startswith("generate, 1 request")] == [
        "generate, 1 request: warming up: 1.000 s, 40 tokens",
        "generate, 1 request: 1.000 s, 40 tokens",
        "generate, 1 request: 1.000 s, 40 tokens",
    ]
    assert any("of the bandwidth" in line for line in told)


@pytest.mark.parametrize("growth", [{}, {8: "grow"}])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_how_many_measurements_there_are_is_known_beforehand(growth: dict[int, str], on_gpu: bool) -> None:
    asked = setting(prompts=4, repeats=2, batches=(1, 4), growth=growth)
    bench, told = Bench(asked, pipe={"steps": 80}, on_gpu=on_gpu), list[str]()
    expected = bench.bench.runs
    bench.bench.measure(1e9, on_run=told.append)
    assert len(told) == expected


def test_growth_and_the_hosts_share_are_told_before_what_is_compiled() -> None:
    """A time limit may end the run while it compiles."""
    asked = setting(growth={8: "grow"})
    bench, told = Bench(asked, pipe={"steps": 80}, on_gpu=True), list[str]()
    bench.bench.measure(1e9, on_result=told.append)
    before = told[: next(index for index, line in enumerate(told) if line.startswith("generate, compiled"))]
    assert [line for line in before if line.startswith(("10 steps", "80 steps", "a step"))] == [
        "10 steps, prompt of 8: 4100.00 ms a step, 1000.00 the reference's way",
        "80 steps, prompt of 8: 4100.00 ms a step",
        "a step: 4100.00 ms, 500.00 (12 %) of it the host's",
    ]


@pytest.mark.parametrize("runs", [0, 1])
def test_a_yardstick_that_fails_is_left_out(runs: int) -> None:
    """While it warms up, or later."""
    bench = Bench(setting(), fail={"generate": runs, "assisted": 0})
    timings = bench.timings()
    assert set(timings) == {
        "target only",
        "RSD 0.5",
        "RSD 0.5, no guesses",
        "RSD 0.5, sampled",
        "reference's way 0.8",
    }
    assert timings["RSD 0.5"].against_generate is None
    assert timings["RSD 0.5"].against_target is not None
    assert bench.bench._left_out == {
        "generate, 1 request": "OSError: no generate here",
        "assisted generate, 1 request": "OSError: no assisted here",
    }


def test_a_failure_of_ours_is_one_of_the_measurement() -> None:
    def fail(config: Any) -> None:
        if config.mode == "rsd":
            raise BackendError("the engine broke")

    with pytest.raises(BackendError, match="the engine broke"):
        Bench(setting(), pipe={"fail": fail}).timings()


def test_growth_is_measured_warm() -> None:
    bench = Bench(
        setting(repeats=3),
        pipe={"steps": 80, "slowness": [1000.0, 1.0, 9.0, 2.0]},
        seconds={"reference times": [1000.0, 1.0, 9.0, 2.0]},
    )
    growth = bench.growth()
    assert [(one.prompt_tokens, one.steps) for one in growth] == [(8, 10), (8, 20), (8, 40), (8, 80)]
    step = COSTS["draft"] + COSTS["prm"] + HOST + 0.2 * COSTS["guessing"]
    for one in growth:
        assert one.ours == pytest.approx(1000 * 2 * step)
    assert [one.reference for one in growth] == [pytest.approx(2000.0), pytest.approx(2000.0), None, None]
    assert {prompt for prompt, _ in bench.pipe.asked} == {"grow"}
    works = [work for name, work in bench.plain.runs if name == "reference times"]
    assert {(tuple(work.prompts), work.max_tokens) for work in works} == {(("grow",), 20 * STEP_TOKENS)}


def test_growth_without_the_reference() -> None:
    bench = Bench(setting(), pipe={"steps": 80}, fail={"reference times": 0})
    assert [one.reference for one in bench.growth()] == [None] * 4
    assert list(bench.bench._left_out) == ["reference's way, prompt of 8"]


def test_growth_is_for_forced_lengths() -> None:
    followed = {8: "grow"}
    pocket = Setting(
        shape="pocket", prompts=["a"], usual_steps=[10], batches=(1,), repeats=1, growth=followed
    )
    assert Bench(pocket).bench.measure(1.0).growth == []
    tiny = setting(growth=followed)
    assert len(Bench(tiny, pipe={"steps": 80}).bench.measure(1.0).growth) == 4


def limits(bench: Bench, bandwidth: float) -> dict[str, Any]:
    found = measure_limits(
        bench.pipe,  # type: ignore[arg-type]
        bench.plain,  # type: ignore[arg-type]
        bench.setting,
        bandwidth,
        bench.clock,
    )
    return {limit.role: limit for limit in found}


def test_each_model_against_the_memory() -> None:
    found = limits(Bench(setting()), bandwidth=100.0)
    seconds = {
        "draft": (COSTS["draft"] + HOST) / STEP_TOKENS,
        "target": (COSTS["guessing"] + HOST) / STEP_TOKENS,
        "prm": COSTS["prm"],
    }
    for role, size in (("draft", 10), ("target", 70), ("prm", 20)):
        assert found[role].milliseconds == pytest.approx(1000 * seconds[role])
        assert found[role].share == pytest.approx(size / seconds[role] / 100.0)


def test_the_stopwatch_is_taken_off_again() -> None:
    bench = Bench(setting())
    bench.bench.measure(1.0)
    for role in ("draft", "prm", "target"):
        assert vars(getattr(bench.pipe.backend, role).runner) == {"clock": bench.clock, "runs_ahead": True}


def breakdown(bench: Bench) -> Any:
    return measure_breakdown(bench.pipe, bench.setting, bench.clock)  # type: ignore[arg-type]


def test_where_a_step_s_time_goes() -> None:
    found = breakdown(Bench(setting()))
    assert found.kept == 0.8
    parts = (found.draft, found.score, found.target, found.host)
    assert parts == (1000.0, 2000.0, pytest.approx(0.2 * 3000.0), pytest.approx(500.0))
    assert found.wall == pytest.approx(sum(parts))
    assert found.host_share == pytest.approx(0.5 / 4.1)


def test_the_parts_are_of_the_repeat_in_the_middle() -> None:
    found = breakdown(Bench(setting(repeats=3), pipe={"slowness": [9.0, 1.0, 2.0]}))
    assert (found.draft, found.score) == (2000.0, 4000.0)
    assert found.wall == pytest.approx(2 * 4100.0)


def test_a_target_that_rewrote_nothing_has_no_time() -> None:
    found = breakdown(Bench(setting(steps=2), pipe={"steps": 2}))
    assert (found.kept, found.target) == (1.0, None)
    assert found.wall == pytest.approx(found.draft + found.score + found.host)


@pytest.mark.parametrize(("lengths", "share"), [([4], 0.75), ([4, 4, 4, 4, 4], 0.8)])
def test_short_answers_share_the_breakdown(lengths: Sequence[int], share: float) -> None:
    prompts = [str(number) for number in range(len(lengths))]
    pocket = Setting(shape="pocket", prompts=prompts, usual_steps=lengths, batches=(1,), repeats=1)
    bench = Bench(pocket, pipe={"steps": 4})
    assert breakdown(bench).kept == share
    assert [prompt for prompt, _ in bench.pipe.asked] == prompts


def test_too_few_prompts_for_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"3 prompts never make a batch of 4\. Give at least 4 --prompts"):
        setting(prompts=3, batches=(1, 4))
    assert setting(prompts=4, batches=(1, 4)).batches == (1, 4)
