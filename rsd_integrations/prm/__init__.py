"""PRM formats: a registry, and one file a format."""

from __future__ import annotations

# Each of these modules registers its formats; none imports anything heavy.
from rsd_integrations.prm import judge, math_shepherd, qwen, rlhflow, sequence, skywork, trl
from rsd_integrations.prm.base import Feed, Head, PRMFormat
from rsd_integrations.prm.registry import find_prm_format, prm_format_names, register_prm_format

__all__ = ["Feed", "Head", "PRMFormat", "find_prm_format", "prm_format_names", "register_prm_format"]

del judge, math_shepherd, qwen, rlhflow, sequence, skywork, trl
