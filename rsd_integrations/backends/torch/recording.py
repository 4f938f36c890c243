"""Forwards recorded once for each of a few shapes and replayed: CUDA graphs."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsd_integrations.backends.shared.unreadable import first_line
from rsd_integrations.backends.torch.forwards import Compute, Pair
from rsd_integrations.backends.torch.plan import Shape, SlotFeed, unpack

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs work on fixed tensors and records it; what it returns does the same work again."""

LOCK = threading.Lock()
"""Held while recording: one at a time in a process, and nothing waits for the whole device meanwhile."""

_PAYS = 3
"""How often a shape of several tokens a row is met before it is recorded, which costs several forwards."""


class NotRecordable(Exception):
    """A forward does something that a recording cannot hold; from now on none is recorded."""

    def warn(self) -> None:
        """Tell the user once: it is right, only slower."""
        warnings.warn(
            f"forwards of this model cannot be recorded as CUDA graphs, so it runs slower: {self}. "
            "Pass cuda_graphs=False to run so without this warning.",
            RuntimeWarning,
            stacklevel=2,
        )


class Recorded:
    """A launcher that replays.

    Args:
        compute: the forward; what it does must not depend on the numbers.
        recorder: how to record.
        launched: the same forward as it is to be recorded (compiled, say); ``compute`` by default.
        slots: of the cache.
        capacity: positions of a slot.
    """

    def __init__(
        self,
        compute: Compute,
        recorder: Recorder,
        *,
        slots: int,
        capacity: int,
        launched: Compute | None = None,
    ) -> None:
        self._compute = compute
        self._launched = launched or compute
        self._record = recorder
        self._slots, self._capacity = slots, capacity
        self._met: Counter[Shape] = Counter()
        self._watched: set[int] = set()
        self._replays: dict[Shape, Callable[[], None]] = {}
        self._numbers: dict[tuple[int, int], torch.Tensor] = {}
        self._outputs: dict[tuple[int, int], Pair] = {}
        self._full = False

    def shape(self, feeds: Sequence[SlotFeed]) -> Shape | None:
        """Rounded, as recording each one takes time and memory; None until that pays."""
        shape = Shape.rounded(feeds, slots=self._slots, capacity=self._capacity)
        if shape is None or shape in self._replays:
            return shape
        self._met[shape] += 1
        pays = shape.tokens == 1 or self._met[shape] >= _PAYS
        return shape if pays and not self._full else None

    def __call__(self, shape: Shape, numbers: torch.Tensor, key_L: torch.Tensor) -> Pair:
        """Replay, or record what is new. The outputs are overwritten by the next forward.

        Raises:
            NotRecordable: it cannot be recorded.
        """
        size = (shape.rows, shape.tokens)
        if size not in self._numbers:
            self._numbers[size] = torch.empty_like(numbers, device=key_L.device)
        if shape not in self._replays:
            self._numbers[size].copy_(numbers)
            self._replays[shape] = self._recorded(shape, key_L)
        self._numbers[size].copy_(numbers)
        self._replays[shape]()
        return self._outputs[size]

    def again(self, shape: Shape) -> Pair | None:
        """Run the next forward of this shape, of each row's likeliest token. None if it has none to feed."""
        size = (shape.rows, shape.tokens)
        if not _goes_on(shape, self._outputs[size][1]):
            return None
        self._replays[shape]()
        return self._outputs[size]

    def _recorded(self, shape: Shape, key_L: torch.Tensor) -> Callable[[], None]:
        size = (shape.rows, shape.tokens)
        head_N3, ids_NT = unpack(self._numbers[size], shape)
        # First without recording: what fails here fails cleanly, a failed recording leaves a GPU in disorder.
        if shape.tokens not in self._watched:
            with Watch(key_L.device):
                self._compute(head_N3, ids_NT, key_L, block=shape.block)
            self._watched.add(shape.tokens)
        # The first run allocates, and compiles what is to be compiled.
        first = self._launched(head_N3, ids_NT, key_L, block=shape.block)
        # Recordings for all spans write to the same outputs, which therefore belong to none of them.
        kept, fetched = self._outputs.setdefault(size, (first[0].clone(), first[1].clone()))
        del first

        def work() -> None:
            made = self._launched(head_N3, ids_NT, key_L, block=shape.block)
            kept.copy_(made[0])
            fetched.copy_(made[1])
            if _goes_on(shape, fetched):
                # Replayed without new numbers, it feeds the tokens that it found.
                head_N3[:, 1] += 1
                ids_NT.copy_(fetched.clamp_min(0))

        try:
            replay = self._record(work)
        except torch.OutOfMemoryError:
            self._full = True
            raise
        except Exception as error:
            raise NotRecordable(first_line(error)) from error
        # Outputs left from recording would hide a replay that writes nothing.
        kept.zero_()
        fetched.zero_()
        return replay


def _goes_on(shape: Shape, fetched: torch.Tensor) -> bool:
    """Whether what a forward fetches are tokens that a next one of its shape could feed."""
    return shape.tokens == 1 and not fetched.is_floating_point()


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where work does what a recording cannot hold: reads the device's numbers on the host, makes a
    shape depend on them, or copies across devices.

    Args:
        device: where the work is to be.
        constants: whether, as in a trace, numbers of the host may be part of the work, and grouped products
            may read there where groups end. A GPU's recording would copy from host memory that is gone.

    Raises:
        NotRecordable: with the operation's name, before it runs.
    """

    def __init__(self, device: torch.device, *, constants: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._constants = constants
        self._lists: Any = nullcontext() if constants else _Lists(device)

    def __enter__(self) -> Watch:
        made: Watch = super().__enter__()  # type: ignore[no-untyped-call]
        self._lists.__enter__()
        return made

    def __exit__(self, *error: Any) -> None:
        self._lists.__exit__(*error)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        reads = torch.Tag.data_dependent_output in func.tags
        reads |= not self._constants and self._reads_groups(str(func), tensors)
        shapes = torch.Tag.dynamic_output_shape in func.tags and func is not torch.ops.aten.index.Tensor
        indexing = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
        shapes |= indexing and any(one.dtype == torch.bool for one in tree_leaves(args[1]) if one is not None)
        if reads or shapes:
            raise NotRecordable(f"{func} depends on numbers on the device")
        here = any(one.device == self._device for one in tensors)
        # The only operation seen of torch.tensor and new_tensor, which copy from the host.
        if here and not self._constants and func is torch.ops.aten.detach_.default:
            raise NotRecordable(f"{func} takes a number of the host to the device")
        made = func(*args, **(kwargs or {}))
        results = [one for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
        # A tensor of no dimensions may lie on the host where the launch takes its number along.
        copies = str(func).startswith(_COPYING)
        if any(one.device != self._device and (one.dim() or copies) for one in (*tensors, *results)):
            raise NotRecordable(f"{func} works on {', '.join(sorted({str(one.device) for one in tensors}))}")
        return made

    def _reads_groups(self, name: str, tensors: list[torch.Tensor]) -> bool:
        """Whether a grouped matrix product (of experts) reads on the host where its groups end, as torch does
        unless its own kernel fits. Without ends it is a plain product.
        """
        if not name.startswith("aten._grouped_mm") or len(tensors) < 3:
            return name.startswith("transformers.grouped_mm_fallback")
        fits = all(one.dtype is torch.bfloat16 for one in tensors[:2])
        if self._device.type == "cuda":
            major = torch.cuda.get_device_capability(self._device)[0]
            fits = fits and torch.version.cuda is not None and major in (9, 10)
        return not fits


class _Lists(TorchFunctionMode):
    """Raises where a Python list goes to the device, for which ``Watch`` sees no operation.

    Args:
        device: where the work is to be.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        listed = False
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].device == self._device:
            index = args[1] if isinstance(args[1], tuple) else args[1:2]
            # Also a range, a tuple in a tuple, or an array of numpy's.
            listed = any(hasattr(one, "__len__") and not isinstance(one, torch.Tensor) for one in index)
        made = func(*args, **(kwargs or {}))
        if func in (torch.as_tensor, torch.asarray):
            given = (*args, *(kwargs or {}).values())
            listed = made.device == self._device and not any(isinstance(one, torch.Tensor) for one in given)
        if listed:
            raise NotRecordable(f"{func.__name__} takes numbers of the host to the device")
        return made


_COPYING = ("aten._to_copy.", "aten.to.", "aten.copy_.", "aten.where.", "aten.index_put")
"""Operations that copy a lone number of the host's to the device; with others the launch takes it along."""


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on a device: CUDA graphs on a GPU that has them."""
    return _cuda_graphs(device) if device.type == "cuda" else None


def _cuda_graphs(device: torch.device) -> Recorder:
    """A recorder of CUDA graphs that share their memory, as they are recorded on one stream. Once all of them
    are gone, so is their memory pool: later graphs need a new recorder.
    """
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(work: Callable[[], None]) -> Callable[[], None]:
        with LOCK, torch.cuda.device(device):
            current = torch.cuda.current_stream(device)
            graph = torch.cuda.CUDAGraph()
            # Libraries initialize here, not on the graphs' stream: cuBLAS's workspace for that one must lie
            # in the pool. Elsewhere others may free it, and a graph would go on writing there.
            work()
            current.synchronize()
            try:
                # Other threads may use the GPU meanwhile: only this one's calls must be recordable. What
                # torch keeps for all graphs of the process must not become inference tensors.
                with (
                    torch.inference_mode(False),
                    torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
                    torch.inference_mode(),
                ):
                    work()
            finally:
                # A recording that fails leaves its own stream current.
                torch.cuda.set_stream(current)
            current.wait_stream(stream)

        def replay() -> None:
            with LOCK:
                graph.replay()

        return replay

    return record
