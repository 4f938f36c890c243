"""What the model card reports: accuracy, reward quality, and what RSD spends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rsd_integrations.pocket.data import encode_prompt, encode_step, prompt_messages
from rsd_integrations.pocket.evaluate import Bench, Cost, Run, accuracy, solve, solve_rsd
from rsd_integrations.pocket.loop import Report
from rsd_integrations.pocket.model import count_parameters
from rsd_integrations.pocket.recipes import THRESHOLDS
from rsd_integrations.pocket.task import held_out, label_steps


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Chance that a right step scores above a wrong one, ties counting half."""
    ranks: dict[float, list[int]] = {}
    for score, label in zip(scores, labels, strict=True):
        ranks.setdefault(score, [0, 0])[int(label)] += 1
    wrong_below, won = 0, 0.0
    for score in sorted(ranks):
        wrong, right = ranks[score]
        won += right * (wrong_below + wrong / 2)
        wrong_below += wrong
    rights = sum(labels)
    return won / (rights * wrong_below) if rights and wrong_below else float("nan")


def parameters(bench: Bench) -> dict[str, int]:
    """Parameters of each model, embeddings and tied weights once."""
    return {name: count_parameters(model) for name, model in bench.models.items()}


def flops(cost: Cost, sizes: dict[str, int], kind: str) -> float:
    """2 x parameters x tokens, over the three models; ``kind`` is ``paper`` or ``total``."""
    suffix = "_total" if kind == "total" else ""
    return float(sum(2 * sizes[name] * getattr(cost, name + suffix) for name in ("draft", "prm", "target")))


def total_cost(runs: Sequence[Run]) -> Cost:
    """The cost of all runs together."""
    return sum((run.cost for run in runs), Cost())


def reward_quality(bench: Bench, runs: Sequence[Run]) -> dict[str, Any]:
    """How well rewards tell right from wrong steps of finished runs, each in its own context."""
    contexts, labels = [], []
    for run in runs:
        ids = tuple(encode_prompt(bench.tokenizer, prompt_messages(run.problem)))
        for step, label in zip(run.steps, label_steps(run.problem, run.steps), strict=True):
            ids += tuple(encode_step(bench.tokenizer, step))
            contexts.append(ids)
            labels.append(label)
    scores = bench.rewards(contexts)
    threshold = recommended(bench)
    pairs = list(zip(scores, labels, strict=True))
    wrong, right = [s for s, ok in pairs if not ok], [s for s, ok in pairs if ok]
    return {
        "auc": auc(scores, labels),
        "steps": len(labels),
        "wrong_steps": len(wrong),
        "threshold": threshold,
        "wrong_caught": sum(s < threshold for s in wrong) / max(1, len(wrong)),
        "right_kept": sum(s >= threshold for s in right) / max(1, len(right)),
    }


def recommended(bench: Bench) -> float:
    """The threshold written in the reward model's configuration."""
    return float(bench.models["prm"].config.rsd_prm["threshold"])


def rsd_row(bench: Bench, runs: Sequence[Run], alone: Sequence[Run], threshold: float) -> dict[str, Any]:
    """Accuracy and cost of RSD runs, cost as a share of the target alone."""
    sizes = parameters(bench)
    spent, reference = total_cost(runs), total_cost(alone)
    sources = [source for run in runs for source in run.sources]
    return {
        "threshold": threshold,
        "accuracy": accuracy(runs),
        "accepted": sources.count("draft") / len(sources),
        "woken": sum("target" in run.sources for run in runs) / len(runs),
        "paper_share": flops(spent, sizes, "paper") / flops(reference, sizes, "paper"),
        "total_share": flops(spent, sizes, "total") / flops(reference, sizes, "total"),
    }


def sweep(bench: Bench, split: str, count: int, report: Report) -> dict[str, Any]:
    """Draft alone, target alone, and RSD at every threshold, on one split."""
    problems = held_out(count, split=split)
    began = time.monotonic()
    alone = {name: solve(bench, problems, name) for name in ("draft", "target")}
    rows = []
    for threshold in THRESHOLDS:
        row = rsd_row(bench, solve_rsd(bench, problems, threshold), alone["target"], threshold)
        rows.append(row)
        report(
            f"{split} threshold {threshold}: accuracy {row['accuracy']['all']:.3f}  "
            f"accepted {row['accepted']:.3f}  paper {row['paper_share']:.3f}  total {row['total_share']:.3f}"
        )
    accuracies = {name: accuracy(runs) for name, runs in alone.items()}
    report(f"{split}: " + "  ".join(f"{name} {row['all']:.3f}" for name, row in accuracies.items()))
    return {
        "problems": count,
        "alone": accuracies,
        "rsd": rows,
        "prm_on_draft": reward_quality(bench, alone["draft"]),
        "prm_on_target": reward_quality(bench, alone["target"]),
        "seconds": time.monotonic() - began,
    }


def choose_threshold(bench: Bench, count: int, report: Report) -> float:
    """The cheapest of the thresholds with the best accuracy on so many validation problems."""
    rows = sweep(bench, "validation", count, report)["rsd"]
    best = max(row["accuracy"]["all"] for row in rows)
    good = [row for row in rows if row["accuracy"]["all"] == best]
    chosen = min(good, key=lambda row: row["paper_share"])
    report(f"recommended threshold {chosen['threshold']}")
    return float(chosen["threshold"])


def measure(bench: Bench, count: int, report: Report) -> dict[str, Any]:
    """Everything the card needs, on so many held-out problems."""
    results = sweep(bench, "held_out", count, report)
    return {"parameters": parameters(bench), "recommended": recommended(bench), **results}
