"""Refuse, when it is loaded, a model that slots do not fit."""

from __future__ import annotations

import torch

from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.slots import SlotFeed
from rsd_integrations.errors import DeviceMemoryError, ModelError

__all__ = ["check_slots"]

_TOKENS = [11, 7, 23, 5, 19, 3, 29, 13, 2, 17, 31, 37]


def check_slots(runner: SlotRunner, name: str) -> None:
    """Compare a ragged, rolled-back history with a plain forward of the same tokens.

    Raises:
        DeviceMemoryError: the cache does not fit.
        ModelError: the model fails, or the two differ by more than rounding: it does not go by the
            positions and masks it is given (ALiBi, recurrent layers, ...).
    """
    tokens = _TOKENS[: runner.capacity]
    slots = [runner.claim() for _ in range(min(2, runner.free))]
    try:
        plain = runner.plain(tokens)
        pieces = _in_pieces(runner, slots, tokens)
    except DeviceMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name!r} does not run over slots: {type(error).__name__}: {error}",
            hint="Use a decoder-only model with plain causal attention.",
        ) from error
    finally:
        for slot in slots:
            runner.release(slot)
    difference = float((plain - pieces).abs().max() / plain.abs().max().clamp_min(1e-6))
    if not difference <= (1e-3 if runner.exact else 0.2):
        raise ModelError(
            f"{name!r} cannot continue from a cache with per-row positions "
            f"(relative difference {difference:.2g}).",
            hint="Use a model with plain causal attention and rotary or learnt positions.",
        )


def _in_pieces(runner: SlotRunner, slots: list[int], tokens: list[int]) -> torch.Tensor:
    """The output at the last token after a wrong turn, a rollback, and beside another request."""
    middle = max(1, len(tokens) // 2)
    last, *others = reversed(slots)
    wrong = tokens[middle:][::-1] or tokens[:1]
    feeds = [SlotFeed(last, 0, tokens[:middle])]
    if len(tokens) > middle:
        feeds += [SlotFeed(last, middle, wrong), SlotFeed(last, middle, tokens[middle:])]
    output = None
    for feed in feeds:
        company = [
            SlotFeed(other, 0, [*feed.tokens, *feed.tokens[:1]][: runner.capacity]) for other in others
        ]
        results = runner.run([feed, *company])
        for result in results:
            if isinstance(result, Exception):
                raise result
        output = results[0]
    assert isinstance(output, torch.Tensor)
    return output
