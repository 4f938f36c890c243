"""RSDConfig: every knob of one generation, validated once, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self, TypedDict, Unpack

from rsd_integrations import weighting as _weighting
from rsd_integrations.documented import documented
from rsd_integrations.errors import ConfigError
from rsd_integrations.naming import nearest
from rsd_integrations.types import Role

__all__ = ["DEFAULT_THRESHOLD", "ConfigFields", "RSDConfig", "RSDFields", "first_wrong", "refused"]

_ROLES: dict[str, tuple[Role, ...]] = {
    "rsd": ("draft", "target", "prm"),
    "draft": ("draft",),
    "target": ("target",),
}

_MOST_STRINGS = 256
"""Each is looked for behind each token, while the requests beside this one wait."""

_LARGEST = 2**64 - 1
"""Whole number of a setting: Python prints none of more than 4300 digits."""

DEFAULT_THRESHOLD = 0.7
"""The paper's; used where neither the PRM's config nor its format recommends another."""


def _as_tuple(value: Any) -> Any:
    """A lone string is one entry; None is no entry."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


_TAKEN = frozenset(
    (
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs"),
    )
)
"""Arguments of ``apply_chat_template`` that are not template variables, or that this package sets."""

if TYPE_CHECKING:  # What callers may pass: to a type checker a lone string is a sequence of strings, too.
    Strings = Sequence[str]
    Variables = Mapping[str, JsonValue]
else:
    Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
    Variables = dict[str, JsonValue]


class RSDFields(BaseModel):
    """The fields of RSDConfig and their validation, for other classes with the same settings (adapters)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    threshold: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Lowest reward at which a draft step is kept (delta in the paper). None takes the pipeline's
    recommended threshold (that of the PRM's config, its format or a ``RewardFunction``, else 0.7).
    With the step weighting, 0 means draft only and any value above 1 target only: the models that
    cannot matter are then not run. Of the other weightings only "logistic" uses it."""

    weighting: _weighting.Name | Callable[[float], float] = "step"
    """Reward -> acceptance probability: a name (formulas: ``help("rsd_integrations.weighting")``) or any
    callable."""

    acceptance_rate: float = Field(default=0.5, ge=0.0, le=1.0, allow_inf_nan=False)
    """The probability of the "constant" weighting; no other uses it. (The share of steps that were kept is
    ``Generation.acceptance_rate``.)"""

    beta: float = Field(default=10.0, gt=0.0, allow_inf_nan=False)
    """The slope of the "logistic" weighting; no other uses it."""

    step_delimiter: Strings = Field(default=("\n\n",), max_length=_MOST_STRINGS)
    """A step ends with the token that completes one of these (at most 256). Blank lines alone do not make a
    step."""

    max_tokens: int | None = Field(default=None, ge=1, le=_LARGEST)
    """Most tokens in the answer. None: whatever the window leaves after the prompt."""

    max_steps: int = Field(default=100, ge=1, le=_LARGEST)
    """Most steps in the answer (100 in the paper)."""

    max_step_tokens: int = Field(default=512, ge=1, le=_LARGEST)
    """Most tokens in one step; a longer one is cut there and scored as it stands."""

    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """0 is greedy. Draft and target sample alike. vLLM servers take 2 at most."""

    top_p: float = Field(default=1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    """Only the smallest set of tokens whose probabilities add up to top_p; 1 for all."""

    top_k: int | None = Field(default=None, ge=1, le=_LARGEST)
    """Only the k likeliest tokens; None for all."""

    min_p: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    """Only tokens at least this fraction as likely as the likeliest one; 0 for all. Applied after ``top_p``,
    as in transformers (vLLM servers apply it before, and not with speculative decoding of their own)."""

    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0, allow_inf_nan=False)
    """Above 1, tokens that are already in the prompt or the answer become less likely (as in transformers
    and vLLM). The penalty in a model's ``generation_config`` is not used. 1 means none, and is fastest."""

    seed: int | None = Field(default=None, ge=0, le=_LARGEST)
    """Fixes every random draw, whatever else runs: the same prompt gets the same answer again. So give each
    call a seed of its own where several samples of a prompt are wanted, and where many questions are sampled,
    which would share their draws. None draws a fresh seed, which the result reports."""

    stop: Strings = Field(default=(), max_length=_MOST_STRINGS)
    """The answer ends before the first of these strings (at most 256), which may span tokens and steps. In
    the thinking before the answer they are ignored."""

    speculation: bool = True
    """Whether the target verifies the rejected step's tokens as speculative tokens, several in a forward
    pass. The text is the same either way (in half precision rounding may change a token). vLLM servers do
    not use it."""

    draft_candidates: int = Field(default=1, ge=1, le=_LARGEST)
    """Candidates that the draft writes for each step, as one batch; only the one with the best reward can
    be accepted. Above 1 the answers no longer follow the paper's distribution (equation 3): the draft's
    part of the mixture becomes that of the best of n. Needs a temperature above 0, and in this process n
    rows of the pipeline's ``max_batch_size``."""

    chat_template_kwargs: Variables = {}
    """Variables of the draft's and the target's chat templates, such as ``{"enable_thinking": False}`` for
    Qwen 3. A variable that neither template uses is refused. The PRM's template gets none of them."""

    @property
    def uses_threshold(self) -> bool:
        """Whether the weighting uses the threshold."""
        return self.weighting in ("step", "logistic")

    @property
    def threshold_in_force(self) -> float | None:
        """The threshold; None where the weighting does not use it."""
        return self.threshold if self.uses_threshold else None

    @field_validator("weighting", mode="before")
    @classmethod
    def _known_weighting(cls, value: Any) -> Any:
        if callable(value) or value in _weighting.NAMES:
            return value
        names = ", ".join(repr(name) for name in _weighting.NAMES)
        raise ValueError(
            f"unknown weighting {value!r}; use one of {names}, or a callable reward -> probability"
        )

    @field_validator("step_delimiter", mode="after")
    @classmethod
    def _some_delimiter(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError(
                f"step_delimiter must hold at least one non-empty string, not {value!r}; "
                'the default is "\\n\\n"'
            )
        return value

    @field_validator("stop", mode="after")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError(f"stop strings must not be empty, got {value!r}; leave the empty one out")
        return value

    @field_validator("chat_template_kwargs", mode="after")
    @classmethod
    def _variables(cls, value: Variables) -> Variables:
        for name in value.keys() & _TAKEN:
            raise ValueError(
                f"chat_template_kwargs must not set {name!r}, which is no variable that you can set; "
                "leave it out"
            )
        return value

    @model_validator(mode="after")
    def _candidates_that_differ(self) -> Self:
        if self.draft_candidates > 1 and self.temperature == 0.0:
            raise ValueError(
                f"draft_candidates={self.draft_candidates} are all the same at temperature 0; "
                "set a temperature above 0, or draft_candidates=1"
            )
        return self


class ConfigFields(TypedDict, total=False):
    """The fields of RSDConfig as calls take them one by one, for type checkers and editors."""

    threshold: float | None
    weighting: _weighting.Name | Callable[[float], float]
    acceptance_rate: float
    beta: float
    step_delimiter: Strings
    max_tokens: int | None
    max_steps: int
    max_step_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: Strings
    speculation: bool
    draft_candidates: int
    chat_template_kwargs: Variables


@documented
class RSDConfig(RSDFields):
    """How one generation drafts, accepts, samples and ends.

    Unknown fields are refused. Every field can also be given per call
    (``pipe.generate(prompt, threshold=0.9)``), which overrides the config for that call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __hash__(self) -> int:
        # Without the dict, which cannot be hashed: equal configs have equal other fields, too.
        return hash(tuple(value for name, value in self if name != "chat_template_kwargs"))

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, given: Any) -> Any:
        known = cls.model_fields
        for name in given if isinstance(given, dict) else ():
            if name not in known:
                raise ValueError(f"unknown field {name!r}. {nearest(str(name), known)}")
        return given

    def override(self, **fields: Unpack[ConfigFields]) -> Self:
        """A copy with these fields changed, validated like any other.

        Raises:
            ConfigError: a field is unknown or out of bounds.
        """
        if not fields:
            return self
        # By getattr rather than model_dump: a callable weighting cannot be serialised.
        given = {name: getattr(self, name) for name in self.model_fields_set}
        try:
            return type(self)(**{**given, **fields})
        except ValidationError as error:
            raise refused(error) from error

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """``override``, as pydantic calls it: unlike pydantic's own, what is updated is validated.

        Raises:
            ConfigError: a field is unknown or out of bounds.
        """
        changed = self.override(**(update or {}))
        return super(RSDConfig, changed).model_copy(deep=deep)

    def acceptance(self) -> _weighting.Weighting:
        """The weighting with its parameters filled in. A threshold that is still None counts as 0.7."""
        if callable(self.weighting):
            return self.weighting
        threshold = DEFAULT_THRESHOLD if self.threshold is None else self.threshold
        return {
            "step": _weighting.step(threshold),
            "constant": _weighting.constant(self.acceptance_rate),
            "clip": _weighting.clip,
            "sigmoid": _weighting.sigmoid,
            "logistic": _weighting.logistic(threshold, self.beta),
        }[self.weighting]

    @property
    def mode(self) -> Literal["rsd", "draft", "target"]:
        """Which models have to run: with the step weighting, a threshold of 0 or above 1 needs no PRM."""
        if self.weighting != "step" or self.threshold is None or 0.0 < self.threshold <= 1.0:
            return "rsd"
        if self.threshold > 1.0:
            return "target"
        # Threshold 0 accepts any step, but the best of several candidates is found by its reward.
        return "draft" if self.draft_candidates == 1 else "rsd"

    @property
    def roles(self) -> tuple[Role, ...]:
        """The models that run."""
        return _ROLES[self.mode]

    @property
    def rows(self) -> int:
        """Rows of the models' batches that a request takes."""
        return 1 if self.mode == "target" else self.draft_candidates


def first_wrong(error: ValidationError) -> str:
    """The first thing that is wrong with settings, as one line: ``top_p=3: Input should be ...``."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # Fields that do not go together: the message names them.
        return message
    name = ".".join(map(str, first["loc"]))
    return message if message.startswith(name) else f"{name}={_shown(first['input'])}: {message}"


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.200}"
    except ValueError:  # As of a number of more than 4300 digits.
        return f"({type(value).__name__} too long to be shown)"


def refused(error: ValidationError, where: str = "") -> ConfigError:
    """What is wrong with settings as an error of this package."""
    wrong = first_wrong(error)
    end = "" if wrong.endswith((".", "?")) else "."
    hint = "help(rsd_integrations.RSDConfig) tells what each field may be."
    return ConfigError(f"{where}{wrong}{end}", hint=hint)
