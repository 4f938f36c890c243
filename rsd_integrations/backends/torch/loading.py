"""From ids, folders or loaded models to writers and a scorer.

What cannot work is refused by name, before any weight is loaded where that can be known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rsd_integrations.backends.torch.heads import RewardModel, load_reward_model
from rsd_integrations.backends.torch.reasoning import reasoning_tags
from rsd_integrations.backends.torch.runner import SlotRunner, attention_kinds, read_hidden, read_logits
from rsd_integrations.backends.torch.scorer import TorchScorer
from rsd_integrations.backends.torch.self_check import check_slots
from rsd_integrations.backends.torch.writer import TorchWriter
from rsd_integrations.encoding import chat_template_text, encode_plain, render_chat, token_id
from rsd_integrations.errors import ConfigError, ModelError
from rsd_integrations.prm import PRMFormat, find_prm_format
from rsd_integrations.prompts import as_messages
from rsd_integrations.protocols import Backend, ModelInfo
from rsd_integrations.types import Prompt, Role

__all__ = ["ModelSource", "load_backend"]

ModelSource = Any
"""A hub id, a folder, a loaded model, or a pair (loaded model, its tokenizer)."""

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code")
_MODEL_OPTIONS = (
    "dtype",
    "device_map",
    "quantization_config",
    "attn_implementation",
    "use_safetensors",
    "max_memory",
    "offload_folder",
)
_OTHER_OPTIONS = ("device", "tokenizer", "model_kwargs")


@dataclass
class _Parts:
    """A role's model source, taken apart, before weights are loaded."""

    role: Role
    source: ModelSource
    options: dict[str, Any]
    name: str = ""
    model: PreTrainedModel | None = None
    config: Any = None
    tokenizer: Any = None
    hub: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, role: Role, source: ModelSource, options: Mapping[str, Any]) -> _Parts:
        """Read config and tokenizer.

        Raises:
            ConfigError: an option is unknown.
            ModelError: the source cannot be read.
        """
        known = (*_HUB_OPTIONS, *_MODEL_OPTIONS, *_OTHER_OPTIONS)
        if unknown := sorted(set(options) - set(known)):
            raise ConfigError(
                f"unknown {role}_kwargs {unknown!r}.",
                hint=f"Known are {', '.join(known)}; anything else goes into model_kwargs={{...}}.",
            )
        parts = cls(role, source, dict(options))
        parts.hub = {key: options[key] for key in _HUB_OPTIONS if key in options}
        parts._read()
        return parts

    def _read(self) -> None:
        source, self.tokenizer = self.source, self.options.get("tokenizer")
        if isinstance(source, tuple | list) and len(source) == 2:
            source, self.tokenizer = source
        if isinstance(source, torch.nn.Module):
            self.model = source
            self.config = source.config
            self.name = getattr(source.config, "_name_or_path", "") or type(source).__name__
        elif isinstance(source, str | Path):
            self.name = str(source)
            self.config = self._from_hub(AutoConfig, self.name)
        else:
            raise ModelError(
                f"{self.role}={source!r} is no model.",
                hint="Give a hub id, a folder, a loaded model, or (model, tokenizer).",
            )
        if self.tokenizer is None or isinstance(self.tokenizer, str | Path):
            self.tokenizer = self._from_hub(AutoTokenizer, str(self.tokenizer or self.name))

    def _from_hub(self, auto: Any, name: str) -> Any:
        try:
            return auto.from_pretrained(name, **self.hub)
        except Exception as error:
            what = "config" if auto is AutoConfig else "tokenizer"
            raise ModelError(
                f"cannot read the {what} of {self.role}={name!r}: {_first_line(error)}",
                hint="Check the name or folder, and the network if it is a hub id.",
            ) from error

    def load_options(self, device: str | None, dtype: Any) -> dict[str, Any]:
        """What ``from_pretrained`` gets."""
        given = {key: self.options[key] for key in _MODEL_OPTIONS if key in self.options}
        options = {"dtype": dtype, "use_safetensors": True, **self.hub, **given}
        if "device_map" not in options and _has_accelerate():
            options["device_map"] = {"": self.options.get("device") or device}
        return {**options, **self.options.get("model_kwargs", {})}

    def place(self, model: torch.nn.Module, device: str | None) -> torch.nn.Module:
        """Move a model that ``from_pretrained`` could not place."""
        if "device_map" not in self.options and not _has_accelerate():
            model = model.to(self.options.get("device") or device)
        return model.eval()


def load_backend(
    draft: ModelSource,
    target: ModelSource,
    prm: ModelSource,
    *,
    prm_format: Any = "auto",
    device: str | None = None,
    dtype: Any = "auto",
    max_batch_size: int = 8,
    max_length: int = 4096,
    draft_kwargs: Mapping[str, Any] | None = None,
    target_kwargs: Mapping[str, Any] | None = None,
    prm_kwargs: Mapping[str, Any] | None = None,
) -> Backend:
    """Load the three models. All checks that need no weights come first, for all three.

    Raises:
        ConfigError: an option is unknown or out of bounds.
        ModelError: a model or tokenizer cannot play its role.
    """
    if max_batch_size < 1 or max_length < 2:
        raise ConfigError(
            f"max_batch_size={max_batch_size!r}, max_length={max_length!r} leave no room.",
            hint="Give at least 1 and 2.",
        )
    device = str(device or default_device())
    writers = [
        _Parts.of("draft", draft, draft_kwargs or {}),
        _Parts.of("target", target, target_kwargs or {}),
    ]
    scorer = _Parts.of("prm", prm, prm_kwargs or {})
    for parts in [*writers, scorer]:
        _check_architecture(parts)
    _check_templates(writers)
    form = find_prm_format(prm_format, scorer.config, scorer.tokenizer)
    sizes = {"slots": max_batch_size, "max_length": max_length}
    draft_writer, target_writer = (_load_writer(parts, device, dtype, **sizes) for parts in writers)
    return Backend(
        draft_writer, target_writer, _load_scorer(scorer, form, device, dtype, **sizes), max_batch_size
    )


def default_device() -> str:
    """CUDA where there is one, then Apple's, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load_writer(parts: _Parts, device: str, dtype: Any, *, slots: int, max_length: int) -> TorchWriter:
    model = parts.model
    if model is None:
        options = parts.load_options(device, dtype)
        model = _loading(parts, lambda: AutoModelForCausalLM.from_pretrained(parts.name, **options))
        model = parts.place(model, device)
    runner = _runner(model, read_logits(model), slots, max_length)
    check_slots(runner, parts.name)
    tokenizer = parts.tokenizer
    eos_ids = _eos_ids(model, tokenizer)
    if not eos_ids:
        raise ModelError(f"{parts.name!r} names no end-of-sequence token.", hint="Set tokenizer.eos_token.")
    return TorchWriter(
        runner,
        tokenizer,
        _info(parts, model, runner.capacity),
        render=lambda prompt: _render(tokenizer, prompt),
        tags_of=lambda prompt: reasoning_tags(tokenizer, prompt),
        eos_ids=eos_ids,
        hidden_ids=_hidden_ids(tokenizer) | eos_ids,
        vocabulary=_fingerprint(tokenizer),
    )


def _load_scorer(
    parts: _Parts, form: PRMFormat, device: str, dtype: Any, *, slots: int, max_length: int
) -> TorchScorer:
    options = parts.load_options(device, dtype)
    source = parts.model if parts.model is not None else parts.name
    model: RewardModel = _loading(parts, lambda: load_reward_model(form.head, source, **options))
    if parts.model is None:
        parts.place(model, device)
    columns = form.columns
    readout = read_hidden(model.body, lambda hidden: model.outputs(hidden, columns))
    runner = _runner(model.body, readout, slots, max_length)
    check_slots(runner, parts.name)
    info = _info(parts, model, runner.capacity, threshold=form.recommended_threshold)
    return TorchScorer(runner, form, info)


def _loading(parts: _Parts, load: Any) -> Any:
    try:
        return load()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"cannot load {parts.role}={parts.name!r}: {_first_line(error)}",
            hint=f"Check {parts.role}_kwargs; pass use_safetensors=False there for a .bin checkpoint.",
        ) from error


def _runner(model: torch.nn.Module, readout: Any, slots: int, max_length: int) -> SlotRunner:
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    config = _text_config(model.config)
    return SlotRunner(
        config,
        readout,
        device=embeddings.weight.device,
        dtype=model.dtype,  # type: ignore[arg-type]
        slots=slots,
        capacity=min(max_length, _positions(config)),
    )


def _check_architecture(parts: _Parts) -> None:
    """Refuse what a slot cache cannot hold or roll back."""
    config = _text_config(parts.config)
    name = f"{parts.role}={parts.name!r} ({type(parts.config).__name__})"
    if getattr(parts.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder.", hint="Use a decoder-only causal model.")
    kinds = set(getattr(config, "layer_types", None) or ())
    known = {"full_attention", "sliding_attention", "chunked_attention"}
    model_class = type(parts.model) if parts.model is not None else _causal_class(config)
    if kinds - known or getattr(model_class, "_is_stateful", False):
        found = ", ".join(sorted(kinds - known)) or "a recurrent state"
        raise ModelError(
            f"{name} has {found}: its cache cannot be rolled back when a step is rejected.",
            hint="Use a model with attention layers only (Qwen2/2.5/3, Llama, Mistral, Gemma, Phi, ...).",
        )
    attention = parts.options.get("attn_implementation") or getattr(config, "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager"):
        raise ModelError(
            f"{name} asks for attn_implementation={attention!r}, which takes no mask for slots.",
            hint='Use "sdpa" or "eager".',
        )


def _causal_class(config: Any) -> Any:
    """The model class of a config, without loading anything; None for remote code."""
    try:
        return AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        return None


def _check_templates(writers: list[_Parts]) -> None:
    have = [bool(chat_template_text(parts.tokenizer)) for parts in writers]
    if have[0] != have[1]:
        lacking = writers[have.index(False)]
        raise ModelError(
            f"the tokenizer of {lacking.role}={lacking.name!r} has no chat template, the other model's has.",
            hint="Use two chat models, or set tokenizer.chat_template and pass (model, tokenizer).",
        )


def _render(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """A chat by the template; a lone text to a model without one is plain text to continue."""
    if isinstance(prompt, str) and not chat_template_text(tokenizer):
        start = token_id(tokenizer, tokenizer.bos_token) if _adds_bos(tokenizer) else None
        return (() if start is None else (start,)) + encode_plain(tokenizer, prompt)
    return render_chat(tokenizer, as_messages(prompt))


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that any of the model's configs calls the end."""
    found: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for ids in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)


def _hidden_ids(tokenizer: Any) -> frozenset[int]:
    """Special tokens have no text, but for those of the thinking markup."""
    tags = reasoning_tags(tokenizer)
    shown = {token_id(tokenizer, tag) for tag in (tags.opening, tags.closing)} if tags else set()
    added = tokenizer.added_tokens_decoder.items()
    special = {index for index, token in added if token.special} | set(tokenizer.all_special_ids)
    return frozenset(special - shown)


def _info(parts: _Parts, model: torch.nn.Module, window: int, threshold: float | None = None) -> ModelInfo:
    config = _text_config(model.config)
    heads = int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kinds = attention_kinds(config)
    only_sliding = set(kinds) == {"sliding_attention"}
    return ModelInfo(
        name=parts.name,
        parameters=active_parameters(model),
        pair_flops=4 * int(config.num_hidden_layers) * heads * size,
        window=window,
        sliding_window=kinds["sliding_attention"][0] if only_sliding else None,
        threshold=threshold,
    )


def active_parameters(model: torch.nn.Module) -> int:
    """Parameters a token passes through: tied ones once, of experts only those that are chosen."""
    config = _text_config(model.config)
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    total = 0
    for name, parameter in model.named_parameters():
        share = chosen / experts if experts and chosen and ".experts." in name else 1.0
        total += round(parameter.numel() * share)
    return total


def _positions(config: Any) -> int:
    """Positions the model was made for.

    Some rotary embeddings change with the longest row of a batch; within their original length they
    do not, and a request's result must not depend on its company.
    """
    positions = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        positions = min(positions, int(original or positions))
    return positions


def _text_config(config: Any) -> Any:
    return config.get_text_config(decoder=True)


def _fingerprint(tokenizer: Any) -> str:
    """Equal for tokenizers whose ids mean the same strings."""
    entries = "\n".join(f"{index}\t{token}" for token, index in sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(entries.encode()).hexdigest()


def _has_accelerate() -> bool:
    from transformers.utils import is_accelerate_available

    return bool(is_accelerate_available())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}"
