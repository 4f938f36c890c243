r"""Scripted models for tests, ours and yours: no weights, the real engine and the real algorithm.

::

    pipe = scripted_pipeline(
        draft=["2 + 2 = 4.\n\n", "So \\boxed{5}."],
        target=["Indeed 4.\n\n", "So \\boxed{4}."],
        rewards=[0.9, 0.1],
    )
    assert pipe.generate("2 + 2?").text == "2 + 2 = 4.\n\nSo \\boxed{4}."

A token is one character. The end-of-sequence token follows the last scripted step, and any step that
completes no delimiter: such a step ends the answer. What a script has after the end of a step (a delimiter,
a tool call) is dropped: make it the next step.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsd_integrations.errors import ConfigError
from rsd_integrations.output import Output
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.protocols import (
    FREE,
    NONE,
    Backend,
    DraftStep,
    GuessStep,
    Kept,
    ModelInfo,
    Scored,
    ScorerSession,
    ScoreStep,
    Tally,
    TargetStep,
    WindowFull,
    WriterSession,
    Written,
)
from rsd_integrations.text.calls import HERMES, CallReader, plain_reader
from rsd_integrations.text.thoughts import ReasoningTags
from rsd_integrations.types import Prompt

__all__ = ["ScriptedScorer", "ScriptedWriter", "scripted_pipeline"]

EOS = 0
_WINDOW = 100_000

StepScript = str | Sequence[str] | Callable[..., "str | Exception | None"]
"""The n-th step's text (a lone one is the only step's), or (prompt, step index, text so far) -> text; None
ends the answer. A function with a fourth parameter is also given the ``Output`` that was asked for."""

RewardScript = float | Sequence[float] | Callable[[Prompt, int, str], float]
"""The n-th step's reward (the last one is repeated; a lone one is the reward of all), or (prompt, step index,
step) -> reward."""


def scripted_pipeline(
    draft: StepScript,
    target: StepScript | None = None,
    rewards: RewardScript = (1.0,),
    *,
    max_batch_size: int = 8,
    delay: float = 0.0,
    tags: ReasoningTags | None = None,
    **info: Any,
) -> RSDPipeline:
    """A pipeline of scripted models. The target's script is the draft's if not given.

    Args:
        delay: seconds each round of a writer takes.
        tags: thinking markup of the writers.
        info: further fields of the models' ``ModelInfo``.
    """
    return RSDPipeline(
        Backend(
            draft=ScriptedWriter(draft, name="scripted-draft", delay=delay, tags=tags, **info),
            target=ScriptedWriter(
                draft if target is None else target, name="scripted-target", delay=delay, tags=tags, **info
            ),
            prm=ScriptedScorer(rewards, **info),
            max_batch_size=max_batch_size,
        )
    )


def _info(**fields: Any) -> ModelInfo:
    return ModelInfo(**{"parameters": 1000, "pair_flops": 10, "window": _WINDOW, **fields})


def _length(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(str(message.get("content") or "")) for message in prompt)


@dataclass
class _WriterSession:
    """One request in a scripted writer (a ``WriterSession``)."""

    writer: ScriptedWriter
    prompt: Prompt
    output: Output = FREE
    tags: ReasoningTags | None = None
    reader: CallReader | None = None
    tally: Tally = field(default_factory=Tally)
    text: str = ""
    steps: int = 0
    work: DraftStep | TargetStep | None = None
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_tokens = _length(self.prompt)
        self.writer.open_sessions += 1
        self._closed = False

    @property
    def so_far(self) -> tuple[int, ...]:
        return tuple(self.tokens)

    @property
    def wanted(self) -> int:
        return 0

    @property
    def goes_on(self) -> bool:
        return False

    def guess(self, tokens: Sequence[int]) -> None:
        """A script needs no guesses."""

    def begin(self, work: DraftStep | TargetStep | GuessStep) -> None:
        assert not isinstance(work, GuessStep), "no scripted target wants guesses"
        self.work = work
        self.tokens = []
        self._script = self.writer.script(self.prompt, self.steps, self.text, self.output)

    def push(self) -> Written | Exception | None:
        """One more character, or the end of sequence."""
        assert self.work is not None
        if isinstance(self._script, Exception):
            return self._script
        script = self._script or ""
        room = self.writer.info.window - self.prompt_tokens - len(self.text)
        if len(self.tokens) >= min(self.work.max_tokens, room):
            return self._written("limit")
        self.tally.add(self.prompt_tokens + len(self.text) + len(self.tokens), 1)
        if len(self.tokens) >= len(script):
            self.tokens.append(EOS)
            return self._written("eos")
        self.tokens.append(ord(script[len(self.tokens)]))
        text = self._text()
        cut = self.work.boundary.find(text, len(text) - 1)
        if cut is None:
            full = len(self.tokens) >= min(self.work.max_tokens, room)
            return self._written("limit") if full and len(text) < len(script) else None
        return self._written(cut.kind, cut.end if cut.kind == "stop" else None)

    def _text(self) -> str:
        return "".join(chr(token) for token in self.tokens if token != EOS)

    def _written(self, end: Any, cut: int | None = None) -> Written:
        return Written(self._text(), tuple(self.tokens), end, cut, "characters")

    def fork(self) -> _WriterSession:
        return self.writer.open(self.prompt, self.output)

    def commit(self, kept: Kept, *, own: bool) -> None:
        self.text += kept.written.text
        self.steps += 1
        self.tokens = []
        self.work = None

    def close(self) -> None:
        self.writer.open_sessions -= not self._closed
        self._closed = True


class ScriptedWriter:
    """A draft or target that writes what a script says (a ``Writer``).

    Calls of tools are written as Hermes and Qwen do: ``<tool_call>{"name": ..., "arguments": ...}
    </tool_call>``. A script is taken at its word: nothing makes it keep to an output's schema.
    """

    def __init__(
        self,
        script: StepScript,
        *,
        name: str = "scripted",
        delay: float = 0.0,
        tags: ReasoningTags | None = None,
        **info: Any,
    ) -> None:
        self._script = (script,) if isinstance(script, str) else script
        self._delay = delay
        self._tags = tags
        self.info = _info(name=name, **info)
        self.takes_tools = True
        self.batches: list[int] = []
        """How many sessions each round had."""
        self.open_sessions = 0

    def script(self, prompt: Prompt, index: int, text: str, output: Output = FREE) -> str | Exception | None:
        """What to write next."""
        if callable(self._script):
            more = (output,) if len(inspect.signature(self._script).parameters) > 3 else ()
            return self._script(prompt, index, text, *more)
        return self._script[index] if index < len(self._script) else None

    def looks_at(self, variable: str) -> bool:
        """A script may use any."""
        return True

    def open(
        self, prompt: Prompt, output: Output = FREE, variables: Mapping[str, Any] = NONE
    ) -> _WriterSession:
        """Begin a request."""
        reader = CallReader(HERMES.unbroken, plain_reader(HERMES)) if output.tools else None
        return _WriterSession(self, prompt, output, self._tags, reader)

    def check(self, output: Output) -> None:
        """A script may write anything."""

    def encode(self, text: str) -> tuple[int, ...]:
        """The characters' code points."""
        return tuple(map(ord, text))

    def count(self, prompt: Prompt, output: Output = FREE, variables: Mapping[str, Any] = NONE) -> int:
        """The number of its characters."""
        return _length(prompt)

    def advance(self, sessions: Sequence[WriterSession]) -> list[Written | Exception | None]:
        """One character for each session."""
        self.batches.append(len(sessions))
        if self._delay:
            time.sleep(self._delay)
        return [session.push() for session in sessions if isinstance(session, _WriterSession)]

    def close(self) -> None:
        """Nothing to give back."""


@dataclass
class _ScorerSession:
    """One request in a scripted PRM (a ``ScorerSession``)."""

    scorer: ScriptedScorer
    prompt: Prompt
    tally: Tally = field(default_factory=Tally)
    steps: int = 0
    last: tuple[int, str] = (0, "")

    def __post_init__(self) -> None:
        self.prompt_tokens = _length(self.prompt)
        self.scorer.open_sessions += 1
        self._closed = False

    def fork(self) -> _ScorerSession:
        return self.scorer.open(self.prompt)

    def commit(self, kept: Kept, *, own: bool) -> None:
        if kept.body:
            self.last = self.steps, kept.body
        self.steps += 1

    def close(self) -> None:
        self.scorer.open_sessions -= not self._closed
        self._closed = True


class ScriptedScorer:
    """A PRM that gives the rewards of a script (a ``Scorer``).

    Raises:
        ConfigError: the script has no reward.
    """

    def __init__(self, script: RewardScript, *, name: str = "scripted-prm", **info: Any) -> None:
        self._script = (script,) if isinstance(script, int | float) else script
        if not callable(self._script) and not len(self._script):
            raise ConfigError(
                f"rewards={script!r} are none.", hint="Give one at least; the last one goes on."
            )
        self.info = _info(name=name, **info)
        self.batches: list[int] = []
        self.open_sessions = 0

    def open(self, prompt: Prompt) -> _ScorerSession:
        """Begin a request."""
        return _ScorerSession(self, prompt)

    def score(self, sessions: Sequence[ScorerSession], work: Sequence[ScoreStep]) -> list[Scored | Exception]:
        """The scripted rewards."""
        self.batches.append(len(sessions))
        return [
            self._score(session, step)
            for session, step in zip(sessions, work, strict=True)
            if isinstance(session, _ScorerSession)
        ]

    def _score(self, session: _ScorerSession, step: ScoreStep) -> Scored | Exception:
        if session.prompt_tokens + len(step.body) > self.info.window:
            return WindowFull()
        session.tally.add(session.prompt_tokens, len(step.body))
        index, body = (session.steps, step.body) if step.body else session.last
        if callable(self._script):
            return Scored(self._script(session.prompt, index, body), len(step.body))
        return Scored(self._script[min(index, len(self._script) - 1)], len(step.body))

    def close(self) -> None:
        """Nothing to give back."""
