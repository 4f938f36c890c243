"""What LangChain builds around chat models works around this one."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any, cast

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRetryMiddleware, SummarizationMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelError,
    ModelInvalidRequestError,
    ModelTimeoutError,
)
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough

from rsd_integrations.adapters.sources import live_name
from rsd_integrations.errors import (
    BackendError,
    ConfigError,
    EngineClosedError,
    PromptError,
    PromptLengthError,
    TimedOutError,
)
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


def always(reward: float) -> float:
    return 1.0


async def test_the_llm_cache_tells_weightings_apart(
    pipe: Any, cache: InMemoryCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def constant(probability: float) -> Any:
        return lambda reward: probability

    keep, rewrite = constant(1.0), constant(0.0)
    for _ in range(2):
        for weighting, answer in ((keep, "one\n\ntwo\n\nthree"), (rewrite, "ONE\n\nTWO\n\nTHREE")):
            assert ChatRSD.from_pipeline(pipe, weighting=weighting).invoke(QUESTION).content == answer
    keys = [
        ChatRSD.from_pipeline(pipe, weighting=one)._get_llm_string()
        for one in (keep, keep, rewrite, always, always, constant(1.0))
    ]
    assert (keys[0], keys[3]) == (keys[1], keys[4])
    assert len({*keys}) == 4
    assert ChatRSD.from_pipeline(pipe, weighting=float.__abs__)._get_llm_string(), "it has no module"
    # Every script is __main__, so its names tell no function from another one.
    scripted = FunctionType(always.__code__, {"__name__": "__main__"}, "always")
    monkeypatch.setattr(sys.modules["__main__"], "always", scripted, raising=False)
    assert live_name(scripted) in ChatRSD.from_pipeline(pipe, weighting=scripted)._get_llm_string()
    # What has a name of its own is the same in the next process.
    assert "test_ecosystem.always" in keys[3] and live_name(always) not in keys[3]


def test_the_llm_cache_tells_the_order_of_documents_apart(llm: Any) -> None:
    """A template may write what a variable holds in its order, but not the variables themselves."""

    def key(**variables: Any) -> Any:
        return llm._get_llm_string(chat_template_kwargs=variables)

    document, turned = {"title": "sky", "body": "blue"}, {"body": "blue", "title": "sky"}
    assert key(documents=[document], thinking=True) == key(thinking=True, documents=[document])
    assert key(documents=[document]) != key(documents=[turned])


def test_the_llm_cache_tells_forms_apart(pipe: Any, cache: InMemoryCache) -> None:
    assert isinstance(ChatRSD.from_pipeline(pipe, output_version="v1").invoke(QUESTION).content, list)
    assert ChatRSD.from_pipeline(pipe).invoke(QUESTION).content == ANSWER


@pytest.mark.parametrize(
    ("asked", "ours", "langchains", "match"),
    [
        (("x" * 99, {}), PromptLengthError, ContextOverflowError, "do not fit"),
        (("", {}), PromptError, ModelInvalidRequestError, "the chat is empty"),
        (("x", {"treshold": 1}), ConfigError, ModelInvalidRequestError, "unknown parameter 'treshold'"),
        (("x", {"max_tokens": 0}), ConfigError, ModelInvalidRequestError, "max_tokens=0: Input should be"),
        (("x", {"timeout": 1e-9}), TimedOutError, ModelTimeoutError, "no whole answer.*waited for its turn"),
    ],
)
async def test_errors_are_langchains_too(asked: Any, ours: Any, langchains: Any, match: str) -> None:
    prompt, given = asked
    with scripted_pipeline(["fine"], window=30) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        ways = [
            lambda: llm.ainvoke(prompt, **given),
            lambda: asyncio.to_thread(llm.invoke, prompt, **given),
            lambda: asyncio.to_thread(lambda: list(llm.stream(prompt, **given))),
            lambda: anext(llm.astream(prompt, **given)),
        ]
        for way in ways:
            with pytest.raises(ours, match=match) as raised:
                await way()
            assert isinstance(raised.value, langchains)
            again = pickle.loads(pickle.dumps(raised.value))
            assert (type(again), str(again)) == (type(raised.value), str(raised.value))


@pytest.mark.parametrize(
    "what",
    [
        lambda llm: llm.bind_tools([], tool_choice="add"),
        lambda llm: llm.with_structured_output({"title": "x"}, method="of_old"),
        lambda llm: llm.get_token_ids(QUESTION),
        lambda llm: llm.get_num_tokens_from_messages([HumanMessage(QUESTION)]),
    ],
)
def test_errors_of_what_is_asked_inside_of_agents_are_langchains_too(what: Any) -> None:
    """They bind tools and count tokens where their middleware retries whatever is no ModelError."""
    with scripted_pipeline(["fine"]) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
    with pytest.raises(ModelError) as raised:  # For one, the pipeline is closed.
        what(llm)
    assert isinstance(raised.value, (ConfigError, EngineClosedError))
    assert not raised.value.is_retryable


def test_errors_are_langchains_with_a_cache_too(pipe: Any, cache: InMemoryCache) -> None:
    """It wants to know the call before the model is asked."""
    for wrong in ({"treshold": 1}, {"temperature": -1}, {"stop": [""]}):
        with pytest.raises(ModelInvalidRequestError):
            ChatRSD.from_pipeline(pipe).invoke(QUESTION, **wrong)


def test_middleware_does_not_retry_what_cannot_be_mended() -> None:
    asked = []

    class Counting(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            asked.append(request)
            return handler(request)

    with scripted_pipeline(["fine"], window=30) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
        retry = ModelRetryMiddleware(max_retries=2, on_failure="error", initial_delay=0.0)
        agent = create_agent(llm, middleware=[retry, Counting()])
        with pytest.raises(PromptLengthError, match="do not fit"):
            agent.invoke({"messages": [HumanMessage("x" * 99)]})
    assert len(asked) == 1


def test_reported_usage_is_known_as_ours(pipe: Any) -> None:
    llm = ChatRSD.from_pipeline(pipe)
    answer = llm.invoke(QUESTION)
    answer.usage_metadata = {"input_tokens": 900, "output_tokens": 100, "total_tokens": 1000}
    middleware = SummarizationMiddleware(llm, trigger=("tokens", 500))
    assert middleware._should_summarize_based_on_reported_tokens([HumanMessage("x"), answer], 500)


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
        assert (llm.profile["max_input_tokens"], llm.profile["max_output_tokens"]) == (271, 50)
        assert llm.profile["image_inputs"] is False
        assert llm.get_token_ids("abc") == [97, 98, 99]
        assert llm.get_num_tokens("abcd") == 4
        assert llm.get_num_tokens_from_messages([SystemMessage("ab"), HumanMessage("cde")]) == 5
        assert ChatRSD.from_pipeline(pipe, custom_get_token_ids=len).get_token_ids("ab") == 2
        assert ChatRSD.from_pipeline(pipe, profile={"max_input_tokens": 7}).profile == {"max_input_tokens": 7}
    assert ChatRSD(draft="d", target="t", prm="p", max_length=99).profile["max_input_tokens"] == 98  # type: ignore[index]


def test_the_profile_follows_the_settings(loads: list[Any]) -> None:
    llm = ChatRSD(draft="d", target="t", prm="p", max_tokens=50)
    llm.load()
    window = llm.window
    assert llm.profile is not None
    assert llm.profile["max_input_tokens"] == window - 50
    llm.max_tokens = 70
    llm.invoke(QUESTION)
    assert llm.profile["max_input_tokens"] == window - 70
    field = ConfigurableField(id="most")
    made, _ = llm.configurable_fields(max_tokens=field).prepare({"configurable": {"most": 90}})
    for copied in (llm.model_copy(update={"max_tokens": 90}), cast("ChatRSD", made)):
        copied.load()
        assert copied.profile is not None
        assert copied.profile["max_input_tokens"] == window - 90
    own = ChatRSD(draft="d", target="t", prm="p", profile={"max_input_tokens": 7})
    for _ in range(2):
        own.load()
        assert own.profile == {"max_input_tokens": 7}


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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="langgraph's async context needs Python 3.11")
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
