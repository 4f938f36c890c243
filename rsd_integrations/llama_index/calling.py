"""Function calling in LlamaIndex's words: by the chat template's tools, or by ReAct where it takes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
)
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool
from typing_extensions import Self

from rsd_integrations.adapters.calls import PER_CALL, call_settings
from rsd_integrations.adapters.settings import RSDSettings
from rsd_integrations.config import RSDConfig
from rsd_integrations.llama_index.asked import aloaded, asking, is_asking, spanned_by_base
from rsd_integrations.llama_index.tools import (
    chat_arguments,
    is_program,
    one_call,
    react_arguments,
    selections,
)
from rsd_integrations.naming import check_known


class ToolCalling(FunctionCallingLLM, RSDSettings):
    """``chat_with_tools``, ``predict_and_call`` and their twins.

    LlamaIndex's programs call these themselves, with ``tool_required`` or a tool of their own making: what
    is refused then is raised as ``AskedError``.
    """

    def stream_chat_with_tools(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> ChatResponseGen:
        """Stream a chat that may call tools."""
        with asking(is_program(tools)):
            return super().stream_chat_with_tools(tools, *args, **_streamed(tools, kwargs))

    async def astream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """The same for asyncio."""
        with asking(is_program(tools)):
            return await super().astream_chat_with_tools(tools, *args, **_streamed(tools, kwargs))

    @spanned_by_base
    def predict_and_call(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Let the model choose a tool, and call it: by its template's tools, or by ReAct without them.

        Raises:
            AskedError: the call was refused, and ``tool_required`` was set.
        """
        with asking(bool(kwargs.get("tool_required"))):
            llm, given = self._calling(kwargs)
            return super(ToolCalling, llm).predict_and_call(tools, *args, **given)

    @spanned_by_base
    async def apredict_and_call(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> AgentChatResponse:
        """The same for asyncio."""
        with asking(bool(kwargs.get("tool_required"))):
            await aloaded(self)
            llm, given = self._calling(kwargs)
            return await super(ToolCalling, llm).apredict_and_call(tools, *args, **given)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls an answer asks for.

        Raises:
            BackendError: there is no complete call, because the answer was cut off or the forced call is
                invalid, and ``error_on_no_tool_call``.
            ValueError: there is no call, and ``error_on_no_tool_call``; or its arguments cannot be read.
        """
        # Calls that LlamaIndex itself makes are to give an object, and it forces them.
        return selections(response, required=error_on_no_tool_call, forced=is_asking())

    def _calling(self, kwargs: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The model that is to answer, and the arguments for LlamaIndex's own method."""
        if self.source.takes_tools:
            return self, kwargs
        own, given = react_arguments(kwargs)
        # LlamaIndex hands its ReAct agent the model but no parameters, so the model has to hold them.
        return self._holding(given) if given else self, own

    def _holding(self, given: dict[str, Any]) -> Self:
        """A copy that has the parameters of a call as its settings."""
        fields = type(self).model_fields
        check_known(given, [name for name in PER_CALL if name in fields], fixed=fields)
        call = call_settings(self, given)
        held = {
            name: getattr(call.config if name in RSDConfig.model_fields else call, name) for name in given
        }
        return self.model_copy(update=held)

    def _prepare_chat_with_tools(  # noqa: PLR0917 (LlamaIndex's signature)
        self,
        tools: Sequence[BaseTool] | None,
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        offered = chat_arguments(
            tools,
            user_msg,
            chat_history,
            parallel=allow_parallel_tool_calls,
            required=tool_required,
            tool_choice=tool_choice,
        )
        return {**offered, **kwargs}

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        return response if allow_parallel_tool_calls else one_call(response)


def _streamed(tools: Sequence[BaseTool], kwargs: dict[str, Any]) -> dict[str, Any]:
    # LlamaIndex's programs require the call, but do not say so when they stream.
    return {"tool_required": True, **kwargs} if is_program(tools) else kwargs
