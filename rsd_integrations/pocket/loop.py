"""The training loop of all three models: budgeted, reporting, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsd_integrations.files import whole
from rsd_integrations.pocket.data import IGNORE, Batch, Mixture, batches
from rsd_integrations.pocket.model import count_parameters, use_half_products
from rsd_integrations.pocket.optim import make_optimizers, set_rates

Report = Callable[[str], None]
Loss = Callable[[Any, Batch, str], torch.Tensor]
"""(model, batch, device) -> the loss to minimize."""


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many training minutes or tokens, whichever comes first."""

    minutes: float | None = None
    tokens: int | None = None

    def progress(self, state: TrainState) -> float:
        """Share of the budget that is spent, 0 to 1."""
        shares = [0.0]
        if self.minutes is not None:
            shares.append(state.seconds / (60 * self.minutes))
        if self.tokens is not None:
            shares.append(state.tokens / self.tokens)
        return min(1.0, max(shares))


@dataclass(frozen=True)
class Recipe:
    """How one model is trained."""

    seed: int
    size: int = 24
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    constant: float = 0.4
    mixture: Mixture = field(default_factory=Mixture)


@dataclass
class TrainState:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0


def train_language_model(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    budget: Budget,
    folder: Path,
    *,
    device: str = "cpu",
    report: Report = print,
    every: float = 60.0,
) -> TrainState:
    """Train in place until the budget is spent, picking up a checkpoint in ``folder``."""

    def stream(start: int) -> Iterator[Batch]:
        return batches(tokenizer, recipe.seed, size=recipe.size, start=start, mixture=recipe.mixture)

    name = f"{folder.parent.name}/{folder.name}"
    return train(
        model, stream, language_loss,
        name=name, recipe=recipe, budget=budget, folder=folder, device=device, report=report, every=every,
    )  # fmt: skip


def train(
    model: Any,
    stream: Callable[[int], Iterator[Batch]],
    loss: Loss,
    *,
    name: str,
    recipe: Recipe,
    budget: Budget,
    folder: Path,
    device: str = "cpu",
    report: Report = print,
    every: float = 60.0,
) -> TrainState:
    """Train in place as ``train_language_model`` does, with any loss.

    Args:
        stream: gives batches for ever, from a given step on.
        name: in reports.
    """
    model.to(device).train()
    use_half_products(model, device == "cpu")
    optimizers = make_optimizers(model, muon_lr=recipe.muon_lr, adam_lr=recipe.adam_lr)
    state = load_checkpoint(folder, model, optimizers)
    report(f"{name}: {count_parameters(model):,} parameters, from step {state.step}")
    coming = stream(state.step)
    last = time.monotonic()
    shown = saved = state.seconds
    while budget.progress(state) < 1.0:
        set_rates(optimizers, budget.progress(state), recipe.constant)
        batch = next(coming)
        value = _update(loss(model, batch, device), optimizers)
        now = time.monotonic()
        state.seconds += now - last
        last = now
        state.step += 1
        state.tokens += batch.tokens
        state.loss = value if state.step == 1 else 0.98 * state.loss + 0.02 * value
        if state.seconds - shown > every / 4:
            shown = state.seconds
            report(progress_line(name, state, budget))
        if state.seconds - saved > every:
            saved = state.seconds
            save_checkpoint(folder, model, optimizers, state)
    save_checkpoint(folder, model, optimizers, state)
    use_half_products(model, False)
    report(progress_line(name, state, budget) + " done")
    model.eval()
    return state


def language_loss(model: Any, batch: Batch, device: str) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens; logits are made for those only."""
    ids_BT = batch.ids_BT[:, :-1].to(device)
    targets_BT = batch.labels_BT[:, 1:].to(device)
    learnt_BT = targets_BT != IGNORE
    half = torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext()
    with half:
        hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        hidden_ND, targets_N = hidden_BTD[learnt_BT], targets_BT[learnt_BT]
        logits_NV = model.lm_head(hidden_ND)
    loss = nn.functional.cross_entropy(logits_NV.float(), targets_N)
    extra = getattr(model, "auxiliary_loss", None)
    return loss if extra is None else loss + extra(hidden_ND.float(), targets_N)


def _update(loss: torch.Tensor, optimizers: list[torch.optim.Optimizer]) -> float:
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def progress_line(name: str, state: TrainState, budget: Budget) -> str:
    """One plain line on where a run stands."""
    rate = state.tokens / max(state.seconds, 1e-9)
    return (
        f"{name}: {budget.progress(state):6.1%}  step {state.step}  {state.tokens / 1e6:.2f}M tokens  "
        f"{rate:,.0f} tokens/s  loss {state.loss:.4f}  {state.seconds / 60:.1f} min"
    )


def save_checkpoint(
    folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], state: TrainState
) -> None:
    """Write weights, optimizer state and position."""
    payload = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "state": asdict(state),
    }
    with whole(folder / "checkpoint.pt") as file:
        torch.save(payload, file)
    (folder / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")


def save_weights(path: Path, model: nn.Module) -> None:
    """Write finished weights alone."""
    with whole(path) as file:
        torch.save(model.state_dict(), file)


def load_checkpoint(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> TrainState:
    """Restore a checkpoint if the folder has one; otherwise a fresh state."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return TrainState()
    payload = torch.load(path, weights_only=True)
    model.load_state_dict(payload["model"])
    for optimizer, saved in zip(optimizers, payload["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return TrainState(**payload["state"])
