"""What is read from a model: logits to draw tokens from, or the outputs of a reward head."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast


@dataclass(frozen=True, slots=True)
class Read:
    """What a feed gave, at each of the R places that were to be read.

    ``kept_R``: ``[R, ...]``, on the device, valid until the model's next forward. ``fetched``: R entries, on
    the host: of logits the likeliest token, -1 where they are not finite; of a head its outputs. ``own``: how
    many more tokens a burst drew and fed in the same launch (R is 1), each the likeliest behind the one
    before: ``fetched`` has all of them, ``kept_R`` the last outputs. ``ahead``: the forward ran ahead of the
    host. ``followed``: another one runs ahead of this, with the likeliest token.
    """

    kept_R: torch.Tensor
    fetched: list[Any]
    own: int = 0
    ahead: bool = False
    followed: bool = False

    @property
    def sound(self) -> bool:
        """Whether all that was fetched is finite."""
        return all(map(_finite, self.fetched))

    def without_last(self) -> Read:
        """The same without the last of several tokens that a burst drew."""
        return replace(self, fetched=self.fetched[:-1], own=self.own - 1)


class Readout(Protocol):
    """Calls the model and reads its outputs in C columns of all N rows."""

    def __call__(
        self, inputs: dict[str, Any], columns: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model on keyword inputs.

        Args:
            inputs: of the model's forward; "cache" stands for its cache, by whatever name.
            columns: which positions to read, in rising order, ``[C]``; None: all.

        Returns:
            What stays on the device and what the host wants at once, each ``[N, C, ...]``.
        """
        ...


def _finite(fetched: Any) -> bool:
    if isinstance(fetched, list):
        return all(map(_finite, fetched))
    return math.isfinite(fetched) if isinstance(fetched, float) else fetched != -1


def caller(model: torch.nn.Module) -> Callable[..., Any]:
    """Calls a model with a ``Readout``'s inputs."""
    name = _cache_name(model)

    def call(inputs: dict[str, Any], **more: Any) -> Any:
        named = {name if key == "cache" else key: value for key, value in inputs.items()}
        return model(**named, **more)

    return call


def _cache_name(model: torch.nn.Module) -> str:
    """What its forward calls a cache: "past_key_values" before transformers 5.24, "cache" from then on."""
    own = inspect.signature(model.forward).parameters
    names = ("past_key_values", "cache")
    for name in names:
        if name in own:
            return name
    # Wrappers (PEFT's, say) hand on what they do not name.
    return names["cache" in BaseModelOutputWithPast.__dataclass_fields__]


def read_logits(model: torch.nn.Module, vocabulary: int | None = None) -> Readout:
    """Vocabulary logits of a causal LM, ``[N, C, V]``, and the likeliest token, -1 for want of any.

    Args:
        model: the LM.
        vocabulary: V. A padded vocabulary has ids without a token, which another model may not even know.
    """
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    # Of a model on several devices (``device_map``) accelerate moves tensors to where it begins, and columns
    # are wanted where it ends.
    apart = len({parameter.device for parameter in model.parameters()}) > 1
    run = caller(model)

    def call(inputs: dict[str, Any], columns: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if columns is None:
            logits_NCV: torch.Tensor = run(inputs).logits
        elif keeps:
            logits_NCV = run(inputs, logits_to_keep=columns.tolist() if apart else columns).logits
        else:
            logits_NCV = run(inputs).logits[:, columns]
        logits_NCV = logits_NCV[..., :vocabulary]
        most_NC, likeliest_NC = logits_NCV.max(dim=-1)
        # NaN, +inf and nothing but -inf have no probabilities, and so no token.
        return logits_NCV, likeliest_NC.where(most_NC.isfinite(), -1)

    return call


def read_hidden(body: torch.nn.Module, outputs: Callable[[torch.Tensor], torch.Tensor]) -> Readout:
    """Whatever ``outputs`` makes of the last hidden states, ``[M, hidden]`` -> ``[M, ...]``."""
    run = caller(body)

    def call(inputs: dict[str, Any], columns: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_NCH: torch.Tensor = run(inputs).last_hidden_state
        if columns is not None:
            hidden_NCH = hidden_NCH[:, columns.to(hidden_NCH.device)]
        made_M = outputs(hidden_NCH.flatten(0, 1)).float()
        made_NC = made_M.view(*hidden_NCH.shape[:2], *made_M.shape[1:])
        return made_NC, made_NC

    return call
