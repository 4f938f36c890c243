"""Whether an answer is right: what a text gives as its answer, compared with the known answer."""

from __future__ import annotations

import importlib.util
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from rsd_integrations.bench.numbers import (
    begins_with_number,
    boxed_number,
    equal,
    halfwidth,
    in_digits,
    number_in,
    said_number,
    whole_number,
)
from rsd_integrations.bench.own import find_own
from rsd_integrations.errors import ConfigError
from rsd_integrations.report.answer import boxed

Match = Callable[[str, str], bool]
"""(an answer's whole text, the known answer) -> whether it is right."""

MATCHES = ("auto", "number", "math", "text")

_SAID = re.compile(
    r"(?:answer(?:\s+to\b[^.:\n]{0,80}?)?[*_]*\s*(?:is\b|:|=)"
    r"|答案[*_]*\s*(?:[就应應该該]{0,2}[是为為选選](?!否\w|[什项項])|[:=])|故[应應]?[选選])"
    r"(?:[\s:*$]|\\[\[(])*(?=.)",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"(?:correct|right|best)\s+(?:choice|option)[*_]*\s*(?:is\b|:|=)[\s:*$]*(?=\(?(?-i:[A-Z])(?![^\W\d_]))",
    re.IGNORECASE,
)
_LETTER = (
    r"(?:[A-HJ-Z](?![a-zA-Z])|I(?![a-zA-Z]|['’]|\s+(?!or\b|and\b)[a-z]))"
    r"(?!(?:[\s,()、]|(?:and|or)\b|[A-Z](?![a-zA-Z])|[和与與及])*"
    r"(?:(?:is|are|was|were|has|have|does|do|can|could|would|will|gives?)(?:n?['’]?t|not)?\b|=|[均都]?[错錯不]))"
)
"""An option's letter: not "I" as a word, and not one of which something is said, as in "B is wrong"."""
_OPTION = r"(?:(?i:option|choice)\s+)?"
_ONLY = (
    r"(?!\s*\)?\s*(?:\(\s*)?(?:,|;|/|&|\||(?:and|or)\b|[或和与與及])"
    rf"(?:\s|[(,]|(?:and|or|also|maybe|perhaps|possibly|even)\b|[或和与與及])*{_OPTION}\(?{_LETTER})"
)
"""Behind a letter: no other one is named as well, since whoever names several must not gain by it."""
_CHOSEN = re.compile(rf"{_OPTION}\(?([A-Z])(?![^\s).:,;])(?!(?:\s+[A-Z])+\W*$){_ONLY}")
_LABELLED = re.compile(rf"(?:\(([A-Z])\)|([A-Z])(?:\)|\.(?!\s+[a-z])))(?=\s|$){_ONLY}")
"""Not "E. coli"."""
_LABEL = re.compile(r"(?<!\w)\(?[A-Z][.):](?=\s)")
"""Before an option: (B), B), B: or B."""
_LISTED = 12
"""Lines at a text's end in which the option before the last one is looked for: then that ends their list."""
_LINE = 1000
"""Characters of a line that are looked at: one may repeat itself for ever."""
_SENTENCE = re.compile(r"[.!?][)\]*$]*\s|\n")
"""Where a sentence ends."""
_SIGNS = re.compile(
    r"(?:[\d\s.,()\[\]{}+*/=<>|!-]|(?<![^\W\d_])[a-zπ](?![^\W\d_])|sqrt|pi|sin|cos|tan|log|ln|exp)+"
)
"""Numbers, single small letters, brackets, operators."""
_OPERATES = re.compile(
    r"(?=.*(?:[\d(]|\s[-+*/=<>]\s))(?=.*[a-zπ])(?:.*[-+*/=<>]\s*[\w(]|.*\d[a-zπ(])"
    r"|[(\[{].*,|(?:sqrt|sin|cos|tan|log|ln|exp)\s*\("
)
"""They form a formula. Dates, ranges, grades and "N/A" do not; they are compared as words."""


def matcher(name: str, known: Sequence[str]) -> tuple[str, Match]:
    """How answers are told to be right, by its name and as a function.

    Args:
        name: "number"; "math" (formulas, by the package math-verify, and the same words); "text" (the same
            words); "auto" (number where all known answers are numbers, math where some are formulas and
            math-verify is installed, else text); or "module:function" of your own, called as ``Match``.
        known: the answers that are known.

    Raises:
        ConfigError: there is no such match, or it cannot read one of the known answers.
    """
    if ":" in name:
        return name, _tried(name, _own(name), known)
    if name not in MATCHES:
        raise ConfigError(
            f"unknown match={name!r}.",
            hint=f"Use one of {', '.join(MATCHES)}, or module:function, called with an answer's text and the "
            "known answer.",
        )
    if name == "auto":
        name = _suitable(known)
    if name == "math" and not _has_math_verify():
        raise ConfigError("match='math' needs math-verify.", hint='pip install "rsd-integrations[math]"')
    match = {"number": _numbers, "math": _formulas, "text": _texts}[name]
    read = _number_known if name == "number" else _words
    if unread := _unread(known, read):
        raise ConfigError(
            f"match={name!r} cannot read the known answer {unread[0]!r:.100}.",
            hint="Use another match: " + ", ".join(MATCHES) + ", or module:function.",
        )
    return name, lambda text, answer: match(halfwidth(text), halfwidth(answer))


def _suitable(known: Sequence[str]) -> str:
    if not _unread(known, _number_known):
        return "number"
    return "math" if any(map(is_formula, known)) and _has_math_verify() else "text"


def is_formula(known: str) -> bool:
    """Whether a known answer can also be written with other characters."""
    known = halfwidth(known).strip()
    if "\\" in known or "^" in known:
        return True
    return _SIGNS.fullmatch(known) is not None and _OPERATES.search(known) is not None


def final_answer(text: str) -> str | None:
    r"""What a text gives as its answer: the last ``\boxed{...}``, what follows the last ``####``, or what
    follows the last "answer is" ("答案是") up to the line's end; None where it has none of these.
    """
    if (found := boxed(text)) is not None:
        return found
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    return next(_said(text), None)


def _said(text: str) -> Iterator[str]:
    """What follows "answer is", up to the line's end: the first in each sentence, the last sentence first."""
    starts: list[int] = []
    before = 0
    for found in _SAID.finditer(text):
        if not starts or _SENTENCE.search(text, before, found.start() + 1):
            starts.append(found.end())
        before = found.end()
    for start in reversed(starts):
        yield text[start : start + _LINE].partition("\n")[0].strip()


def _number_said(text: str) -> str | None:
    """The last of what is said as the answer that has a number. What begins with the number, or has an equals
    sign, goes before the others: not "That is right on day 1.".
    """
    others = None
    for said in _said(text):
        if number_in(said) is not None:
            if begins_with_number(said) or "=" in said:
                return said
            others = others or said
    return others


def _numbers(text: str, known: str) -> bool:
    """The number "1.5 million" is 1500000, and also 1.5, as the question may ask for millions."""
    right, found = _number_known(known), map(_number_of, {text, in_digits(text)})
    return right is not None and any(one is not None and equal(one, right) for one in found)


def _number_of(text: str) -> Fraction | None:
    """The number that a text gives as its answer; the last number in it if it marks no answer."""
    if (held := boxed(text)) is not None:
        return boxed_number(held)
    said = final_answer(text)
    if said is None:
        return number_in(text, last=True)
    if "####" not in text:
        said = _number_said(text) or said
    return said_number(said)


def _number_known(known: str) -> Fraction | None:
    """The number of a known answer that is nothing but a number with a sign of currency or per cent; of a
    longer one, what it marks as its answer is read (by ``####``, say).
    """
    said = final_answer(known)
    return whole_number(known if said is None else said)


def _texts(text: str, known: str) -> bool:
    if _number_known(known) is not None:
        return _numbers(text, known)
    said, right = final_answer(text), final_answer(known) or known
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    if letter := re.fullmatch(r"\(?([A-Z])\)?\.?", _undressed(right)):
        if said is None and (choices := list(_CHOICE.finditer(text))):
            said = text[choices[-1].end() :]
        chosen = _labelled(lines) if said is None else _chosen(said)
        return (chosen or _words(lines[-1] if said is None else said).upper()) == letter[1]
    return _words(lines[-1] if said is None else said) == _words(right)


def _chosen(said: str) -> str | None:
    """The letter of the one option that an answer begins with."""
    found = _CHOSEN.match(_undressed(said))
    return found and found[1]


def _labelled(lines: Sequence[str]) -> str | None:
    """The letter of the option that a text ends with: "B. Paris". None where that ends a list of options."""
    *before, last = (_undressed(line[:_LINE]) for line in lines[-_LISTED:])
    found = _LABELLED.match(last)
    if found is None or _LABEL.search(last, found.end()):
        return None
    letter = str(found[1] or found[2])
    labels = [label[0].lstrip("(")[0] for label in map(_LABEL.match, before) if label]
    return None if labels and labels[-1] == chr(ord(letter) - 1) else letter


def _words(text: str) -> str:
    """In lower case, without punctuation at the ends and brackets around a single word. Other signs stay."""
    bare = _undressed(text).casefold().strip(".,:;!? ")
    return re.sub(r"^\(?(\w+)\)$", r"\1", bare)


def _undressed(text: str) -> str:
    r"""Without markup that only changes how it looks (``\text{}``, dollars, stars)."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return " ".join(re.sub(r"[*_$`\"'\\]", "", bare).split())


def _formulas(text: str, known: str) -> bool:
    from math_verify import parse, verify

    right = final_answer(known) or known
    marked = right if "$" in right or "\\boxed" in right else f"${right}$"
    formula, said = (parse(one, parsing_timeout=_timeout()) for one in (marked, text))
    return bool(verify(formula, said, timeout_seconds=_timeout())) or _same_words(text, right)


def _same_words(text: str, right: str) -> bool:
    """Equal word for word. Compared more freely only where the known answer consists of words: the letters of
    a formula alone say too little.
    """
    if _undressed(final_answer(text) or "").removesuffix(".") == _undressed(right).removesuffix("."):
        return True
    return re.fullmatch(r"[^\W\d_]+(?: [^\W\d_]+)*", _words(right)) is not None and _texts(text, right)


def _timeout() -> int | None:
    """Seconds that math-verify may take; None where it cannot be stopped. It interrupts itself by signals,
    which only the main thread gets; without signals (Windows) it starts processes, which cannot do its work.
    """
    main = threading.current_thread() is threading.main_thread()
    return 5 if main and hasattr(signal, "SIGALRM") else None


def _has_math_verify() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def _unread(known: Sequence[str], read: Callable[[str], Fraction | str | None]) -> list[str]:
    return [one for one in known if read(halfwidth(one)) in (None, "")]


def _own(name: str) -> Match:
    """A function of the user's.

    Raises:
        ConfigError: there is no such function.
    """
    found = find_own("match", name, "function")
    if not callable(found):
        raise ConfigError(f"match={name!r} is no function but {found!r:.80}.", hint="Name a function.")
    return lambda text, known: bool(found(text, known))


def _tried(name: str, match: Match, known: Sequence[str]) -> Match:
    """The user's function, tried on one known answer, so that a faulty one shows before hours of answers.

    Raises:
        ConfigError: it failed.
    """
    try:
        for one in known[:1]:
            match(one, one)
    except Exception as error:
        raise ConfigError(
            f"match={name!r} failed on {known[0]!r:.60}, given as text and as known answer: "
            f"{type(error).__name__}: {error}.",
            hint="Name a function of an answer's text and the known answer.",
        ) from error
    return match
