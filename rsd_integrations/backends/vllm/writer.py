"""A causal language model behind vLLM servers that writes steps: draft or target."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsd_integrations.backends.shared.writing import Language, SpeakingWriter, render
from rsd_integrations.backends.vllm.ahead import Ahead
from rsd_integrations.backends.vllm.client import Servers
from rsd_integrations.backends.vllm.form import Form
from rsd_integrations.backends.vllm.sessions import VLLMWriterSession
from rsd_integrations.errors import BackendError, ConfigError, RefusedError
from rsd_integrations.output import Output
from rsd_integrations.protocols import FREE, NONE, DraftStep, ModelInfo, Sampling, WriterSession, Written
from rsd_integrations.text.segment import StepBoundary
from rsd_integrations.types import Prompt

if TYPE_CHECKING:
    import torch

_TRIAL = {
    "type": "json_schema",
    "json_schema": {"schema": {"properties": {"a": {"enum": [1]}}, "required": ["a"], "type": "object"}},
}

_PLAIN = {"frequency_penalty": 0.0, "presence_penalty": 0.0}
"""What a server would otherwise take from the model's generation_config. No setting of ours: each step is a
question by itself, so a server would count the tokens of that step alone."""

_MOST_NAMED = 1024
"""Tokens that a question may allow or ban: of more vLLM's Model Runner V2 (on GPUs) dies."""

_MOST_DRAWS = 64
"""Of one token, with forbidden ones banned, until it is an allowed one."""


@dataclass(frozen=True)
class _Found:
    """What an answer holds: its tokens, how many of the prompt's the server had cached (None if it does not
    say), and whether it says that the text ends there.
    """

    tokens: list[int]
    cached: int | None = None
    ended: bool = False


class VLLMWriter(SpeakingWriter):
    """A draft or target model behind servers (a ``RemoteWriter``).

    A step is one question to ``/v1/completions``, by token ids. Servers know a step's delimiters as stop
    strings; where the step really ends is decided here, token by token, as for models in this process.

    Args:
        servers: of the model.
        model: its name there.
        language: of the model.
        vocabulary: number of tokens that the model has, which may be more than its tokenizer's.
        ahead: whether it writes on behind steps that wait for their reward.
    """

    def __init__(
        self,
        servers: Servers,
        model: str,
        language: Language,
        info: ModelInfo,
        *,
        vocabulary: int = 0,
        ahead: bool = False,
    ) -> None:
        super().__init__(language, info)
        self.ahead = ahead
        self._servers = servers
        self._model = model
        self._size = language.size
        self._most = max(self._size, vocabulary)
        self.holds_grammars = False
        """Whether its servers enforce grammars as written here; else tokens are asked for one by one."""

    def open(
        self, prompt: Prompt, output: Output = FREE, variables: Mapping[str, Any] = NONE
    ) -> VLLMWriterSession:
        """Render and encode a prompt; the window is checked by the engine, which knows max_tokens."""
        tokens = render(self.tokenizer, prompt, output, variables)
        return VLLMWriterSession(self, tokens, output, self.tags(tokens), self._servers.next_key())

    async def write(self, session: WriterSession) -> Written:
        """The step that the session has begun.

        Raises:
            BackendError: no server answered, or not as asked.
        """
        assert isinstance(session, VLLMWriterSession)
        written = session.written("limit") if session.room <= 0 else None
        while written is None:
            # A server stops at each delimiter, even where that ends no step.
            found = await self._next(session)
            for token in found.tokens:
                if session.form is not None and not session.form.constraint.takes(token):
                    session.form.distrusted = True
                    break
                written = session.push(token)
                if written is not None:
                    break
            else:
                # "eos": a token ended it that only the server knows as an end.
                written = session.written("eos") if found.ended else None
            session.forget()
        return written

    def go_on(self, session: WriterSession) -> None:
        """Write on in the background behind a step that waits for its reward, as the session was told."""
        assert isinstance(session, VLLMWriterSession)
        room, session.ahead_room = session.ahead_room, 0
        if room <= 0:
            return
        draw = session.draw()
        question = {**self._question(session, draw), "max_tokens": room, "stream": True}
        session.ahead = Ahead(len(session.tokens), room, draw)
        session.ahead.begin(self._write_on(session, session.ahead, question))

    async def _write_on(self, session: VLLMWriterSession, ahead: Ahead, question: dict[str, Any]) -> None:
        async with aclosing(self._servers.stream("/v1/completions", question, key=session.key)) as events:
            async for event in events:
                for choice in event["choices"]:
                    ahead.tokens += self._tokens(choice["token_ids"] or [])
                    ahead.ended, ahead.told = _says_that_it_ends(choice), _says_that_it_is_whole(choice)
                session.count(None, ahead.start + max(0, len(ahead.tokens) - 1))
                if len(ahead.tokens) > ahead.room:  # It may go on for ever, so the step is asked for anew.
                    ahead.told = False
                    return

    async def _written_ahead(self, session: VLLMWriterSession) -> _Found | None:
        """What was written ahead, behind the last step, if it can be used; a rejected step has dropped it."""
        ahead = session.ahead
        if ahead is None:
            return None
        # When sampling, a step cut short would go on with other random numbers than one question would.
        short = ahead.draw is not None and ahead.room < session.room
        if short or not await ahead.whole():
            session.leave_ahead()
            return None
        session.ahead = None
        return _Found(ahead.tokens or [min(self.eos_ids)], ended=ahead.ended)

    async def _next(self, session: VLLMWriterSession) -> _Found:
        """The next tokens of a step: all of them, if nothing stops the server before."""
        if (written := await self._written_ahead(session)) is not None:
            return written
        form, question = session.form, self._question(session, session.draw())
        if form is None:
            return await self._asked(session, question)
        grammar = form.grammar(session.text) if self.holds_grammars else None
        if grammar is None:
            return await self._one(session, form, question)
        if not form.free and not form.thinks(session.text):
            # Inside a document only the user's stop strings may end it.
            question["stop"] = list(session.boundary.stop)
        held = {**question, "structured_outputs": {"grammar": grammar}}
        try:
            return await self._asked(session, held)
        except RefusedError:  # Its version cannot enforce what this process can.
            form.distrusted = True
            return await self._one(session, form, question)

    async def _one(self, session: VLLMWriterSession, form: Form, question: dict[str, Any]) -> _Found:
        """One token that the form allows."""
        allowed = form.constraint.allowed(self._size)
        if int(allowed.sum()) == 1:
            return _Found([int(allowed.nonzero())])
        alone = {**question, "max_tokens": 1, "stop": []}
        # One free draw, and if its token is not allowed another among those that are: together that is the
        # distribution over the allowed ones, unless top_p, top_k or min_p cut it off.
        drawn = []
        if question["top_p"] == 1.0 and question["top_k"] == -1 and question["min_p"] == 0.0:
            drawn = [await self._drawn(session, alone)]
            if _is_in(drawn[0], allowed):
                return _Found(drawn)
            alone |= _seed(session.draw())
        if int(allowed.sum()) > _MOST_NAMED:
            return _Found([await self._banning(session, allowed, alone, drawn)])
        among = {"allowed_token_ids": allowed.nonzero().flatten().tolist()}
        token = await self._drawn(session, {**alone, **among})
        if not _is_in(token, allowed):  # Asked again, it would answer the same, for ever.
            raise self._disobeyed("allowed_token_ids")
        return _Found([token])

    async def _banning(
        self, session: VLLMWriterSession, allowed: torch.Tensor, question: dict[str, Any], drawn: list[int]
    ) -> int:
        """One token that the form allows, where these are too many to be named: drawn until it is one, with
        forbidden ones banned. These are the ones drawn before and the first (commonest) of the vocabulary.

        That, too, is the distribution over the allowed ones (a bias of -100 leaves e^-50 of a chance at the
        highest temperature). But top_p, top_k and min_p cut off with forbidden tokens among the likeliest,
        unless all of them are banned.

        Args:
            drawn: forbidden tokens that were drawn already.
        """
        first = (~allowed).nonzero().flatten()[:_MOST_NAMED].tolist()
        for _ in range(_MOST_DRAWS):
            banned = [*dict.fromkeys((*drawn, *first))][:_MOST_NAMED]
            token = await self._drawn(session, {**question, "logit_bias": dict.fromkeys(banned, -100)})
            if _is_in(token, allowed):
                return token
            if token in banned:
                raise self._disobeyed("logit_bias")
            drawn = [*drawn, token]
            question = {**question, **_seed(session.draw())}
        raise BackendError(
            f"{self.info.name!r} wrote no token that the answer's form allows, in {_MOST_DRAWS} draws.",
            hint="Let its servers enforce forms (vllm serve --structured-outputs-config "
            '\'{"backend": "guidance"}\'), or raise max_step_tokens if steps are cut inside of a document.',
        )

    async def _drawn(self, session: VLLMWriterSession, question: dict[str, Any]) -> int:
        """The token that a question for one is answered with."""
        return (await self._asked(session, question)).tokens[0]

    def _disobeyed(self, field: str) -> BackendError:
        return BackendError(
            f"{self.info.name!r} did not keep to {field}, by which an answer is held to its form.",
            hint="Check that it is a vLLM server of a tested version (see the README), and that no gateway "
            f"before it drops {field}.",
        )

    async def _asked(self, session: VLLMWriterSession, question: dict[str, Any]) -> _Found:
        answer = await self._servers.ask("/v1/completions", question, key=session.key)
        with self._servers.hiding():
            found = self._read(answer)
        session.count(found.cached, len(session.tokens) + max(0, len(found.tokens) - 1))
        return found

    async def sample(self, prompt: Prompt) -> tuple[str, str]:
        """Some words written behind a prompt, as its servers and as this side's tokenizer show them."""
        session = self.open(prompt)
        session.begin(_some_words())
        question = self._question(session)
        answer = await self._servers.ask("/v1/completions", question)
        with self._servers.hiding():
            tokens = self._read(answer).tokens
        return str(answer["choices"][0].get("text")), self.tokenizer.decode(tokens, skip_special_tokens=True)

    async def try_grammars(self) -> None:
        """Find out whether its servers enforce grammars as they are written here. Some allow free white
        space, which a weak model writes forever: so the trial biases the model towards white space.
        """
        form = Output.of(response_format=_TRIAL)
        try:
            grammar = self.tooling.grammar(form, None, thought=False)
            self.check(form)
        except ConfigError:  # Not even this process can hold it to a form.
            return
        session = self.open("Hi")
        session.begin(_some_words())
        blanks = {token: 100 for text in ("\n", " ", "\n\n", "  ") for token in self.encode(text)[:1]}
        question = {**self._question(session), "structured_outputs": {"grammar": grammar}}
        try:
            answer = await self._servers.ask("/v1/completions", {**question, "logit_bias": blanks})
            text = str(answer["choices"][0]["text"])
        except (BackendError, LookupError, TypeError):
            text = ""
        self.holds_grammars = text.startswith('{"a": ')

    def _question(self, session: VLLMWriterSession, draw: float | None = None) -> dict[str, Any]:
        """What to post for the next tokens of a step, with a seed made of this number."""
        sampling, boundary = session.sampling, session.boundary
        return {
            **_PLAIN,
            "model": self._model,
            "prompt": session.tokens,
            "max_tokens": session.room,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "stop": [*dict.fromkeys((*boundary.delimiters, *boundary.stop))],
            "stop_token_ids": sorted(self.eos_ids),
            "include_stop_str_in_output": True,
            "return_token_ids": True,
            **_seed(draw),
        }

    def _read(self, answer: Any) -> _Found:
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            tokens = self._tokens(choice["token_ids"])
            ended, whole = _says_that_it_ends(choice), _says_that_it_is_whole(choice)
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
            cached = None if cached is None else max(0, int(cached))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BackendError(
                f"{self.info.name!r} answered {str(answer)[:200]!r}, without the tokens that were asked for.",
                hint="Check that it is a vLLM server that knows return_token_ids (0.11 or newer).",
            ) from error
        if not tokens and ended:
            tokens = [min(self.eos_ids)]
        if not tokens or not whole:
            raise BackendError(
                f"{self.info.name!r} wrote {'nothing' if not tokens else 'no whole answer'} "
                f"(finish_reason {choice['finish_reason']!r}).",
                hint="See what the server logs.",
            )
        return _Found(tokens, cached, ended)

    def _tokens(self, given: Any) -> list[int]:
        """Tokens as a server tells them.

        Raises:
            ValueError: they are none of the model's.
        """
        if isinstance(given, list) and all(type(one) is int and 0 <= one < self._most for one in given):
            return given
        raise ValueError("no tokens of this model")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._servers.aclose()


def _is_in(token: int, allowed: torch.Tensor) -> bool:
    """Whether the mask allows it. The model's vocabulary may be padded beyond the tokenizer's."""
    return token < len(allowed) and bool(allowed[token])


def _some_words() -> DraftStep:
    return DraftStep(StepBoundary(("\0",)), 16, Sampling(0.0, 1.0, None, lambda: 0.0))


def _seed(draw: float | None) -> dict[str, Any]:
    """The seed of one question, made of the request's own random number."""
    return {} if draw is None else {"seed": int(draw * 2**31)}


def _says_that_it_ends(choice: Any) -> bool:
    return bool(choice["finish_reason"] == "stop" and choice.get("stop_reason") is None)


def _says_that_it_is_whole(choice: Any) -> bool:
    return choice["finish_reason"] in ("stop", "length")
