"""A role's model as users name it: a hub id, a folder, a loaded model, or (model, tokenizer)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import is_accelerate_available

from rsd_integrations.backends.shared.unreadable import (
    check_whole,
    first_line,
    is_adapter,
    no_model,
    remedy,
    told,
)
from rsd_integrations.encoding import chat_template_text
from rsd_integrations.errors import ConfigError, ModelError
from rsd_integrations.naming import nearest
from rsd_integrations.prm.base import Head
from rsd_integrations.secrecy import check_url
from rsd_integrations.types import Role
from rsd_integrations.waiting import Turns

ModelSource = Any
"""A hub id, a folder, a loaded model, or a pair (loaded model, its tokenizer)."""

MAKING_MODELS = Turns()
"""transformers patches classes and torch's default dtype while it makes a model. Of two at once the second
takes the first one's patches for what was there before, and leaves them for good (no weights are tied)."""

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code")
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
_OLD_DTYPE = "torch_dtype"
"""What transformers called dtype."""

WITH_HEAD: dict[Head, Any] = {
    "lm": AutoModelForCausalLM,
    "token": AutoModelForTokenClassification,
    "sequence": AutoModelForSequenceClassification,
}
"""transformers' auto classes for models with these heads; for the other heads it has none."""


@dataclass
class Source:
    """A role's model source, taken apart, before weights are loaded."""

    role: Role
    source: ModelSource
    options: dict[str, Any] = field(repr=False)
    name: str = ""
    model: PreTrainedModel | None = None
    config: Any = None
    tokenizer: Any = None
    hub: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, role: Role, source: ModelSource, options: Mapping[str, Any] | None) -> Source:
        """Read config and tokenizer.

        Raises:
            ConfigError: an option is unknown or cannot be used here.
            ModelError: the source cannot be read.
        """
        options = _mapping(f"{role}_kwargs", options)
        more = _mapping(f"{role}_kwargs: model_kwargs", options.get("model_kwargs"))
        known = (*HUB_OPTIONS, *_MODEL_OPTIONS, *_OTHER_OPTIONS)
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"unknown {role}_kwargs {name!r}.",
                    hint=f"{nearest(str(name), known)} Anything else goes into model_kwargs={{...}}.",
                )
        if beside := sorted({*known, _OLD_DTYPE} & set(more)):
            right = "dtype" if beside[0] == _OLD_DTYPE else beside[0]
            raise ConfigError(
                f"{role}_kwargs: model_kwargs={{{beside[0]!r}: ...}} would pass by all checks.",
                hint=f"Put it beside model_kwargs: {role}_kwargs={{{right!r}: ...}}.",
            )
        if _is_loaded(source) and (
            late := sorted({*_MODEL_OPTIONS, "device", "model_kwargs"} & set(options))
        ):
            raise ConfigError(
                f"{role}_kwargs {late!r} are for loading, but {role} is a loaded model.",
                hint="Load it with these options, or give its id or folder.",
            )
        _check_device_map(role, options)
        check_placement(options.get("device") or "cpu", options.get("dtype", "auto"), f"{role}_kwargs: ")
        made = cls(role, source, dict(options))
        given = {key: options[key] for key in HUB_OPTIONS if key in options}
        # If it is left out, transformers asks on the terminal whether to run a repository's code.
        made.hub = {"trust_remote_code": False, **given}
        made._read()
        return made

    def _read(self) -> None:
        source, self.tokenizer = self.source, self.options.get("tokenizer")
        if isinstance(source, tuple | list) and len(source) == 2:
            source, self.tokenizer = source
        if isinstance(source, torch.nn.Module):
            self._take(source)
        elif isinstance(source, str | Path):
            self.name = str.__str__(source) if isinstance(source, str) else str(source)  # It may be an Enum.
            self.config = self._from_hub(AutoConfig, self.name)
        else:
            raise ModelError(
                f"{self.role}={source!r} is no model.",
                hint="Give a hub id, a folder, a loaded model, or (model, tokenizer).",
            )
        if self.tokenizer is None or isinstance(self.tokenizer, str | Path):
            self.tokenizer = self._from_hub(AutoTokenizer, str(self.tokenizer or self.name))
        else:
            # A copy, as a call with truncation or padding changes a tokenizer for whoever else encodes.
            self.tokenizer = copy.deepcopy(self.tokenizer)
        _check_tokenizer(self.role, self.tokenizer)

    def _take(self, model: torch.nn.Module) -> None:
        """Take a loaded model.

        Raises:
            ModelError: it has no config, or nobody can tell which tokenizer is its own.
        """
        kind = type(model).__name__
        if getattr(model, "config", None) is None:
            raise ModelError(
                f"{self.role} is a {kind} without a config, so no model of transformers.",
                hint="Give the transformers model itself (of DataParallel its .module), or its folder.",
            )
        self.model, self.config = model.eval(), model.config
        named = getattr(model.config, "_name_or_path", "")
        if not named and self.tokenizer is None:
            raise ModelError(
                f"{self.role} is a {kind} that was loaded from nowhere, and has no tokenizer.",
                hint="Pass (model, tokenizer).",
            )
        self.name = named or kind

    def _from_hub(self, auto: Any, name: str) -> Any:
        check_url(self.role, name, "Give a folder or hub id, and 'token' in its options for the hub.")
        apart = name != self.name
        named = f"the tokenizer of {self.role} ({name!r:.200})" if apart else f"{self.role}={name!r:.200}"
        try:
            return auto.from_pretrained(name, **self.hub)
        except Exception as error:
            if name.lower().startswith(("http://", "https://")):
                servers = "Give a folder or hub id." if apart else "Servers are for RSDPipeline.from_vllm."
                raise ModelError(f"{named} is a URL.", hint=servers) from error
            if isinstance(error.__cause__, HFValidationError):  # Its message speaks of hub ids alone.
                raise ModelError(
                    f"{named} is neither a folder nor a hub id.",
                    hint="Give a folder that is there (~ is not expanded), or a hub id: organization/name.",
                ) from error
            if isinstance(error, UnicodeEncodeError):
                raise ModelError(
                    f"the name of {named} is not UTF-8, and tokenizers read no others.",
                    hint="Rename the folder.",
                ) from error
            what = "config" if auto is AutoConfig else "tokenizer"
            if what == "config":
                check_whole(self.role, self.name, self.hub.get("subfolder") or "")
                self.check_kind(error)
            part = "" if apart else f"the {what} of "
            raise ModelError(
                f"cannot read {part}{named}: {told(error, self.hub)}",
                hint=remedy(self.role, error, what),
            ) from error

    def check_kind(self, error: Exception) -> None:
        """Say it if a hub id without a config or weights of its own is no whole model.

        Args:
            error: what reading it raised.

        Raises:
            ModelError: it is an adapter, or GGUF.
        """
        # Otherwise the hub may not be there to be asked.
        lacks = any(words in str(error) for words in ("config.json", "file named"))
        if self.model is not None or not lacks or Path(self.name).exists():
            return
        if is_adapter(self.name, self.hub):
            raise no_model(self.role, self.name, adapter=True) from error
        if "gguf" in self.name.lower():
            raise no_model(self.role, self.name, adapter=False) from error

    def load_options(self, device: str | None, dtype: Any) -> dict[str, Any]:
        """What ``from_pretrained`` gets."""
        given = {key: self.options[key] for key in _MODEL_OPTIONS if key in self.options}
        options = {"dtype": dtype, "use_safetensors": True, **self.hub, **given}
        if "device_map" not in options and is_accelerate_available():
            options["device_map"] = {"": self.options.get("device") or device}
        return {**options, **(self.options.get("model_kwargs") or {})}

    def empty(self, auto: Any) -> Any:
        """A model of this config without weights.

        Args:
            auto: one of transformers' auto classes.

        Raises:
            ModelError: no such model can be made of it.
        """
        try:
            with MAKING_MODELS.turn(), torch.device("meta"):
                return auto_class(auto, self.config).from_config(
                    self.config, trust_remote_code=self.hub["trust_remote_code"]
                )
        except Exception as error:
            raise ModelError(
                f"no model can be made of the config of {self.role}={self.name!r}: {first_line(error)}",
                hint="Check that it is a language model that this version of transformers knows.",
            ) from error

    def place(self, model: torch.nn.Module, device: str | None) -> torch.nn.Module:
        """Move a model that ``from_pretrained`` could not place."""
        if "device_map" not in self.options and not is_accelerate_available():
            model = model.to(self.options.get("device") or device)
        return model.eval()


def auto_class(auto: Any, config: Any) -> Any:
    """The auto class to make a model with: transformers has some language models only with image input."""
    seeing = AutoModelForImageTextToText
    if auto is not AutoModelForCausalLM or type(config) in auto._model_mapping:
        return auto
    return seeing if type(config) in seeing._model_mapping else auto


def check_templates(*writers: Source) -> None:
    """Chat templates must be there for all writers or for none.

    Raises:
        ModelError: one has none.
    """
    without = [source for source in writers if not chat_template_text(source.tokenizer)]
    if 0 < len(without) < len(writers):
        one = without[0]
        raise ModelError(
            f"the tokenizer of {one.role}={one.name!r} has no chat template, the other model's has.",
            hint="Use two chat models, or set tokenizer.chat_template and pass (model, tokenizer).",
        )


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={value!r} is no mapping.", hint='Write {"dtype": "bfloat16"}, or None.')
    return value


def _check_device_map(role: Role, options: Mapping[str, Any]) -> None:
    if options.get("device_map") is not None and not is_accelerate_available():
        raise ConfigError(
            f"{role}_kwargs: device_map={options['device_map']!r} needs accelerate, which is not installed.",
            hint='Run: pip install "rsd-integrations[gpu]", or give one device=.',
        )


def _check_tokenizer(role: Role, tokenizer: Any) -> None:
    """Refuse a processor, or a tokenizer of another library.

    Raises:
        ModelError: it is no tokenizer of transformers.
    """
    if not (hasattr(tokenizer, "get_vocab") and hasattr(tokenizer, "eos_token_id")):
        raise ModelError(
            f"the tokenizer of {role} is a {type(tokenizer).__name__}, no tokenizer of transformers.",
            hint="Pass processor.tokenizer of a processor, with its chat template, or "
            "PreTrainedTokenizerFast(tokenizer_object=...) of a tokenizers.Tokenizer.",
        )


def _is_loaded(source: ModelSource) -> bool:
    return isinstance(source[0] if isinstance(source, tuple | list) and source else source, torch.nn.Module)


def check_placement(device: Any, dtype: Any, where: str) -> None:
    """Refuse a device that is not here and a dtype that no model computes in.

    Args:
        where: whose they are, for the message.

    Raises:
        ConfigError: one of them cannot be used.
    """
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{where}device={device!r} is no device.", hint='Use "cpu" or "cuda".') from error
    missing = {"cuda": index >= torch.cuda.device_count(), "mps": not torch.backends.mps.is_available()}
    if missing.get(kind, False):
        raise ConfigError(f"{where}device={device!r} is not available here.", hint='Use device="cpu".')
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype != "auto" and named not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ConfigError(
            f"{where}dtype={dtype!r} is no dtype.", hint='Use "auto", "float32", "bfloat16" or "float16".'
        )
