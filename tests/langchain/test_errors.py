"""Errors as LangChain's middleware sees them: which of its kinds they are, and what is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core import exceptions
from langchain_core.messages import HumanMessage

from rsd_integrations import errors
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.langchain.errors import langchain_errors
from rsd_integrations.testing import scripted_pipeline
from tests.gated import wait_for

KINDS: list[tuple[type[errors.RSDError], type[exceptions.ModelError], bool]] = [
    (errors.ConfigError, exceptions.ModelInvalidRequestError, False),
    (errors.PromptError, exceptions.ModelInvalidRequestError, False),
    (errors.PromptLengthError, exceptions.ContextOverflowError, False),
    (errors.TimedOutError, exceptions.ModelTimeoutError, True),
    (errors.ModelError, exceptions.ModelError, False),
    (errors.EngineClosedError, exceptions.ModelError, False),
    (errors.RewardError, exceptions.ModelError, True),
    (errors.BackendError, exceptions.ModelAPIError, True),
    (errors.DeviceMemoryError, exceptions.ModelAPIError, True),
    (errors.UnreachableError, exceptions.ModelConnectionError, True),
    (errors.RefusedError, exceptions.ModelInvalidRequestError, False),
]


@pytest.mark.parametrize(("ours", "theirs", "again"), KINDS)
def test_an_error_is_of_both_kinds_and_tells_all_it_told(
    ours: type[errors.RSDError], theirs: type[exceptions.ModelError], again: bool
) -> None:
    given = ours("it was wrong", hint="do this")
    given.__dict__["__notes__"] = ["in the third step"]
    given.__cause__ = KeyError("why")
    with pytest.raises(ours) as caught, langchain_errors():
        raise given
    error: Any = caught.value
    assert isinstance(error, theirs)
    assert error.is_retryable is again
    assert (str(error), error.__notes__) == (str(given), ["in the third step"])
    assert error.__cause__ is given.__cause__


def test_every_error_of_a_call_has_a_kind() -> None:
    # A stream that is read wrongly is the caller's own bug; AskedError is LlamaIndex's.
    others = {"AskedError", "RSDError", "StreamError"}
    assert {kind.__name__ for kind, _, _ in KINDS} == set(errors.__all__) - others


def asked_again(llm: ChatRSD, kind: type[Exception]) -> int:
    """How often an agent with LangChain's retries calls the model until it gives up."""
    calls = []

    class Counting(ModelRetryMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            def counted(request: Any) -> Any:
                calls.append(request)
                return handler(request)

            return super().wrap_model_call(request, counted)

    retry = Counting(max_retries=2, on_failure="error", initial_delay=0.0)
    with pytest.raises(kind):
        create_agent(llm, middleware=[retry]).invoke({"messages": [HumanMessage("1 + 1?")]})
    return len(calls)


def test_what_no_retry_could_mend_is_not_tried_again(tmp_path: Path) -> None:
    empty = str(tmp_path)
    assert asked_again(ChatRSD(draft=empty, target=empty, prm=empty), exceptions.ModelError) == 1
    with scripted_pipeline(["fine"]) as pipe:
        llm = ChatRSD.from_pipeline(pipe)
    assert asked_again(llm, errors.EngineClosedError) == 1


def test_a_reward_function_that_fails_is_tried_again() -> None:
    def judge(prompt: Any, steps: Any) -> float:
        raise ConnectionError("the judge is away")

    with ChatRSD.pocket(prm=judge) as llm:
        assert asked_again(llm, errors.RewardError) == 3


def _invoked_by_tasks(llm: ChatRSD) -> None:
    async def main() -> None:
        with contextlib.suppress(errors.ConfigError):
            await anext(llm.astream("1 + 1?", temperature=-1))

    asyncio.run(main())


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.invoke("1 + 1?", temperature=-1),
        lambda llm: llm.invoke("1 + 1?", timeout=1e-9),
        lambda llm: llm.invoke([HumanMessage([{"type": "image", "url": "x"}])]),
        lambda llm: llm.bind_tools([3]),
        lambda llm: llm.batch(["1 + 1?", ""]),
        lambda llm: list(llm.stream("")),
        _invoked_by_tasks,
    ],
)
def test_a_refused_call_keeps_no_pipeline(ask: Callable[[ChatRSD], object], uncollected: None) -> None:
    """Nor does it wait for the garbage collector: a dropped pipeline gives a device's memory back."""
    pipe = scripted_pipeline(["fine"])
    llm, kept = ChatRSD.from_pipeline(pipe), weakref.ref(pipe)
    with contextlib.suppress(errors.RSDError):
        ask(llm)
        assert ask is _invoked_by_tasks
    del pipe, llm
    wait_for(lambda: kept() is None)  # The others of a batch end in threads of their own.
