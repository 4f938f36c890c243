"""The model card, written from recipes and measured files; no number is typed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rsd_integrations.bench.results import AccuracyReport, Interval
from rsd_integrations.pocket.grammar import DOMAINS
from rsd_integrations.pocket.recipes import PRM_SEED, STAGES, Extent
from rsd_integrations.pocket.task import held_out

INTRO = """# The pocket trio

A draft, a target and a process reward model so small that they ship inside the package. They solve
one made-up family of word problems (below) and **cannot answer anything else**; they exist so that
reward-guided speculative decoding can be run, shown and tested without a download.

All three are standard `transformers` folders (float32 safetensors, no remote code) with one shared
byte-level tokenizer and a ChatML template.
"""

COMMAND = "python -m rsd_integrations.pocket.train --out pocket-train"


def render(out: Path, extent: Extent, measured: AccuracyReport, sizes: Mapping[str, int]) -> str:
    """The card for the trio in an output folder, made to some extent of the recipe.

    Args:
        out: the folder.
        extent: how much of the recipe was done.
        measured: what the bench says of the trio.
        sizes: parameters of each model, as exported.
    """
    tables = (told(measured) for told in (_accuracy, _rewards, _sweep))
    return "\n".join(
        [INTRO, _grammar(), _models(out, sizes), *tables, _commands(extent), _notes(out, extent)]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _grammar() -> str:
    problem = held_out(1, events=(4,))[0]
    steps = "\n".join(problem.steps)
    kinds = ", ".join(f"{domain.name} ({len(domain.events)} event templates)" for domain in DOMAINS)
    return (
        "## The task\n\n"
        "Three to eight events change one amount between 0 and 99; two problems in five also hold sentences that\n"
        "are beside the point. Every step restates the next event and does its sum, the last step boxes the answer.\n"
        f"Kinds of story: {kinds}.\n\nA held-out example:\n\n```\n{problem.question}\n\n{steps}\n```\n\n"
        "A question belongs to the held-out or the validation split (one in sixteen each) or to training by the\n"
        "hash of its text, so no text is shared. The validation split chose the threshold: of those with the best\n"
        "accuracy on it, the one with the fewest FLOPs.\n"
    )


def _state(out: Path, name: str) -> dict[str, float]:
    """Steps, tokens and seconds of a training, its phases added up."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / name).glob("**/state.json"))
    ]
    return {key: sum(state[key] for state in found) for key in ("step", "tokens", "seconds")}


def _models(out: Path, sizes: Mapping[str, int]) -> str:
    seeds = {name: stage.seed for name, stage in STAGES.items()} | {"prm": PRM_SEED}
    rows = []
    for name in ("base", "target", "draft", "trunk", "prm"):
        state = _state(out, name)
        shape = STAGES[name].shape if name in STAGES else None
        rows.append(
            (
                name,
                f"{sizes[name]:,}" if name in sizes else "-",
                f"{shape.hidden} x {shape.layers}, {shape.heads} heads, MLP {shape.mlp}"
                if shape
                else "trunk + 2 layers",
                seeds[name],
                state["step"],
                f"{state['tokens'] / 1e6:.2f}M",
                f"{state['seconds'] / 60:.1f}",
            )
        )
    head = ("training", "parameters", "width x layers", "seed", "steps", "tokens", "minutes")
    return (
        "## Models and training\n\n" + table(head, rows) + "\n"
        "The target is the base model grown without changing what it computes, then trained on. The trunk is the\n"
        "language model under the reward model (its parameters are counted there).\n"
    )


def _accuracy(measured: AccuracyReport) -> str:
    rows = [
        (
            f"RSD at {point.threshold}" if point.kind == "rsd" else point.kind,
            f"{point.accuracy.value:.3f}",
            *(f"{length.accuracy.value:.3f}" for length in point.by_length),
        )
        for point in measured.points
        if point.kind != "rsd" or point.recommended
    ]
    lengths = [length.events for length in measured.points[0].by_length]
    head = ("final answers right", "all", *(f"{length} events" for length in lengths))
    return (
        "## Held-out accuracy\n\n"
        f"Greedy, {measured.settings['problems']} problems, uniform over the lengths.\n{_where(measured)}\n\n"
        + table(head, rows)
    )


def _where(measured: AccuracyReport) -> str:
    versions, hardware = measured.versions, measured.hardware
    device = hardware.get("gpu") or f"{hardware['cores']} cores, {hardware['processor']}"
    return (
        f"Measured, as are the next two tables, on {measured.date.partition('T')[0]}: {device}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}."
    )


def _rewards(measured: AccuracyReport) -> str:
    prm = measured.prm
    rows = [
        ("up to the first wrong one of each answer", _interval(prm.auc), prm.steps, prm.wrong_steps),
        ("all", _interval(prm.all_steps), prm.all_steps_count, prm.all_wrong_steps),
    ]
    return (
        "## Reward model\n\nStrict labels, every step in its own context; AUC with its 95 % interval.\n\n"
        + table(("greedy steps of the draft", "AUC", "steps", "wrong"), rows)
    )


def _interval(auc: Interval | None) -> str:
    return "-" if auc is None else f"{auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}]"


def _sweep(measured: AccuracyReport) -> str:
    rows = [
        (
            point.threshold,
            f"{point.accuracy.value:.3f}",
            f"{point.acceptance_rate:.3f}",
            f"{1 - point.target_idle:.3f}",
            _share(point.flops_share.paper),
            _share(point.flops_share.total),
        )
        for point in measured.points
        if point.kind == "rsd"
    ]
    head = (
        "threshold",
        "accuracy",
        "steps kept",
        "problems waking the target",
        "FLOPs, paper",
        "FLOPs, total",
    )
    return (
        "## RSD by threshold\n\nFLOPs as a share of what the target alone spends on the same problems. Paper: 2 x parameters for every token\n"
        "generated by draft or target or scored by the reward model. Total: every token that went through a model,\n"
        "prompts, catching up and speculation that proved wrong included, with attention. The recommended threshold\n"
        f"is {measured.recommended_threshold}.\n\n" + table(head, rows)
    )


def _share(share: float) -> str:
    return f"{share:.3f} ({1 / share:.1f}x)"


def _commands(extent: Extent) -> str:
    whole = extent == Extent()
    lines = (COMMAND, f"{COMMAND} --install") if whole else (f"{COMMAND} {extent}",)
    unit = "tokens" if extent.minutes is None else "minutes"
    return (
        "## Made by\n\n```\n" + "\n".join(lines) + "\n```\n\n"
        f"Seeds are fixed and training data are a function of seed and batch number; budgets are in {unit}.\n"
    )


def _notes(out: Path, extent: Extent) -> str:
    counts = ", ".join(
        f"{name} at temperature {temperature}: {count}" for name, temperature, count in extent.rollouts()
    )
    notes = out / "NOTES.md"
    extra = "\n" + notes.read_text(encoding="utf-8") if notes.exists() else ""
    return f"Reward model data: spoilt gold solutions, and rollouts with wrong steps put right ({counts} problems).\n{extra}"
