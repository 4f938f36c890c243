"""Draft, target and PRM behind vLLM servers."""

from __future__ import annotations

from typing import Any

from rsd_integrations.errors import ConfigError
from rsd_integrations.remote import RemoteBackend

__all__ = ["load_remote"]


def load_remote(*models: Any, **options: Any) -> RemoteBackend:
    """``loading.load_remote``, where its extra is installed.

    Raises:
        ConfigError: the extra is not installed.
        RSDError: as ``loading.load_remote``.
    """
    try:
        from rsd_integrations.backends.vllm import loading
    except ModuleNotFoundError as error:
        if error.name not in ("aiohttp", "yarl"):
            raise
        raise ConfigError(
            "models behind servers need aiohttp, which is not installed.",
            hint='Run: pip install "rsd-integrations[vllm]".',
        ) from error
    return loading.load_remote(*models, **options)
