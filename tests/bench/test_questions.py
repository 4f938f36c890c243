"""Questions and known answers from files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rsd_integrations.bench.questions import drawn, read_questions
from rsd_integrations.errors import ConfigError, PromptError

TWO = [("What is 1 + 1?", "2"), ("Ä, or:\nB?", "B")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.jsonl",
            '{"question": "What is 1 + 1?", "answer": 2}\n\n{"answer": "B", "question": "Ä, or:\\nB?"}\n',
        ),
        ("a.json", '[{"Problem": "What is 1 + 1?", "Answer": 2}, {"Problem": "Ä, or:\\nB?", "Answer": "B"}]'),
        (
            "lines.json",
            '{"question": "What is 1 + 1?", "answer": 2}\r\n{"question": "Ä, or:\\nB?", "answer": "B"}',
        ),
        ("a.csv", '\ufeffid,prompt,expected\n1,What is 1 + 1?,2\n2,"Ä, or:\nB?",B\n'),
        ("padded.csv", 'prompt,expected,, , \n,,\nWhat is 1 + 1?,2,, , \n , ,,\n"Ä, or:\nB?",B,\n,,\n,,,\n'),
        ("b.csv", '\ufeffprompt;expected\r\nWhat is 1 + 1?;2\r\n"Ä, or:\nB?";B\r\n'),
        ("a.TSV", 'problem\tsolution\tanswer\nWhat is 1 + 1?\t.\t2\n"Ä, or:\nB?"\t.\tB\n'),
    ],
)
def test_kinds_of_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_questions(tmp_path / name) == TWO


def test_cells_of_a_table_are_taken_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    limit, long = csv.field_size_limit(), "x" * 200_000
    file.write_text(f"question,answer\nWhat\u2028is\x0cit?,1\n{long},2\n", encoding="utf-8")
    assert read_questions(file) == [("What\u2028is\x0cit?", "1"), (long, "2")]
    assert csv.field_size_limit() == limit


def test_fields_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "no", "q": "yes", "answer": "no", "gold": 1.5}')
    assert read_questions(file, question="q", answer="gold") == [("yes", "1.5")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"question": "x", "answer": "y"}\n{"question"', r"line 2 of .*a\.jsonl' is no JSON"),
        ("a.jsonl", '["x", "y"]', r"line 1 of .* is no object: \['x', 'y'\]"),
        (
            "a.jsonl",
            '{"question": "x", "gold": "y"}',
            r"line 1 .* has no answer; its fields are 'question', 'gold'",
        ),
        ("a.jsonl", '{"question": "x", "gold": "y"}', r"\. Name the field with answer_field=\.$"),
        (
            "a.jsonl",
            '{"question": "x", "answer": null}',
            r"has 'answer': None as answer\. Give a text or a number, or name another .*answer_field",
        ),
        ("a.jsonl", '{"question": " ", "answer": "y"}', r"has 'question': ' ' as question"),
        ("a.jsonl", '{"question": "x", "answer": true}', r"has 'answer': True as answer"),
        ("a.jsonl", "\n", "has no questions"),
        ("a.json", '{"question": "x"}', "holds no list"),
        ("a.json", "[", "a.json' is no JSON"),
        ("a.json", "[" * 100_000, "a.json' is no JSON: maximum recursion"),
        ("a.json", '{"data":\n[]}', r"holds no list but \{'data': \[\]\}"),
        ("a.jsonl", '{"question": "x", "answer": NaN}', "has 'answer': nan as answer"),
        ("a.csv", "question,answer\nWhat is 1,000 + 1?,1001\n", "line 2 .* more cells .*1001.* in quotation"),
        ("a.csv", "question;answer\nIs it 1; 2?;2\n", "line 2 .* Put cells with ';' in quotation marks"),
        ("a.csv", "question,notes;more\nx,y\n", "has no answer; its fields are 'question', 'notes;more'"),
        ("a.csv", "question,gold\nx,y,\n", "has no answer; its fields are 'question', 'gold'\\. Name"),
        ("a.csv", "answer,question,answer\n1,x,2\n", "line of .*a.csv' names 'answer' 2 times. Leave one"),
        ("a.csv", "question,answer\n,,\n", "has no questions"),
        ("a.csv", "question,answer\n,,3\n", "line 2 .* more cells than the first line names: \\['3'\\]"),
        ("a.csv", "question,answer\nx\n", r"line 2 .* has 'answer': None as answer"),
        ("a.parquet", "PAR1", "is of no kind that is known. Give a file .*jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_questions(tmp_path / name)


@pytest.mark.parametrize("field", ["question", "answer"])
def test_half_a_character_is_named_with_its_line(tmp_path: Path, field: str) -> None:
    good = {"question": "x", "answer": "y"}
    lines = [json.dumps(entry) for entry in (good, good | {field: "caf\udce9"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        PromptError, match=f"{field}' of line 2 of .*a.jsonl' has half a character at position 3"
    ):
        read_questions(tmp_path / "a.jsonl")


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        read_questions(tmp_path / "a.jsonl")


def test_a_draw_keeps_the_order_and_is_repeated_by_its_seed() -> None:
    some = drawn(100, 10, 3)
    assert len(set(some)) == 10
    assert some == sorted(some) == drawn(100, 10, 3) != drawn(100, 10, 4)
    assert drawn(100, None, 3) == drawn(100, 100, 3) == list(range(100))
    with pytest.raises(ConfigError, match="101 questions were asked for, and there are 100"):
        drawn(100, 101, 3)


@pytest.mark.parametrize("count", [1, 5, 30, 70])
def test_what_is_skipped_is_what_a_run_of_so_many_takes(count: int) -> None:
    """So that a threshold can be confirmed on questions that it was not chosen by."""
    first, others = drawn(100, count, 3), drawn(100, 30, 3, skip=count)
    assert sorted({*first, *others}) == drawn(100, count + 30, 3)
    assert sorted([*first, *drawn(100, None, 3, skip=count)]) == list(range(100))
    with pytest.raises(ConfigError, match=r"2 questions were .* there are 1 without the 99 to skip"):
        drawn(100, 2, 3, skip=99)
    with pytest.raises(ConfigError, match=r"1 question was .* there are 0 without the 100 to skip"):
        drawn(100, None, 3, skip=100)
