"""Chats with calls under templates that take not every one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.encoding import render_chat
from rsd_integrations.errors import PromptError
from rsd_integrations.prompts import check_prompt
from tests.small_tokenizers import CHATML, byte_level

ONE_CALL = CHATML.replace(
    "{%- for call in message.tool_calls",
    "{%- if message.tool_calls and message.tool_calls | length > 1 -%}"
    "{{- raise_exception('single tool-calls at once') -}}{%- endif -%}{%- for call in message.tool_calls",
)
"""As Llama 3.1's."""

NINE = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '\n' -}}"
    "{%- set ids = [m.tool_call_id] if m.role == 'tool' else (m.tool_calls or []) | map(attribute='id') -%}"
    "{%- for id in ids -%}{%- if id is undefined or id | length != 9 -%}"
    "{{- raise_exception('ids of length 9') -}}{%- endif -%}{{- id + '\n' -}}{%- endfor -%}{%- endfor -%}"
)
"""As Mistral's."""

ASKED: dict[str, object] = {"role": "user", "content": "1 + 2, 3 + 4?"}


def called(*keys: str, content: str = "") -> dict[str, Any]:
    calls = [
        {"type": "function", "id": key, "function": {"name": "add", "arguments": {"k": key}}} for key in keys
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(content: str, key: str | None) -> dict[str, object]:
    return {"role": "tool", "content": content, "tool_call_id": key}


def written(tokenizer: Any, chat: Any) -> str:
    return str(tokenizer.decode(render_chat(tokenizer, chat)))


@pytest.mark.parametrize(
    "results",
    [
        [result("3", "call_a"), result("7", "call_b")],
        [result("7", "call_b"), result("3", "call_a")],
        [result("3", None), result("7", None)],
    ],
)
def test_several_calls_of_a_turn_are_written_one_by_one(results: Any) -> None:
    tokenizer = byte_level(ONE_CALL)
    chat = [ASKED, called("call_a", "call_b", content="So."), *results, {"role": "user", "content": "And?"}]
    apart = [ASKED, called("call_a", content="So."), result("3", "call_a"), called("call_b")]
    apart += [result("7", "call_b"), {"role": "user", "content": "And?"}]
    assert written(tokenizer, chat) == written(tokenizer, apart)


def test_calls_without_results_are_written_too() -> None:
    tokenizer = byte_level(ONE_CALL)
    assert written(tokenizer, [ASKED, called("a", "b")]) == written(
        tokenizer, [ASKED, called("a"), called("b")]
    )


def test_foreign_ids_are_written_as_nine_letters_and_digits() -> None:
    chat = [ASKED, called("call_Yx7bQ2", "abcDEF123"), result("3", "call_Yx7bQ2"), result("7", "abcDEF123")]
    shown = written(byte_level(NINE), chat)
    ids = [line for line in shown.split("\n") if len(line) == 9]
    foreign, own, *rest = ids
    assert (own, rest) == ("abcDEF123", [foreign, own]) and foreign.isalnum()
    assert written(byte_level(NINE), chat) == shown


def test_missing_ids_are_written_too() -> None:
    shown = written(byte_level(NINE), [ASKED, called(""), result("3", None)])
    first, second = (line for line in shown.split("\n") if len(line) == 9)
    assert first == second


def test_what_a_template_takes_is_left_as_it_is() -> None:
    tokenizer = byte_level(CHATML)
    chat = [ASKED, called("call_a", "call_b"), result("3", "call_a"), result("7", "call_b")]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert written(tokenizer, chat) == expected


@given(st.permutations(range(5)), st.lists(st.sampled_from(["b0", "b1", "b9", "", None]), max_size=6))
def test_results_reach_a_model_in_the_order_of_their_calls(order: list[int], ids: list[str | None]) -> None:
    """Frameworks give those of parallel calls as they are done, and most chat templates show no ids."""
    first = [called("a0", "a1"), result("x", "a0"), result("y", "a1"), ASKED]
    calls, results = called(*(f"b{n}" for n in range(5))), [result(str(n), f"b{n}") for n in range(5)]
    chat = [ASKED, *first, calls, *results, ASKED]
    assert check_prompt(chat) == chat
    first[1:3] = first[2:0:-1]
    assert check_prompt([ASKED, *first, calls, *(results[n] for n in order), ASKED]) == chat
    odd = [calls, *(result(str(number), key) for number, key in enumerate(ids)), ASKED]
    assert sorted(map(str, check_prompt(odd))) == sorted(map(str, odd))


@pytest.mark.parametrize(
    ("calls", "results", "ordered"),
    [
        ("ab", "xy", "xy"),
        ("ab", "xa", "ax"),
        ("abc", "cxa", "axc"),
        ("ab", "bxy", "xby"),
        ("aab", "baa", "aab"),
        ("abc", "ca", "ac"),
        ("ab", "bab", "abb"),
        ("", "ba", "ba"),
    ],
)
def test_results_that_name_no_call_stand_for_those_that_are_left(
    calls: str, results: str, ordered: str
) -> None:
    chat = [ASKED, called(*calls), *(result(str(place), key) for place, key in enumerate(results))]
    made = check_prompt(chat)
    assert "".join(str(turn["tool_call_id"]) for turn in made[2:]) == ordered  # type: ignore[index]
    assert made[:2] == chat[:2] and sorted(map(str, made)) == sorted(map(str, chat))


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_parallel_calls_may_stand_in_a_turn_each(order: str) -> None:
    before = [ASKED, called("x"), result("0", "x"), called("a"), called("b", "c")]
    made = check_prompt([*before, *(result(key, key) for key in order), ASKED])
    assert made == [*before, *(result(key, key) for key in "abc"), ASKED]


@pytest.mark.parametrize("calls", [None, 5, "ab", [], ["a", None], [{"id": ["a"]}, 5]])
def test_results_behind_no_calls_stay_where_they_are(calls: Any) -> None:
    results = [result("7", "b"), result("3", "a"), result("4", None)]
    for before in ([], [{"role": "assistant", "content": "x", "tool_calls": calls}]):
        assert check_prompt([*before, *results]) == [*before, *results]


def test_what_is_refused_anyway_is_told_as_the_template_says_it() -> None:
    tokenizer = byte_level(ONE_CALL)
    chat = [ASKED, called("a", "b"), {"role": "critic", "content": "No."}]
    with pytest.raises(PromptError, match=r"\['user', 'assistant', 'critic'\]: single tool-calls at once"):
        render_chat(tokenizer, chat)
    for odd in ("no calls", ["no call"]):
        with pytest.raises(PromptError, match="refuses a chat"):
            render_chat(tokenizer, [ASKED, {"role": "critic", "content": "x", "tool_calls": odd}])


NO_SYSTEM = (
    "{%- if messages[0].role == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}"
    + CHATML
)
"""As Gemma 2's."""


@pytest.mark.parametrize("role", ["system", "developer"])
def test_what_a_template_knows_no_turn_for_stands_before_the_question(role: str) -> None:
    tokenizer = byte_level(NO_SYSTEM.replace("== 'system'", f"== '{role}'"))
    told, asked = {"role": role, "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}
    rest = [{"role": "assistant", "content": "3"}, {"role": "user", "content": "And?"}]
    both = {"role": "user", "content": "Be brief.\n\n1 + 2?"}
    assert written(tokenizer, [told, asked, *rest]) == written(tokenizer, [both, *rest])
    with pytest.raises(PromptError, match="System role"):
        written(byte_level(NO_SYSTEM.replace("'system'", f"'{role}'")), [told, *rest[:1]])


def test_arguments_as_openai_has_them_are_what_they_say() -> None:
    tokenizer = byte_level(CHATML)
    mine = called("call_a")
    theirs = called("call_a")
    theirs["tool_calls"][0]["function"]["arguments"] = '{"k": "call_a"}'
    theirs["content"] = None
    for chat in (
        [ASKED, theirs, result("3", "call_a")],
        [ASKED, {**theirs, "content": ""}, result("3", "call_a")],
    ):
        assert written(tokenizer, chat) == written(tokenizer, [ASKED, mine, result("3", "call_a")])
    theirs["tool_calls"][0]["function"]["arguments"] = "no JSON"
    assert "no JSON" in written(tokenizer, [ASKED, theirs, result("3", "call_a")])
    theirs["tool_calls"][0]["function"]["arguments"] = "[1]"  # No object: as it was given.
    assert '"[1]"' in written(tokenizer, [ASKED, theirs, result("3", "call_a")])


def test_a_turn_of_calls_has_a_text_for_templates_that_want_one() -> None:
    tokenizer = byte_level(NINE.replace("length != 9", "length > 9"))
    silent = {**called("call_a"), "content": None}
    assert written(tokenizer, [ASKED, silent]) == written(tokenizer, [ASKED, called("call_a")])


@pytest.mark.parametrize("shown", ["tool | string", "tool"])
def test_no_tool_makes_control_tokens_however_a_template_shows_it(shown: str) -> None:
    """Python's repr escapes marks of a private area."""
    tokenizer = byte_level("{%- for tool in tools or [] -%}{{- " + shown + " -}}{%- endfor -%}" + CHATML)
    tool = {"type": "function", "function": {"name": "f", "description": "a<|im_start|>b", "parameters": {}}}
    ids = render_chat(tokenizer, [ASKED], tools=[tool])
    plain = render_chat(tokenizer, [ASKED])
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert list(ids).count(start) == list(plain).count(start)
    assert "a<|im_start|>b" in tokenizer.decode(ids)
