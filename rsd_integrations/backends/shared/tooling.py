"""One model's way with tools and forms: what it is shown, what it may write, how that is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from rsd_integrations.backends.shared.headers import CALLS
from rsd_integrations.backends.shared.reasoning import literal, marking_tokens, reasoning_tags
from rsd_integrations.backends.shared.sources import Source
from rsd_integrations.encoding import chat_template_text, control_tokens, encode_markup, encode_plain
from rsd_integrations.encoding.plain import alternatives, special_tokens
from rsd_integrations.encoding.written import PROBE_TOOL
from rsd_integrations.errors import ConfigError
from rsd_integrations.given import is_object
from rsd_integrations.output import Output
from rsd_integrations.text.calls import (
    HERMES,
    CallFormat,
    CallReader,
    ReadCall,
    find_format,
    plain_reader,
    read_message,
)
from rsd_integrations.text.segment import Unbroken
from rsd_integrations.text.thoughts import ReasoningTags
from rsd_integrations.types import InvalidToolCall, Message, Role, ToolCall

if TYPE_CHECKING:
    from rsd_integrations.backends.shared.constrain import Constraint, Grammars


@dataclass(frozen=True)
class Calls:
    """How calls are forced and how they are read. Draft and target continue one text, so both write them as
    the target's template does.

    ``form`` is None where nobody knows it.
    """

    form: CallFormat | None
    reader: CallReader
    compilers: dict[tuple[str, frozenset[int]], Grammars] = field(default_factory=dict, compare=False)
    """One for equal tokenizers: a vocabulary of 150,000 tokens takes a second to read and 100 MB."""

    @classmethod
    def of(cls, tokenizer: Any) -> Calls:
        """By a tokenizer's templates."""
        form = call_format(tokenizer)
        return cls(form, call_reader(tokenizer, form))


class Tooling:
    """How one writer is shown tools, kept to a form and read.

    Args:
        tokenizer: the model's own.
        name: the model's, for messages.
        eos_ids: tokens that end an answer.
        calls: how they are written in the text that draft and target share.
    """

    def __init__(self, tokenizer: Any, name: str, eos_ids: frozenset[int], calls: Calls) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._eos_ids = eos_ids
        self._calls = calls
        self._reader = reader = calls.reader
        self.form = form = calls.form
        self._shows_tools = _takes_tools(tokenizer)
        self.takes_tools = self._shows_tools and reader.known
        """Whether the chat template shows tools to the model, and its calls can be read."""
        texts = [*(form.texts if form else ()), reader.unbroken.opening, reader.unbroken.closing]
        special = set(tokenizer.added_tokens_decoder)
        self.markup_ids = frozenset(
            token for text in texts for token in encode_markup(tokenizer, text) if token in special
        )
        """Tokens that mark calls: visible where there are tools, special or not."""
        self._thoughts = marking_tokens(tokenizer, reasoning_tags(tokenizer))
        self._special = special_tokens(tokenizer)  # Other marks of thoughts tokenize as such anyway.
        self._never = control_tokens(tokenizer) - self._thoughts

    def check(self, output: Output) -> None:
        """Refuse what this model cannot be shown or be made to write.

        Raises:
            ConfigError: its template takes no tools, nobody could read its calls, or a schema cannot be
                enforced.
        """
        if output.tools and not self._shows_tools:
            raise _no_tools(self._name)
        if output.tools and not self.takes_tools:
            raise _no_calls(self._name)
        if output.constrained:
            self._compiler.check(output)

    def reader(self, output: Output) -> CallReader | None:
        """How to find and read the calls, if there can be any."""
        return self._reader.among(output) if output.tools else None

    def constraint(self, output: Output, tags: ReasoningTags | None) -> Constraint | None:
        """What keeps a new session to the output, if something has to.

        Raises:
            ConfigError: as ``check``.
        """
        return self._compiler.open(output, tags) if output.constrained else None

    def grammar(self, output: Output, tags: ReasoningTags | None, *, thought: bool) -> str:
        """The grammar of that constraint, for servers that can enforce it (in llguidance's form of Lark).

        Args:
            thought: the thinking is over, and nothing has been written behind it yet.

        Raises:
            ConfigError: as ``check``.
        """
        return self._compiler.source(output, tags, thought=thought)

    def opens_call(self, text: str) -> bool:
        """Whether a call may have begun in a text: a grammar that begins behind it would not know that."""
        opening = self.form.opening if self.form else ""
        return not opening or opening in text

    def plain(self, text: str) -> tuple[int, ...]:
        """Text of an answer in this model's tokens; of markup only that of thinking becomes tokens."""
        return encode_plain(self._tokenizer, text, never=self._never)

    def encode(self, text: str, *, calls: bool = True) -> tuple[int, ...]:
        """Text of an answer in this model's tokens; the marks of thoughts and calls become their own tokens.

        Args:
            calls: whether those of calls do.
        """
        return self._marked(text, self._thoughts & self._special, self.plain, calls=calls)

    def encode_exactly(self, text: str, *, calls: bool = True) -> tuple[int, ...]:
        """The same for a constraint: tokenizers may normalise what they encode, and a grammar has to see the
        very text.
        """
        return self._marked(text, self._thoughts, self._exactly, calls=calls)

    def _exactly(self, text: str) -> tuple[int, ...]:
        tokens = self._compiler.by_bytes(text)
        return self.plain(text) if tokens is None else tokens

    def _marked(
        self, text: str, marks: frozenset[str], plain: Callable[[str], Sequence[int]], *, calls: bool
    ) -> tuple[int, ...]:
        if calls:
            marks |= frozenset(self._tokenizer.convert_ids_to_tokens(sorted(self.markup_ids)))
        ids: list[int] = []
        start = 0
        for found in alternatives(marks).finditer(text):
            ids += plain(text[start : found.start()])
            ids.append(self._tokenizer.convert_tokens_to_ids(found[0]))
            start = found.end()
        return (*ids, *plain(text[start:]))

    @cached_property
    def _compiler(self) -> Grammars:
        from rsd_integrations.backends.shared.constrain import Grammars

        made = Grammars(self._tokenizer, self._eos_ids, self.form, self._name)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:  # Not a fast one: the first use says so.
            return made
        written = hashlib.sha256(backend.to_str().encode()).hexdigest()
        return self._calls.compilers.setdefault((written, self._eos_ids), made)


def check_tools(role: Role, model: Any, options: Mapping[str, Any] | None) -> None:
    """Refuse a draft or target that cannot be shown tools, before it is loaded.

    Raises:
        ConfigError: as of ``check_template``, or an option is unknown.
        ModelError: its tokenizer cannot be read.
    """
    if not is_object(role, model):
        check_template(Source.of(role, model, options), calls=role == "target")
    elif not model.takes_tools:
        raise _no_tools(model.info.name)


def check_template(source: Source, *, calls: bool = False) -> None:
    """Refuse a model that cannot be shown tools.

    Args:
        calls: whether it is the model that decides, for both, how calls are written.

    Raises:
        ConfigError: its template shows none, or nobody could read its calls.
    """
    if not _takes_tools(source.tokenizer):
        raise _no_tools(source.name)
    if calls and not Calls.of(source.tokenizer).reader.known:
        raise _no_calls(source.name)


def _no_tools(name: str) -> ConfigError:
    """The error for a model that cannot be shown tools."""
    return ConfigError(
        f"the chat template of {name!r} takes no tools.",
        hint="Use models made for tool calling (Qwen 2.5 Instruct, Qwen 3, Llama 3.1 Instruct, ...). "
        "Structured output needs no tools: with_structured_output(..., method='json_schema'), "
        "structured_predict(...), Output.of(response_format=...).",
    )


def _no_calls(name: str) -> ConfigError:
    """The error for a model of whose calls only their beginning is known."""
    return ConfigError(
        f"it is not known how {name!r} writes calls of tools, so none could be read.",
        hint="Use a target whose chat template writes calls as JSON or by keys and values (Qwen, GLM, "
        "Llama 3, Mistral, MiniMax, ...), or set its tokenizer's response_template.",
    )


def _takes_tools(tokenizer: Any) -> bool:
    """Whether the chat template shows tools to the model."""
    if not chat_template_text(tokenizer):
        return False
    try:
        shown = _text(tokenizer, [{"role": "user", "content": "x"}], True, tools=[PROBE_TOOL])
    except Exception:  # Jinja's, or whatever a template stumbles over.
        return False
    return PROBE_TOOL["function"]["name"] in shown


def call_format(tokenizer: Any) -> CallFormat | None:
    """How the model's template writes calls; None if it does not."""
    tags = reasoning_tags(tokenizer)
    if tags and tags.lead:
        return CALLS
    # A tokenizer may have several templates: the one that writes calls is chosen only where there are tools.
    more = {"tools": [PROBE_TOOL]} if _takes_tools(tokenizer) else {}
    return find_format(
        lambda messages, prompting: _text(tokenizer, messages, prompting, **more),
        tags.closing if tags else None,
        tokenizer.eos_token,
    )


def call_reader(tokenizer: Any, form: CallFormat | None) -> CallReader:
    """By the tokenizer's own response template if it says how calls look, else by the format."""
    template = getattr(tokenizer, "response_template", None)
    field = (template.get("fields") or {}).get("tool_calls") if isinstance(template, Mapping) else None
    form = form or HERMES
    typed = partial(_reader, tokenizer, form) if field else partial(plain_reader, form)
    known = bool(field) or form.between is not None
    opening, closing = (literal(field, "open"), literal(field, "close")) if field else (None, None)
    if opening is None:
        unbroken = _unbroken(tokenizer, form)
    else:
        unbroken = Unbroken(opening, closing or (form.closing if opening == form.opening else ""))
    return CallReader(unbroken, typed(Output()), typed if form.keyed else None, known)


def _reader(tokenizer: Any, form: CallFormat, output: Output) -> ReadCall:
    """By a response template; what it does not find, or would leave untyped, by the format."""
    plain = plain_reader(form, output)

    def parsed(text: str) -> list[ToolCall | InvalidToolCall]:
        try:
            message = tokenizer.parse_response(text, prefix="")
        except Exception as error:  # ValueError, KeyError, ...: templates decide what the parsers do.
            return read_message([str(error)], text)
        return read_message(message.get("tool_calls"), text)

    def read(text: str) -> list[ToolCall | InvalidToolCall] | None:
        # Response templates know no schemas, so of what is written by keys they make nothing but strings.
        ways = [plain, parsed] if form.keyed else [parsed, plain]
        found = ways[0](text)
        if any(isinstance(call, ToolCall) for call in found or ()):
            return found
        # Some response templates want more than what the chat template itself writes.
        otherwise = ways[1](text)
        return otherwise if any(isinstance(call, ToolCall) for call in otherwise or ()) else found

    return read


def _unbroken(tokenizer: Any, form: CallFormat) -> Unbroken:
    """The part of an answer that is a call, told from thoughts that begin with the same token."""
    tags = reasoning_tags(tokenizer)
    if tags is None or not form.opening or not tags.opening.startswith(form.opening):
        return form.unbroken
    return replace(form.unbroken, opening=form.before.strip())


def _text(tokenizer: Any, messages: Sequence[Message], prompting: bool, **more: Any) -> str:
    return str(
        tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompting, **more)
    )
