r"""Numbers as models write them: 1,234.5, -3, 3/4, 3 1/2, 1.5e3, ``\frac{1}{2}``, ``1.5 \times 10^3``."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_HALFWIDTH = str.maketrans(
    {
        **{chr(0xFEE0 + sign): chr(sign) for sign in range(0x21, 0x7F)},
        **{"，": ", ", "、": ", ", "；": "; ", "。": ". ", "！": "! ", "？": "? ", "￥": "¥"},
        **{"“": '"', "”": '"', "「": '"', "」": '"'},
        **{"℃": "°C", "㎜": "mm", "㎝": "cm", "㎞": "km", "㎏": "kg", "㎡": "m^2", "㎥": "m^3"},
    }
)
"""The signs of Chinese text as those of English text: what reads answers knows only these."""
_POWERS = {"十": 1, "百": 2, "千": 3, "万": 4, "萬": 4, "亿": 8, "億": 8}
"""Of ten, behind a number: 2万, 3千万."""
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(
    r"(?<=\d)((?:[\s~]|\\[ ,;:!]|\\(?:text\w*|mathrm|mbox)\s*\{)*)"
    rf"({'|'.join(_SCALES)})(?![^\W\d_])(?!\s*(?:and\s+)?\d)",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(
    r"(?:(?<![^\W\d_]-)(?<!\w)negative"
    r"|(?P<before>^\s*|[=:(,{]\s*|['’]s\s+|(?<!\w)(?:is|are|was|to|of|at|by|be|or|and|equals?|gives)\s+)minus)"
    r"[^\S\n]+(?:(?:\\\(|\*+)\s*)?(?=[\d.\\$£€¥])",
    re.IGNORECASE,
)
"""Before a number that is below zero. "Minus" may also take one number from another: "7 minus 5"."""
_PART = r"(?:\{\s*(-?[\d.,]*\d)\s*\}|\s*(\d))"
_FRACTION = re.compile(rf"\\[dt]?frac\s*{_PART}\s*{_PART}")
_PLAIN = r"(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>-?)(?:(?P<whole>\d+)\s+(?=\d+/\d))?"
    rf"(?P<over>{_PLAIN}(?:[eE][-+]?\d{{1,3}}(?!\d))?)(?:\s*/\s*(?P<under>-?{_PLAIN}))?"
)
_MONEY = r"[A-Z]?\\?[$£€¥¢₹₽₩]"
_BARE = re.compile(r"(?:[^A-Za-z=^\d]|\\(?:left|text\w*|mathrm|mathbf|approx|boxed))*")
"""Before a number: nothing but signs and markup."""
_OPENING, _CLOSING = r"(?:\\\(\s*|\*\*)?", r"(?:\s?\\\)|[$*])*"
"""Around a number: signs of a formula or of bold type."""
_GOES_ON = re.compile(
    r"\s*(?:\\(?:sqrt|pi|times|cdot|div|frac|pm)(?![a-z])|[±√π²³]|[-+*/×÷]\s*(?:\\?[$£€¥]\s*)?[\d(\\]"
    r"|(?:plus|minus|times|divided\s+by)\s+-?(?:\\?[$£€¥]\s*)?\d"
    r"|x\s*(?:\\?[$£€¥]\s*)?\d|\^\s*\{?\s*[-\d])|[,:]\d"
    rf"|{_CLOSING}[,;]\s+{_OPENING}-?\\?\$?{_PLAIN}(?:\s*/\s*\d+)?\s*(?:[,;.)\]}}$\\]|\*\*|$|(?:or|and)\b)"
    rf"|\s*[万萬亿億]|{_CLOSING}\s*(?:(?:or|and|to)\s+|[或和至到~]\s*){_OPENING}-?\\?\$?\d"
    r"(?!\d*\s*(?:decimal|significant))"
)
"""After a number: what shows that it is part of a formula, a range, a list or a time."""
_LISTED = re.compile(
    rf"=\s*-?{_PLAIN}{_CLOSING}\s*(?:[,;]|(?:or|and)\b|[或和与與且])"
    r"(?:\s|or\b|and\b|\\[, ]|\\?\$)*[a-zA-Z]\s*$"
)
"""Before the last equals sign: the equation before it is another answer."""
_GIVEN = re.compile(r"\b(?:when|if|for|with|at|where)\s+\\?\$?[a-zA-Z]\w*\s*=[^=]*$", re.IGNORECASE)
"""Unless that says when the last one holds."""
_LED_UP = re.compile(r"(?:[\^_+*/]|\\sqrt)\s*\{?\s*$")
"""Before a number: what shows that it is part of a formula."""
_CLOSE = Fraction(1, 10**6)
"""Numbers closer to each other than this share of the larger one are equal, because fractions get rounded.
Two whole numbers have to be the same."""

_TEXT = re.compile(
    r"\\(?:text\w*|math(?:rm|bf|it|sf|tt)|bm|boldsymbol|bold|emph|underline|mbox|operatorname|boxed|fbox)"
    r"\s*\{([^{}]*)\}"
)
_SPACE = re.compile(
    r"\\(?:left|right|displaystyle|q?quad|[lL]arge|bf|rm|it|l?dots)(?![a-zA-Z])|\\[,;:! ()\[\]]|\\$|[~*]"
)
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])")
_SEVERAL = re.compile(
    r"(?:=.*|\d\s*)(?:[,;]\s|\b(?:or|and)\b|[或且])"
    r"|=.*(?:[,;](?!\d)|[和与與](?=\s*[a-zA-Z]))(?:[^,;()]|\([^()]*\))*$"
)
"""Before the last equals sign: what shows that several values or equations are listed."""
_EQUALS = re.compile(r"=|≈|\\approx(?![a-zA-Z])")
_NAMED = re.compile(r"\d\s+[a-zA-Z]\s*$")
"""Between two equals signs: another equation begins."""
_MOST = 300
"""Most characters of a box that is read as one number and what may stand around it."""
_WORD = (
    r"(?:[^\W\d_]+['’][^\W\d_]+|(?<!\S)[aI](?=\s+[^\W\d_]{2})|[^\W\d_]{2,}|[^\x00-\u03ff\W\d_])(?![^\W\d_])"
)
_OTHER = r"[^\W\d_]*(?:[大小][于於]|不是|不等[于於]|正[负負])"
"""Words of Chinese, which no space parts from others, that say: not this number."""
_BEFORE = (
    rf"(?:[\s(){{+≈,:]|\.(?!\d)|{_MONEY}|\\approx|\([A-J]\)|(?<![^\W\d_])[A-J][.:)](?!\d)"
    rf"|(?!(?:sqrt|log|ln|sin|cos|tan|exp|negative|minus)\b|{_OTHER}){_WORD})*"
)
_UNIT = rf"(?:{_WORD}|[mgshLlJNVWKCFA](?![^\W\d_]))(?:\s*\^\s*\{{?-?\d\}}?|[²³])?"
_SIGN = (
    r"_\{?10\}?|\^?\s*\{?\s*(?:\\circ|°)\s*\}?|(?:\^\s*)?\\(?:text)?degree"
    rf"|\^\s*\{{?\s*(?:st|nd|rd|th)\s*\}}?|\\?%|{_MONEY}"
)
_STROKE = r"(?:(?<=[^\W\d_])|(?<=[^\W\d_] ))[-/](?=\s?[^\W\d_])|/(?=\s*[^\W\d_]{3})"
_BEHIND = (
    r"(?!\s*(?:(?:or|and|to|pi|mod)\b|times\s+(?![^\W\d_]{2}|a\b)))"
    rf"(?:\s*(?:{_SIGN}))?"
    rf"(?:[\s)}}.·]|{_STROKE}|,(?=\s*[^\W\d_]{{2}})|\\cdot|{_UNIT}|\([^()\d]*\))*"
)
_ALONE = re.compile(rf"{_BEFORE}(?P<minus>-\s*)?(?={_PLAIN}){_NUMBER.pattern}{_BEHIND}")
"""One number with what may stand around it in a box: words, a currency, a unit."""


def number_in(text: str, *, last: bool = False) -> Fraction | None:
    """The first number in a text (or the last). Signs of currency and per cent, and units, are left aside."""
    found = list(_NUMBER.finditer(_plain(text)))
    values = map(_value, reversed(found) if last else found)
    return next((value for value in values if value is not None), None)


def said_number(said: str) -> Fraction | None:
    r"""The number that an answer begins with, else the first one after its last equals sign ("x = 5").

    None where it is only a part of what is said: 5 of ``5\sqrt{2}``, of "5 or 6".
    """
    plain = _plain(said)
    first = _leading(plain)
    if first and not _GOES_ON.match(plain, first.end()):
        return _value(first)
    before, _, behind = plain.rpartition("=")
    if _LISTED.search(before[-_MOST:]) and not _GIVEN.search(before[-_MOST:]):
        return None
    found = _NUMBER.search(behind)
    if not found or _GOES_ON.match(behind, found.end()) or _LED_UP.search(behind[: found.start()]):
        return None
    return _value(found)


def begins_with_number(said: str) -> bool:
    """Whether nothing but signs and markup comes before its first number."""
    return _leading(_plain(said)) is not None


def boxed_number(said: str) -> Fraction | None:
    r"""What a ``\boxed{...}`` holds if that is one number: with a unit, after words, or on a side of an
    equation. None for lists, ranges, inequalities, formulas: a box holds the answer and nothing else.
    """
    plain = _plain(said)
    for _ in range(3):  # They may be nested.
        plain = _TEXT.sub(r" \1 ", plain)
    plain = " ".join(_plain(_SPACE.sub(" ", plain)).split())
    if len(plain) > _MOST:
        return None
    plain = _SPACED.sub(lambda found: found[0].replace(" ", ""), plain)
    sides = _EQUALS.split(plain)
    if _SEVERAL.search("=".join(sides[:-1])) or any(map(_NAMED.search, sides[1:-1])):
        return None
    found = (_ALONE.fullmatch(side.strip()) for side in (sides[-1], sides[0]))
    return next((_value(one) for one in found if one), None)


def halfwidth(text: str) -> str:
    """With the signs of English text in place of those of Chinese text, and letters with accents as one."""
    text = re.sub(r"(?<=\d)，(?=\d{3}(?!\d))", ",", unicodedata.normalize("NFC", text))
    return text.translate(_HALFWIDTH)


def in_digits(text: str) -> str:
    """With "1.5 million" as 1.5e6."""
    return _SCALE.sub(lambda found: f"e{_SCALES[found[2].lower()]}{found[1]}", text)


def whole_number(text: str) -> Fraction | None:
    """A text that is a number and nothing else but a sign of currency or per cent."""
    whole = _NUMBER.fullmatch(re.sub(rf"^{_MONEY}|[\\%.$]+$", "", _plain(text).strip()).strip())
    return None if whole is None else _value(whole)


def equal(one: Fraction, other: Fraction) -> bool:
    """Whether two numbers are the same, but for how fractions are rounded."""
    if one.denominator == other.denominator == 1:
        return one == other
    return abs(one - other) <= _CLOSE * max(abs(one), abs(other))


def _plain(text: str) -> str:
    """As ``_NUMBER`` reads numbers: commas for thousands, slashes for fractions, e for powers of ten."""
    plain = text.replace("\u2212", "-").replace("\\!", "").replace("{,}", ",")
    plain = re.sub(r"(?<=\d)(?:\\[, ]|[\u00a0\u2009\u202f'\u2019])(?=\d{3}(?!\d))", "", plain)
    plain = re.sub(r"(?:(?<!正)[负負]的?|零下)\s*(?=[\d.\\$£€¥])", "-", plain)
    plain = re.sub(r"\\(?:text\w*|mathrm)\s*\{\s*((?i:negative|minus|or|and|to))\s*\}", r" \1 ", plain)
    plain = _NEGATIVE.sub(lambda found: f"{found['before'] or ''}-", plain)
    plain = re.sub(r"(?<=\d)\s*([十百千]?[万萬亿億]{1,2})(?!\s*[\d零])", _power, plain)
    plain = re.sub(rf"-\s*{_MONEY}\s*(?=[\d.])", "-", plain)
    plain = _FRACTION.sub(_stroke, plain)
    plain = re.sub(r"(?<![\d.,])10\s*\^\s*(?:\{\s*(-?\d{1,3})\s*\}|(-?\d{1,3}))", r"1e\1\2", plain)
    plain = re.sub(r"(?<=\d)\s*(?:\\times|\\cdot|[x×*])\s*1e(?=-?\d)", "e", plain)
    return re.sub(r"(?<=\d)\s*-(?=\s*\d)", " - ", plain)


def _leading(plain: str) -> re.Match[str] | None:
    """The first number, where nothing but signs and markup comes before it."""
    first = _NUMBER.search(plain)
    return first if first and _BARE.fullmatch(plain[: first.start()]) else None


def _power(found: re.Match[str]) -> str:
    return f"e{sum(_POWERS[sign] for sign in found[1])}"


def _stroke(found: re.Match[str]) -> str:
    r"""3\frac{1}{2} is three and a half."""
    mixed = found.string[: found.start()][-1:].isdigit()
    return f"{' ' * mixed}{found[1] or found[2]}/{found[3] or found[4]}"


def _value(found: re.Match[str]) -> Fraction | None:
    parts = found.group("whole", "over", "under")
    try:
        whole, over, under = (None if part is None else Fraction(part.replace(",", "")) for part in parts)
    except ValueError:  # More digits than Python reads, as of a model that repeats itself.
        return None
    if over is None or under == 0:
        return None
    value = (whole or 0) + over / (under or 1)
    minus = found["sign"] or found.groupdict().get("minus")
    return -value if minus else value
