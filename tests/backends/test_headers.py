"""Messages with headers, as gpt-oss writes them, token by token: what is shown of them, and what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd_integrations.backends.shared.describe import hidden_ids
from rsd_integrations.backends.shared.headers import CALLS, Messages
from rsd_integrations.backends.shared.reasoning import reasoning_tags
from rsd_integrations.encoding import encode_markup
from rsd_integrations.text.calls import CallFormat
from rsd_integrations.text.thoughts import ReasoningSplitter
from tests.parrots import GPT_OSS

TOKENIZER = GPT_OSS.tokenizer()
TAGS = reasoning_tags(TOKENIZER)
HIDDEN = hidden_ids(TOKENIZER) | {TOKENIZER.convert_tokens_to_ids(end) for end in GPT_OSS.ends}
THINKS, FINAL, NEXT = (
    "<|channel|>analysis<|message|>",
    "<|channel|>final<|message|>",
    "<|end|><|start|>assistant",
)
CALLED = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"


def messages(calls: CallFormat | None = CALLS) -> Messages:
    assert TAGS is not None
    return Messages(TOKENIZER, HIDDEN, TAGS, calls)


def shown(text: str, calls: CallFormat | None = CALLS) -> str:
    made = messages(calls)
    return "".join(made.push([token]) for token in encode_markup(TOKENIZER, text)) + made.rest()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (f"{FINAL}Hi.<|return|>", "Hi."),
        (f"{THINKS}Hm.{NEXT}{FINAL}Hi.", f"{THINKS}Hm.<|end|>Hi."),
        (f"{THINKS}Hm.{NEXT}{THINKS}So.{NEXT}{FINAL}Hi.", f"{THINKS}Hm.\n\nSo.<|end|>Hi."),
        (f"{THINKS}Hm.{NEXT}<|channel|>final <|constrain|>json<|message|>{{}}", f"{THINKS}Hm.<|end|>{{}}"),
        # An end that is missing, and a start.
        (f"{THINKS}Hm.{FINAL}Hi.", f"{THINKS}Hm.<|end|>Hi."),
        (f"{FINAL}<|message|>Hi.", "Hi."),
        # What is said before a call is for the user.
        (f"<|channel|>commentary<|message|>I add.{NEXT}{CALLED}{{}}<|call|>", f"I add.\n\n{CALLED}{{}}"),
        # Where the recipient stands, and whether it has a namespace, differs.
        (" to=functions.add<|channel|>commentary json<|message|>{}", f"{CALLED}{{}}"),
        (f"{THINKS}Hm.{NEXT} to=add<|channel|>analysis<|message|>{{}}", f"{THINKS}Hm.<|end|>{CALLED}{{}}"),
        # No header at all.
        ("It is 4.", "It is 4."),
        ("to be <|end|>or not", "to be \n\nor not"),
        ("to", "to"),
        (f"{THINKS}Hm.<|end|> So", f"{THINKS}Hm.<|end|> So"),
        ("<|channel|>" + "9" * 100, "<|channel|>" + "9" * 100),
        # Cut off.
        (f"{THINKS}Hm.<|end|><|start|>assis", f"{THINKS}Hm."),
        (f"{THINKS}Hm.<|end|><|return|>", f"{THINKS}Hm."),
        ("<|channel|>ana<|return|>", ""),
    ],
)
def test_what_is_shown(written: str, expected: str) -> None:
    assert shown(written) == expected


def test_without_tools_the_header_of_a_call_is_nothing() -> None:
    assert shown(f"{CALLED}{{}}", None) == "{}"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [({"open_in_prompt": True}, "So it is.<|end|>Hi."), ({"answer": ""}, "So it is.\n\nHi.")],
)
def test_a_prompt_may_end_with_a_header(tags: dict[str, object], expected: str) -> None:
    assert TAGS is not None
    made = Messages(TOKENIZER, HIDDEN, replace(TAGS, **tags), None)  # type: ignore[arg-type]
    assert made.push(encode_markup(TOKENIZER, f"So it is.{NEXT}{FINAL}Hi.")) == expected


PIECES = [
    "<|channel|>",
    "analysis",
    "final",
    " to=functions.add",
    "<|message|>",
    "<|end|>",
    "<|start|>assistant",
]
PIECES += [THINKS, FINAL, NEXT, "Hm.", " so ", "\n\n", "ки", "<|return|>", "<|constrain|>"]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.sampled_from(PIECES), max_size=4), st.data()
)
def test_going_back_forgets_what_was_rejected(
    pieces: list[str], more: list[str], data: st.DataObject
) -> None:
    """Wherever a step begins, within a header too; and any text has an end."""
    ids, rejected = (encode_markup(TOKENIZER, "".join(part)) for part in (pieces, more))
    place = data.draw(st.integers(0, len(ids)))
    made = messages()
    first = made.push(ids[:place])
    made.mark()
    made.push(rejected)
    made.back()
    assert first + made.push(ids[place:]) + made.rest() == shown("".join(pieces))
    splitter = ReasoningSplitter(TAGS)
    answer, thoughts = splitter.push(shown("".join(pieces)), final=True)
    assert len(answer) + len(thoughts) <= len(shown("".join(pieces)))
