"""What LangChain builds around chat models works around this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from rsd_integrations.errors import BackendError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.testing import scripted_pipeline
from tests.counting import ANSWER, NAMES, QUESTION, counting_pipeline
from tests.langchain.modes import Recorder


def breaking(times: int) -> Any:
    """A script that fails its first requests."""
    left = [times]

    def script(prompt: Any, index: int, text: str) -> Any:
        if index == 0 and left[0]:
            left[0] -= 1
            return BackendError("it broke.")
        return "fine" if index == 0 else None

    return script


async def test_with_fallbacks(llm: Any) -> None:
    with scripted_pipeline(breaking(10)) as pipe:
        chain = ChatRSD.from_pipeline(pipe).with_fallbacks([llm])
        handler = Recorder()
        assert chain.invoke(QUESTION, {"callbacks": [handler]}).content == ANSWER
        assert [name for name, _, _ in handler.custom] == NAMES
        assert (await chain.ainvoke(QUESTION)).content == ANSWER
        assert "".join(chunk.content for chunk in chain.stream(QUESTION)) == ANSWER


async def test_with_retry() -> None:
    with scripted_pipeline(breaking(2)) as pipe:
        chain = ChatRSD.from_pipeline(pipe).with_retry(
            retry_if_exception_type=(BackendError,), wait_exponential_jitter=False
        )
        assert chain.invoke(QUESTION).content == "fine"
    with scripted_pipeline(breaking(2)) as pipe:
        chain = ChatRSD.from_pipeline(pipe).with_retry(wait_exponential_jitter=False)
        assert (await chain.ainvoke(QUESTION)).content == "fine"


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    made = InMemoryCache()
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


async def test_the_llm_cache(pipe: Any, cache: InMemoryCache) -> None:
    llm = ChatRSD.from_pipeline(pipe, threshold=0.7)
    rounds = pipe.backend.draft.batches
    first = llm.invoke(QUESTION)
    used = len(rounds)
    again = llm.invoke(QUESTION)
    assert (again.content, len(rounds)) == (first.content, used)
    assert (await llm.ainvoke(QUESTION)).content == first.content
    assert ChatRSD.from_pipeline(pipe, threshold=0.7).invoke(QUESTION).content == first.content
    assert len(rounds) == used
    # Whatever the answer depends on is part of the key, copies with other settings included.
    low = llm.model_copy(update={"threshold": 0.05})
    assert low.invoke(QUESTION).content == "one\n\ntwo\n\nthree"
    assert llm.invoke(QUESTION, threshold=2.0).content == "ONE\n\nTWO\n\nTHREE"
    assert llm.invoke(QUESTION, stop=["WO"]).content == "one\n\nT"
    assert llm.invoke("Something else?").content == ANSWER
    with counting_pipeline() as other:
        before = len(other.backend.draft.batches)  # type: ignore[attr-defined]
        ChatRSD.from_pipeline(other, threshold=0.7).invoke(QUESTION)
        assert len(other.backend.draft.batches) > before  # type: ignore[attr-defined]


def test_cache_false_is_no_cache(pipe: Any, cache: InMemoryCache) -> None:
    llm = ChatRSD.from_pipeline(pipe, cache=False)
    llm.invoke(QUESTION)
    used = len(pipe.backend.draft.batches)
    llm.invoke(QUESTION)
    assert len(pipe.backend.draft.batches) > used


async def test_rate_limiters_are_asked(pipe: Any) -> None:
    class Counting(InMemoryRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            self.asked += 1
            return True

        async def aacquire(self, *, blocking: bool = True) -> bool:
            self.asked += 1
            return True

    limiter = Counting()
    llm = ChatRSD.from_pipeline(pipe, rate_limiter=limiter)
    llm.invoke(QUESTION)
    await llm.ainvoke(QUESTION)
    list(llm.stream(QUESTION))
    async for _ in llm.astream(QUESTION):
        pass
    assert limiter.asked == 4


def test_profile_and_tokens() -> None:
    with counting_pipeline(window=321) as pipe:
        llm = ChatRSD.from_pipeline(pipe, max_tokens=50)
        assert llm.profile is not None
        assert (llm.profile["max_input_tokens"], llm.profile["max_output_tokens"]) == (320, 50)
        assert llm.profile["image_inputs"] is False
        assert llm.get_token_ids("abc") == [97, 98, 99]
        assert llm.get_num_tokens("abcd") == 4
        assert llm.get_num_tokens_from_messages([SystemMessage("ab"), HumanMessage("cde")]) == 5
        assert ChatRSD.from_pipeline(pipe, custom_get_token_ids=len).get_token_ids("ab") == 2
        assert ChatRSD.from_pipeline(pipe, profile={"max_input_tokens": 7}).profile == {"max_input_tokens": 7}
    assert ChatRSD(draft="d", target="t", prm="p", max_length=99).profile["max_input_tokens"] == 98  # type: ignore[index]


def test_a_rag_chain() -> None:
    seen: list[Any] = []

    def script(prompt: Any, index: int, text: str) -> str | None:
        seen.append(prompt)
        return None if index else "42"

    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from this: {context}"), ("human", "{question}")]
    )
    retriever = RunnableLambda(lambda question: [Document("It is 42.", id="1")])
    with scripted_pipeline(script) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        context = retriever | (lambda documents: "\n".join(one.page_content for one in documents))
        chain = {"context": context, "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()
        assert chain.invoke("What is it?") == "42"
        assert "".join(chain.stream("What is it?")) == "42"
    assert seen[0] == [
        {"role": "system", "content": "Answer from this: It is 42."},
        {"role": "user", "content": "What is it?"},
    ]


async def test_an_agent_without_tools(llm: Any) -> None:
    agent = create_agent(llm, system_prompt="Count.")
    state = {"messages": [HumanMessage(QUESTION)]}
    handler = Recorder()
    assert agent.invoke(state, {"callbacks": [handler]})["messages"][-1].content == ANSWER
    assert {run_id for _, _, run_id in handler.custom} == set(handler.models)
    assert (await agent.ainvoke(state))["messages"][-1].content == ANSWER
    again = agent.invoke({"messages": [HumanMessage("a"), AIMessage("b"), HumanMessage("c")]})
    assert again["messages"][-1].content == ANSWER
    custom = [item async for item in agent.astream(state, stream_mode="custom")]
    assert [item["event"] for item in custom] == NAMES
