"""A generation run for a framework: its events, each told to the framework before it is yielded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from typing import Protocol, TypeVar

from rsd_integrations.adapters.groups import Group
from rsd_integrations.adapters.story import Happening, Story
from rsd_integrations.errors import StreamError, TimedOutError
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import Generation, Message, StepEvent

Made = TypeVar("Made")


class Teller(Protocol):
    """Who tells a framework what happens."""

    @property
    def story(self) -> Story:
        """What there is to tell."""

    def ask(self, request: Callable[[], Made]) -> Made:
        """Make the request in the context that functions that score are to run in."""

    def tell(self, happenings: Iterable[Happening]) -> None:
        """Tell it."""

    async def atell(self, happenings: Iterable[Happening]) -> None:
        """The same on the running loop."""


def events(pipe: RSDPipeline, chat: list[Message], teller: Teller) -> Generator[StepEvent, None, None]:
    """Events of a generation. Leaving early stops the models and closes open spans.

    Raises:
        TimedOutError: the time was up before the answer's end.
        StreamError: its group was given up.
        RSDError: as ``RSDPipeline.generate``.
    """
    story = teller.story
    call = story.call
    stream = teller.ask(
        lambda: pipe.stream(chat, config=call.config, timeout=call.timeout, output=call.output)
    )
    group = Group.of(stream)
    try:
        teller.tell(story.begin())
        for event in stream:
            _check_end(event, call.timeout, group)
            teller.tell(story.on(event))
            yield event
    except BaseException as error:
        stream.close()
        teller.tell(story.fail(error))
        raise


async def aevents(pipe: RSDPipeline, chat: list[Message], teller: Teller) -> AsyncGenerator[StepEvent, None]:
    """The same for asyncio."""
    story = teller.story
    call = story.call
    stream = teller.ask(
        lambda: pipe.astream(chat, config=call.config, timeout=call.timeout, output=call.output)
    )
    try:
        await teller.atell(story.begin())
        async for event in stream:
            _check_end(event, call.timeout)
            await teller.atell(story.on(event))
            yield event
    except BaseException as error:
        await stream.aclose()
        await teller.atell(story.fail(error))
        raise


def _check_end(event: StepEvent, timeout: float | None, group: Group | None = None) -> None:
    """Refuse an event that says that there is no whole answer.

    Raises:
        TimedOutError: the time was up before the answer's end.
        StreamError: its group was given up.
    """
    generation = event.generation
    # Nothing but its group and its deadline cancels a generation whose events are still read.
    if generation is None or generation.finish_reason != "cancelled":
        return
    if group is not None and group.over:
        raise StreamError(
            "the request was cancelled with the others of its batch, of which one failed or was interrupted.",
            hint="Look at that one. With return_exceptions=True the others go on when one fails.",
        )
    raise _late(generation, timeout)


def _late(generation: Generation, timeout: float | None) -> TimedOutError:
    late = f"no whole answer within timeout={timeout!r} seconds"
    what = f"{late}; steps done by then: {len(generation.steps)}."
    hint = "Give it more time, or lower max_tokens or max_steps."
    if not generation.usage.prompt_tokens:
        what = f"{late}; the request waited for its turn all that time."
        hint = "Let fewer requests in at once, raise max_batch_size, or give it more time."
    error = TimedOutError(what, hint=hint)
    error.generation = generation
    return error
