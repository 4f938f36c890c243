"""Panics of libraries that are written in Rust (tokenizers, llguidance)."""

from __future__ import annotations


def is_panic(error: BaseException) -> bool:
    """Whether a library panicked: that is no ``Exception``, although only one call has failed."""
    return type(error).__name__ == "PanicException"
