"""Refuse, when it is loaded, a model that slots do not fit."""

from __future__ import annotations

import torch

from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Output
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.errors import ConfigError, DeviceMemoryError, ModelError

__all__ = ["check_slots"]

_TOKENS = [11, 7, 23, 5, 19, 3, 29, 13, 2, 17, 31, 37]


def check_slots(runner: SlotRunner, name: str) -> None:
    """Compare a ragged, rolled-back history with a plain forward of the same tokens.

    Raises:
        ConfigError: the model cannot be compiled, which was asked for.
        DeviceMemoryError: the cache does not fit.
        ModelError: the model fails, or the two differ by more than rounding: it does not go by the
            positions and masks it is given (ALiBi, recurrent layers, ...).
    """
    tokens = _TOKENS[: runner.capacity]
    slots = [runner.claim() for _ in range(min(2, runner.free))]
    try:
        plain = runner.plain(tokens)
        pieces = _in_pieces(runner, slots, tokens)
    except (ConfigError, DeviceMemoryError):
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
    """The output at the last token after a wrong turn, a rollback, beside another request, and alone."""
    middle = max(1, len(tokens) // 2)
    last, *others = reversed(slots)
    feeds = [SlotFeed(last, 0, tokens[:middle])]
    if len(tokens) > middle:
        feeds += [SlotFeed(last, middle, tokens[middle:][::-1]), SlotFeed(last, middle, tokens[middle:])]
    for feed in feeds:
        company = [
            SlotFeed(other, 0, [*feed.tokens, *feed.tokens[:1]][: runner.capacity]) for other in others
        ]
        output = _first(runner.run([feed, *company]))
    # One token once more, as most forwards are.
    return _first(runner.run([SlotFeed(last, len(tokens) - 1, tokens[-1:])])) if len(tokens) > 1 else output


def _first(results: list[Output | Exception]) -> torch.Tensor:
    """The first feed's output.

    Raises:
        Exception: of whichever failed.
    """
    for result in results:
        if isinstance(result, Exception):
            raise result
    assert isinstance(results[0], Output)
    # The next forward may overwrite it.
    return results[0].kept_R[0].float().clone()
