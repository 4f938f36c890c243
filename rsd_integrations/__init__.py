"""Reward-Guided Speculative Decoding (RSD) for LangChain, LlamaIndex and plain Python.

A small draft model writes a reasoning step, a process reward model scores it, a good step is kept,
a bad one is rewritten by the target model (Liao et al., ICML 2025, arXiv 2501.19324)::

    from rsd_integrations import RSDPipeline

    with RSDPipeline.pocket() as pipe:
        print(pipe.generate("Ava has 12 marbles. She buys 9 more. How many has she?").text)

Importing this package loads neither torch nor a framework.

Public are the names here and what these modules list as theirs: ``langchain``, ``llama_index``, ``config``,
``types``, ``errors``, ``protocols``, ``prm``, ``remote``, ``testing``, ``conformance``, ``pocket``,
``report.html``, ``bench.questions``, ``bench.tune`` and ``bench.figure``. All else may change with any
version.
"""

from rsd_integrations.config import RSDConfig
from rsd_integrations.engine.streams import AsyncEventStream, EventStream
from rsd_integrations.errors import RSDError
from rsd_integrations.functions import RewardFunction
from rsd_integrations.output import Output
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.prm import Feed, PRMFormat, register_prm_format
from rsd_integrations.types import FLOPs, Generation, Step, StepEvent, Usage

__all__ = [
    "AsyncEventStream",
    "EventStream",
    "FLOPs",
    "Feed",
    "Generation",
    "Output",
    "PRMFormat",
    "RSDConfig",
    "RSDError",
    "RSDPipeline",
    "RewardFunction",
    "Step",
    "StepEvent",
    "Usage",
    "__version__",
    "register_prm_format",
]

__version__ = "0.1.0"
