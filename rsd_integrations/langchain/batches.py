"""Many chats at once, each in a thread, given up as soon as whoever waits for them is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from typing import Any, TypeVar

from langchain_core.runnables.config import ContextThreadPoolExecutor, RunnableConfig, get_config_list

from rsd_integrations.adapters.groups import Group

__all__ = ["at_once", "each_at_once"]

T = TypeVar("T")

_THREADS = 256
"""Most threads of one batch, which only wait: as many as servers' default ``max_batch_size``."""


def at_once(
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
    try:
        futures = {pool.submit(group.run, ask, *one): place for place, one in enumerate(inputs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        group.give_up()
        raise
    finally:
        # No waiting for threads that may load models. The collector may end this on the engine's own thread.
        pool.shutdown(wait=False, cancel_futures=True)


def each_at_once(
    invoke: Callable[[Any, RunnableConfig], T], inputs: Sequence[Any], config: Any, *, return_exceptions: bool
) -> Iterator[tuple[int, T | Exception]]:
    """``at_once`` for a runnable's batch, with its config or one for each input."""
    configs = get_config_list(config, len(inputs))

    def ask(one: Any, config: RunnableConfig) -> T | Exception:
        try:
            return invoke(one, config)
        except Exception as error:
            if return_exceptions:
                return error
            raise

    return at_once(ask, list(zip(inputs, configs, strict=True)), configs[0].get("max_concurrency"))
