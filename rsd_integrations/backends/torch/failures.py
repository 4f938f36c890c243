"""What users are told when a model fails, or cannot know what it is fed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.errors import BackendError, DeviceMemoryError, PromptError, RSDError
from rsd_integrations.panics import is_panic
from rsd_integrations.protocols import WindowFull

Made = TypeVar("Made")


@dataclass(frozen=True)
class Embedded:
    """The tokens that a model has embeddings of: its tokenizer, or another model, may know more.

    Args:
        model: its name.
        count: of its embeddings; None where that is not known.
    """

    model: str
    count: int | None

    def check(self, feeds: Sequence[SlotFeed]) -> None:
        """Refuse tokens that the model does not know: on a GPU they would end all requests.

        Raises:
            PromptError: there is one.
        """
        highest = max((max(feed.tokens, default=0) for feed in feeds), default=0)
        if self.count is not None and highest >= self.count:
            raise PromptError(
                f"a text has the token {highest}, but {self.model!r} has embeddings of {self.count} tokens.",
                hint="Call model.resize_token_embeddings(len(tokenizer)), and train what that adds, or use "
                "the tokenizer that the model was made with.",
            )


_NO_MEMORY = ("can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of memory")


def _out_of_memory(error: BaseException) -> bool:
    """Known by its class or, where torch has none, by its words: of Linux, of Windows, of Apple's GPUs."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in said for words in _NO_MEMORY
    )


def attempt(act: Callable[[], Made]) -> Made | Exception:
    """What it gives, or what fails the one request that it is for: the others of its batch go on.

    Raises:
        BaseException: what is meant to end the thread.
    """
    try:
        return act()
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        return failure(error)


def failure(error: BaseException) -> Exception:
    """What a user is told of an error in a model."""
    if isinstance(error, RSDError | WindowFull):
        return error
    kind, hint = BackendError, "The other requests go on; see the cause for what failed."
    if _out_of_memory(error):
        kind = DeviceMemoryError
        hint = (
            "Lower max_batch_size, max_length or max_tokens, use a smaller dtype, or close() pipelines that "
            "are no longer needed."
        )
    # Its frames hold the tensors of the failed forward as long as somebody keeps the error.
    traceback.clear_frames(error.__traceback__)
    told = kind(f"the model failed: {type(error).__name__}: {error}.", hint=hint)
    told.__cause__ = error
    return told


def free_frames(error: BaseException, before: BaseException | None) -> None:
    """Have an error, and those that led to it, hold nothing of the calls that they ended.

    Args:
        error: whoever keeps it would keep what those calls had loaded so far.
        before: what was being handled when the first of the calls began: its frames are another's.
    """
    seen, left = {id(before)}, [error]
    while left:
        one = left.pop()
        seen.add(id(one))  # Errors may be equal, or have no hash.
        traceback.clear_frames(one.__traceback__)
        led = (one.__cause__, one.__context__)
        left += [other for other in led if other is not None and id(other) not in seen]
