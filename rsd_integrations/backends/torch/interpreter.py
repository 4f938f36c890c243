"""Work on tensors that torch's own interpreter (TorchScript) runs, without Python between the operations.

``torch.jit.trace`` and ``torch.jit.script`` would do, but they keep all they ever made until the process
ends, some megabytes a forward. What is made here goes with its last user.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rsd_integrations.backends.torch.forwards import Pair

_LOCK = threading.Lock()

_LOOP = """
def loop(head_N3, ids_N1, positions, most: int, ending_V1, {state}):
    onward_3 = torch.tensor([0, 1, 0], device=ids_N1.device)
    span = int(head_N3[:, 1:].sum(1).max())
    real_N1 = head_N3[:, 2:] > 0
    kept, token_N1 = step(head_N3, ids_N1, positions[:span], {state})
    tokens = [token_N1]
    while len(tokens) < most and not bool((ending_V1[token_N1] & real_N1).any()):
        head_N3 = head_N3 + onward_3
        # Idle rows may be without a likeliest token (-1), which cannot be fed.
        ids_N1 = token_N1.clamp(min=0)
        kept, token_N1 = step(head_N3, ids_N1, positions[:span + len(tokens)], {state})
        tokens.append(token_N1)
    return kept, torch.cat(tokens, 1)
"""


class Script:
    """Work that the interpreter runs.

    Args:
        function: takes the inputs, then the state.
        state: tensors that are the same each time, weights and caches; never copied.
    """

    def __init__(self, function: Any, state: Sequence[torch.Tensor]) -> None:
        self.function = function
        self.state = tuple(state)

    def __call__(self, *inputs: Any) -> Pair:
        """The work."""
        made: Pair = self.function(*inputs, *self.state)
        return made


def traced(
    work: Callable[..., Pair], inputs: Sequence[torch.Tensor], state: Sequence[torch.Tensor]
) -> Script:
    """What work on tensors does, recorded at some inputs.

    Args:
        work: tensors to tensors; all else that it uses must be the same each time.
        inputs: of the work.
        state: all tensors that it uses besides and that change or are not to be copied; none of them twice.

    Raises:
        Exception: it cannot be recorded.
    """
    with _making():
        graph, _ = torch._C._create_graph_by_tracing(
            lambda *given: work(*given[: len(inputs)]), (*inputs, *state), lambda value: "", True, False
        )
        return Script(torch._C._create_function_from_graph("forward", graph), state)


def looped(step: Script) -> Script:
    """A forward of one token, again and again: each is fed as it is drawn.

    Args:
        step: head ``[N, 3]``, ids ``[N, 1]``, positions ``[L]`` -> outputs ``[N, 1, ...]`` and tokens
            ``[N, 1]``.

    Returns:
        head, ids, positions ``[capacity]``, most, ending ``[V + 1]`` -> the last forward's outputs and all K
        tokens ``[N, K]``: ``most``, or fewer if one of them may end its row's step. Padding rows
        do not count.

    Raises:
        Exception: torch makes none.
    """
    names = ", ".join(f"state_{index}" for index in range(len(step.state)))
    with _making():
        unit = torch.jit.CompilationUnit()
        unit.define(_LOOP.format(state=names), rcb={"step": step.function, "torch": torch}.get)
        return Script(unit.loop, step.state)


@contextmanager
def _making() -> Iterator[None]:
    """One at a time, for torch keeps some of its state for the whole process; without its warnings."""
    with _LOCK:
        # For good: a filter set for a while would apply to the whole process meanwhile, too.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
