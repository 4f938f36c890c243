"""Many chats at once, each in a thread or task, given up as soon as whoever waits for them is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import Any, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables.config import ContextThreadPoolExecutor, RunnableConfig, get_config_list

from rsd_integrations.adapters.groups import Group

T = TypeVar("T")

_THREADS = 256
"""Most threads of one batch, which only wait: as many as servers' default ``max_batch_size``."""


class Batched(BaseChatModel):
    """A chat model's batches, sync and async. Where one input fails, where the batch is interrupted, or where
    nobody reads on, the others are cancelled: LangChain's own go on, and some wait for them.
    """

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answers in the order of the chats; they run in shared engine batches."""
        if len(messages) < 2:
            return super().generate(messages, stop=stop, callbacks=callbacks, **kwargs)
        given, one = _with_ids(messages, kwargs), super().generate

        def ask(chat: list[BaseMessage], run_id: UUID | None) -> LLMResult:
            return one([chat], stop=stop, callbacks=callbacks, run_id=run_id, **kwargs)

        return self._joined(dict(_at_once(ask, given)))

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answers in the order of the chats; they run in shared engine batches."""
        if len(messages) < 2:
            return await super().agenerate(messages, stop=stop, callbacks=callbacks, **kwargs)
        given, one = _with_ids(messages, kwargs), super().agenerate

        async def ask(chat: list[BaseMessage], run_id: UUID | None) -> LLMResult:
            return await one([chat], stop=stop, callbacks=callbacks, run_id=run_id, **kwargs)

        return self._joined({place: result async for place, result in _tasks_at_once(ask, given)})

    def _joined(self, found: dict[int, LLMResult]) -> LLMResult:
        results = _in_order(found)
        return LLMResult(
            generations=[result.generations[0] for result in results],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
            run=[run for result in results for run in result.run or ()],
        )

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers in the order of the inputs; they run in shared engine batches."""
        if len(inputs) < 2:
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        answers = self.batch_as_completed(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return cast(list[AIMessage], _in_order(dict(answers)))

    def batch_as_completed(  # type: ignore[override]
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, AIMessage | Exception]]:
        """(position, answer) pairs as they are done; they run in shared engine batches."""
        if len(inputs) < 2:
            return super().batch_as_completed(inputs, config, return_exceptions=return_exceptions, **kwargs)  # type: ignore[call-overload, no-any-return]
        configs = get_config_list(config, len(inputs))

        def ask(one: LanguageModelInput, config: RunnableConfig) -> AIMessage | Exception:
            try:
                return self.invoke(one, config, **kwargs)
            except Exception as error:
                if return_exceptions:
                    return error
                raise

        given = list(zip(inputs, configs, strict=True))
        return _at_once(ask, given, configs[0].get("max_concurrency"))

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers in the order of the inputs; they run in shared engine batches."""
        if len(inputs) < 2:
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        answers = self.abatch_as_completed(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return cast(list[AIMessage], _in_order({place: answer async for place, answer in answers}))

    def abatch_as_completed(  # type: ignore[override]
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[int, AIMessage | Exception]]:
        """(position, answer) pairs as they are done; they run in shared engine batches."""
        if len(inputs) < 2:
            return super().abatch_as_completed(inputs, config, return_exceptions=return_exceptions, **kwargs)  # type: ignore[call-overload, no-any-return]
        configs = get_config_list(config, len(inputs))

        async def ask(one: LanguageModelInput, config: RunnableConfig) -> AIMessage | Exception:
            try:
                return await self.ainvoke(one, config, **kwargs)
            except Exception as error:
                if return_exceptions:
                    return error
                raise

        given = list(zip(inputs, configs, strict=True))
        return _tasks_at_once(ask, given, configs[0].get("max_concurrency"))


def _at_once(
    ask: Callable[..., T], inputs: Sequence[tuple[Any, ...]], threads: int | None = None
) -> Iterator[tuple[int, T]]:
    """(position, answer) pairs as they are done. The engine runs them together, and threads only wait.

    Where one fails, where this is interrupted, or where nobody reads on, the others are cancelled:
    LangChain's own batches wait for all that were begun.

    Args:
        ask: makes an answer.
        inputs: what it is called with, for each.
        threads: most at once; None: as many as there are inputs, up to 256.
    """
    group = Group()
    pool = ContextThreadPoolExecutor(max_workers=threads or min(len(inputs), _THREADS))
    futures: dict[Future[T], int] = {}
    future: Future[T] | None = None
    try:
        futures.update((pool.submit(group.run, ask, *one), place) for place, one in enumerate(inputs))
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        group.give_up()
        raise
    finally:
        # No waiting for threads that may load models. The collector may end this on the engine's own thread.
        pool.shutdown(wait=False, cancel_futures=True)
        del futures, future  # They hold what one failed with, whose traceback holds this frame.


async def _tasks_at_once(
    ask: Callable[..., Awaitable[T]], inputs: Sequence[tuple[Any, ...]], limit: int | None = None
) -> AsyncGenerator[tuple[int, T], None]:
    """``_at_once`` for asyncio, each in a task. Those that are cancelled are waited for: that is soon.

    Args:
        ask: makes an answer.
        inputs: what it is called with, for each.
        limit: most at once; None: all.
    """
    room = asyncio.Semaphore(limit or len(inputs))

    async def one(place: int, given: tuple[Any, ...]) -> tuple[int, T]:
        async with room:
            return place, await ask(*given)

    tasks = [asyncio.ensure_future(one(place, given)) for place, given in enumerate(inputs)]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            # Read when it is over, or asyncio would log what the others fail with.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            task.cancel()
        # Not ``gather``, which would cancel them once more, in their cleaning up, if this is cancelled again.
        await asyncio.wait(tasks)


def _in_order(found: dict[int, T]) -> list[T]:
    return [found[place] for place in range(len(found))]


def _with_ids(
    messages: list[list[BaseMessage]], kwargs: dict[str, Any]
) -> list[tuple[list[BaseMessage], UUID | None]]:
    """Each chat with its run id: only the first of several gets the caller's, as in LangChain."""
    ids = [kwargs.pop("run_id", None), *[None] * (len(messages) - 1)]
    return list(zip(messages, ids, strict=True))
