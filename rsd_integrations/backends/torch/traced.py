"""Forwards on a CPU without Python between the operations: traced once, run by torch's own interpreter.

A small model waits for Python longer than for arithmetic or memory: two layers of the tiny draft take 0.8 ms
called and 0.3 traced (dev/speed.md). A trace is the same operations on the same tensors, of any number of
rows, tokens and positions; it needs no compiler and is made in a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from rsd_integrations.backends.torch import interpreter
from rsd_integrations.backends.torch.bursts import Burst, Looped
from rsd_integrations.backends.torch.forwards import Pair, alike
from rsd_integrations.backends.torch.interpreter import Script
from rsd_integrations.backends.torch.plan import Place
from rsd_integrations.backends.torch.recording import Watch
from rsd_integrations.backends.torch.slots import SlotCache

PAYS = 200
"""Forwards of a kind that are called before it is traced: a trace takes about what these could save."""

_PROOFS = 3
"""Sizes at which a trace must agree with a call before it is relied on."""


class Call(Protocol):
    """One forward of a model over its slots, however its rows lie."""

    def __call__(
        self,
        head_N3: torch.Tensor,
        ids_NT: torch.Tensor,
        key_L: torch.Tensor,
        /,
        *,
        block: Place | None = None,
        line: Place | None = None,
        breadth: int | None = None,
        columns: torch.Tensor | None = None,
    ) -> Pair:
        """Arguments as of ``Plan.of``; columns: which to read, in rising order, ``[C]``; None: all."""
        ...


@dataclass(slots=True)
class _Kind:
    """Forwards that one trace could run. ``proven``: (rows, tokens, positions) at which it agreed. ``loop``:
    of the trace, from the first burst on.
    """

    called: int = 0
    trace: Script | None = None
    loop: Looped | None = None
    refused: bool = False
    proven: set[tuple[int, int, int]] = field(default_factory=set)


class Traced:
    """A ``Call`` that traces what it often calls, and calls what cannot be traced.

    A model that decides by numbers that a tensor holds is not traced (``Watch``); one that decides by how
    many rows, tokens or positions there are shows when its trace is compared with calls. A trace does not see
    what is added to a model later: its owner has to make another ``Traced`` then.

    Args:
        compute: a forward by calling the model.
        model: whose weights it computes with; shared with the traces, not copied.
        cache: whose keys and values it writes.
        positions: 0 to the cache's capacity - 1.
    """

    def __init__(
        self, compute: Call, model: torch.nn.Module, cache: SlotCache, positions: torch.Tensor
    ) -> None:
        self._compute = compute
        self._model = model
        self._cache = cache
        self._positions = positions
        self._kinds: dict[tuple[bool, ...], _Kind] = {}

    def __call__(
        self,
        head_N3: torch.Tensor,
        ids_NT: torch.Tensor,
        key_L: torch.Tensor,
        /,
        *,
        columns: torch.Tensor | None = None,
        **where: Any,
    ) -> Pair:
        """The forward. ``where`` its rows lie: block, line and breadth."""

        def call(key_L: torch.Tensor = key_L) -> Pair:
            return self._compute(head_N3, ids_NT, key_L, columns=columns, **where)

        if where.get("breadth") is not None:  # In runs: the operations depend on how many runs there are.
            return call()
        kind = self._kind(ids_NT, where, whole=columns is None)
        kind.called += 1
        if kind.refused or kind.called <= PAYS:
            return call()
        inputs = [head_N3, ids_NT, key_L, *([] if columns is None else [columns])]
        try:
            if kind.trace is None:
                kind.trace = self._made(inputs, call, where)
            made = kind.trace(*inputs)
        except Exception:
            made = call()  # Raises if it is the feeds that are at fault.
            kind.refused, kind.trace = True, None
            return made
        size = (*ids_NT.shape, key_L.shape[0])
        if len(kind.proven) == _PROOFS or size in kind.proven:
            return made
        called = call()
        kind.proven.add(size)
        kind.refused = not alike(made, called)
        return called

    def _kind(self, ids_NT: torch.Tensor, where: Mapping[str, Any], *, whole: bool) -> _Kind:
        rows, tokens = ids_NT.shape
        apart, lone = where.get("block") is None, where.get("line") is not None
        return self._kinds.setdefault((rows == 1, tokens == 1, apart, lone, whole), _Kind())

    def burst(self, head_N3: torch.Tensor, ids_N1: torch.Tensor, burst: Burst, **where: Any) -> Pair | None:
        """Several forwards of one token a row, each of the likeliest token behind the last.

        Args:
            head_N3: of the first, as of a ``Call``.
            ids_N1: likewise.
            burst: how far it goes.
            where: as of a ``Call``.

        Returns:
            As of ``Looped``; None where there is no trace yet to rely on, or it cannot be used.
        """
        kind = self._kind(ids_N1, where, whole=True)
        if kind.trace is None or kind.refused or len(kind.proven) < _PROOFS:
            return None
        if kind.loop is None:
            kind.loop = Looped(kind.trace, self._compute, self._positions)
        if kind.loop.refused:
            return None
        made = None
        try:
            made = kind.loop(head_N3, ids_N1, burst, **where)
        finally:
            if made is None:
                self._wipe(head_N3, burst.most)
        return made

    def _wipe(self, head_N3: torch.Tensor, most: int) -> None:
        """Wipe what a burst that cannot be relied on wrote, except what the rows' next forward overwrites: a
        NaN there would spread, masked or not.
        """
        for slot, start, length in head_N3.tolist():
            if length:
                self._cache.wipe(slot, start + 1, min(start + most, self._cache.capacity))

    def _made(
        self, inputs: list[torch.Tensor], call: Callable[[torch.Tensor], Pair], where: Mapping[str, Any]
    ) -> Script:
        """A trace of forwards whose rows lie as those of this call.

        Raises:
            Exception: there is none that computes the same.
        """
        if any(module._forward_hooks or module._forward_pre_hooks for module in self._model.modules()):
            raise RuntimeError("its hooks would not be called")
        head_N3, ids_NT, key_L, *columns = inputs
        with Watch(key_L.device, constants=True):
            call(key_L)

        def work(
            head_N3: torch.Tensor,
            ids_NT: torch.Tensor,
            key_L: torch.Tensor,
            columns: torch.Tensor | None = None,
        ) -> Pair:
            # Where rows lie is read from the tensor, so that it is not fixed in the trace.
            block = None if where.get("block") is None else head_N3[0, 0]
            line = None if where.get("line") is None else head_N3[0, 1]
            return self._compute(head_N3, ids_NT, key_L, block=block, line=line, columns=columns)

        tensors = [*self._model.parameters(), *self._model.buffers(), *self._cache.states()]
        trace = interpreter.traced(work, inputs, list({id(one): one for one in tensors}.values()))
        # All positions there may be, the other extreme: those beyond the rows are only masked.
        if not alike(trace(head_N3, ids_NT, self._positions, *columns), call(self._positions)):
            raise RuntimeError("it depends on the number of positions")
        return trace
