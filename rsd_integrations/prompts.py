"""Check a prompt before anything is queued: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from typing import Any

from rsd_integrations.errors import PromptError
from rsd_integrations.types import DEEPEST, Message, Prompt


def check_prompt(prompt: Any) -> Prompt:
    """A prompt as the backends take it: text, or a list of plain message dicts, in which results stand in the
    order of the calls before them.

    Raises:
        PromptError: it is empty, malformed, or holds text that cannot be encoded.
    """
    if isinstance(prompt, str):
        check_text(prompt, "the prompt")
        if not prompt.strip():
            raise PromptError(f"the prompt is empty: {prompt!r:.200}.", hint="Give a question or a chat.")
        return prompt
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(
            f"a prompt must be a string or a list of messages, not {type(prompt).__name__}: {prompt!r:.200}.",
            hint='Write "text" or [{"role": "user", "content": "text"}].',
        )
    if not prompt:
        raise PromptError("the list of messages is empty.", hint="Give at least one message.")
    return _in_order([_check_message(message, index) for index, message in enumerate(prompt)])


def _in_order(messages: list[Message]) -> list[Message]:
    """Most chat templates show no ids, so only its place tells the model which call a result belongs to."""
    made: list[Message] = []
    for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
        turns = list(group)
        made += _by_calls(_call_ids(made), turns) if is_result else turns
    return made


def _by_calls(ids: Sequence[str], results: Sequence[Message]) -> Sequence[Message]:
    """Results whose id names no call, or several, stand for the calls that are left, in order."""
    shared = Counter(ids)
    own = {key: place for place, key in enumerate(ids) if shared[key] == 1}
    named = [own.get(_key(result.get("tool_call_id"))) for result in results]
    left = iter(sorted({*range(len(ids))}.difference(named)))
    places = [next(left, len(ids)) if place is None else place for place in named]
    return [results[number] for number in sorted(range(len(results)), key=places.__getitem__)]


def _call_ids(messages: Sequence[Message]) -> list[str]:
    """Those that the last turns made: each of parallel calls may stand in one of its own."""
    turns = list(takewhile(lambda message: message["role"] == "assistant", reversed(messages)))
    listed = [turn.get("tool_calls") for turn in reversed(turns)]
    calls = [call for one in listed if isinstance(one, list) for call in one]
    return [_key(call.get("id")) for call in calls if isinstance(call, dict)]


def _key(value: object) -> str:
    return str(value or "")


def _check_message(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(
            f"message {index} must be a dict with a role, not {message!r:.200}.",
            hint='Write {"role": "user", "content": "text"}.',
        )
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise PromptError(
            f"message {index} has neither content nor tool_calls: {message!r:.200}.",
            hint='Add "content": "text".',
        )
    if content is not None and not isinstance(content, str | list):
        raise PromptError(
            f"the content of message {index} must be a string or a list of text parts, not {content!r:.200}.",
            hint="Convert it to text first.",
        )
    for text in all_texts(message):
        check_text(text, f"message {index}")
    return {name: _copied(part) for name, part in message.items()}


def _copied(value: Any) -> Any:
    """What its giver cannot change any more: the request may wait, or be rendered once more."""
    if isinstance(value, str):
        return value
    if type(value) is dict or isinstance(value, Mapping):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(part) for part in value]
    return value


def check_steps(steps: Any) -> tuple[str, ...]:
    """The texts of steps that are to be scored.

    Raises:
        PromptError: they are no sequence of texts.
    """
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise PromptError(f"steps={steps!r:.200} is no list of texts.", hint="Write [text, ...].")
    for step in steps:
        check_text(step, "a step")
    return tuple(steps)


def check_text(text: Any, name: str) -> None:
    """Refuse what no tokenizer takes.

    Raises:
        PromptError: it is no string, or has half a surrogate pair in it.
    """
    if not isinstance(text, str):
        raise PromptError(f"{name} is no string but {text!r:.200}.", hint="Convert it to text first.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = error.start
        raise PromptError(
            f"{name} has half a character at position {place}, the lone surrogate {text[place]!r}: "
            f"{text[max(0, place - 20) : place + 20]!r}.",
            hint='Join the halves, or replace lone ones: text.encode("utf-16", "surrogatepass")'
            '.decode("utf-16", "replace").',
        ) from error


def all_texts(value: Any, depth: int = DEEPEST) -> Iterator[str]:
    """All strings in a nested structure, such as a message with its parts and calls.

    Raises:
        PromptError: it is nested too deep to be rendered.
    """
    if depth < 0:
        raise PromptError(f"a message is nested more than {DEEPEST} levels deep.", hint="Flatten it.")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from all_texts(key, depth - 1)
            yield from all_texts(item, depth - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from all_texts(item, depth - 1)


def as_messages(prompt: Prompt) -> list[Message]:
    """A lone text is one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
