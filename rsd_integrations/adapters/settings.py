"""The fields that adapters' model classes share: which models, how to generate, whom to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import Self

from rsd_integrations.adapters.checks import (
    check_dtype,
    check_on_step,
    check_prm_format,
    without_nones,
)
from rsd_integrations.adapters.secrets import hidden, without_secrets
from rsd_integrations.adapters.sources import PipelineSource, find_source
from rsd_integrations.adapters.specs import (
    LIVE,
    POCKET,
    Spec,
    check_function_pickles,
    check_pickles,
    is_portable,
    label,
)
from rsd_integrations.closing import Closing
from rsd_integrations.config import RSDConfig, RSDFields
from rsd_integrations.errors import ConfigError
from rsd_integrations.given import is_object
from rsd_integrations.limits import check_rows
from rsd_integrations.naming import check_known
from rsd_integrations.opening import are_servers
from rsd_integrations.options import LoadOptions
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.types import ROLES, Role, Step

OnStep = Callable[[Step], None]
"""Called with each committed step, on the thread (or event loop) of whoever waits for the answer."""

TraceSteps = Literal["full", "steps", "off"]

if TYPE_CHECKING:  # What may be given: a plain string becomes a SecretStr.
    Secret = SecretStr | str
else:
    Secret = SecretStr

OPTIONS = ("draft_kwargs", "target_kwargs", "prm_kwargs")
LOADING = tuple(LoadOptions.__annotations__)
"""Further arguments of ``RSDPipeline.from_pretrained``."""

LIMITS = ("max_batch_size", "max_length")
"""Those of ``LOADING`` that apply to servers, too."""


class RSDSettings(RSDFields, Closing):
    """Fields, and the way from them to a pipeline. Objects that name the same models share one pipeline."""

    draft: Any = None
    """Draft model: hub id, folder, loaded model, (model, tokenizer), or a vLLM server's URL (or several)."""
    target: Any = None
    """Target model, likewise."""
    prm: Any = None
    """Process reward model, likewise; or a function that scores steps: see ``RewardFunction``."""
    pipeline: Any = None
    """A live ``RSDPipeline``, or "pocket", instead of draft, target and prm."""

    prm_format: Any = "auto"
    """How the PRM reads steps: "auto", the name of a registered format, a ``PRMFormat``, or a callable
    ``(tokenizer, options) -> PRMFormat``.
    """
    device: str | None = None
    """Device of all models loaded in this process; None: the GPU if there is one (pocket trio: the CPU)."""
    dtype: Any = "auto"
    """Dtype of all models loaded in this process; "auto" takes each checkpoint's own."""
    max_batch_size: int = Field(default=8, ge=1)
    """Maximum number of requests that run at once; the others queue. Over servers 256 by default."""
    max_length: int = Field(default=4096, ge=2)
    """Maximum number of tokens of prompt and answer. Over servers by default as many as they take."""
    compile: bool = False
    """Speed up forward passes by ``torch.compile``: some seconds for each kind, at its first use."""
    cuda_graphs: bool | None = None
    """Record forward passes as CUDA graphs; None: for models that are on one CUDA device."""
    cpu_traces: bool = True
    """Trace forward passes that run often on a CPU, which saves Python's overhead between operations."""
    prefix_caching: bool = True
    """Requests that begin like an earlier one (the next turn of a chat) reuse what is cached of it."""
    draft_kwargs: dict[str, Any] | None = None
    """Options of this model alone, as for ``RSDPipeline.from_pretrained`` or ``from_vllm``."""
    target_kwargs: dict[str, Any] | None = None
    """Likewise."""
    prm_kwargs: dict[str, Any] | None = None
    """Likewise."""
    preload: bool = False
    """Load the models now rather than at the first call."""

    model: str | None = None
    """Name to show in traces and metadata; the target's by default."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which a call raises ``TimedOutError``; loading, at the first call, is not counted."""
    max_retries: int = Field(default=0, ge=0)
    """Accepted, but not used, for code that sets it on any model: models in this process have no passing
    failures, and for servers the options ``attempts`` and ``patience`` count."""
    api_key: Secret | None = Field(default=None, exclude=True, repr=False)
    """Key for servers whose own options give none; models in this process need none."""

    on_step: SkipJsonSchema[OnStep] | None = Field(default=None, exclude=True, repr=False)
    """A plain function, called with each committed ``Step``. An error of its own is logged, no more."""
    trace_steps: TraceSteps = "full"
    """Runs below the model's own in traces: steps with draft, score and target; "steps" alone; or none."""

    _held: tuple[Spec, PipelineSource] | None = PrivateAttr(default=None)

    def __init__(self, *models: Any, **fields: Any) -> None:
        if models:
            name = type(self).__name__
            raise TypeError(f"{name} takes its models by name: {name}(draft=..., target=..., prm=...).")
        # Secrets are hidden before pydantic sees them, because its errors show what was given: under
        # misspelt names, too.
        known = type(self).model_fields
        super().__init__(
            **{
                name: _hidden_field(name, value) if name in known else hidden({name: value})[name]
                for name, value in fields.items()
            }
        )

    if not TYPE_CHECKING:  # Type checkers would then accept any name as an attribute.

        def __setattr__(self, name: str, value: Any) -> None:
            # Pydantic keeps a value that a check of the whole object refused, and then refuses all others.
            before, given = self.__dict__.get(name), name in self.model_fields_set
            try:
                super().__setattr__(name, value)
            except BaseException:
                if name in self.__dict__:
                    self.__dict__[name] = before
                if not given:
                    self.model_fields_set.discard(name)
                raise

    @classmethod
    def pocket(cls, **fields: Any) -> Self:
        """An object over the embedded trio: no network needed. ``prm=f`` takes a function for its PRM.

        Its answers end at 256 tokens, which those of its own family do not reach, unless ``max_tokens`` (None
        for no limit) or ``max_length`` is given.
        """
        from rsd_integrations.pocket import MAX_TOKENS

        limit = {} if "max_length" in fields else {"max_tokens": MAX_TOKENS}
        return cls(pipeline=POCKET, **{**limit, **fields})

    @classmethod
    def from_pipeline(cls, pipeline: RSDPipeline, **fields: Any) -> Self:
        """An object over a pipeline that is there already."""
        return cls(pipeline=pipeline, **fields)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            check_known(data, cls.model_fields)
            data = without_nones(data)
        return data

    @field_validator(*ROLES, mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return str.__str__(value) if isinstance(value, str) else value  # An Enum shows its member's name.

    @field_validator(*OPTIONS, mode="before")
    @classmethod
    def _hide_secrets(cls, value: Any) -> Any:
        return hidden(value)

    @field_serializer(*OPTIONS)
    def _save_no_secrets(self, value: dict[str, Any] | None) -> dict[str, Any] | None:
        saved: dict[str, Any] | None = without_secrets(value)
        return saved

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # ``model_copy(update=...)`` checks no options, and hides no secrets in them.
        return [(name, _hidden_field(name, value)) for name, value in super().__repr_args__()]

    @field_validator("on_step")
    @classmethod
    def _plain_function(cls, value: OnStep | None) -> OnStep | None:
        return check_on_step(value)

    @model_validator(mode="after")
    def _names_its_models(self) -> RSDSettings:
        _check_models(self)
        _check_loading(self)
        if self.preload:
            self.load()
        return self

    def load(self) -> RSDPipeline:
        """The pipeline, loaded if it is not yet.

        Raises:
            RSDError: a model cannot be loaded or cannot play its role.
        """
        pipe = self.source.get()
        self._loaded()
        return pipe

    async def aload(self) -> RSDPipeline:
        """The same without blocking the loop."""
        pipe = await self.source.aget()
        self._loaded()
        return pipe

    def _loaded(self) -> None:
        """For subclasses: called once the pipeline is there."""

    @property
    def source(self) -> PipelineSource:
        """Where the pipeline comes from; shared with all that name the same models."""
        spec = self._spec()
        # A copy may have been given other models than the one it was made from.
        if self._held is None or self._held[0] != spec or self._held[1].moved:
            self._held = spec, find_source(spec)
        return self._held[1]

    @property
    def model_names(self) -> dict[str, str]:
        """Name of each role's model."""
        if self.pipeline == POCKET:
            return {role: label(getattr(self, role) or f"{POCKET}-{role}") for role in ROLES}
        if pipe := self.source.loaded:
            return {role: getattr(pipe.backend, role).info.name for role in ROLES}
        return {role: label(getattr(self, role)) for role in ROLES}

    @property
    def window(self) -> int:
        """Maximum number of tokens of prompt and answer. Loads nothing: where not even the models' configs
        are on this machine, it is ``max_length``.
        """
        known = self.source.window(_roles(self))
        # A pipeline that is there has a max_length of its own, which ``known`` includes.
        return known if known and self.source.loaded else min(known or self.max_length, self.max_length)

    def close(self) -> None:
        """Give the models' memory back: this object and all that share its models are closed. Models that are
        still loading are closed as soon as they are there. Objects that are made later load them anew.
        """
        self.source.close()

    @property
    def config(self) -> RSDConfig:
        """The settings of a generation, validated again: a copy may have been changed unchecked."""
        return RSDConfig().override(**{name: getattr(self, name) for name in RSDConfig.model_fields})

    def _spec(self) -> Spec:
        if isinstance(self.pipeline, RSDPipeline):
            return {"pipeline": self.pipeline}
        models = {name: getattr(self, name) for name in ("pipeline", *ROLES)}
        spec = {
            **{name: given for name, given in models.items() if given is not None},
            **{name: getattr(self, name) for name in LOADING if _was_changed(self, name)},
        }
        return self._served_spec(spec) if _are_servers(self) else spec

    def _served_spec(self, spec: dict[str, Any]) -> dict[str, Any]:
        """A spec for servers: limits only if they were set, for servers have their own; and the API key."""
        spec |= {name: getattr(self, name) for name in LIMITS if name in self.model_fields_set}
        if self.api_key is not None:
            served = [role for role in ROLES if not is_object(role, getattr(self, role))]
            keys = {f"{role}_kwargs": {"api_key": self.api_key} for role in served}
            spec |= {name: {**key, **(spec.get(name) or {})} for name, key in keys.items()}
        return spec

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # A deep copy of live models would be no use to anybody; tags and the like are the copy's own.
        own = {name: copy(value) for name, value in self.__dict__.items() if type(value) in (list, dict, set)}
        return self.model_copy(update=own)

    @property
    def is_portable(self) -> bool:
        """Whether the models are named by plain data, from which another process could load the same."""
        return is_portable(self._spec())

    def __getstate__(self) -> dict[Any, Any]:
        check_pickles(self._spec(), type(self).__name__)
        check_function_pickles("weighting", self.weighting, type(self).__name__)
        state: dict[Any, Any] = super().__getstate__()
        # Without what LangChain caches beside the fields: with it a first call would change the pickle.
        kept = {
            name: value
            for name, value in state["__dict__"].items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }
        return {**state, "__dict__": kept}


def _hidden_field(name: str | None, value: Any) -> Any:
    if name in (*ROLES, "model", "pipeline", "device"):  # URLs, perhaps; a model may be any object.
        return hidden(value) if isinstance(value, str | list | tuple) else value
    if name not in ("api_key", *OPTIONS):
        return value
    # A token alone, or pairs of names and values.
    by_mistake = name in OPTIONS and not isinstance(value, Mapping)
    return hidden(value, secret=name == "api_key" or by_mistake)


def _was_changed(settings: BaseModel, name: str) -> bool:
    return bool(getattr(settings, name) != type(settings).model_fields[name].default)


def _are_servers(settings: RSDSettings) -> bool:
    return settings.pipeline is None and are_servers(settings.draft, settings.target, settings.prm)


def _roles(settings: RSDSettings) -> tuple[Role, ...]:
    try:
        return settings.config.roles
    except ConfigError:  # A copy that was changed unchecked: its calls are refused.
        return ROLES


def _is_pipeline(given: Any) -> bool:
    named = isinstance(given, str) and (given == POCKET or given.startswith(LIVE))
    return named or isinstance(given, RSDPipeline)


def _check_models(settings: RSDSettings) -> None:
    name = type(settings).__name__
    given = [role for role in ROLES if getattr(settings, role) is not None]
    hint = (
        f"Name all three, {name}(draft=..., target=..., prm=...), by hub id or folder; or take "
        f"{name}.pocket() or {name}.from_pipeline(pipe)."
    )
    if settings.pipeline is None:
        if missing := [role for role in ROLES if role not in given]:
            what = "no models are named." if not given else f"{' and '.join(missing)} missing."
            raise ConfigError(what, hint=hint)
        changed = [option for option in LOADING if _was_changed(settings, option)]
        are_servers(settings.draft, settings.target, settings.prm, changed)
        return
    if not _is_pipeline(settings.pipeline):
        raise ConfigError(
            f"pipeline must be an RSDPipeline or 'pocket', not {settings.pipeline!r}.", hint=hint
        )
    live = settings.pipeline != POCKET
    surplus = given + [option for option in LOADING if _was_changed(settings, option)]
    if live and surplus:
        raise ConfigError(f"a pipeline and {', '.join(surplus)} are given: one or the other.", hint=hint)


def _check_loading(settings: RSDSettings) -> None:
    """Refuse at once what loading would refuse, as far as that is known without torch.

    Some of LlamaIndex's engines turn errors of a call into the answer "Empty Response".
    """
    check_prm_format(settings.prm_format)
    check_dtype(settings.dtype, "")
    for name in OPTIONS:
        check_dtype((getattr(settings, name) or {}).get("dtype", "auto"), f"{name}: ")
    _check_room(settings)


def unset_limits(settings: RSDSettings) -> list[str]:
    """Limits that were not set: servers have their own, so these must not be saved as if they had been."""
    return [name for name in LIMITS if name not in settings.model_fields_set]


def _check_room(settings: RSDSettings) -> None:
    """Refuse more candidates or tokens than can ever fit."""
    live = settings.pipeline
    if isinstance(live, str) and live.startswith(LIVE):
        return  # A name alone: the pipeline may be in another process.
    # Limits that were not set are the servers' own, and not known yet.
    unset = unset_limits(settings) if _are_servers(settings) else []
    rows = live.backend.max_batch_size if isinstance(live, RSDPipeline) else settings.max_batch_size
    if "max_batch_size" not in unset:
        check_rows(settings.config, rows)
    if "max_length" in unset and settings.source.loaded is None:
        return
    if settings.max_tokens is not None and settings.max_tokens >= settings.window:
        raise ConfigError(
            f"max_tokens={settings.max_tokens!r} leaves no room for a prompt in a window of "
            f"{settings.window} tokens.",
            hint="Lower it, leave it out to use all that is left, or raise max_length if the models allow.",
        )
