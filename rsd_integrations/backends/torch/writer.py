"""A causal language model that writes steps: draft or target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rsd_integrations.backends.shared.writing import Language, SpeakingWriter, render
from rsd_integrations.backends.torch.bursts import MOST_AT_ONCE, Burst, Endings
from rsd_integrations.backends.torch.failures import attempt
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.readout import Read
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.sampling import draw_rows
from rsd_integrations.backends.torch.slot_session import check_open, next_feeds
from rsd_integrations.backends.torch.writer_session import TorchWriterSession
from rsd_integrations.errors import BackendError
from rsd_integrations.output import Output
from rsd_integrations.protocols import FREE, NONE, ModelInfo, WriterSession, Written
from rsd_integrations.types import Prompt


class TorchWriter(SpeakingWriter):
    """A draft or target model over slots (a ``Writer``).

    Args:
        runner: over the model, reading logits.
        language: of the model.
    """

    def __init__(self, runner: SlotRunner, language: Language, info: ModelInfo) -> None:
        super().__init__(language, info)
        self.runner = runner
        self.closed = False
        self._endings = Endings(language.tokenizer, language.eos_ids)

    def open(
        self, prompt: Prompt, output: Output = FREE, variables: Mapping[str, Any] = NONE
    ) -> TorchWriterSession:
        """Render and encode a prompt; the window is checked by the engine, which knows max_tokens."""
        check_open(self.info, closed=self.closed)
        tokens = render(self.tokenizer, prompt, output, variables)
        return TorchWriterSession(self, tokens, output, self.tags(tokens))

    def advance(self, sessions: Sequence[WriterSession]) -> list[Written | Exception | None]:
        """One round: a token for each session, several by guesses or a burst, none while a prompt is read."""
        own = [session for session in sessions if isinstance(session, TorchWriterSession)]
        results = [attempt(session.recall) for session in own]
        going = {index: session for index, session in enumerate(own) if results[index] is None}
        feeds, failed = next_feeds(going)
        written = self._write([own[index] for index in feeds], list(feeds.values()))
        for index, result in (failed | dict(zip(feeds, written, strict=True))).items():
            results[index] = result
        return results

    def _write(
        self, sessions: Sequence[TorchWriterSession], feeds: Sequence[SlotFeed]
    ) -> list[Written | Exception | None]:
        steady, burst = min((session.steady for session in sessions), default=0), None
        if steady > 1 and self.runner.bursts(len(feeds)):
            characters = frozenset[str]().union(*(session.ending for session in sessions))
            burst = Burst(min(steady, MOST_AT_ONCE), partial(self._endings.of, characters))
        results: list[Written | Exception | None] = [None] * len(sessions)
        ready: dict[int, tuple[TorchWriterSession, Read]] = {}
        outputs = self.runner.run(feeds, ahead=steady > 1, burst=burst)
        for index, (session, output) in enumerate(zip(sessions, outputs, strict=True)):
            read = output if isinstance(output, Exception) else self._sound(session, feeds[index], output)
            if isinstance(read, Exception):
                results[index] = read
            elif read is not None and session.cached == len(session.tokens):
                ready[index] = session, read
        drawn = attempt(partial(_tokens, ready))

        def take(index: int) -> Written | None:
            session, read = ready[index]
            # Whose fault it is if drawing failed shows when they are drawn one by one.
            tokens = _tokens({index: ready[index]}) if isinstance(drawn, Exception) else drawn
            return session.take(read, tokens[index], feeds[index].more)

        for index in ready:
            results[index] = attempt(partial(take, index))
        return results

    def _sound(self, session: TorchWriterSession, feed: SlotFeed, read: Read) -> Read | Exception | None:
        """What was read, where tokens can be drawn; None if that is to be read again, in the next round."""
        session.fed(feed, read)
        if -1 not in read.fetched:
            return read
        session.unread(feed, read)
        if read.own:
            return read.without_last()  # It is drawn again, by itself.
        # Behind a wrong guess nothing need be finite: again without guesses.
        return None if session.drop_guesses() else _not_finite(self.info.name)

    def close(self) -> None:
        """Give the memory back."""
        if not self.closed:
            self.closed = True
            self.runner.close()
            del self.runner, self._endings, self.tooling


def _tokens(ready: Mapping[int, tuple[TorchWriterSession, Read]]) -> dict[int, list[int]]:
    """For each session the token at each place: the likeliest, or sampled, for all sessions at once."""
    rows = {index: session.row(read) for index, (session, read) in ready.items() if session.samples}
    drawn = draw_rows(list(rows.values())) if rows else []
    return {index: read.fetched for index, (_, read) in ready.items()} | dict(zip(rows, drawn, strict=True))


def _not_finite(name: str) -> BackendError:
    return BackendError(
        f"{name!r} gave NaN or infinite logits.", hint="Try another dtype (float16 overflows in some models)."
    )
