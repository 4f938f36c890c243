"""Questions with known answers, from a file."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_integrations.bench.matching import Match
from rsd_integrations.errors import ConfigError
from rsd_integrations.prompts import check_text
from rsd_integrations.types import GivenPrompt

__all__ = ["Question", "drawn", "read_questions"]

_QUESTION = ("question", "problem", "prompt", "input", "query")
_ANSWER = ("answer", "expected", "final_answer", "target", "output", "solution")
_KINDS = "Give a file of questions and answers in UTF-8: .jsonl, .json, .csv or .tsv."


@dataclass(frozen=True)
class Question:
    """A question with its known answer.

    Args:
        prompt: what is asked.
        known: the right answer.
        match: whether a text is right, given that.
        length: the class that it is counted in, if any.
        entry: its place in its file, from 1 on.
    """

    prompt: GivenPrompt
    known: str
    match: Match
    length: int | None = None
    entry: int | None = None

    def right(self, text: str) -> bool:
        """Whether a text is right."""
        return self.match(text, self.known)


def read_questions(
    path: Path, *, question: str | None = None, answer: str | None = None
) -> list[tuple[str, str]]:
    """(question, known answer) of each line or entry.

    Args:
        path: JSON lines (.jsonl), a JSON list (.json), or a table with a head (.csv, .tsv), in UTF-8.
        question: the field's name; None: the first of the usual ones (question, problem, ...).
        answer: likewise (answer, expected, ...).

    Raises:
        ConfigError: the file cannot be read, or an entry has no such fields.
        PromptError: a field has half a character in it.
    """
    entries = list(_entries(path))
    if not entries:
        raise ConfigError(f"{str(path)!r} has no questions.", hint="Give one entry a question.")
    return [
        (_field(entry, question, _QUESTION, "question"), _field(entry, answer, _ANSWER, "answer"))
        for entry in entries
    ]


def drawn(total: int, count: int | None, seed: int, *, skip: int = 0) -> list[int]:
    """Places of so many questions, drawn at random, in the file's order.

    Args:
        total: questions that there are.
        count: None: all.
        seed: of the draw; with the same seed a larger count adds to those of a smaller one.
        skip: leave out the first so many drawn, which are those of a run with this count.

    Raises:
        ConfigError: there are fewer questions.
    """
    left = total - skip
    if left < max(1, count or 1):
        without = f" without the {skip} to skip" if skip else ""
        were = "question was" if (count or 1) == 1 else "questions were"
        raise ConfigError(
            f"{count or 1} {were} asked for, and there are {max(0, left)}{without}.",
            hint="Ask for fewer.",
        )
    order = random.Random(seed).sample(range(total), total)
    return sorted(order[skip : total if count is None else skip + count])


@dataclass(frozen=True)
class _Entry:
    """A line of a file or an entry of a list, and what its place is called in messages."""

    where: str
    fields: Mapping[str, Any]


def _entries(path: Path) -> Iterator[_Entry]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 ({error.reason})"
        raise ConfigError(f"{str(path)!r} cannot be read: {reason}.", hint=_KINDS) from error
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _rows(path, text, _comma(text) if kind == ".csv" else "\t")
    elif kind in (".jsonl", ".ndjson") or (kind == ".json" and _is_lines(text)):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"line {number} of {str(path)!r}"
                yield _object(where, _json(where, line))
    elif kind == ".json":
        entries = _json(f"{str(path)!r}", text)
        if not isinstance(entries, list):
            raise ConfigError(
                f"{str(path)!r} holds no list but {entries!r:.80}.", hint="Give a JSON list of objects."
            )
        for number, entry in enumerate(entries, 1):
            yield _object(f"entry {number} of {str(path)!r}", entry)
    else:
        raise ConfigError(f"{str(path)!r} is of no kind that is known.", hint=_KINDS)


def _comma(text: str) -> str:
    """What separates cells: Excel saves ";" in languages whose numbers have commas."""
    head = text.partition("\n")[0]
    return ";" if ";" in head and "," not in head else ","


def _rows(path: Path, text: str, delimiter: str) -> Iterator[_Entry]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    most = csv.field_size_limit(max(1, len(text)))  # Answers may be long.
    try:
        names = Counter(name for name in rows.fieldnames or () if name.strip())
        if twice := [name for name, count in names.items() if count > 1]:
            raise ConfigError(
                f"the first line of {str(path)!r} names {twice[0]!r} {names[twice[0]]} times.",
                hint="Leave one column of that name.",
            )
        for row in rows:
            where = f"line {rows.line_num} of {str(path)!r}"
            # DictReader keeps what the head has no name for as None.
            more: Sequence[str] = row.pop(None, ())
            if not any(cell and cell.strip() for cell in (*row.values(), *more)):
                continue  # Spreadsheets end tables with lines of empty cells.
            if any(cell.strip() for cell in more):
                raise ConfigError(
                    f"{where} has more cells than the first line names: {more!r:.80}.",
                    hint=f"Put cells with {delimiter!r} in quotation marks.",
                )
            yield _Entry(where, row)
    except csv.Error as error:
        raise ConfigError(f"line {rows.line_num} of {str(path)!r}: {error}.", hint=_KINDS) from error
    finally:
        csv.field_size_limit(most)


def _is_lines(text: str) -> bool:
    """Objects, one a line, whatever the file is called (as by the ``to_json`` of Hugging Face's datasets)."""
    first, _, more = text.strip().partition("\n")
    if not (first.startswith("{") and more):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is no JSON: {error}.", hint="Correct it.") from error


def _object(where: str, entry: Any) -> _Entry:
    if not isinstance(entry, dict):
        raise ConfigError(
            f"{where} is no object: {entry!r:.80}.",
            hint='Give objects, such as {"question": "...", "answer": "..."}.',
        )
    return _Entry(where, entry)


def _field(entry: _Entry, name: str | None, usual: Sequence[str], what: str) -> str:
    """A field's text.

    Raises:
        ConfigError: it is missing, empty, or neither text nor number.
        PromptError: it has half a character in it.
    """
    fields = entry.fields
    small = {str(field).lower(): field for field in fields}
    found = name if name is not None else next((small[one] for one in usual if one in small), None)
    value = None if found is None else fields.get(found)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and not (isinstance(value, str) and value.strip()):
        if found is None or found not in fields:
            raise ConfigError(
                f"{entry.where} has no {what if name is None else repr(name)}; "
                f"its fields are {', '.join(map(repr, fields))}.",
                hint=f"Name the field with {what}_field=.",
            )
        raise ConfigError(
            f"{entry.where} has {found!r}: {value!r:.60} as {what}.",
            hint=f"Give a text or a number, or name another field with {what}_field=.",
        )
    check_text(str(value), f"{found!r} of {entry.where}")
    return str(value)
