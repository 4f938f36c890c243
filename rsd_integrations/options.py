"""What is said of models that are loaded into this process, besides which they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict


class LoadOptions(TypedDict, total=False):
    """Further arguments of ``RSDPipeline.from_pretrained``, which says what they mean."""

    prm_format: Any
    device: str | None
    dtype: Any
    max_batch_size: int
    max_length: int
    compile: bool
    cuda_graphs: bool | None
    cpu_traces: bool
    prefix_caching: bool
    draft_kwargs: Mapping[str, Any] | None
    target_kwargs: Mapping[str, Any] | None
    prm_kwargs: Mapping[str, Any] | None


class TrioOptions(LoadOptions, total=False):
    """The same, and models in place of a trio's own."""

    draft: Any
    target: Any
    prm: Any
