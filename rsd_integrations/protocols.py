"""What a backend must do: the work RSD asks for, and the two protocols that carry it out.

A backend for models in this process has a ``Writer`` each for draft and target, and a ``Scorer`` for
the PRM. Each opens one session per request; a session holds that request's state in that model
(tokens, caches) and is used by the engine thread alone. Work is done in rounds over many sessions at
once, so that a batch never waits for its slowest row. ``rsd_integrations.testing`` has scripted
backends to read as examples; ``rsd_integrations.conformance`` tests any backend, yours too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

from rsd_integrations.output import Output
from rsd_integrations.text.calls import CallReader
from rsd_integrations.text.segment import StepBoundary
from rsd_integrations.text.thoughts import ReasoningTags
from rsd_integrations.types import Prompt, Source

__all__ = [
    "FREE",
    "NONE",
    "Backend",
    "DraftStep",
    "End",
    "GuessStep",
    "Kept",
    "ModelInfo",
    "Sampling",
    "ScoreStep",
    "Scored",
    "Scorer",
    "ScorerSession",
    "Speaker",
    "Tally",
    "TargetStep",
    "Together",
    "WindowFull",
    "Work",
    "Writer",
    "WriterSession",
    "Written",
]


NONE: Mapping[str, Any] = MappingProxyType({})
"""No variables of a chat template."""
FREE = Output()
"""Free text: no tools, no schema."""


class WindowFull(Exception):
    """A session has no room left in its model's window. From a writer it ends the answer ("length"); from
    the PRM it leaves the step without a reward.
    """


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. ``draw`` gives the next uniform number in [0, 1) of the session's own stream."""

    temperature: float
    top_p: float
    top_k: int | None
    draw: Callable[[], float] = field(compare=False)
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class DraftStep:
    """Ask the draft for the next step of at most ``max_tokens`` tokens.

    ``closing``: if the step takes all of these, the answer ends with it.
    """

    boundary: StepBoundary
    max_tokens: int
    sampling: Sampling
    closing: bool = False


@dataclass(frozen=True, slots=True)
class TargetStep:
    """Ask the target for the next step. ``rejected``: the draft's, whose tokens may serve as guesses."""

    boundary: StepBoundary
    max_tokens: int
    sampling: Sampling
    closing: bool = False
    rejected: Written | None = None


@dataclass(frozen=True, slots=True)
class GuessStep:
    """Ask the draft how it would continue after ``tokens``: those of a step that the target is writing, or
    of its own step that waits for a reward.

    The answer's ``token_ids`` are at most ``count`` tokens, even past the end of a step; nothing else in the
    answer counts, and nothing of it is committed. After the target's tokens the draft guesses greedily. After
    its own step it draws by ``sampling``, as for the next step, and so has those tokens if the step is kept.
    """

    tokens: tuple[int, ...]
    count: int
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class ScoreStep:
    """Ask the PRM for the reward of ``body`` as the next step.

    ``body`` is the step's text without delimiter and outer white space. If it is empty, the reward is
    that of the last committed step, since nothing was added to it.
    """

    body: str


@dataclass(frozen=True, slots=True)
class Together:
    """Ask for several drafts or scores at once, of the candidates for one step.

    ``candidates``: the candidate that each piece is for; a role has one session for each. The result is a
    list, in which ``WindowFull`` stands for a candidate that does not fit.
    """

    pieces: tuple[DraftStep | ScoreStep, ...]
    candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Tell all sessions which step was committed. It replaces whatever was in progress.

    ``candidate``: the number of the best candidate, if the draft wrote several.
    """

    source: Source
    written: Written
    body: str
    candidate: int = 0


Work = DraftStep | TargetStep | ScoreStep | Together


End = Literal["delimiter", "eos", "stop", "limit"]


@dataclass(frozen=True, slots=True)
class Written:
    """A step as its writer left it.

    ``end``: "delimiter", "eos", "stop" (a stop string; ``cut`` is its offset into ``text``, negative
    where it began in earlier steps), or "limit" (``max_tokens`` or the window).
    ``vocabulary`` names the tokenizer of ``token_ids``: sessions with the same tokenizer take the ids
    as they are, others encode the text.
    """

    text: str
    token_ids: tuple[int, ...]
    end: End
    cut: int | None = None
    vocabulary: str = ""

    @property
    def shown(self) -> str:
        """The text, up to a stop string if there is one."""
        return self.text if self.cut is None else self.text[: max(0, self.cut)]


@dataclass(frozen=True, slots=True)
class Scored:
    """A reward in [0, 1] and the number of tokens the PRM read for this step."""

    reward: float
    tokens: int


@dataclass(slots=True)
class Tally:
    """Tokens that went through a model for one request, and the attention pairs they made."""

    forwarded: int = 0
    pairs: int = 0

    def add(self, start: int, count: int, window: int | None = None) -> None:
        """Count tokens at positions ``start`` to ``start + count - 1``.

        Args:
            window: of sliding-window attention: a token sees at most this many tokens, itself included.
        """
        self.forwarded += count
        if window is None:
            self.pairs += count * start + count * (count + 1) // 2
        else:
            # No loop, as prompts are long: tokens that see all before them, then those with a full window.
            part = min(count, max(0, window - start))
            self.pairs += part * start + part * (part + 1) // 2 + (count - part) * window


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What accounting and messages need to know of a model.

    ``pair_flops``: of attention, for a token and one it attends to (see ``FLOPs``). ``window``: most tokens
    a session can hold. ``sliding_window``: of the attention, if all layers have one (if some have full
    attention, all are counted so).
    """

    name: str
    parameters: int
    pair_flops: int
    window: int
    sliding_window: int | None = None
    threshold: float | None = None
    """PRM only: the threshold that its config (``rsd_prm``) or its format recommends."""
    longest: int | None = None
    """The longest window it could be given (``max_length``); None where that is not known."""


class WriterSession(Protocol):
    """One request in a draft or target model."""

    prompt_tokens: int
    tally: Tally
    tags: ReasoningTags | None
    reader: CallReader | None
    """Reads calls of the tools that it was opened with; None without tools."""

    def begin(self, work: DraftStep | TargetStep | GuessStep) -> None:
        """Take a step, written over some rounds of ``Writer.advance``. Only drafts get a ``GuessStep``."""
        ...

    @property
    def wanted(self) -> int:
        """How many guesses of its next tokens a rewrite would take from the draft now; 0 for none.

        Always 0 unless the rejected step has this writer's vocabulary: only then do the draft's tokens fit.
        """
        ...

    def guess(self, tokens: Sequence[int]) -> None:
        """Take the guesses that were wanted, or none. The text does not depend on them."""
        ...

    @property
    def goes_on(self) -> bool:
        """Whether it can write on after the step it has finished, before that is committed, and would use
        what it wrote if the step is kept. The text does not depend on this.
        """
        ...

    @property
    def so_far(self) -> tuple[int, ...]:
        """The tokens of the step in progress: those written, not yet committed."""
        ...

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Put the committed step in place of the one in progress (``own``: they are the same)."""
        ...

    def fork(self) -> WriterSession:
        """Another session of the same request, for another candidate step. Called before any work.

        The same steps are committed to both, so that one may take over what the other has read.
        """
        ...

    def close(self) -> None:
        """Free all it holds. Safe to call twice."""
        ...


class Speaker(Protocol):
    """What a draft or target model is besides writing steps, wherever it runs."""

    info: ModelInfo

    @property
    def takes_tools(self) -> bool:
        """Whether its chat template shows tools to the model."""
        ...

    def looks_at(self, variable: str) -> bool:
        """Whether its chat template uses a variable."""
        ...

    def open(
        self, prompt: Prompt, output: Output = FREE, variables: Mapping[str, Any] = NONE
    ) -> WriterSession:
        """Render and encode a prompt and its tools, with variables of the chat template. Runs no model.

        What ``output`` forbids is never written; the state of that constraint rolls back with a rejected
        step and continues after the committed one, as the caches do.

        Raises:
            PromptError: the prompt cannot be rendered. The window is the engine's to check.
        """
        ...

    def check(self, output: Output) -> None:
        """Refuse an output that it cannot write. May be called from any thread.

        Raises:
            ConfigError: the chat template takes no tools, or a schema cannot be enforced.
        """
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """A text in this model's tokens, special tokens never among them. May be called from any thread."""
        ...

    def count(self, prompt: Prompt, output: Output = FREE, variables: Mapping[str, Any] = NONE) -> int:
        """Length in tokens of a prompt, rendered as by ``open``. May be called from any thread.

        Raises:
            PromptError: the prompt cannot be rendered.
        """
        ...


class Writer(Speaker, Protocol):
    """A draft or target model in this process."""

    def advance(self, sessions: Sequence[WriterSession]) -> Sequence[Written | Exception | None]:
        """Run one round for these sessions, which all have begun a step: a token each, or a few where many
        rounds would be much slower.

        Returns:
            For each session its finished step, None while the step goes on, or the error that ended it.
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class ScorerSession(Protocol):
    """One request in a PRM."""

    prompt_tokens: int
    tally: Tally

    def commit(self, kept: Kept, *, own: bool) -> None:
        """Put the committed step in place of the scored one (``own``: they are the same)."""
        ...

    def fork(self) -> ScorerSession:
        """Another session of the same request, for another candidate step. Called before any work."""
        ...

    def close(self) -> None:
        """Free all it holds. Safe to call twice."""
        ...


class Scorer(Protocol):
    """A process reward model.

    One whose work is done elsewhere (another machine, other threads) may set ``elsewhere = True``: then steps
    do not wait to be scored together, and the draft writes on after its step while ``score`` answers None.
    """

    info: ModelInfo

    def open(self, prompt: Prompt) -> ScorerSession:
        """Render and encode a prompt. Runs no model."""
        ...

    def score(
        self, sessions: Sequence[ScorerSession], work: Sequence[ScoreStep]
    ) -> Sequence[Scored | Exception | None]:
        """Run one round of scoring a step for each session, as one batch.

        Returns:
            For each session its score, None while scoring goes on, or the error that ended it.
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """The three models of a pipeline. ``max_batch_size``: most requests at work at once; one with several
    candidates counts once for each of them.
    """

    draft: Writer
    target: Writer
    prm: Scorer
    max_batch_size: int = 8
