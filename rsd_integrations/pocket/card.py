"""The model card, written from recipes and measured files; no number is typed."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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

COMMANDS = """## Made by

```
python -m rsd_integrations.pocket.train --out pocket-train
python -m rsd_integrations.pocket.train --out pocket-train --install
```

Seeds are fixed and training data are a function of seed and batch number; budgets are in tokens.
"""


def render(out: Path, extent: Extent) -> str:
    """The card for the trio in an output folder, made to some extent of the recipe."""
    results = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    parts = [INTRO, _grammar(), _models(out, results), _accuracy(results), _rewards(results), _sweep(results)]
    return "\n".join([*parts, _commands(extent), _notes(out, extent)])


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
        "hash of its text, so no text is shared. The validation split watched\n"
        "training and chose the draft's blend and the threshold (see the last section for how).\n"
    )


def _state(out: Path, name: str) -> dict[str, float]:
    """Steps, tokens and seconds of a training, its phases added up."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / name).glob("**/state.json"))
    ]
    return {key: sum(state[key] for state in found) for key in ("step", "tokens", "seconds")}


def _models(out: Path, results: dict[str, Any]) -> str:
    seeds = {name: stage.seed for name, stage in STAGES.items()} | {"prm": PRM_SEED}
    rows = []
    for name in ("base", "target", "draft", "trunk", "prm"):
        state = _state(out, name)
        shape = STAGES[name].shape if name in STAGES else None
        rows.append(
            (
                name,
                f"{results['parameters'].get(name, 0):,}" if name in results["parameters"] else "-",
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


def _accuracy(results: dict[str, Any]) -> str:
    chosen = next(row for row in results["rsd"] if row["threshold"] == results["recommended"])
    lengths = [key for key in results["alone"]["target"] if key != "all"]
    rows = [
        (name, *(f"{by[key]:.3f}" for key in ["all", *lengths]))
        for name, by in [*results["alone"].items(), (f"RSD at {chosen['threshold']}", chosen["accuracy"])]
    ]
    head = ("final answers right", "all", *(f"{length} events" for length in lengths))
    return (
        f"## Held-out accuracy\n\nGreedy, {results['problems']} problems, uniform over the lengths.\n\n"
        + table(head, rows)
    )


def _rewards(results: dict[str, Any]) -> str:
    rows = [
        (
            who,
            f"{row['auc']:.4f}",
            row["steps"],
            row["wrong_steps"],
            f"{row['wrong_caught']:.3f}",
            f"{row['right_kept']:.3f}",
        )
        for who, row in (("draft", results["prm_on_draft"]), ("target", results["prm_on_target"]))
    ]
    head = ("greedy steps of", "AUC", "steps", "wrong", "wrong caught", "right kept")
    return (
        f"## Reward model\n\nStrict labels, every step in its own context; at the recommended threshold "
        f"{results['recommended']}.\n\n" + table(head, rows)
    )


def _sweep(results: dict[str, Any]) -> str:
    rows = [
        (
            row["threshold"],
            f"{row['accuracy']['all']:.3f}",
            f"{row['accepted']:.3f}",
            f"{row['woken']:.3f}",
            f"{row['paper_share']:.3f} ({1 / row['paper_share']:.1f}x)",
            f"{row['total_share']:.3f} ({1 / row['total_share']:.1f}x)",
        )
        for row in results["rsd"]
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
        "## RSD by threshold\n\nFLOPs as a share of the target alone. Paper: 2 x parameters for every token generated by "
        "draft or target or\nscored by the reward model. Total: for every token forwarded, prompts and catching up "
        "included.\n\n" + table(head, rows)
    )


def _commands(extent: Extent) -> str:
    given = {name: value for name, value in asdict(extent).items() if value != getattr(Extent(), name)}
    asked = "".join(f" --{name} {value}" for name, value in given.items())
    return COMMANDS.replace("--out pocket-train", "--out pocket-train" + asked)


def _notes(out: Path, extent: Extent) -> str:
    counts = ", ".join(
        f"{name} at temperature {temperature}: {count}" for name, temperature, count in extent.rollouts()
    )
    notes = out / "NOTES.md"
    extra = notes.read_text(encoding="utf-8") if notes.exists() else ""
    return (
        f"Reward model data: spoilt gold solutions, and rollouts with wrong steps put right ({counts} problems).\n"
        f"Card written on {platform.machine()}, Python {platform.python_version()}.\n{extra}"
    )
