"""What users are told of a model that cannot be read or loaded, and what to do then."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.peft_utils import find_adapter_config_file

from rsd_integrations.errors import ModelError
from rsd_integrations.text.printable import printable
from rsd_integrations.types import Role

_LONGEST = 500
"""Characters of an error that are told. What helps stands in the last of several lines."""

_CHECK = "Check the name or folder, and the network if it is a hub id"
_LOG_IN = "log in with: hf auth login"


def first_line(error: Exception) -> str:
    """The first line of an error, for the message of another."""
    said = str(error).strip()
    return printable(f"{type(error).__name__}: {said.splitlines()[0] if said else repr(error)}")


def told(error: Exception, options: Mapping[str, Any]) -> str:
    """All that an error says, in one line, for the message of another.

    Args:
        options: with which something was to be read. A token among them is not shown.
    """
    said = " ".join(str(error).split()) or repr(error)
    if isinstance(token := options.get("token"), str) and token:
        said = said.replace(token, "***")
    short = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
    return printable(f"{type(error).__name__}: {short}{'' if short.endswith('.') else '.'}")


def remedy(role: Role, error: Exception, what: str) -> str:
    """What to do about an error.

    Args:
        what: "config", "tokenizer" or "weights", whichever could not be read.
    """
    said, options = str(error), f"{role}_kwargs"
    restricted = "gated repo" in said or "private repo" in said
    damaged = type(error).__name__ == "SafetensorError" or isinstance(error, FileNotFoundError)
    other = f"{options}={{'tokenizer': ...}}, a folder, a hub id or a tokenizer"
    pickled = f"use_safetensors=False in {options}"
    known = (
        (restricted, f"Check the name; if access is restricted, pass a token in {options}, or {_LOG_IN}."),
        ("trust_remote_code" in said, f'If you trust it, pass {options}={{"trust_remote_code": True}}.'),
        (what == "config", f"{_CHECK}."),
        (what == "tokenizer", f"{_CHECK}; or give another tokenizer: {other}."),
        ("file named" in said, f"Are its weights there (offline)? For a .bin checkpoint pass {pickled}."),
        (damaged, "A file of weights is missing, cut off, or a mere pointer of Git LFS: download it again."),
    )
    return next((helps for fits, helps in known if fits), f"Check {options}.")


def check_whole(role: Role, name: str, subfolder: str) -> None:
    """Refuse a folder that holds something else than a model with its weights.

    Raises:
        ModelError: it holds an adapter, or weights for llama.cpp.
    """
    path = Path(name, subfolder)
    files = [file.name for file in path.iterdir()] if path.is_dir() else [path.name]
    if any(
        file.startswith("pytorch_model")
        or (file.endswith(".safetensors") and not file.startswith("adapter_"))
        for file in files
    ):
        return
    if "adapter_config.json" in files:
        raise no_model(role, name, adapter=True)
    if any(file.endswith(".gguf") for file in files):
        raise no_model(role, name, adapter=False)


def no_model(role: Role, name: str, *, adapter: bool) -> ModelError:
    """What to say of an adapter, or of GGUF files."""
    if adapter:
        return ModelError(
            f"{role}={name!r} is an adapter of PEFT (adapter_config.json), no whole model.",
            hint="Load it with its base (AutoPeftModelForCausalLM or PeftModel.from_pretrained), and pass "
            "(model, tokenizer). It is faster after merge_and_unload().",
        )
    return ModelError(
        f"{role}={name!r} is made for llama.cpp (GGUF).",
        hint="Load it with from_pretrained(..., gguf_file=...) of transformers, and pass (model, tokenizer).",
    )


def is_adapter(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a hub id is an adapter's, as far as the hub or its cache says."""
    given = {key: value for key, value in options.items() if key != "trust_remote_code"}
    with contextlib.suppress(Exception):
        return find_adapter_config_file(name, **given) is not None
    return False
