"""What a format may look at to recognise its model: names, never weights.

The formats of this package recognise disjoint sets of models, so their order does not matter.
"""

from __future__ import annotations

from typing import Any


def has_architecture(config: Any, ending: str) -> bool:
    """Whether an architecture's name, or a class in ``auto_map``, has this ending."""
    auto_map = getattr(config, "auto_map", None) or {}
    names = [*(getattr(config, "architectures", None) or ()), *map(str, auto_map.values())]
    return any(name.endswith(ending) for name in names)


def model_name(config: Any) -> str:
    """The name of the model's repository or folder, lower case, "_" as "-".

    Neither the owner nor the folders above say what a model is; in the hub's cache the repository is above.
    """
    path = str(getattr(config, "_name_or_path", "") or "").replace("\\", "/")
    *above, name = path.rstrip("/").split("/")
    cached = (one.rpartition("--")[2] for one in above if one.startswith("models--"))
    return next(cached, name).lower().replace("_", "-")


def label_count(config: Any) -> int:
    """Number of a classifier's labels; 0 if the config does not say."""
    return int(getattr(config, "num_labels", None) or len(getattr(config, "id2label", None) or ()))
