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

__all__ = ["MATCHES", "Match", "final_answer", "matcher", "number_in"]

Match = Callable[[str, str], bool]
"""(an answer's whole text, the known answer) -> whether it is right."""

MATCHES = ("auto", "number", "math", "text")

_SAID = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)[\s:]*(.+)", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{?\s*(-?\d+)\s*\}?\s*\{?\s*(\d+)\s*\}?")
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d[\d,]*)?")
_CLOSE = Fraction(1, 10**6)
"""Numbers closer to each other than this share of the larger one are equal: answers are rounded."""


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
        return name, _own(name)
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
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    said = _SAID.findall(text)
    return said[-1].strip() if said else None


def _boxed(text: str) -> str | None:
    """What is in the last box whose braces close."""
    for found in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 1
        for place in range(found.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[found.end() : place].strip()
    return None


def number_in(text: str, *, last: bool = False) -> Fraction | None:
    """The first number in a text (or the last): 1,234.5, -3, 3/4, a fraction of LaTeX. Signs of currency and
    per cent, and units, are left aside.
    """
    plain = _FRACTION.sub(r"\1/\2", text.replace("\u2212", "-").replace("\\!", "").replace("{,}", ","))
    found = _NUMBER.findall(re.sub(r"(?<=\d)\s*-(?=\s*\d)", " - ", plain))
    for one in reversed(found) if last else found:
        try:
            return Fraction(re.sub(r"[,\s]", "", one))
        except (ValueError, ZeroDivisionError):
            continue
    return None


def _numbers(text: str, known: str) -> bool:
    said = final_answer(text)
    found = number_in(text, last=True) if said is None else _lone_number(said)
    right = _number_known(known)
    if found is None or right is None:
        return False
    return abs(found - right) <= _CLOSE * max(abs(found), abs(right))


def _lone_number(said: str) -> Fraction | None:
    """Behind the last equals sign, if there is one: "x = 5"."""
    return number_in(said.rpartition("=")[2]) or number_in(said)


def _number_known(known: str) -> Fraction | None:
    """A known answer that is a number and nothing else but a unit's sign; what is behind ``####`` of more."""
    said = final_answer(known)
    text = (known if said is None else said).strip().strip("$").rstrip("%.").strip().removeprefix("$")
    whole = _NUMBER.fullmatch(_FRACTION.sub(r"\1/\2", text.rstrip("\\").strip()))
    return None if whole is None else number_in(text)


def _texts(text: str, known: str) -> bool:
    said = final_answer(text)
    if said is None:
        lines = [line for line in text.splitlines() if line.strip()]
        said = lines[-1] if lines else ""
    return _words(said) == _words(final_answer(known) or known)


def _words(text: str) -> str:
    r"""Letters and digits in small letters; what is only dress (``\text{}``, dollars, brackets) left out."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    bare = re.sub(r"[*_$`\"'\\]|^\W+|\W+$", "", bare.strip())
    return " ".join(bare.casefold().split())


def _formulas(text: str, known: str) -> bool:
    from math_verify import parse, verify

    right = final_answer(known) or known
    marked = right if "$" in right or "\\boxed" in right else f"${right}$"
    formula, said = (parse(one, parsing_timeout=_timeout()) for one in (marked, text))
    return bool(verify(formula, said, timeout_seconds=_timeout())) or _texts(text, known)


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
