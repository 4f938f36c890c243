"""Checks, when a model is loaded, that it computes over slots what it computes without."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch

from rsd_integrations.backends.torch.failures import failure
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.recurrent import RecurrentRunner
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.errors import ConfigError, DeviceMemoryError, ModelError

_Plain: TypeAlias = Callable[[tuple[int, ...]], torch.Tensor]
_TOKENS = [11, 7, 23, 5, 19, 3, 29, 13, 2, 17, 31, 37]


class _NotFiniteError(ModelError):
    """The model overflows in plain forwards, too."""


def check_slots(runner: SlotRunner, name: str) -> None:
    """Compare a ragged, rolled-back history with a plain forward of the same tokens.

    Raises:
        ConfigError: the model cannot be compiled, which was asked for.
        DeviceMemoryError: the cache does not fit.
        ModelError: the model fails or overflows, or the two differ by more than rounding: it does not go by
            the positions and masks it is given (ALiBi, ...), or its states do not go on from where they were.
    """
    plain = functools.cache(runner.plain)  # A large model's forward takes seconds on a CPU.
    gathered = runner.most_gathered
    if gathered < math.inf:
        # First in runs, as for long rows: its attention may not be the one that its config names.
        runner.most_gathered = 0
        runner.most_gathered = math.inf if _problem(runner, name, plain) else gathered
    problem = _problem(runner, name, plain)
    if problem and runner.launches:
        warnings.warn(
            f"{problem.message} So its forwards are neither compiled nor recorded, which is slower. "
            "Pass compile=False and cuda_graphs=False to run so without this warning.",
            RuntimeWarning,
            stacklevel=2,
        )
        runner.call_only()
        problem = _problem(runner, name, plain)
    if problem:
        raise problem


def _problem(runner: SlotRunner, name: str, plain: _Plain) -> ModelError | None:
    """What is wrong with forwards over slots, as they are run now."""
    try:
        difference = _difference(runner, name, plain)
    except _NotFiniteError:
        raise
    except ModelError as error:
        return error
    if difference <= _most(runner):
        return None
    wrong = (
        "computes something else when compiled or recorded"
        if runner.launches
        else "cannot continue from per-row positions"
    )
    hint = "Use a model with plain causal attention and rotary or learnt positions."
    if isinstance(runner, RecurrentRunner):
        wrong = "does not read several tokens on from the states of its recurrent layers"
        hint = "Another version of transformers may do it. Qwen 3.5, LFM 2, Falcon-H1 and Granite 4 do."
    return ModelError(f"{name!r} {wrong} (relative difference {difference:.2g}).", hint=hint)


def _most(runner: SlotRunner) -> float:
    """The largest difference that may be rounding."""
    return 1e-3 if runner.exact else 0.2


def _difference(runner: SlotRunner, name: str, plain: _Plain) -> float:
    """The largest difference of outputs in pieces from those of plain forwards, relative to the latter."""
    tokens = _TOKENS[: runner.capacity]
    # Of three slots the middle one stays idle, so that rows that are not neighbours are checked too.
    slots = [runner.pool.claim()[0] for _ in range(min(3, runner.pool.free))]
    used = [slots[0], slots[-1]] if len(slots) > 1 else slots
    try:
        pairs = [(plain(tuple(seen)), output) for seen, output in _in_pieces(runner, used, tokens)]
    except Exception as error:
        failed = failure(error)
        if isinstance(failed, (ConfigError, DeviceMemoryError)):
            raise failed from error
        raise ModelError(
            f"{name!r} does not run over slots: {type(error).__name__}: {error}",
            hint="Use a decoder-only model with plain causal attention.",
        ) from error
    finally:
        for slot in slots:
            runner.release(slot)
    if any(bool((expected.isnan() | expected.isposinf()).any()) for expected, _ in pairs):
        raise _NotFiniteError(
            f"{name!r} gives NaN or infinite numbers.",
            hint="Try another dtype (float16 overflows in some models).",
        )
    differences = [_relative(expected, made) for expected, made in pairs]
    # max() would pass over a NaN that is not the first.
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _relative(plain: torch.Tensor, made: torch.Tensor) -> float:
    """The largest difference, relative to the largest number. What a model forbids is at -inf in both."""
    size = plain.nan_to_num(neginf=0.0).abs().max().clamp_min(1e-6)
    return float((plain - made).masked_fill(plain == made, 0.0).abs().max() / size)


def _in_pieces(
    runner: SlotRunner, slots: list[int], tokens: list[int]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Tokens with the output at their last: after a wrong turn, a rollback, in company, and alone."""
    middle = max(1, len(tokens) // 2)
    last, *others = reversed(slots)
    feeds = [SlotFeed(last, 0, tokens[:middle])]
    if len(tokens) > middle:
        feeds += [SlotFeed(last, middle, tokens[middle:][::-1]), SlotFeed(last, middle, tokens[middle:])]
    for feed in feeds:
        company = [
            SlotFeed(other, 0, [*feed.tokens, *feed.tokens[:1]][: runner.capacity]) for other in others
        ]
        # Not by ``run``: that runs rows of a failed batch alone, which would hide what is wrong.
        with torch.inference_mode():
            output = runner.forward([*company, feed])[-1]
    yield tokens, _kept(output)
    if len(tokens) == 1:
        return
    # One token at a time, as most forwards are, and one ahead of the host.
    output = _lone(runner.run([SlotFeed(last, len(tokens) - 1, tokens[-1:])], ahead=True))
    if not output.followed:
        yield tokens, _kept(output)
        return
    tokens = [*tokens, *output.fetched]
    output = _lone(runner.run([SlotFeed(last, len(tokens) - 1, tokens[-1:], early=True)]))
    yield tokens, _kept(output)


def _kept(output: Read) -> torch.Tensor:
    """A copy of the output, which the next forward may overwrite."""
    return output.kept_R[0].float().clone()


def _lone(results: list[Read | Exception]) -> Read:
    """The lone feed's output.

    Raises:
        Exception: it failed.
    """
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result
