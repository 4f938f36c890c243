"""How many tokens a model can hold, read from its config alone: no weights, no torch, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd_integrations.positions import positions


def known_window(model: Any, options: Mapping[str, Any] | None) -> int | None:
    """Positions a model was made for; None where its config is not on this machine.

    Args:
        model: hub id, folder, loaded model, or (model, tokenizer).
        options: of this model; revision, cache_dir and subfolder are used.
    """
    if isinstance(model, tuple | list) and model:
        model = model[0]
    live = getattr(model, "config", None)
    if live is not None and hasattr(live, "to_dict"):
        return _positions(live.to_dict())
    path = _config_file(model, options or {}) if isinstance(model, str | Path) else None
    try:
        return None if path is None else _positions(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):  # Loading will say what is wrong with it.
        return None


def _config_file(model: str | Path, options: Mapping[str, Any]) -> Path | None:
    name = str(Path(options.get("subfolder") or "", "config.json"))
    if Path(model).is_dir():
        return Path(model, name)
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            str(model), name, cache_dir=options.get("cache_dir"), revision=options.get("revision")
        )
    except ValueError:  # Not even a hub id.
        return None
    return Path(found) if isinstance(found, str) else None


def _positions(config: Mapping[str, Any]) -> int | None:
    return positions((config.get("text_config") or config).get)
