"""Runs a model over slots: batches ragged feeds, keeps a failure to its own row."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from rsd_integrations.backends.torch.slots import Plan, SlotCache, SlotFeed, masks
from rsd_integrations.backends.torch.threads import cpu_threads
from rsd_integrations.errors import BackendError, DeviceMemoryError

__all__ = ["PREFILL_CHUNK", "Readout", "SlotRunner", "attention_kinds", "read_hidden", "read_logits"]

PREFILL_CHUNK = 512
"""Most tokens of one request in one forward: other requests wait no longer than that."""


class Readout(Protocol):
    """Calls the model and returns its outputs at M places, ``[M, ...]``."""

    def __call__(self, inputs: dict[str, Any], row_M: list[int], column_M: list[int]) -> torch.Tensor:
        """Run the model on keyword inputs, read row ``row_M[m]`` at position ``column_M[m]``."""
        ...


def read_logits(model: torch.nn.Module) -> Readout:
    """Vocabulary logits of a causal LM, ``[M, V]``; computed only in columns where some are read."""
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def call(inputs: dict[str, Any], row_M: list[int], column_M: list[int]) -> torch.Tensor:
        columns = sorted(set(column_M))
        if keeps:
            inputs = {**inputs, "logits_to_keep": torch.tensor(columns, device=inputs["input_ids"].device)}
        logits_NUV: torch.Tensor = model(**inputs).logits
        places = [columns.index(column) for column in column_M] if keeps else column_M
        return logits_NUV[row_M, places]

    return call


def read_hidden(body: torch.nn.Module, outputs: Callable[[torch.Tensor], torch.Tensor]) -> Readout:
    """Whatever ``outputs`` makes of the last hidden states ``[M, hidden]`` at the places to read."""

    def call(inputs: dict[str, Any], row_M: list[int], column_M: list[int]) -> torch.Tensor:
        hidden_NTH: torch.Tensor = body(**inputs).last_hidden_state
        return outputs(hidden_NTH[row_M, column_M])

    return call


class SlotRunner:
    """One model with its slot cache.

    Args:
        config: the model's (text) config.
        readout: calls the model.
        device: where the input ids go.
        dtype: of the model's computations.
        slots: requests at once.
        capacity: positions of a slot.
        parameters: that a token passes through; tells small forwards from large ones.
    """

    def __init__(
        self,
        config: Any,
        readout: Readout,
        *,
        device: torch.device,
        dtype: torch.dtype,
        slots: int,
        capacity: int,
        parameters: int = 0,
    ) -> None:
        self._readout = readout
        self._parameters = parameters
        self._device = device
        self._attention = attention_kinds(config)
        self._additive = getattr(config, "_attn_implementation", None) == "eager"
        self._dtype = dtype
        self._free = list(range(slots))
        self.cache = SlotCache(int(config.num_hidden_layers), slots, capacity)
        self.capacity = capacity

    def claim(self) -> int:
        """The lowest free slot: neighbours are cheaper to read."""
        return self._free.pop(0)

    def release(self, slot: int) -> None:
        """Give a slot back, clean."""
        self.cache.wipe(slot)
        self._free.append(slot)
        self._free.sort()

    @property
    def exact(self) -> bool:
        """Whether it computes in a precision where equal means equal to rounding."""
        return self._dtype in (torch.float32, torch.float64)

    @torch.inference_mode()
    def plain(self, tokens: Sequence[int]) -> torch.Tensor:
        """The output at the last token by the model's ordinary forward, no slots involved."""
        inputs = {"input_ids": torch.tensor([list(tokens)], device=self._device), "use_cache": False}
        return self._readout(inputs, [0], [len(tokens) - 1])[0].float()

    @property
    def free(self) -> int:
        """Slots nobody holds."""
        return len(self._free)

    def run(self, feeds: Sequence[SlotFeed]) -> list[torch.Tensor | Exception]:
        """The wanted outputs of each feed, ``[1 + more, ...]``, or what failed it. Feeds of any length.

        Without memory for it all there are fewer: the first of them at least.
        """
        results: dict[int, torch.Tensor | Exception] = {}
        for group in _groups(feeds):
            for index, result in zip(group, self._isolated([feeds[i] for i in group]), strict=True):
                results[index] = result
        return [results[index] for index in range(len(feeds))]

    def _isolated(self, feeds: list[SlotFeed]) -> list[torch.Tensor | Exception]:
        """Run one batch; if it fails, run its rows alone so that only the culprit fails."""
        try:
            return list(self.forward(feeds))
        except Exception as error:
            failure = _failure(error)
        # Behind the except block, so that the failed forward's tensors are gone.
        if isinstance(failure, DeviceMemoryError) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(feeds) > 1:
            return [self._isolated([feed])[0] for feed in feeds]
        if isinstance(failure, DeviceMemoryError):
            return [self._in_halves(feeds[0])]
        return [failure]

    def _in_halves(self, feed: SlotFeed) -> torch.Tensor | Exception:
        """A row that ran out of memory once more, in two halves."""
        read = feed.reads[0]
        tokens = feed.tokens[: len(feed.tokens) - feed.more]
        middle = len(tokens) // 2
        parts = [
            SlotFeed(feed.slot, feed.start, tokens[:middle], min(read, middle - 1)),
            SlotFeed(feed.slot, feed.start + middle, tokens[middle:], max(read - middle, 0)),
        ]
        try:
            outputs = [self.forward([part])[0] for part in parts if part.tokens]
        except Exception as error:
            return _failure(error)
        return outputs[0] if read < middle else outputs[-1]

    @torch.inference_mode()
    def forward(self, feeds: Sequence[SlotFeed]) -> Sequence[torch.Tensor]:
        """One forward: the wanted outputs of each feed, ``[1 + more, ...]``."""
        plan = Plan.of(feeds, self.capacity)
        self.cache.plan = plan
        longest = plan.write_NT.shape[1]
        input_ids = [[*feed.tokens, *[0] * (longest - len(feed.tokens))] for feed in feeds]
        inputs = {
            "input_ids": torch.tensor(input_ids, device=self._device),
            "position_ids": plan.position_NT.to(self._device),
            "attention_mask": self._masks(plan),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        reads = [feed.reads for feed in feeds]
        row_M = [row for row, columns in enumerate(reads) for _ in columns]
        column_M = [column for columns in reads for column in columns]
        with cpu_threads(self._device, self._parameters * plan.write_NT.numel()):
            output_M = self._readout(inputs, row_M, column_M).float()
        return torch.split(output_M, [len(columns) for columns in reads])

    def _masks(self, plan: Plan) -> torch.Tensor | dict[str, torch.Tensor]:
        """One mask, or one for each kind of attention layer where a model has several."""
        made = {
            kind: self._as_model_wants(masks(plan, window, chunk))
            for kind, (window, chunk) in self._attention.items()
        }
        return made if len(made) > 1 else next(iter(made.values()))

    def _as_model_wants(self, mask: torch.Tensor) -> torch.Tensor:
        mask = mask.to(self._device)
        if not self._additive:
            return mask
        # Eager attention adds its mask to the scores; a boolean one would add 1 where it may look.
        return torch.zeros(mask.shape, dtype=self._dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(self._dtype).min
        )


def attention_kinds(config: Any) -> dict[str, tuple[int | None, int | None]]:
    """The (window, chunk) of each kind of attention layer that a config names."""
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if not kinds:
        kinds = ["sliding_attention" if window else "full_attention"]
    sizes = {
        "full_attention": (None, None),
        "sliding_attention": (window, None),
        "chunked_attention": (None, chunk),
    }
    return {kind: sizes[kind] for kind in kinds}


def _groups(feeds: Sequence[SlotFeed]) -> list[list[int]]:
    """Indices of feeds whose lengths round up to the same power of two: padding at most doubles."""
    groups: dict[int, list[int]] = {}
    for index, feed in enumerate(feeds):
        groups.setdefault((len(feed.tokens) - 1).bit_length(), []).append(index)
    return [sorted(group, key=lambda index: feeds[index].slot) for group in groups.values()]


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _failure(error: Exception) -> Exception:
    kind, hint = BackendError, "The other requests go on; see the cause for what failed."
    if _out_of_memory(error):
        kind = DeviceMemoryError
        hint = "Lower max_batch_size, max_length or max_tokens, or use a smaller dtype."
    # Its frames hold the tensors of the failed forward as long as somebody keeps the error.
    traceback.clear_frames(error.__traceback__)
    failure = kind(f"the model failed: {type(error).__name__}: {error}.", hint=hint)
    failure.__cause__ = error
    return failure
