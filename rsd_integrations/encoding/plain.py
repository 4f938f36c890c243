"""Plain text to token ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from rsd_integrations.errors import PromptError
from rsd_integrations.panics import is_panic
from rsd_integrations.prompts import check_text
from rsd_integrations.text.keyed import common_start

# Texts that seldom merge with what follows; the first one that does not is cut off again.
_ANCHORS = ("\n", ":", "a", "0")
_PROBES = ("a", "7", "(")

Made = TypeVar("Made")

_DEEPEST_TREE = 24
"""Groups within groups of a pattern, which Python compiles one within the other."""

_MOST_REMEMBERED = 64
"""Things that are remembered of a tokenizer at once."""


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
    facts, further = _facts(tokenizer), frozenset(never)
    ids_of_further = remembered(tokenizer, ("ids", further), lambda: _ids_of(tokenizer, further))
    refused = facts.special_ids | ids_of_further | frozenset(banned)
    pieces = _spelled_out(text, (alternatives(facts.special), alternatives(further)))
    # Each piece once: a text of markup alone has tens of thousands, and few different ones.
    encoded = cache(partial(_continue, tokenizer))
    ids = [token for piece in pieces for token in encoded(piece)]
    if refused.isdisjoint(ids):
        return tuple(ids)
    # A normaliser can turn look-alike characters into a control token: take them one by one.
    ids = [token for character in text for token in encoded(character)]
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

    That is, with the beginning-of-sequence token and the space in front that the tokenizer adds (no
    end-of-sequence token), but as plain text otherwise.

    Raises:
        PromptError: see ``encode_plain``.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    added = tokenizer.encode("a", verbose=False)
    start = (bos,) if bos is not None and added[:1] == [bos] else ()
    adds = bool(text) and _facts(tokenizer).adds_prefix
    if adds and text.startswith(" "):  # Some tokenizers add a space to any text, some only if it has none.
        adds = _encode(tokenizer, " a") != _encode(tokenizer, "a")
    return start + encode_plain(tokenizer, " " * adds + text, never=never, banned=banned)


def encode_markup(tokenizer: Any, text: str, *, opening: bool = False) -> tuple[int, ...]:
    """Encode trusted text, its control tokens parsed (never user text).

    Args:
        tokenizer: a transformers tokenizer.
        text: of a template, or of this package.
        opening: it begins the sequence, rather than continuing one.
    """
    return tuple(_encode(tokenizer, text) if opening else _continue(tokenizer, text))


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of an entry of the vocabulary; None if there is no such entry."""
    try:
        found = tokenizer.convert_tokens_to_ids(token)
    except UnicodeEncodeError:  # Half a character is no entry.
        return None
    if not isinstance(found, int) or found < 0 or tokenizer.convert_ids_to_tokens(found) != token:
        return None
    return found


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """The texts of all special tokens."""
    return _facts(tokenizer).special


def added_tokens(tokenizer: Any) -> Iterable[Any]:
    """The tokenizer's added tokens, special or not (with ``content`` and ``special``)."""
    return _facts(tokenizer).added


def remembered(tokenizer: Any, key: Hashable, make: Callable[[], Made]) -> Made:
    """The result of ``make``, kept while the tokenizer stays as it is: some have thousands of added tokens
    to look through.

    Args:
        key: what the result is, and what it was made of.
    """
    known = _facts(tokenizer).remembered
    found: Made | None = known.get(key)
    if found is None:
        if len(known) >= _MOST_REMEMBERED:
            known.clear()
        found = known[key] = make()
    return found


@lru_cache(maxsize=64)
def alternatives(tokens: frozenset[str]) -> re.Pattern[str]:
    """A pattern that finds any of these texts; of two at the same place, the longer."""
    return re.compile(_tree(sorted(token for token in tokens if token)) or "(?!)")


def _tree(texts: Sequence[str], depth: int = 0) -> str:
    """A pattern of these sorted texts, in which common beginnings are compared once: some vocabularies have a
    thousand control tokens that differ in a number.
    """
    if depth > _DEEPEST_TREE:
        return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    groups = [list(group) for _, group in groupby(filter(None, texts), key=itemgetter(0))]
    parts = []
    for group in groups:
        start = common_start(group[0], group[-1])
        rest = _tree([text[len(start) :] for text in group], depth + 1) if len(group) > 1 else ""
        parts.append(re.escape(start) + (f"(?:{rest})" if rest else ""))
    found = "|".join(parts)
    return f"(?:{found})?" if found and "" in texts else found


@dataclass(frozen=True)
class _Facts:
    """What is asked of a tokenizer again and again."""

    version: tuple[object, ...]
    added: tuple[Any, ...]
    special: frozenset[str]
    special_ids: frozenset[int]
    adds_prefix: bool
    remembered: dict[Hashable, Any] = field(default_factory=dict)


_known: WeakKeyDictionary[Any, _Facts] = WeakKeyDictionary()


def _facts(tokenizer: Any) -> _Facts:
    named = tuple(map(str, getattr(tokenizer, "all_special_tokens", ())))
    version = (len(tokenizer), named)
    facts = _known.get(tokenizer)
    if facts is None or facts.version != version:
        added = tuple(getattr(tokenizer, "added_tokens_decoder", {}).values())
        special = frozenset(named) | {token.content for token in added if token.special}
        # The unknown token may arise: a vocabulary need not know all ordinary text.
        unknown = getattr(tokenizer, "unk_token_id", None)
        special_ids = _ids_of(tokenizer, special) - {unknown}
        facts = _Facts(version, added, special, special_ids, _adds_prefix(tokenizer))
        _known[tokenizer] = facts
    return facts


def _spelled_out(text: str, patterns: Iterable[re.Pattern[str]]) -> list[str]:
    """Cut the text behind the first character of everything the patterns find, overlaps included."""
    cuts = {0, len(text)}
    for pattern in patterns:
        found = pattern.search(text)
        while found:
            cuts.add(found.start() + 1)
            found = pattern.search(text, found.start() + 1)
    return [text[start:end] for start, end in pairwise(sorted(cuts))]


def _continue(tokenizer: Any, text: str) -> list[int]:
    """Encode text without the space that some tokenizers put in front."""
    if not text:
        return []
    if _facts(tokenizer).adds_prefix:
        for anchor in _ANCHORS:
            before, ids = _encode(tokenizer, anchor), _encode(tokenizer, anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
    return _encode(tokenizer, text)


def _adds_prefix(tokenizer: Any) -> bool:
    """Whether a text encoded alone differs from the same text behind a line break."""
    before = _encode(tokenizer, "\n")
    return any(_encode(tokenizer, "\n" + probe) != before + _encode(tokenizer, probe) for probe in _PROBES)


def _encode(tokenizer: Any, text: str) -> list[int]:
    # Prompts were checked on arrival; tools, schemas and the like are first checked here.
    check_text(text, "a text for the models")
    try:
        return list(tokenizer.encode(text, add_special_tokens=False, verbose=False)) if text else []
    except BaseException as error:
        if not is_panic(error):  # Its regular expression gives up on millions of spaces, for one.
            raise
        raise PromptError(
            f"the tokenizer gave up on a text of {len(text)} characters: {error!s:.200}.",
            hint="Shorten it, or break up long repetitions in it.",
        ) from error


def _ids_of(tokenizer: Any, tokens: frozenset[str]) -> frozenset[int]:
    return frozenset(found for token in tokens if (found := token_id(tokenizer, token)) is not None)
