"""Whether an answer is right: what a text gives as its answer, beside the one that is known."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from rsd_integrations.errors import ConfigError
from rsd_integrations.report.answer import boxed

__all__ = ["MATCHES", "Match", "final_answer", "matcher", "number_in"]

Match = Callable[[str, str], bool]
"""(an answer's whole text, the known answer) -> whether it is right."""

MATCHES = ("auto", "number", "math", "text")

_SAID = re.compile(
    r"answer(?:\s+to\b[^.:\n]{0,80}?)?[*_]*\s*(?:is\b|:|=)(?:[\s:*$]|\\[\[(])*(.+)", re.IGNORECASE
)
_PART = r"(?:\{\s*(-?[\d.,]*\d)\s*\}|\s*(\d))"
_FRACTION = re.compile(rf"\\[dt]?frac\s*{_PART}\s*{_PART}")
_PLAIN = r"(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>-?)(?:(?P<whole>\d+)\s+(?=\d+/\d))?"
    rf"(?P<over>{_PLAIN}(?:[eE][-+]?\d{{1,3}}(?!\d))?)(?:\s*/\s*(?P<under>-?{_PLAIN}))?"
)
_MONEY = r"\\?[$£€¥]"
_BARE = re.compile(r"(?:[^A-Za-z=^\d]|\\(?:left|text\w*|mathrm|mathbf|approx|boxed))*")
"""Before a number: nothing but dress."""
_GOES_ON = re.compile(
    r"\s*(?:\\(?:sqrt|pi|times|cdot|div|frac)(?![a-z])|[-+*/×÷]\s*(?:\\?[$£€¥]\s*)?[\d(\\]|x\s*(?:\\?[$£€¥]\s*)?\d|\^\s*\{?\s*[-\d])|[,:]\d"
)
"""Behind a number: it is part of a formula, a range, a list or a time."""
_LED_UP = re.compile(r"(?:[\^_+*/]|\\sqrt)\s*\{?\s*$")
"""Before a number: likewise."""
_CLOSE = Fraction(1, 10**6)
"""Numbers closer to each other than this share of the larger one are equal, as fractions are rounded. Whole
numbers are not."""


def matcher(name: str, known: Sequence[str]) -> tuple[str, Match]:
    """How answers are told to be right, by its name and as a function.

    Args:
        name: "number"; "math" (formulas, by the package math-verify, and the same words); "text" (the same
            words); "auto" (number where all known answers are numbers, math where some are formulas and
            math-verify is there, else text); or "module:function" of your own, called as ``Match``.
        known: the answers that are known.

    Raises:
        ConfigError: there is no such, or it cannot read one of the known answers.
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
    return name, match


def _suitable(known: Sequence[str]) -> str:
    if not _unread(known, _number_known):
        return "number"
    formulas = any("\\" in one or "^" in one for one in known)
    return "math" if formulas and _has_math_verify() else "text"


def final_answer(text: str) -> str | None:
    r"""What a text gives as its answer: the last ``\boxed{...}``, what is behind the last ``####``, or behind
    the last "answer is" up to the line's end; None where it has none of these.
    """
    if (found := boxed(text)) is not None:
        return found
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    said = _SAID.findall(text)
    return said[-1].strip() if said else None


def number_in(text: str, *, last: bool = False) -> Fraction | None:
    """The first number in a text (or the last): 1,234.5, -3, 3/4, 3 1/2, 1.5e3; of LaTeX fractions and powers
    of ten. Signs of currency and per cent, and units, are left aside.
    """
    found = list(_NUMBER.finditer(_plain(text)))
    values = map(_value, reversed(found) if last else found)
    return next((value for value in values if value is not None), None)


def _plain(text: str) -> str:
    """Numbers as ``_NUMBER`` reads them: thousands by commas, fractions by strokes, powers of ten by e."""
    plain = text.replace("\u2212", "-").replace("\\!", "").replace("{,}", ",")
    plain = re.sub(r"(?<=\d)(?:\\[, ]|[\u00a0\u2009\u202f'\u2019])(?=\d{3}(?!\d))", "", plain)
    plain = re.sub(rf"-\s*{_MONEY}\s*(?=[\d.])", "-", plain)
    plain = _FRACTION.sub(_stroke, plain)
    plain = re.sub(r"(?<![\d.,])10\s*\^\s*(?:\{\s*(-?\d{1,3})\s*\}|(-?\d{1,3}))", r"1e\1\2", plain)
    plain = re.sub(r"(?<=\d)\s*(?:\\times|\\cdot|[x×*])\s*1e(?=-?\d)", "e", plain)
    return re.sub(r"(?<=\d)\s*-(?=\s*\d)", " - ", plain)


def _stroke(found: re.Match[str]) -> str:
    r"""3\frac{1}{2} is three and a half."""
    mixed = found.string[: found.start()][-1:].isdigit()
    return f"{' ' * mixed}{found[1] or found[2]}/{found[3] or found[4]}"


def _value(found: re.Match[str]) -> Fraction | None:
    parts = found.group("whole", "over", "under")
    try:
        whole, over, under = (None if part is None else Fraction(part.replace(",", "")) for part in parts)
    except ValueError:  # More digits than Python reads: of a model that repeats itself.
        return None
    if over is None or under == 0:
        return None
    value = (whole or 0) + over / (under or 1)
    return -value if found["sign"] else value


def _numbers(text: str, known: str) -> bool:
    said = final_answer(text)
    found = number_in(text, last=True) if said is None else _lone_number(said)
    right = _number_known(known)
    if found is None or right is None:
        return False
    if found.denominator == right.denominator == 1:
        return found == right
    return abs(found - right) <= _CLOSE * max(abs(found), abs(right))


def _lone_number(said: str) -> Fraction | None:
    r"""That an answer begins with, else the first behind its last equals sign ("x = 5").

    None where it is only a part of what is said: 5 of ``5\sqrt{2}``.
    """
    plain = _plain(said)
    first = _NUMBER.search(plain)
    if first and _BARE.fullmatch(plain[: first.start()]) and not _GOES_ON.match(plain, first.end()):
        return _value(first)
    behind = plain.rpartition("=")[2]
    found = _NUMBER.search(behind)
    if not found or _GOES_ON.match(behind, found.end()) or _LED_UP.search(behind[: found.start()]):
        return None
    return _value(found)


def _number_known(known: str) -> Fraction | None:
    """A known answer that is a number and nothing else but a unit's sign; what is behind ``####`` of more."""
    said = final_answer(known)
    text = _plain(known if said is None else said).strip()
    whole = _NUMBER.fullmatch(re.sub(rf"^{_MONEY}|[\\%.$]+$", "", text).strip())
    return None if whole is None else _value(whole)


def _texts(text: str, known: str) -> bool:
    if _number_known(known) is not None:
        return _numbers(text, known)
    said, right = final_answer(text), final_answer(known) or known
    if said is None:
        lines = [line for line in text.splitlines() if line.strip()]
        said = lines[-1] if lines else ""
    elif letter := re.fullmatch(r"\(?([A-Z])\)?\.?", _undressed(right)):
        chosen = re.match(r"\(?([A-Z])(?![^\s).:,])", _undressed(said))
        return (chosen[1] if chosen else _words(said).upper()) == letter[1]
    return _words(said) == _words(right)


def _words(text: str) -> str:
    """In small letters, without the stop at the end and the brackets around a single word. Signs stay."""
    bare = _undressed(text).casefold().strip(".,:;!? ")
    return re.sub(r"^\(?(\w+)\)$", r"\1", bare)


def _undressed(text: str) -> str:
    r"""Without what only shows how it looks (``\text{}``, dollars, stars)."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return " ".join(re.sub(r"[*_$`\"'\\]", "", bare).split())


def _formulas(text: str, known: str) -> bool:
    from math_verify import parse, verify

    right = final_answer(known) or known
    marked = right if "$" in right or "\\boxed" in right else f"${right}$"
    formula, said = (parse(one, parsing_timeout=_timeout()) for one in (marked, text))
    return bool(verify(formula, said, timeout_seconds=_timeout())) or _same_words(text, right)


def _same_words(text: str, right: str) -> bool:
    """Word for word; with more freedom only where words are known: of a formula letters say too little."""
    if _undressed(final_answer(text) or "") == _undressed(right):
        return True
    return re.fullmatch(r"[^\W\d_]+(?: [^\W\d_]+)*", _words(right)) is not None and _texts(text, right)


def _timeout() -> int | None:
    """It interrupts itself by signals, which the main thread alone can have."""
    return 5 if threading.current_thread() is threading.main_thread() else None


def _has_math_verify() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def _unread(known: Sequence[str], read: Callable[[str], Fraction | str | None]) -> list[str]:
    return [one for one in known if read(one) in (None, "")]


def _own(name: str) -> Match:
    """A function of the user's, found from where the command runs, too.

    Raises:
        ConfigError: there is no such function.
    """
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"match={name!r} cannot be loaded: {error}.",
            hint="Name a module (in this folder or installed) and a function in it: module:function.",
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"match={name!r} is no function but {found!r:.80}.", hint="Name a function.")
    return lambda text, known: bool(found(text, known))


def _tried(name: str, match: Match, known: Sequence[str]) -> Match:
    """A function of the user's that takes what it will be given: found out before hours went into answers.

    Raises:
        ConfigError: it does not.
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
