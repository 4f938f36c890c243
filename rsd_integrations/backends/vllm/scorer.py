"""A process reward model behind vLLM servers."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_integrations.backends.shared.scoring import prompt_tokens, scored
from rsd_integrations.backends.vllm.asking import Asking, Read
from rsd_integrations.backends.vllm.client import Servers
from rsd_integrations.backends.vllm.sessions import VLLMScorerSession
from rsd_integrations.errors import BackendError
from rsd_integrations.prm.base import PRMFormat
from rsd_integrations.protocols import ModelInfo, Scored, ScorerSession, ScoreStep
from rsd_integrations.types import Prompt

STEP_TAGS = (
    "If it pools at step tags, name the separator of its prm_format as step_tag_id in --pooler-config, or "
    "leave that out: rewards at all tokens, or at the last, are understood too."
)
"""What to do if rewards are not where they are expected."""


class VLLMScorer:
    """A PRM behind servers (a ``RemoteScorer``).

    Args:
        servers: of the model.
        model: its name there.
        format: which tokens to feed, how to read a reward.
        asking: how its servers are asked.
    """

    def __init__(
        self, servers: Servers, model: str, format: PRMFormat, info: ModelInfo, asking: Asking
    ) -> None:
        self._servers = servers
        self._model = model
        self.format = format
        self.info = info
        self._asking = asking

    def open(self, prompt: Prompt) -> VLLMScorerSession:
        """Encode a prompt as the format wants it."""
        return VLLMScorerSession(self, prompt_tokens(self.format, prompt), self._servers.next_key())

    async def score(self, session: ScorerSession, step: ScoreStep) -> Scored:
        """The reward of a step.

        Raises:
            WindowFull: it does not fit.
            BackendError: no server answered, or not as asked.
            RewardError: the format cannot read a reward from the outputs.
        """
        assert isinstance(session, VLLMScorerSession)
        tokens, count = session.lay_out(step.body)
        read = await self.read(tokens, key=session.key)
        session.count(None if read.cached else 0, len(tokens))
        outputs = read.outputs
        if not outputs:
            raise BackendError(f"{self.info.name!r} gave no reward for a step.", hint=STEP_TAGS)
        return scored(self.format, outputs, count)

    async def read(self, tokens: Sequence[int], *, key: int = 0) -> Read:
        """What its servers say of a sequence.

        Raises:
            BackendError: as ``score``.
        """
        question = {"model": self._model, **self._asking.question(tokens)}
        answer = await self._servers.ask(self._asking.path, question, key=key)
        with self._servers.hiding():
            return self._asking.read(answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._servers.aclose()
