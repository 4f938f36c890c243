"""Failures of calls that LlamaIndex itself makes, raised so that its users see them.

Its response synthesizers take ValueError and TypeError for a model's bad answer: they log a warning and
give "Empty Response". Refused settings and prompts are ValueErrors and TypeErrors, too. Where LlamaIndex
makes the call (``predict``, ``structured_predict`` and the like) they are raised as ``AskedError`` instead;
whoever calls ``chat`` or ``complete`` gets them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import TokenAsyncGen, TokenGen
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

from rsd_integrations.adapters.settings import RSDSettings
from rsd_integrations.errors import AskedError, PromptLengthError, RSDError
from rsd_integrations.raising import Converting

Method = TypeVar("Method", bound=Callable[..., Any])

_asking: ContextVar[bool] = ContextVar("rsd_asking", default=False)


@contextmanager
def asking(by_llama_index: bool = True) -> Iterator[None]:
    """Within, calls count as LlamaIndex's own; if not ``by_llama_index``, as what they were before."""
    token = _asking.set(by_llama_index or is_asking())
    try:
        yield
    finally:
        _asking.reset(token)


def is_asking() -> bool:
    """Whether LlamaIndex itself makes the call. Streams, which are read elsewhere, ask when they are made."""
    return _asking.get()


def seen(by_llama_index: bool) -> Converting[Exception]:
    """Raise failures so that whoever made the call sees them: if it is LlamaIndex, what it would drop as an
    ``AskedError``.
    """
    return Converting((ValueError, TypeError) if by_llama_index else (), _asked)


def _asked(error: Exception) -> AskedError:
    hint = error.hint if isinstance(error, RSDError) else ""
    message = error.message if isinstance(error, RSDError) else f"{type(error).__name__}: {error}"
    if isinstance(error, PromptLengthError):
        hint += (
            " If LlamaIndex packed it: Settings.tokenizer = llm.load().token_ids makes it count as the "
            "target does; a prompt_helper or a smaller chunk_size leaves more room."
        )
    made = AskedError(message, hint=hint)
    made.__cause__ = error
    return made


async def aloaded(llm: RSDSettings) -> None:
    """Load before LlamaIndex asks for ``metadata``, which would do it on the loop."""
    with seen(is_asking()):
        await llm.aload()


def spanned_by_base(method: Method) -> Method:
    """Keep an overriding method from getting a span of its own, besides the one of ``super()``."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class AskedByEngines(LLM, RSDSettings):
    """The methods that LlamaIndex's own parts call."""

    @spanned_by_base
    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Answer a prompt template.

        Raises:
            AskedError: the call was refused.
        """
        with asking():
            return super().predict(prompt, **prompt_args)

    @spanned_by_base
    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """The same, step by step."""
        with asking():
            return super().stream(prompt, **prompt_args)

    @spanned_by_base
    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """``predict`` for asyncio."""
        with asking():
            await aloaded(self)
            return await super().apredict(prompt, **prompt_args)

    @spanned_by_base
    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """``stream`` for asyncio."""
        with asking():
            await aloaded(self)
            return await super().astream(prompt, **prompt_args)
