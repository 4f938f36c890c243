"""A causal language model behind vLLM servers that writes steps: draft or target."""

from __future__ import annotations

from typing import Any

from rsd_integrations.backends.shared.writing import Language, SpeakingWriter
from rsd_integrations.backends.vllm.client import Servers
from rsd_integrations.backends.vllm.form import Form
from rsd_integrations.backends.vllm.sessions import WriterSession
from rsd_integrations.errors import BackendError
from rsd_integrations.output import Output
from rsd_integrations.protocols import FREE, ModelInfo, Written
from rsd_integrations.protocols import WriterSession as AnyWriterSession
from rsd_integrations.segment import ReasoningTags
from rsd_integrations.types import Prompt

__all__ = ["VLLMWriter"]

_PLAIN = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "min_p": 0.0}
"""What a server would otherwise take from the model's generation_config."""


class VLLMWriter(SpeakingWriter):
    """A draft or target model behind servers (a ``RemoteWriter``).

    A step is one question to ``/v1/completions``, by token ids. Servers know a step's delimiters as stop
    strings; where the step really ends is decided here, token by token, as for models in this process.

    Args:
        servers: of the model.
        model: its name there.
        language: of the model.
    """

    def __init__(self, servers: Servers, model: str, language: Language, info: ModelInfo) -> None:
        super().__init__(language, info)
        self._servers = servers
        self._model = model
        self._size = language.size
        self._holds_grammars = True

    def open(self, prompt: Prompt, output: Output = FREE) -> WriterSession:
        """Render and encode a prompt; the window is checked by the engine, which knows max_tokens."""
        tokens = self.rendered(prompt, output)
        return WriterSession(self, tokens, output, self.tags(tokens), self._servers.next_key())

    def form(self, output: Output, tags: ReasoningTags | None) -> Form | None:
        """What keeps a new session to the output, if something has to."""
        constraint = self.tooling.constraint(output, tags)
        return None if constraint is None else Form(self.tooling, constraint, output, tags, self._size)

    async def write(self, session: AnyWriterSession) -> Written:
        """The step that the session has begun.

        Raises:
            BackendError: no server answered, or not as asked.
        """
        assert isinstance(session, WriterSession)
        written = session.written("limit") if session.room <= 0 else None
        while written is None:
            # A server stops at each delimiter, also where it ends no step.
            for token in await self._next(session):
                if session.form is not None and not session.form.takes(token):
                    # This server reads the grammar in its own way (xgrammar: free white space).
                    self._holds_grammars = False
                    break
                written = session.push(token)
                if written is not None:
                    break
            session.forget()
        return written

    async def _next(self, session: WriterSession) -> list[int]:
        """The next tokens of a step: all of them, if nothing stops the server before."""
        form, question = session.form, self._question(session)
        if form is None:
            return await self._asked(session, question)
        grammar = form.grammar(session.text) if self._holds_grammars else None
        if grammar is None:
            return await self._one(session, form, question)
        if not form.free and not form.thinks(session.text):
            # Nothing but the user's stop strings ends a document within.
            question["stop"] = list(session.boundary.stop)
        held = {**question, "structured_outputs": {"grammar": grammar}}
        try:
            return await self._asked(session, held, attempts=1)
        except BackendError:
            # It may be that this server knows no such grammars; if it is gone, that shows at once.
            tokens = await self._one(session, form, question)
            self._holds_grammars = False
            return tokens

    async def _one(self, session: WriterSession, form: Form, question: dict[str, Any]) -> list[int]:
        """One token that the form allows."""
        allowed = form.allowed()
        if len(allowed) == 1:
            return allowed
        alone = {**question, "max_tokens": 1, "stop": []}
        tokens = await self._asked(session, alone)
        if tokens[0] in allowed:
            return tokens[:1]
        # Drawn again among those that are allowed: together that is the distribution over these.
        return (await self._asked(session, {**alone, **_drawn(session), "allowed_token_ids": allowed}))[:1]

    async def _asked(
        self, session: WriterSession, question: dict[str, Any], attempts: int | None = None
    ) -> list[int]:
        answer = await self._servers.ask("/v1/completions", question, key=session.key, attempts=attempts)
        tokens, cached = self._read(answer)
        session.count(cached, len(session.tokens) + max(0, len(tokens) - 1))
        return tokens

    def _question(self, session: WriterSession) -> dict[str, Any]:
        sampling, boundary = session.sampling, session.boundary
        return {
            "model": self._model,
            "prompt": session.tokens,
            "max_tokens": session.room,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "stop": [*dict.fromkeys((*boundary.delimiters, *boundary.stop))],
            "stop_token_ids": sorted(self.eos_ids),
            "include_stop_str_in_output": True,
            "return_token_ids": True,
            **_PLAIN,
            **_drawn(session),
        }

    def _read(self, answer: Any) -> tuple[list[int], int | None]:
        """The tokens of an answer, and how many of the question's the server knew, if it tells."""
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            tokens = [int(token) for token in choice["token_ids"]]
            if choice["finish_reason"] == "stop" and choice.get("stop_reason") is None and not tokens:
                tokens = [min(self.eos_ids)]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BackendError(
                f"{self.info.name!r} answered {str(answer)[:200]!r}, without the tokens that were asked for.",
                hint="Check that it is a vLLM server that knows return_token_ids (0.11 or newer).",
            ) from error
        if not tokens:
            raise BackendError(
                f"{self.info.name!r} wrote nothing and gave no reason.", hint="See what the server logs."
            )
        return tokens, None if cached is None else int(cached)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._servers.aclose()


def _drawn(session: WriterSession) -> dict[str, Any]:
    """The seed of one question, of the request's own numbers."""
    sampling = session.sampling
    return {"seed": int(sampling.draw() * 2**31)} if sampling.temperature > 0.0 else {}
