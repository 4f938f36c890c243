"""RSDPipeline: the composition root. Everything users call without a framework is here."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from rsd_integrations.closing import Closing
from rsd_integrations.config import DEFAULT_THRESHOLD, ConfigFields, RSDConfig
from rsd_integrations.engine.batch import BatchEngine
from rsd_integrations.engine.job import Request
from rsd_integrations.engine.scoring import rewards_of
from rsd_integrations.engine.streams import AsyncEventStream, EventStream, Submit
from rsd_integrations.engine.tasks import TaskEngine
from rsd_integrations.errors import ConfigError
from rsd_integrations.functions import RewardCall, RewardFunction
from rsd_integrations.given import check_parts, occupy
from rsd_integrations.limits import call_config, check_rows, check_timeout
from rsd_integrations.options import TrioOptions
from rsd_integrations.output import Output, as_output
from rsd_integrations.prompts import check_prompt, check_steps, check_text
from rsd_integrations.protocols import FREE, NONE, Backend
from rsd_integrations.remote import RemoteBackend, RemoteScorer, RemoteWriter
from rsd_integrations.types import ROLES, Generation, GivenPrompt, RequestCounts

_ONE = {"draft_candidates": 1}  # A step that is given has no other candidates.


class RSDPipeline(Closing):
    """Draft, target and PRM behind one engine; any number of threads and tasks may call it.

    Make one with ``from_pretrained``, ``from_vllm`` or ``pocket``; close it, or use it as a context manager
    (sync or async), to give the models' memory back.

    Args:
        backend: the three models.

    Raises:
        ConfigError: ``backend`` is not one, a part cannot do its work, or another pipeline is using it.
    """

    def __init__(self, backend: Backend | RemoteBackend) -> None:
        check_parts(backend)
        occupy(backend, self)  # Before there is an engine: dropped, it would close another's models.
        self._backend = backend
        self._engine = BatchEngine(backend) if isinstance(backend, Backend) else TaskEngine(backend)
        # The engine's thread keeps the engine alive but not the pipeline, so a dropped pipeline closes.
        weakref.finalize(self, self._engine.let_go)

    @classmethod
    def from_pretrained(
        cls,
        draft: Any,
        target: Any,
        prm: Any,
        *,
        prm_format: Any = "auto",
        device: str | None = None,
        dtype: Any = "auto",
        max_batch_size: int = 8,
        max_length: int = 4096,
        compile: bool = False,
        cuda_graphs: bool | None = None,
        cpu_traces: bool = True,
        prefix_caching: bool = True,
        draft_kwargs: Mapping[str, Any] | None = None,
        target_kwargs: Mapping[str, Any] | None = None,
        prm_kwargs: Mapping[str, Any] | None = None,
    ) -> RSDPipeline:
        """Load three models into this process (torch and transformers).

        Args:
            draft: hub id, folder, loaded model, (model, tokenizer), or a ``protocols.Writer`` of your own.
            target: likewise.
            prm: likewise, a ``protocols.Scorer``, or a function: see ``RewardFunction``.
            prm_format: "auto", a registered name, a ``PRMFormat``, or ``(tokenizer, options) -> PRMFormat``.
            device: for all models that are loaded here; None takes the GPU if there is one.
            dtype: for all models that are loaded here; "auto" takes the checkpoints'.
            max_batch_size: most requests at work at once; the others queue.
            max_length: most tokens of prompt and answer; less where a model's window is smaller.
            compile: make forward passes faster by ``torch.compile``. Each new kind of pass takes it some
                seconds. Needs torch 2.7 or newer and a C++ compiler, on a GPU also Triton.
            cuda_graphs: record forward passes as CUDA graphs; None: where a model is on one CUDA device.
            cpu_traces: trace (TorchScript) the forward passes that a CPU runs often.
            prefix_caching: reuse what is still cached of an earlier request with the same beginning. Turn
                it and ``cpu_traces`` off if you write weights through ``.data``.
            draft_kwargs: options of this model alone: device, dtype, device_map, quantization_config,
                attn_implementation, trust_remote_code, use_safetensors, revision, token, cache_dir,
                local_files_only, subfolder, max_memory, offload_folder, tokenizer, model_kwargs.
            target_kwargs: likewise.
            prm_kwargs: likewise.

        Raises:
            ConfigError: an option is unknown or out of bounds.
            ModelError, DeviceMemoryError: a model or tokenizer cannot play its role, or does not fit.
        """
        from rsd_integrations.backends.torch.loading import load_backend

        return cls(
            load_backend(
                {"draft": (draft, draft_kwargs), "target": (target, target_kwargs), "prm": (prm, prm_kwargs)},
                prm_format=prm_format,
                device=device,
                dtype=dtype,
                max_batch_size=max_batch_size,
                max_length=max_length,
                compile=compile,
                cuda_graphs=cuda_graphs,
                cpu_traces=cpu_traces,
                prefix_caching=prefix_caching,
            )
        )

    @classmethod
    def pocket(cls, **options: Unpack[TrioOptions]) -> RSDPipeline:
        """The embedded trio: small models for one family of word problems, no network needed.

        Args:
            options: as for ``from_pretrained``; ``device`` is the CPU if not given.
        """
        from rsd_integrations.backends.shared.bars import no_progress_bars
        from rsd_integrations.pocket import pocket_paths

        with no_progress_bars(anywhere=True):  # Loading 18 MB is no news.
            given: dict[str, Any] = {**vars(pocket_paths()), "device": "cpu", **options}
            return cls.from_pretrained(**given)

    @classmethod
    def from_vllm(
        cls,
        draft: str | Sequence[str] | RemoteWriter,
        target: str | Sequence[str] | RemoteWriter,
        prm: str | Sequence[str] | RewardFunction | RewardCall | RemoteScorer,
        *,
        prm_format: Any = "auto",
        max_batch_size: int = 256,
        max_length: int | None = None,
        draft_kwargs: Mapping[str, Any] | None = None,
        target_kwargs: Mapping[str, Any] | None = None,
        prm_kwargs: Mapping[str, Any] | None = None,
    ) -> RSDPipeline:
        """Use three models that vLLM serves (extra "vllm"). Tokenizers and configs are read on this side.

        Args:
            draft: base URL of its server, or of several replicas (a request stays with one of them).
            target: likewise.
            prm: likewise, or a function: see ``RewardFunction``.
            prm_format: as for ``from_pretrained``.
            max_batch_size: most requests at work at once; the others queue.
            max_length: most tokens of prompt and answer; the servers' own limits count, too.
            draft_kwargs: options of this role alone: model (the served name, where there are several),
                api_key (or the environment's VLLM_API_KEY), headers, max_concurrency (HTTP requests at once:
                256, or fewer where few files may be open), timeout (seconds for a response: 600), attempts
                (for an HTTP request: 5), patience (seconds to retry servers that cannot be reached, once the
                pipeline is made: 120), ahead (True: the draft writes on while its step is scored); source
                (folder or hub id of tokenizer and config, if not what the server started with), tokenizer,
                revision, token, cache_dir, local_files_only, subfolder, trust_remote_code (with a source).
            target_kwargs: likewise.
            prm_kwargs: likewise.

        Raises:
            ConfigError: an option is unknown or out of bounds.
            BackendError: a server cannot be reached, or refuses.
            ModelError: a model or tokenizer cannot play its role.
        """
        from rsd_integrations.backends.vllm import load_remote

        return cls(
            load_remote(
                {"draft": (draft, draft_kwargs), "target": (target, target_kwargs), "prm": (prm, prm_kwargs)},
                prm_format=prm_format,
                max_batch_size=max_batch_size,
                max_length=max_length,
            )
        )

    @property
    def recommended_threshold(self) -> float:
        """What ``threshold=None`` means here."""
        recommended = self._backend.prm.info.threshold
        return DEFAULT_THRESHOLD if recommended is None else recommended

    def resolved(self, config: RSDConfig) -> RSDConfig:
        """The config with the recommended threshold where it names none."""
        return (
            config if config.threshold is not None else config.override(threshold=self.recommended_threshold)
        )

    @property
    def backend(self) -> Backend | RemoteBackend:
        """The three models."""
        return self._backend

    @property
    def requests(self) -> RequestCounts:
        """How many requests run and wait at this moment, or just before. Any thread."""
        return self._engine.counts

    def generate(
        self,
        prompt: GivenPrompt,
        *,
        config: RSDConfig | None = None,
        timeout: float | None = None,
        output: Output | None = None,
        **fields: Unpack[ConfigFields],
    ) -> Generation:
        """Answer a prompt.

        Args:
            prompt: a text (one user turn) or chat messages. Apply no chat template: its marks stay text.
            config: settings; ``RSDConfig()`` by default.
            timeout: seconds until the call is cancelled; what is committed by then is returned.
            output: tools the model may call and the form of the answer,
                ``Output.of(tools=..., tool_choice=..., response_format=...)``; None: free text.
            fields: fields of RSDConfig for this call (seed=0, threshold=0.9, ...).

        Raises:
            ConfigError: a field is unknown or out of bounds, the models' chat templates take no tools, or a
                schema cannot be enforced.
            PromptError: the prompt is empty, malformed or too long.
            EngineClosedError: the pipeline was closed.
            RSDError: a model failed.
        """
        return self.stream(prompt, config=config, timeout=timeout, output=output, **fields).result()

    def stream(
        self,
        prompt: GivenPrompt,
        *,
        config: RSDConfig | None = None,
        timeout: float | None = None,
        output: Output | None = None,
        **fields: Unpack[ConfigFields],
    ) -> EventStream:
        """``generate``, event by event, as it happens. Close (or drop) the stream to cancel."""
        return EventStream(self._submit(prompt, config, fields, timeout=timeout, output=output), owner=self)

    async def agenerate(
        self,
        prompt: GivenPrompt,
        *,
        config: RSDConfig | None = None,
        timeout: float | None = None,
        output: Output | None = None,
        **fields: Unpack[ConfigFields],
    ) -> Generation:
        """``generate`` for asyncio; cancelling the task stops the models within a round."""
        return await self.astream(prompt, config=config, timeout=timeout, output=output, **fields).result()

    def astream(
        self,
        prompt: GivenPrompt,
        *,
        config: RSDConfig | None = None,
        timeout: float | None = None,
        output: Output | None = None,
        **fields: Unpack[ConfigFields],
    ) -> AsyncEventStream:
        """``stream`` for asyncio, to be read on the event loop that runs now (else a StreamError)."""
        submit = self._submit(prompt, config, fields, timeout=timeout, output=output)
        return AsyncEventStream(submit, owner=self)

    def score(
        self,
        prompt: GivenPrompt,
        steps: Sequence[str],
        *,
        config: RSDConfig | None = None,
        timeout: float | None = None,
    ) -> list[float | None]:
        """The PRM's rewards for the steps of an existing answer, whoever wrote it.

        Args:
            prompt: as for ``generate``.
            steps: the answer's steps, such as ``[step.text for step in generation.steps]``. White space and
                ``config.step_delimiter`` at their ends are ignored; a blank step gets the reward before it.
            config: ``RSDConfig()`` by default.
            timeout: seconds until it is cancelled.

        Returns:
            A reward for each step; None from the first one that does not fit the PRM's window.

        Raises:
            TimedOutError: it took longer than ``timeout``.
            RSDError: as for ``generate``.
        """
        submit = self._submit(prompt, config, _ONE, timeout=timeout, steps=check_steps(steps))
        return rewards_of(EventStream(submit, owner=self).result())

    async def ascore(
        self,
        prompt: GivenPrompt,
        steps: Sequence[str],
        *,
        config: RSDConfig | None = None,
        timeout: float | None = None,
    ) -> list[float | None]:
        """``score`` for asyncio."""
        submit = self._submit(prompt, config, _ONE, timeout=timeout, steps=check_steps(steps))
        return rewards_of(await AsyncEventStream(submit, owner=self).result())

    def _submit(
        self,
        prompt: Any,
        config: RSDConfig | None,
        fields: Mapping[str, Any] = NONE,
        *,
        timeout: float | None = None,
        output: Output | None = None,
        steps: tuple[str, ...] | None = None,
    ) -> Submit:
        """Check what can be checked in the caller's thread; return what submits the request to the engine."""
        check_timeout(timeout)
        resolved = self.resolved(call_config(config, fields))
        check_rows(resolved, self._backend.max_batch_size)
        output = as_output(output)
        self.check_output(output)
        request = Request.now(check_prompt(prompt), resolved, timeout, output=output, steps=steps)
        return lambda sink: self._engine.submit(request, sink)

    def check_output(self, output: Output) -> None:
        """Refuse tools or a form that draft or target cannot write. Any thread.

        Raises:
            ConfigError: a chat template takes no tools, or a schema cannot be enforced.
            EngineClosedError: the pipeline was closed.
        """
        if as_output(output) != FREE:
            self._engine.check_open()
            self._backend.draft.check(output)
            self._backend.target.check(output)

    def token_ids(self, text: str) -> list[int]:
        """A text in the target's tokens, special tokens never among them.

        Raises:
            PromptError: the text cannot be encoded.
            EngineClosedError: the pipeline was closed.
        """
        self._engine.check_open()
        check_text(text, "the text")
        return list(self._backend.target.encode(text))

    def count_tokens(
        self,
        prompt: GivenPrompt,
        *,
        output: Output | None = None,
        chat_template_kwargs: Mapping[str, Any] = NONE,
    ) -> int:
        """Length of a prompt in the target's tokens, its chat template (with variables) and tools included.

        Raises:
            PromptError: the prompt is empty or malformed; ConfigError: ``output`` is no ``Output``.
            EngineClosedError: the pipeline was closed.
        """
        self._engine.check_open()
        return self._backend.target.count(check_prompt(prompt), as_output(output), chat_template_kwargs)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._engine.closed

    def close(self) -> None:
        """Fail what still runs and give the models' memory back. Safe to call twice."""
        self._engine.close()

    def __repr__(self) -> str:
        models = [f"{role}={getattr(self._backend, role).info.name!r}" for role in ROLES]
        state = [f"max_batch_size={self._backend.max_batch_size}", *["closed"] * self.closed]
        return f"<{type(self).__name__}: {', '.join(models + state)}>"

    def __copy__(self) -> RSDPipeline:
        return self  # A copy of the attributes alone would be closed as soon as the original is dropped.

    def __deepcopy__(self, memo: dict[int, Any]) -> RSDPipeline:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise ConfigError(
            "a live pipeline cannot be pickled or sent to another process.",
            hint="Make the pipeline there, or name its models in a ChatRSD or RSDLLM, which can be pickled.",
        )
