"""What is closed behind a ``with`` or an ``async with``."""

from __future__ import annotations

import asyncio

from typing_extensions import Self

__all__ = ["Closing"]


class Closing:
    """A context manager, sync and async, that closes what it is."""

    def close(self) -> None:
        """Give back what it holds. Safe to call twice."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """``close`` for asyncio: the loop goes on while it waits for the round in progress."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
