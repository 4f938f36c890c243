"""What is closed behind a ``with`` or an ``async with``."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from typing_extensions import Self


class Closing:
    """A context manager, sync and async, that closes what it is."""

    def close(self) -> None:
        """Give back what it holds. Safe to call twice."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """``close`` for asyncio: the loop goes on while it waits for the round in progress."""
        # A thread of its own: those of ``to_thread`` may all be taken by calls that only this ends.
        apart = ThreadPoolExecutor(1, thread_name_prefix="rsd-close")
        try:
            await asyncio.get_running_loop().run_in_executor(apart, self.close)
        finally:
            apart.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
