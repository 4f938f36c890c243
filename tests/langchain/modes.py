"""Every way to call a chat model, and a handler that writes down what it is told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph

from tests.counting import QUESTION


class Recorder(BaseCallbackHandler):
    """Told everything, keeps everything."""

    raise_error = True

    def __init__(self) -> None:
        self.models: list[UUID] = []
        self.custom: list[tuple[str, dict[str, Any], UUID]] = []
        self.chains: list[str] = []
        self.ended: list[BaseMessage] = []
        self.failed: list[BaseException] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.models.append(run_id)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ended.append(response.generations[0][0].message)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.failed.append(error)

    def on_chain_start(self, serialized: Any, inputs: Any, *, name: str = "", **kwargs: Any) -> None:
        # Some handlers look there for the name (ragas), which LangChain's own chains of today do not give.
        assert not name.startswith("rsd.") or serialized["name"] == name
        self.chains.append(name)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.custom.append((name, data, run_id))


class AsyncRecorder(AsyncCallbackHandler):
    """The same for asyncio; it also keeps the loops it was called on."""

    def __init__(self) -> None:
        self.models: list[UUID] = []
        self.custom: list[tuple[str, dict[str, Any], UUID]] = []
        self.loops: set[int] = set()

    async def on_chat_model_start(
        self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any
    ) -> None:
        self.models.append(run_id)

    async def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        self.loops.add(id(asyncio.get_running_loop()))
        self.custom.append((name, data, run_id))


Mode = Callable[[Any, list[BaseCallbackHandler]], str]


def _text(message: Any) -> str:
    return str(message.text)


def _joined(chunks: list[Any]) -> str:
    return "".join(str(chunk.text) for chunk in chunks)


def _chain(llm: Any) -> Runnable[Any, AIMessage]:
    return ChatPromptTemplate.from_messages([("system", "Count."), ("human", "{question}")]) | llm


_INPUT = {"question": QUESTION}


def graph(llm: Any, how: str = "invoke") -> Any:
    """A langgraph with one node that calls the model."""

    def needed(config: RunnableConfig) -> RunnableConfig | None:
        """Tasks of Python 3.10 cannot be given a context: there langgraph asks async nodes to pass this."""
        return config if sys.version_info < (3, 11) else None

    async def anode(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [await llm.ainvoke(state["messages"], needed(config))]}

    async def asnode(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        whole = None
        async for chunk in llm.astream(state["messages"], needed(config)):
            whole = chunk if whole is None else whole + chunk
        return {"messages": [whole]}

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [llm.invoke(state["messages"])]}

    def snode(state: MessagesState) -> dict[str, Any]:
        whole = None
        for chunk in llm.stream(state["messages"]):
            whole = chunk if whole is None else whole + chunk
        return {"messages": [whole]}

    nodes: dict[str, Any] = {"invoke": node, "stream": snode, "ainvoke": anode, "astream": asnode}
    builder = StateGraph(MessagesState)
    builder.add_node("think", nodes[how])
    builder.add_edge(START, "think")
    builder.add_edge("think", END)
    return builder.compile()


def _state() -> dict[str, Any]:
    return {"messages": [HumanMessage(QUESTION)]}


def _last(state: Any) -> str:
    return _text(state["messages"][-1])


async def _astream(llm: Any, config: Any, value: Any = QUESTION) -> str:
    return _joined([chunk async for chunk in llm.astream(value, config)])


async def _events_v2(llm: Any, config: Any, value: Any = QUESTION) -> str:
    events = [event async for event in llm.astream_events(value, config, version="v2")]
    return _joined([event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"])


async def _events_v3(llm: Any, config: Any) -> str:
    stream = await llm.astream_events(QUESTION, config, version="v3")
    text = _text(await stream.output)
    # The run ends after the output is there.
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    return text


def _generated(result: Any) -> str:
    return _text(result.generations[0][0].message)


async def _agenerate(llm: Any, callbacks: Any) -> str:
    return _generated(await llm.agenerate([[HumanMessage(QUESTION)]], callbacks=callbacks))


def _on(config: list[BaseCallbackHandler]) -> dict[str, Any]:
    return {"callbacks": config}


async def _abatch(llm: Any, config: Any, value: Any = QUESTION) -> str:
    return _text((await llm.abatch([value], config))[0])


async def _ainvoke(llm: Any, config: Any, value: Any = QUESTION) -> str:
    return _text(await llm.ainvoke(value, config))


async def _agraph(llm: Any, config: Any, how: str) -> str:
    return _last(await graph(llm, how).ainvoke(_state(), config))


BARE: dict[str, Mode] = {
    "invoke": lambda llm, on: _text(llm.invoke(QUESTION, _on(on))),
    "ainvoke": lambda llm, on: asyncio.run(_ainvoke(llm, _on(on))),
    "stream": lambda llm, on: _joined(list(llm.stream(QUESTION, _on(on)))),
    "astream": lambda llm, on: asyncio.run(_astream(llm, _on(on))),
    "batch": lambda llm, on: _text(llm.batch([QUESTION], _on(on))[0]),
    "batch_as_completed": lambda llm, on: _text(next(llm.batch_as_completed([QUESTION], _on(on)))[1]),
    "abatch": lambda llm, on: asyncio.run(_abatch(llm, _on(on))),
    "generate": lambda llm, on: _generated(llm.generate([[HumanMessage(QUESTION)]], callbacks=on)),
    "agenerate": lambda llm, on: asyncio.run(_agenerate(llm, on)),
    "astream_events v2": lambda llm, on: asyncio.run(_events_v2(llm, _on(on))),
    "astream_events v3": lambda llm, on: asyncio.run(_events_v3(llm, _on(on))),
    "stream_events v3": lambda llm, on: _text(llm.stream_events(QUESTION, _on(on), version="v3").output),
    "invoke(stream=True)": lambda llm, on: _text(llm.invoke(QUESTION, _on(on), stream=True)),
    "ainvoke(stream=True)": lambda llm, on: asyncio.run(_ainvoke(llm.bind(stream=True), _on(on))),
}

NESTED: dict[str, Mode] = {
    "chain invoke": lambda llm, on: _text(_chain(llm).invoke(_INPUT, _on(on))),
    "chain ainvoke": lambda llm, on: asyncio.run(_ainvoke(_chain(llm), _on(on), _INPUT)),
    "chain stream": lambda llm, on: _joined(list(_chain(llm).stream(_INPUT, _on(on)))),
    "chain astream": lambda llm, on: asyncio.run(_astream(_chain(llm), _on(on), _INPUT)),
    "chain batch": lambda llm, on: _text(_chain(llm).batch([_INPUT], _on(on))[0]),
    "chain abatch": lambda llm, on: asyncio.run(_abatch(_chain(llm), _on(on), _INPUT)),
    "chain astream_events v2": lambda llm, on: asyncio.run(_events_v2(_chain(llm), _on(on), _INPUT)),
    "graph invoke": lambda llm, on: _last(graph(llm).invoke(_state(), _on(on))),
    "graph stream": lambda llm, on: _last(graph(llm, "stream").invoke(_state(), _on(on))),
    "graph ainvoke": lambda llm, on: asyncio.run(_agraph(llm, _on(on), "ainvoke")),
    "graph astream": lambda llm, on: asyncio.run(_agraph(llm, _on(on), "astream")),
}

MODES = BARE | NESTED
