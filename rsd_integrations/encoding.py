"""Text to token ids without surprises: plain text stays plain, chat markup comes from templates alone.

Duck-typed on transformers tokenizers (5.16 and later, fast or slow); imports neither torch nor
transformers. Two dangers are dealt with here, for all models:

* Text that spells a control token ("<|im_end|>", a PRM's "<extra_0>") must not become that token.
  Each occurrence is cut after its first character and the parts are encoded apart: the text that the
  model reads is the same, the token cannot arise.
* SentencePiece-like tokenizers put a space in front of every text. A continuation must not get one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from rsd_integrations.errors import ModelError, PromptError
from rsd_integrations.types import Message

__all__ = [
    "chat_template_text",
    "control_tokens",
    "encode_markup",
    "encode_opening",
    "encode_plain",
    "message_text",
    "render_chat",
    "token_id",
]

# Private-use characters around control tokens in a user's text while a template is rendered.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
# Texts that seldom merge with what follows; the first one that does not is cut off again.
_ANCHORS = ("\n", ":", "a", "0")
_PROBES = ("a", "7", "(")
_adds_prefix_cache: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def encode_plain(
    tokenizer: Any, text: str, *, never: Iterable[str] = (), banned: Iterable[int] = ()
) -> tuple[int, ...]:
    """Encode text as the continuation of other text.

    No special token is added, none is parsed out of the text, and no space is put in front.
    Added tokens that are not special ("<think>", "<tool_call>" of most vocabularies) are parsed, as
    they are when their model writes them, unless they are in ``never``.

    Args:
        tokenizer: a transformers tokenizer.
        text: the text.
        never: further texts that must not become one token, such as a PRM's separators.
        banned: further ids that must not arise.

    Raises:
        PromptError: the tokenizer makes a forbidden token from a single ordinary character.
    """
    forbidden = _special_tokens(tokenizer) | frozenset(never)
    # Ordinary text may well be unknown to a vocabulary.
    refused = _ids_of(tokenizer, forbidden) - {getattr(tokenizer, "unk_token_id", None)} | set(banned)
    ids = [token for piece in _spelled_out(text, forbidden) for token in _continue(tokenizer, piece)]
    if refused.isdisjoint(ids):
        return tuple(ids)
    # A normaliser can turn look-alike characters into a control token: take them one by one.
    ids = [token for character in text for token in _continue(tokenizer, character)]
    if refused.isdisjoint(ids):
        return tuple(ids)
    raise PromptError(
        f"the tokenizer turns a control token out of ordinary text: {text[:80]!r}.",
        hint="Remove that character from the text.",
    )


def encode_opening(
    tokenizer: Any, text: str, *, never: Iterable[str] = (), banned: Iterable[int] = ()
) -> tuple[int, ...]:
    """Encode plain text as the beginning of a sequence, as ``tokenizer(text)`` would.

    That is with the beginning-of-sequence token and the space in front that the tokenizer adds (no
    end-of-sequence token), but as plain text otherwise.

    Raises:
        PromptError: see ``encode_plain``.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    added = tokenizer.encode("a", verbose=False)
    start = (bos,) if bos is not None and added[:1] == [bos] else ()
    space = " " if _adds_prefix(tokenizer) and text else ""
    return start + encode_plain(tokenizer, space + text, never=never, banned=banned)


def encode_markup(tokenizer: Any, text: str, *, opening: bool = False) -> tuple[int, ...]:
    """Encode trusted text, its control tokens parsed (never user text).

    Args:
        tokenizer: a transformers tokenizer.
        text: of a template, or of this package.
        opening: it begins the sequence, rather than continuing one.
    """
    return tuple(_encode(tokenizer, text) if opening else _continue(tokenizer, text))


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """The special tokens, and the added ones that the chat template writes."""
    return _control_tokens(tokenizer, chat_template_text(tokenizer))


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of an entry of the vocabulary; None if there is no such entry."""
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or found < 0 or tokenizer.convert_ids_to_tokens(found) != token:
        return None
    return found


def message_text(message: Message) -> str:
    """A message's content as text; lists of text parts are joined, no content is "".

    Raises:
        PromptError: the content has parts that are not text.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(_part_text(part) for part in content)
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
        messages: chat turns; lists of text parts are flattened.
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
            f"the tokenizer of {_name(tokenizer)!r} has no chat template.",
            hint="Use an instruct or chat model, or set tokenizer.chat_template.",
        )
    control = _control_tokens(tokenizer, source) | frozenset(never)
    mark = _marker(control)
    rendered = _render(
        tokenizer,
        mark([_flat(message) for message in messages]),
        add_generation_prompt=add_generation_prompt,
        tools=mark(list(tools)) if tools else None,
        **mark(template_kwargs),
    )
    return _encode_rendered(tokenizer, rendered, control)


def _render(tokenizer: Any, messages: Any, **kwargs: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))
    except Exception as error:  # Jinja's, or whatever a template stumbles over.
        roles = [message.get("role") for message in messages]
        raise PromptError(
            f"the chat template of {_name(tokenizer)!r} refuses a chat with roles {roles!r}: {error}",
            hint="Check the order of the roles, and whether the model takes system turns and tools.",
        ) from error


def _encode_rendered(tokenizer: Any, rendered: str, control: frozenset[str]) -> tuple[int, ...]:
    """Encode a rendered chat: marked control tokens spelled out, the template's own parsed."""
    pieces = _marks(control).split(rendered)
    ids = _encode(tokenizer, pieces[0])
    for position, piece in enumerate(pieces[1:], start=1):
        if piece and position % 2:
            ids += encode_plain(tokenizer, piece, never=control)
        elif piece:
            ids += _continue(tokenizer, piece)
    return tuple(ids)


def _flat(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if value is not None}
    if "content" in kept:
        kept["content"] = message_text(message)
    return kept


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise PromptError(
        f"a message has a part of type {kind!r}, which is not text.",
        hint="RSD is for text models: remove images, audio and files.",
    )


def _marker(control: frozenset[str]) -> Callable[[Any], Any]:
    """A function that puts marks around control tokens in all strings of a structure."""
    pattern = _alternatives(control)

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            bare = value.replace(_OPEN, "").replace(_CLOSE, "")
            return pattern.sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", bare)
        if isinstance(value, Mapping):
            return {key: mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [mark(item) for item in value]
        return value

    return mark


@lru_cache(maxsize=64)
def _alternatives(tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted((token for token in tokens if token), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


@lru_cache(maxsize=64)
def _marks(control: frozenset[str]) -> re.Pattern[str]:
    # A template's string functions may part a mark from its token: lone marks are dropped.
    return re.compile(f"{_OPEN}({_alternatives(control).pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]")


def _spelled_out(text: str, forbidden: frozenset[str]) -> list[str]:
    """Cut the text behind the first character of every forbidden token in it."""
    pattern = _alternatives(forbidden)
    cuts: list[int] = []
    found = pattern.search(text)
    while found:
        cuts.append(found.start() + 1)
        found = pattern.search(text, found.start() + 1)
    edges = [0, *cuts, len(text)]
    return [text[start:end] for start, end in pairwise(edges) if start < end]


def _continue(tokenizer: Any, text: str) -> list[int]:
    """Encode text without the space that some tokenizers put in front."""
    if not text:
        return []
    if _adds_prefix(tokenizer):
        for anchor in _ANCHORS:
            before, ids = _encode(tokenizer, anchor), _encode(tokenizer, anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
    return _encode(tokenizer, text)


def _adds_prefix(tokenizer: Any) -> bool:
    """Whether a text encoded alone differs from the same text behind a line break."""
    if tokenizer not in _adds_prefix_cache:
        before = _encode(tokenizer, "\n")
        _adds_prefix_cache[tokenizer] = any(
            _encode(tokenizer, "\n" + probe) != before + _encode(tokenizer, probe) for probe in _PROBES
        )
    return _adds_prefix_cache[tokenizer]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False)) if text else []


def _special_tokens(tokenizer: Any) -> frozenset[str]:
    return frozenset(map(str, getattr(tokenizer, "all_special_tokens", ()))) | {
        token.content for token in _added_tokens(tokenizer) if token.special
    }


def _control_tokens(tokenizer: Any, template: str) -> frozenset[str]:
    # Gemma lists "\n" among its added tokens: white space is never control.
    written = {
        token.content
        for token in _added_tokens(tokenizer)
        if token.content in template and not token.content.isspace()
    }
    return _special_tokens(tokenizer) | written


def _added_tokens(tokenizer: Any) -> Iterable[Any]:
    return getattr(tokenizer, "added_tokens_decoder", {}).values()


def _ids_of(tokenizer: Any, tokens: frozenset[str]) -> frozenset[int]:
    return frozenset(found for token in tokens if (found := token_id(tokenizer, token)) is not None)


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
