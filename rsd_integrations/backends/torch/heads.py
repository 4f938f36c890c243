"""Reward models as a body (the decoder) and a head (what it makes of a hidden state).

The scorer runs the body over its slots and the head only at the positions it reads. Layouts that
transformers has no class for, Qwen2ForProcessRewardModel and value heads, are built here around the
config's own body, so that no code from a model's repository is run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from rsd_integrations.backends.shared.describe import is_plain
from rsd_integrations.backends.shared.sources import HUB_OPTIONS, WITH_HEAD, auto_class
from rsd_integrations.backends.torch.checkpoint import check_adapters, check_embeddings, load_complete
from rsd_integrations.errors import ModelError
from rsd_integrations.prm.base import Head

_HEAD_NAMES: dict[Head, tuple[str, ...]] = {
    "token": ("score", "classifier"),
    "sequence": ("score", "classifier"),
    "value": ("v_head",),
    "process_reward": ("score",),
}


class RewardModel(nn.Module):
    """A model with a reward head, of whichever class.

    Args:
        model: the whole transformers model.
        kind: which of its heads is meant.

    Raises:
        ModelError: the model has no such head, is an encoder, or makes its logits in a way not known here.
    """

    def __init__(self, model: PreTrainedModel, kind: Head) -> None:
        super().__init__()
        model = _unwrapped(model)
        self.model = model
        self.config = model.config
        self.kind = kind
        self._head_name = _head_name(model, kind)
        body = getattr(model, "base_model", None)
        if body is None or body is model:
            wrong = "does not tell its body from its head" if body is None else "is a body without a head"
            raise ModelError(
                f"{type(model).__name__} {wrong}.",
                hint="Load it with its head, or pass the folder or hub id instead.",
            )
        check_embeddings(model, type(model).__name__)
        _check_causal(self)
        _check_head(self)

    @property
    def body(self) -> nn.Module:
        """The decoder; called with input_ids, position_ids, attention_mask and a cache."""
        return cast("nn.Module", self.model.base_model)

    @property
    def head(self) -> nn.Module:
        """What makes outputs from hidden states."""
        if self.kind == "lm":
            return cast("nn.Module", self.model.get_output_embeddings())
        return cast("nn.Module", self.model.get_submodule(self._head_name))

    @property
    def dtype(self) -> torch.dtype:
        """The body's."""
        return cast("torch.dtype", self.model.dtype)

    def get_input_embeddings(self) -> nn.Module:
        """The body's token embeddings."""
        return cast("nn.Module", self.model.get_input_embeddings())

    def outputs(
        self, hidden_ND: torch.Tensor, columns: Sequence[int] | torch.Tensor | None = None
    ) -> torch.Tensor:
        """The head's raw outputs.

        Args:
            hidden_ND: last hidden states at N positions, ``[N, hidden]``.
            columns: which outputs; for "lm" token ids. None: all. A tensor on the weights' device
                is not copied.

        Returns:
            ``[N, len(columns)]``, float32.
        """
        head = self.head
        weight = getattr(head, "weight", None)
        if columns is None:
            outputs_NC = _apply(head, hidden_ND)
        elif isinstance(head, nn.Linear) and _is_at_hand(weight, hidden_ND.device):
            column_C = torch.as_tensor(columns, device=head.weight.device)
            bias = None if head.bias is None else head.bias[column_C].float()
            hidden_ND = hidden_ND.to(head.weight.device).float()
            outputs_NC = nn.functional.linear(hidden_ND, head.weight[column_C].float(), bias)
        else:
            outputs_NC = _apply(head, hidden_ND)
            outputs_NC = outputs_NC[:, torch.as_tensor(columns, device=outputs_NC.device)]
        return _scaled(outputs_NC, self.config) if self.kind == "lm" else outputs_NC

    def reader(self, columns: Sequence[int] | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """``outputs`` of these columns, whose indices are copied to the weights' device once."""
        if columns is None:
            return self.outputs
        device = next(self.get_input_embeddings().parameters()).device
        column_C = torch.tensor(list(columns), device=_device(self.head, device))
        return lambda hidden_ND: self.outputs(hidden_ND, column_C)


def _unwrapped(model: Any) -> Any:
    """The model in PEFT's wrapper, which has the adapters within its layers."""
    check_adapters(model, type(model).__name__)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load_reward_model(kind: Head, source: Any, **options: Any) -> RewardModel:
    """Load a reward model, or wrap a loaded one.

    Args:
        kind: its head.
        source: a hub id, a folder, or a loaded transformers model.
        options: for ``from_pretrained`` (dtype, device_map, quantization_config, ...).

    Raises:
        ModelError: the checkpoint lacks weights, or the model has no such head.
    """
    if isinstance(source, nn.Module):
        return RewardModel(source, kind)
    name = str(source)
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    if kind in WITH_HEAD:
        model_class = auto_class(WITH_HEAD[kind], AutoConfig.from_pretrained(name, **hub))
    else:
        config = AutoConfig.from_pretrained(name, **{**hub, "trust_remote_code": False})
        model_class = headed_class(kind, config)
        # As TRL's wrapper names the model it wraps.
        options = {"config": config, "key_mapping": {r"^pretrained_model\.": ""}, **options}
    hint = "It is no reward model of this kind: choose the prm_format that fits it."
    meant, head = f"a model with head {kind!r}", _HEAD_NAMES.get(kind, ())
    model = load_complete(model_class, name, meant=meant, hint=hint, whole=head, **options)
    return RewardModel(model.eval(), kind)


def headed_class(kind: Head, config: Any) -> Any:
    """A model class of the config's body and a "value" or "process_reward" head.

    Its parameters are named as in the checkpoints: the body's as in any model of its family,
    ``v_head.summary`` or ``score.0`` and ``score.2``.

    Raises:
        ModelError: transformers has no body for this config.
    """
    try:
        body = transformers.MODEL_MAPPING[type(config)]
    except KeyError:
        raise ModelError(
            f"no decoder is known for {type(config).__name__}.", hint="Choose another prm_format."
        ) from None
    family: Any = next(base for base in body.__mro__[1:] if issubclass(base, PreTrainedModel))
    make: Callable[[Any], nn.Module] = _value_head if kind == "value" else _process_reward_head
    name = _HEAD_NAMES[kind][0]

    def init(self: Any, config: Any) -> None:
        family.__init__(self, config)
        setattr(self, family.base_model_prefix, body(config))
        setattr(self, name, make(config))
        self.post_init()

    # A language model's head may be stored along; nothing reads it.
    ignored = {"__init__": init, "_keys_to_ignore_on_load_unexpected": [r"^lm_head\."]}
    return type(f"{body.__name__}With{kind.title().replace('_', '')}", (family,), ignored)


def _value_head(config: Any) -> nn.Module:
    return nn.Sequential(OrderedDict(summary=nn.Linear(int(config.hidden_size), 1)))


def _process_reward_head(config: Any) -> nn.Module:
    # The published configs say nothing of labels: there are two.
    hidden = int(config.hidden_size)
    return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def _head_name(model: Any, kind: Head) -> str:
    if kind == "lm":
        if getattr(model, "get_output_embeddings", lambda: None)() is not None:
            return ""
    else:
        for name in _HEAD_NAMES[kind]:
            if isinstance(getattr(model, name, None), nn.Module):
                return name
    wanted = "lm_head" if kind == "lm" else " or ".join(_HEAD_NAMES[kind])
    raise ModelError(
        f"{type(model).__name__} has no {wanted}, which its prm_format reads (head {kind!r}).",
        hint="Choose the prm_format that fits the model.",
    )


@torch.inference_mode()
def _check_causal(model: RewardModel) -> None:
    """Refuse encoders: a new step would change the rewards of the steps before it.

    Raises:
        ModelError: the first token's hidden state depends on the second token.
    """
    weight = next(model.get_input_embeddings().parameters())
    pairs_22 = torch.tensor([[1, 2], [1, 3]], device=weight.device)
    first_2D = model.body(input_ids=pairs_22).last_hidden_state[:, 0].float()
    if float((first_2D[0] - first_2D[1]).abs().max()) > 0.02 * float(first_2D.abs().max()):
        raise ModelError(
            f"{type(model.model).__name__} looks ahead: it is an encoder, not a causal model.",
            hint="Use a reward model made from a decoder (Qwen, Llama, Mistral, ...).",
        )


@torch.inference_mode()
def _check_head(model: RewardModel) -> None:
    """Compare with the model's own logits, which a family may scale in a way not known here.

    Raises:
        ModelError: they differ by more than rounding.
    """
    if model.kind not in ("lm", "token"):
        return
    weight = next(model.get_input_embeddings().parameters())
    inputs = {"input_ids": torch.tensor([[1]], device=weight.device)}
    own_NC = model.model(**inputs).logits[0].float()
    hidden_ND = model.body(**inputs).last_hidden_state[0]
    # All at once, and by columns as the scorer takes them, are different computations.
    some = tuple(range(min(2, own_NC.shape[-1])))
    pairs = ((model.outputs(hidden_ND), own_NC), (model.outputs(hidden_ND, some), own_NC[:, some]))
    worst = max(float((ours.to(own.device) - own).abs().max()) for ours, own in pairs)
    if worst > 0.02 * max(float(own_NC.abs().max()), 1e-6):
        raise ModelError(
            f"{type(model.model).__name__} makes its logits in a way that is not known here.",
            hint="Report it; until then choose another model.",
        )


def _is_at_hand(weight: Any, given: torch.device) -> bool:
    """Whether rows of a head's weight can be taken: neither of a quantized nor of an offloaded one."""
    return is_plain(weight) and weight.dim() == 2 and (not weight.is_meta or weight.device == given)


def _device(head: nn.Module, given: torch.device) -> torch.device:
    """Where a head wants its inputs: with its weights. Where it has none (if quantized), or each call brings
    them (if offloaded), wherever the inputs are.
    """
    weight = next(head.parameters(), None)
    return given if weight is None or weight.is_meta else weight.device


def _apply(head: nn.Module, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Run a head on the device and in the dtype of its weights."""
    weight = next(head.parameters(), None)
    dtype = weight.dtype if weight is not None and weight.is_floating_point() else hidden_ND.dtype
    outputs_NC: torch.Tensor = head(hidden_ND.to(_device(head, hidden_ND.device), dtype))
    return outputs_NC.float()


def _scaled(logits_NC: torch.Tensor, config: Any) -> torch.Tensor:
    """What families do to vocabulary logits: Cohere and Granite scale, Gemma caps."""
    config = config.get_text_config(decoder=True)
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits_NC = logits_NC * factor
    if divisor := getattr(config, "logits_scaling", None):
        logits_NC = logits_NC / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits_NC = torch.tanh(logits_NC / cap) * cap
    return logits_NC
