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
        going = [index for index, result in enumerate(results) if result is None]
        feeds, failed = next_feeds([own[index] for index in going])
        written = self._write([own[going[place]] for place in feeds], list(feeds.values()))
        for place, result in (failed | dict(zip(feeds, written, strict=True))).items():
            results[going[place]] = result
        return results

    def _write(
        self, sessions: Sequence[TorchWriterSession], feeds: Sequence[SlotFeed]
    ) -> list[Written | Exception | None]:
        steady, burst = min((session.steady for session in sessions), default=0), None
        if steady > 1 and self.runner.bursts(len(feeds)):
            characters = frozenset[str]().union(*(session.ending for session in sessions))
            burst = Burst(min(steady, MOST_AT_ONCE), partial(self._endings.of, characters))
        results: list[Written | Exception | None] = [None] * len(sessions)
        ready: dict[int, Read] = {}
        outputs = self.runner.run(feeds, ahead=steady > 1, burst=burst)
        for index, output in enumerate(outputs):
            if isinstance(output, Exception):
                results[index] = output
                continue
            read = output
            sessions[index].fed(feeds[index], read)
            if -1 in read.fetched:
                sessions[index].unread(feeds[index], read)
                if not read.own:
                    # Behind a wrong guess nothing need be finite: again in the next round, without guesses.
                    if not sessions[index].drop_guesses():
                        results[index] = _not_finite(self.info.name)
                    continue
                read = read.without_last()  # It is drawn again, by itself.
            if sessions[index].cached == len(sessions[index].tokens):
                ready[index] = read
        drawn = attempt(partial(_tokens, {index: (sessions[index], read) for index, read in ready.items()}))

        def take(index: int, read: Read) -> Written | None:
            # Whose fault it is if drawing failed shows when they are drawn one by one.
            alone = _tokens({index: (sessions[index], read)}) if isinstance(drawn, Exception) else drawn
            return sessions[index].take(read, alone[index], feeds[index].more)

        for index, read in ready.items():
            results[index] = attempt(partial(take, index, read))
        return results

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
