"""The speeds that have to be reached, on the CPU and on a large GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rsd_integrations.bench.results import Check
from rsd_integrations.bench.speed_results import Growth, SpeedReport
from rsd_integrations.bench.speed_setting import Setting

_MANY = 16
"""Requests at once for which RSD has to pay."""


def required_speeds(report: SpeedReport, batches: Sequence[int], *, on_gpu: bool) -> tuple[Check, ...]:
    """Every required number of this shape with what was measured; what did not run counts as missed.

    Args:
        report: what was measured.
        batches: requests at once, as they were asked for.
        on_gpu: whether on a CUDA device.
    """
    return tuple(_on_gpu(report) if on_gpu else _on_cpu(report, batches))


def anything_required(setting: Setting, *, on_gpu: bool) -> bool:
    """Whether ``required_speeds`` will have anything to say of a measurement like this."""
    return on_gpu or not setting.forced or bool(setting.growth) or _MANY in setting.batches


def _on_cpu(report: SpeedReport, batches: Sequence[int]) -> Iterator[Check]:
    if report.shape == "pocket":
        yield _ratio(report, "RSD 0.8 against generate", "RSD 0.8", 1, 1.0, generate=True)
    yield from _growth(report.growth)
    if _MANY in batches:
        yield _throughput(report, "RSD 0.8")


def _growth(growth: Sequence[Growth]) -> Iterator[Check]:
    """For every length of prompt, the short ones too, where there is less to gain by not sending it again."""
    for length in dict.fromkeys(one.prompt_tokens for one in growth):
        behind = [one for one in growth if one.prompt_tokens == length]
        times = [one.ours for one in behind]
        spread = max(times) / min(times)
        name = f"steps 10 to 80, prompt {length}"
        yield Check.of(name, "within 20 %", f"{spread:.2f}x", spread <= 1.2)
        for one in behind:
            if one.steps == 20:
                yield _at_least(f"reference's way, prompt {length}", ">= 5x ours", one.ratio, 5.0)


def _throughput(report: SpeedReport, name: str) -> Check:
    one, many = report.timing(name, 1), report.timing(name, _MANY)
    ratio = many.tokens_per_second / one.tokens_per_second if one and many else None
    return _at_least(f"{name}, {_MANY} requests", ">= 3x one", ratio, 3.0)


def _on_gpu(report: SpeedReport) -> Iterator[Check]:
    large = "32b" in report.shape
    for limit in report.limits:
        if limit.role != "prm":
            name = f"{limit.role}, share of bandwidth"
            yield Check.of(name, ">= 0.75", f"{limit.share:.2f}", limit.share >= 0.75)
    required = 3.5 if large else 2.0
    yield _ratio(report, "RSD 0.8 against target only", "RSD 0.8", 1, required)
    yield _ratio(report, "RSD 0.8 against generate", "RSD 0.8", 1, 6.0, generate=True)
    yield _ratio(report, f"RSD 0.9, {_MANY} requests", "RSD 0.9", _MANY, 1.5 if large else 1.0)
    host = report.breakdown.host_share
    yield Check.of("host's share of a step", "< 5 %", f"{100 * host:.1f} %", host < 0.05)


def _ratio(
    report: SpeedReport, what: str, name: str, batch: int, least: float, *, generate: bool = False
) -> Check:
    timing = report.timing(name, batch)
    ratio = None if timing is None else timing.against_generate if generate else timing.against_target
    return _at_least(what, f">= {least:g}x", ratio, least)


def _at_least(name: str, required: str, ratio: float | None, least: float) -> Check:
    measured = "did not run" if ratio is None else f"{ratio:.2f}x"
    return Check.of(name, required, measured, ratio is not None and ratio >= least)
