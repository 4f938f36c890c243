"""Conversations to token ids, by the tokenizer's own chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

from rsd_integrations.encoding.plain import (
    added_tokens,
    alternatives,
    encode_markup,
    encode_plain,
    remembered,
    special_tokens,
)
from rsd_integrations.encoding.tool_turns import ways_to_write
from rsd_integrations.encoding.written import written
from rsd_integrations.errors import ModelError, PromptError
from rsd_integrations.types import Message

# Private-use characters around control tokens in a user's text while a template is rendered.
_OPEN, _CLOSE, _EDGE = "\ue0f0", "\ue0f1", "\ue0f2"
_MARKS = str.maketrans("", "", _OPEN + _CLOSE + _EDGE)
_ESCAPED = re.compile("|".join(re.escape(f"\\u{ord(mark):04x}") for mark in (_OPEN, _CLOSE, _EDGE)))
"""The marks as Python's repr and ASCII JSON write them: some templates show tools that way."""

_LOOKED_UP = frozenset(
    ("role", "content", "name", "type", "id", "function", "functions", "tool", "tools", "tool_calls")
).union(
    ("tool_call_id", "arguments", "parameters", "properties", "required", "description", "enum", "items"),
    ("title", "default", "format", "reasoning", "reasoning_content", "thinking"),
)
"""Words that templates look for or compare with: never marked."""


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """The special tokens, and the added ones that the chat template writes."""
    return _control_tokens(tokenizer, chat_template_text(tokenizer))


def message_text(message: Message) -> str:
    """A message's content as text; lists of text parts are joined, no content is "".

    Each part begins a new line, or "12" and "5" would become "125"; an assistant's parts are joined as one
    text.

    Raises:
        PromptError: the content has parts that are not text.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        between = "" if message.get("role") == "assistant" else "\n"
        return between.join(_part_text(part) for part in content)
    raise PromptError(
        f"a message's content is {type(content).__name__}: {content!r:.80}.",
        hint="Give a string, or a list of strings and {'type': 'text', 'text': ...} parts.",
    )


def chat_template_text(tokenizer: Any) -> str:
    """The source of the tokenizer's chat templates; "" if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        return "\0".join(str(source) for source in template.values())
    return str(template) if template else ""


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    never: Iterable[str] = (),
    **template_kwargs: Any,
) -> tuple[int, ...]:
    """Token ids of a conversation under the tokenizer's own chat template.

    Only the template's own text can give control tokens; those spelled in messages, tools or
    template arguments are encoded as ordinary text. Control tokens are the special ones, the added
    ones that the template writes, and ``never``. Roles are the caller's to check. No second
    beginning-of-sequence token is added.

    Args:
        tokenizer: a transformers tokenizer.
        messages: chat turns; lists of text parts are flattened, and a chat that the template refuses is
            rewritten in ways that more templates take (see ``ways_to_write``).
        add_generation_prompt: end with the header of the assistant's turn.
        tools: function schemas, as the template takes them.
        never: further tokens that must not arise from messages.
        template_kwargs: further variables of the template.

    Raises:
        ModelError: the tokenizer has no chat template.
        PromptError: the template refuses the conversation, or a part is not text.
    """
    source = chat_template_text(tokenizer)
    if not source:
        raise ModelError(
            f"the tokenizer of {tokenizer_name(tokenizer)!r} has no chat template.",
            hint="Use an instruct or chat model, or set tokenizer.chat_template.",
        )
    control = _control_tokens(tokenizer, source) | frozenset(never)
    mark = _marker(control, _normalizer(tokenizer))
    rendered = _render(
        tokenizer,
        mark([_flat(message) for message in messages]),
        add_generation_prompt=add_generation_prompt,
        tools=mark(list(tools)) if tools else None,
        **mark(template_kwargs),
    )
    return _encode_rendered(tokenizer, rendered, control)


def _render(tokenizer: Any, messages: Any, **kwargs: Any) -> str:
    refused: Exception | None = None
    for chat in ways_to_write(messages):
        try:
            rendered = str(tokenizer.apply_chat_template(chat, tokenize=False, **kwargs))
            return _ESCAPED.sub(lambda found: chr(int(found[0][2:], 16)), rendered)
        except ImportError:  # The installed jinja2 is too old; the error says so.
            raise
        except Exception as error:  # Jinja's, or whatever a template stumbles over.
            refused = refused or error
    roles = [message.get("role") for message in messages]
    raise PromptError(
        f"the chat template of {tokenizer_name(tokenizer)!r} refuses a chat with roles {roles!r}: {refused}",
        hint="Unless that says why: check the order of the roles, and whether the model takes system turns "
        "and tools.",
    ) from refused


def _encode_rendered(tokenizer: Any, rendered: str, control: frozenset[str]) -> tuple[int, ...]:
    """Encode a rendered chat: marked control tokens spelled out, the template's own parsed."""
    pieces = _marks(control).split(_parted(rendered, control))
    ids = [*encode_markup(tokenizer, pieces[0], opening=True)]
    # Each piece once: a text of markup alone has tens of thousands, and few different ones.
    plain, markup = (
        cache(partial(encode_plain, tokenizer, never=control)),
        cache(partial(encode_markup, tokenizer)),
    )
    for position, piece in enumerate(pieces[1:], start=1):
        if piece:
            ids += plain(piece) if position % 2 else markup(piece)
    return tuple(ids)


def _parted(rendered: str, control: frozenset[str]) -> str:
    """A rendered chat whose edge marks stay, as lone marks, only where they split a control token."""
    pattern, reach = alternatives(control), max(map(len, control), default=0)
    first, *rest = rendered.split(_EDGE)
    made, left = [first], _bare(first[-4 * reach :])
    for number, part in enumerate(rest, start=1):
        right = _bare("".join(rest[number - 1 : number + reach])[: 4 * reach])[:reach]
        left = left[-reach:]
        found = pattern.search(left + right)
        while found and not found.start() < len(left) < found.end():
            found = pattern.search(left + right, found.start() + 1)
        made += [_CLOSE if found else "", part]
        left += _bare(part[-4 * reach :])
    return "".join(made)


def _bare(text: str) -> str:
    return text.translate(_MARKS)


def _flat(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if value is not None}
    if "content" in kept:
        kept["content"] = message_text(message)
    if "reasoning_content" in kept:
        kept = {"thinking": kept["reasoning_content"], **kept}  # For gpt-oss, as newer transformers do.
    calls = kept.get("tool_calls")
    if isinstance(calls, list | tuple) and calls:
        kept = {"content": "", **kept, "tool_calls": [_with_object(call) for call in calls]}
    return kept


def _with_object(call: Any) -> Any:
    """A call with its arguments as an object, where they are JSON text as in OpenAI's API."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    made = {**function, "arguments": arguments} if isinstance(arguments, dict) else function
    return {**call, "function": made}


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, Mapping) and part.get("type") == "text":
        raise PromptError(
            f"a message has a text part whose text is {part.get('text')!r:.200}.",
            hint="Give a string there, or leave the part out.",
        )
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise PromptError(
        f"a message has a part of type {kind!r}, which is not text.",
        hint="RSD is for text models: remove images, audio and files.",
    )


def _normalizer(tokenizer: Any) -> Callable[[str], str]:
    """What the tokenizer does to a text before it looks for tokens in it."""
    found = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return str if found is None else found.normalize_str


def _marker(control: frozenset[str], normalize: Callable[[str], str]) -> Callable[[Any], Any]:
    """A function that puts marks around control tokens in all strings of a structure.

    Another mark stands at the edges of a text that could form a control token with what a template writes
    beside it.
    """
    pattern, edges = alternatives(control), _edges(control)

    def marked(key: Any, item: Any) -> Any:
        # Templates compare roles and types, and one that is a word cannot be a piece of markup.
        word = key in ("role", "type") and isinstance(item, str) and item.isidentifier()
        return item if word else mark(item)

    def named(key: Any) -> Any:
        # Templates look for keys that are words.
        return edges.around(key) if isinstance(key, str) and key.isidentifier() else mark(key)

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            return text(_bare(value))
        if isinstance(value, Mapping):
            return {named(key): marked(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [mark(item) for item in value]
        return value

    def text(bare: str) -> str:
        normal = normalize(bare)
        if normal != bare and len(pattern.findall(normal)) > len(pattern.findall(bare)):
            # Look-alikes that the normaliser turns into a control token; one by one its characters are none.
            return "".join(f"{_CLOSE}{character}" for character in bare) + _CLOSE
        return edges.around(bare, pattern.sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", bare))

    return mark


@dataclass(frozen=True)
class _Edges:
    """How texts begin and end that may be the rest or the start of a control token.

    ``heads`` and ``tails``: such starts and rests of tokens. ``lengths``: of these. ``names``: words that
    are a token without the signs around it. ``tokens``: all tokens, in one string with marks between.
    ``longest``: the length of the longest token.
    """

    heads: frozenset[str]
    tails: frozenset[str]
    lengths: tuple[int, ...]
    names: frozenset[str]
    tokens: str
    longest: int

    def around(self, bare: str, shown: str | None = None) -> str:
        """A text (``shown`` in its place, if given) with edge marks where it begins or ends like that."""
        if bare.isidentifier():
            within = bare in self.names and bare not in _LOOKED_UP
        else:
            within = len(bare) <= self.longest and bool(bare.strip()) and bare in self.tokens
        # By length, as vocabularies with hundreds of control tokens have thousands of heads and tails.
        begins = within or not self.tails.isdisjoint([bare[:length] for length in self.lengths])
        ends = within or not self.heads.isdisjoint([bare[-length:] for length in self.lengths])
        before, behind = _EDGE if begins else "", _EDGE if ends else ""
        return f"{before}{bare if shown is None else shown}{behind}"


@lru_cache(maxsize=64)
def _edges(control: frozenset[str]) -> _Edges:
    # Parts of a token that are words are left out: a template does not write half a word beside a word.
    cuts = [(token, place) for token in control for place in range(1, len(token))]
    heads = frozenset(token[:place] for token, place in cuts if not token[:place].isidentifier())
    tails = frozenset(token[place:] for token, place in cuts if not token[place:].isidentifier())
    words = frozenset(re.sub(r"^\W+|\W+$", "", token) for token in control)
    return _Edges(
        heads,
        tails,
        tuple(sorted({*map(len, heads), *map(len, tails)})),
        words - control,
        _EDGE.join(control),
        max(map(len, control), default=0),
    )


@lru_cache(maxsize=64)
def _marks(control: frozenset[str]) -> re.Pattern[str]:
    # A template's string functions may part a mark from its token: lone marks are dropped.
    return re.compile(f"{_OPEN}({alternatives(control).pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]")


def _control_tokens(tokenizer: Any, template: str) -> frozenset[str]:
    return remembered(tokenizer, ("control", template), lambda: _found_control_tokens(tokenizer, template))


def _found_control_tokens(tokenizer: Any, template: str) -> frozenset[str]:
    # Gemma lists "\n" among its added tokens: white space is never control.
    added = {token.content for token in added_tokens(tokenizer) if not token.content.isspace()}
    named = special_tokens(tokenizer) | {token for token in added if token in template}
    rest = added - named if template else set()
    return named | written(tokenizer, rest) if rest else named


def tokenizer_name(tokenizer: Any) -> str:
    """Where it came from, for messages."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
