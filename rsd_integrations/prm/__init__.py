"""PRM formats: a registry, and one file a format."""

from __future__ import annotations

from rsd_integrations.prm.base import Feed, Head, PRMFormat

# Each of these modules registers its formats; none imports anything heavy.
from rsd_integrations.prm.judge import JudgeFormat
from rsd_integrations.prm.math_shepherd import MathShepherdFormat, VersaPRMFormat
from rsd_integrations.prm.qwen import QwenFormat, ReasonFluxFormat
from rsd_integrations.prm.registry import find_prm_format, prm_format_names, register_prm_format
from rsd_integrations.prm.rlhflow import RLHFlowFormat
from rsd_integrations.prm.sequence import SequenceFormat
from rsd_integrations.prm.skywork import SkyworkFormat
from rsd_integrations.prm.trl import TRLFormat

__all__ = [
    "Feed",
    "Head",
    "JudgeFormat",
    "MathShepherdFormat",
    "PRMFormat",
    "QwenFormat",
    "RLHFlowFormat",
    "ReasonFluxFormat",
    "SequenceFormat",
    "SkyworkFormat",
    "TRLFormat",
    "VersaPRMFormat",
    "find_prm_format",
    "prm_format_names",
    "register_prm_format",
]
