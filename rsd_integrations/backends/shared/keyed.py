"""The grammar of arguments in markup of keys and values (see ``rsd_integrations.text.keyed``)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

from rsd_integrations.backends.shared.lark import escaped, json_rule
from rsd_integrations.errors import ConfigError
from rsd_integrations.text.arguments import (
    LIMITS,
    LIMITS_OF_ALL,
    branches,
    kinds,
    lost,
    prescribed,
    with_root_defined,
)
from rsd_integrations.text.calls import CallFormat
from rsd_integrations.text.keyed import Keyed, as_object, named_properties

_OF_ARGUMENTS = frozenset(("properties", "required", "additionalProperties"))
_OF_LISTS = frozenset(("items", "minItems", "maxItems"))
_SCALARS = frozenset(("integer", "number", "boolean", "null"))
_ALL = _SCALARS | {"string", "array", "object"}
_MEANT = {
    **dict.fromkeys(("float", "double", "decimal"), "'number'"),
    **dict.fromkeys(("int", "long"), "'integer'"),
    **dict.fromkeys(("str", "text", "enum", "char"), "'string'"),
    **{"bool": "'boolean'", "none": "'null'", "list": "'array'", "tuple": "'array'", "dict": "'object'"},
    "any": "no type",
}
"""What to write instead of other languages' types."""
_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-][01][0-9]:[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){1,3}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"


class KeyedRules:
    """Rules for the arguments of several tools.

    Args:
        form: of the calls.
        keyed: how each argument is written.
        parts: a fixed text -> its pieces in the grammar, quoted where they are text.
        strict: whatever cannot be enforced is refused; else it is left out.
    """

    def __init__(
        self, form: CallFormat, keyed: Keyed, parts: Callable[[str], list[str]], *, strict: bool
    ) -> None:
        self._keyed = keyed
        self._closing = form.closing
        self._before, self._between = " ".join(parts(keyed.before)), " ".join(parts(keyed.between))
        self._apart = " ".join(parts(keyed.apart))
        self._quotes = " ".join(parts(keyed.quotes))
        self._root: Mapping[str, Any] = {}
        """The schema of one tool's arguments, to whose definitions its parts may refer."""
        self._known: dict[str, str] = {}
        """The rules of its values by now, by their schemas."""
        behind = parts(keyed.quotes or keyed.after)
        # A value's text and the first literal behind it are one terminal: else no lexer could tell where the
        # text ends.
        plain = bool(behind) and behind[0].startswith('"')
        self._end = json.loads(behind[0]) if plain else ""
        self._rest = " ".join(behind[plain:])
        self._strict = strict
        self.rules: list[str] = []
        """The rules of all arguments and of their parts."""

    def arguments(self, tool: str, name: str, schema: Mapping[str, Any]) -> str:
        """What may stand behind the name of a tool and before the end of its call.

        Args:
            tool: begins the names of its rules.
            name: the tool's own, for messages.
            schema: of its arguments.

        Raises:
            ConfigError: they cannot be written so, or not all that they say be enforced (if strict).
        """
        self._check(name, self._closing)
        if self._strict and (flaw := next(lost(schema), None)):
            raise _not_enforced(f"{flaw}, of {name!r}")
        self._root, self._known = with_root_defined(schema), {}
        ways = []
        for number, one in enumerate(named_properties(self._root)):
            self._refuse(f"the arguments of {name!r}", one, ("object",), _OF_ARGUMENTS)
            ways.append(self._object(f"{tool}_{number}", one))
        return f"({' | '.join(ways)})"

    def _object(self, rule: str, one: Mapping[str, Any]) -> str:
        required, properties = one["required"], one["properties"]
        made = []
        for number, (key, schema) in enumerate(properties.items()):
            if schema is False and key not in required:
                continue
            self._check(key, self._closing)
            if self._keyed.quotes and not re.fullmatch(r"[\w.$-]+", key):
                raise ConfigError(
                    f"the key {key!r:.200} cannot be written in a call of this model, which quotes none.",
                    hint="Use letters, digits and underscores.",
                )
            value = self._value(f"{rule}_{number}", schema)
            self.rules.append(f"{rule}_{number}: {self._before} {json.dumps(key)} {self._between} {value}")
            made.append((f"{rule}_{number}", key in required))
        more = one.get("additionalProperties", False)
        if more is not False:
            self.rules.append(f"{rule}_key: {rule.upper()}_KEY\n{rule.upper()}_KEY: {_key_but(properties)}")
            value = self._value(f"{rule}_more", more)
            self.rules.append(f"{rule}_more: {self._before} {rule}_key {self._between} {value}")
        return self._in_order(rule, made, more is not False)

    def _in_order(self, rule: str, arguments: Sequence[tuple[str, bool]], more: bool) -> str:
        """Arguments one after the other, where optional ones may be left out.

        Args:
            arguments: the rule of each, and whether it has to be there.
            more: further ones may follow.
        """
        behind = f"({self._apart} {rule}_more)*" if more else '""'
        alone = f"({rule}_more {behind})?" if more else '""'
        for name, needed in reversed(arguments):
            # One rule for behind another argument, one for being the first.
            self.rules.append(f"{name}_on: ({self._apart} {name}){'' if needed else '?'} {behind}")
            self.rules.append(f"{name}_off: {name} {behind}{'' if needed else f' | {alone}'}")
            behind, alone = f"{name}_on", f"{name}_off"
        return alone

    def _value(self, rule: str, schema: Any) -> str:
        """A value and what closes it."""
        if self._keyed.quotes:
            return self._requoted(rule, schema)
        found = self._branches(schema)
        texts = [one for one in found if _may_be_text(one)]
        beside = frozenset[str]().union(*map(kinds, found))
        defined = {key: self._root[key] for key in ("$defs", "definitions") if key in self._root}
        named = any(map(prescribed, found))
        if self._keyed.apart or not (texts or named):
            whole = {**defined, **schema} if isinstance(schema, Mapping) else {**defined}
            return self._spelled(whole, frozenset() if named else beside)
        ways = [self._literal(value) for one in found for value in prescribed(one)]
        free = any(not LIMITS["string"] & one.keys() for one in texts)
        others = frozenset() if free else beside
        ways += [self._text(f"{rule}_{number}", one, others) for number, one in enumerate(texts)]
        for one in found:
            left = kinds(one) - {"string"}
            # Text that may be anything allows these already.
            if not free and left and not prescribed(one):
                ways.append(self._spelled({**defined, **one, "type": sorted(left)}, left))
        return f"({' | '.join(dict.fromkeys(ways))})"

    def _requoted(self, rule: str, schema: Any) -> str:
        """A value in a format whose quotes are not JSON's."""
        known = json.dumps(schema)
        if known in self._known:
            return self._known[known]
        self._known[known] = rule_of = f"{rule}_value"  # Before it is made: a schema may refer to itself.
        ways: list[str] = []
        for number, one in enumerate(self._branches(schema)):
            values, allowed = prescribed(one), kinds(one) or _ALL
            if values:
                ways += map(self._requoted_literal, values)
                continue
            if "string" in allowed:
                ways.append(f"{self._quotes} {self._text(f'{rule}_{number}', one, frozenset())}")
            if "array" in allowed:
                handled = _OF_LISTS - {"items"} if isinstance(one.get("items"), list) else _OF_LISTS
                self._refuse("lists", one, ("array",), handled)
                ways.append(self._list(f"{rule}_{number}_of", one))
            if "object" in allowed:
                self._refuse("objects", one, ("object",), _OF_ARGUMENTS)
                inner = as_object(one if "properties" in one else {"additionalProperties": True, **one})
                ways.append(f'"{{" ({self._object(f"{rule}_{number}_in", inner)}) "}}"')
            if scalars := allowed & _SCALARS:
                said, left = self._own_words(scalars)
                ways += map(json.dumps, said)
                if left:
                    ways.append(json_rule({**one, "type": sorted(left)}, strict=self._strict))
        self.rules.append(f"{rule_of}: {' | '.join(dict.fromkeys(ways))}")
        return rule_of

    def _list(self, rule: str, one: Mapping[str, Any]) -> str:
        item = self._requoted(rule, one.get("items", {}))
        least, most = (_size(one.get(keyword)) for keyword in ("minItems", "maxItems"))
        if most == "0":
            return '"[]"'
        more = f"({self._apart} {item}){{{max(0, int(least or 0) - 1)},{int(most) - 1 if most else ''}}}"
        filled = item if most == "1" else f"{item} {more}"  # llguidance takes no {0,0}.
        return f'"[" ({filled}){"" if int(least or 0) else "?"} "]"'

    def _requoted_literal(self, value: Any) -> str:
        if isinstance(value, str):
            self._check(value, self._keyed.quotes, self._closing)
            return f"{self._quotes} {json.dumps(value)} {self._quotes}"
        if isinstance(value, Mapping):
            within = [f"{json.dumps(f'{key}:')} {self._requoted_literal(one)}" for key, one in value.items()]
            return f'"{{" {f" {self._apart} ".join(within)} "}}"'
        if isinstance(value, list):
            return f'"[" {f" {self._apart} ".join(map(self._requoted_literal, value))} "]"'
        return json.dumps(self._keyed.write(value))

    def _spelled(self, schema: Mapping[str, Any], allowed: frozenset[str]) -> str:
        """A value as JSON, except true, false and null, which the model may write as Python does."""
        said, left = self._own_words(allowed)
        ways = [self._closed(word) for word in said]
        if left or not said:
            schema = {**schema, "type": sorted(left)} if said else schema
            ways.append(f"{json_rule(schema, strict=self._strict)} {self._closed('')}")
        return f"({' | '.join(ways)})"

    def _own_words(self, allowed: frozenset[str]) -> tuple[list[str], frozenset[str]]:
        """The words for values of these types that are not JSON's, and the types that are left."""
        words = self._keyed.words
        own = {"boolean": words[:2], "null": words[2:]}
        if words == ("true", "false", "null"):
            return [], allowed
        return [word for kind in sorted(allowed & own.keys()) for word in own[kind]], allowed - own.keys()

    def _literal(self, value: Any) -> str:
        text = self._keyed.write(value)
        self._check(text, self._keyed.after, self._closing)
        return self._closed(text)

    def _closed(self, text: str) -> str:
        """A text and what closes it, as one piece."""
        piece = json.dumps(text + self._end) if text + self._end else ""
        return f"{piece} {self._rest}".strip() or '""'

    def _text(self, rule: str, schema: Mapping[str, Any], beside: frozenset[str]) -> str:
        """Any text that follows a schema, and what closes it.

        Args:
            beside: types of values that may stand there instead of text.
        """
        # Without quotes of its own, text may spell what another type forbids.
        types = frozenset(("string",)) if self._keyed.quotes else kinds(schema) or _ALL
        self._refuse("text", schema, types, LIMITS["string"])
        found = {"length": _sized(schema), "pattern": _searched(schema), "format": _formatted(schema)}
        for keyword in found.keys() & schema.keys() if self._strict else ():
            if found[keyword] is None:
                raise _not_enforced(f"{keyword} {schema[keyword]!r:.200} of text")
        forms = [form for form in found.values() if form is not None]
        # The text must not hold what ends it or the call.
        marks = sorted({self._keyed.after.strip(), self._keyed.quotes, self._closing} - {""})
        # Together with a length or pattern the exact rule would take a lexer too many states.
        forms += [_without_heads(marks)] if forms else [f"/{_ANY}/", *map(_without, marks)]
        if begun := "".join(sign for kind, sign in (("array", "["), ("object", "{")) if kind in beside):
            forms.append(rf"/([^{escaped(begun)}](.|\n)*)?/")  # Else no lexer could tell them apart.
        name = rule.upper()
        end = f" {json.dumps(self._end)}" if self._end else ""
        self.rules.append(f"{rule}_text: {name}\n{name}: {name}_BODY{end}\n{name}_BODY: {' & '.join(forms)}")
        return f"{rule}_text {self._rest}".strip()

    def _refuse(
        self, what: str, schema: Mapping[str, Any], types: Iterable[str], known: Collection[str] = ()
    ) -> None:
        """Refuse a keyword that forbids values of these types, and would not be enforced."""
        forbid = LIMITS_OF_ALL.union(*(LIMITS.get(one, ()) for one in types)).difference(known)
        if self._strict and (unknown := sorted(schema.keys() & forbid)):
            raise _not_enforced(f"{', '.join(unknown)} of {what}")

    def _branches(self, schema: Any) -> list[dict[str, Any]]:
        """The alternatives of a value's schema."""
        found = branches(schema, self._root)
        for one in found:
            if self._strict and one.get("not") == {}:
                raise _not_enforced(f"keywords that leave no value ({schema!r:.200})")
            if prescribed(one):
                self._refuse("values that are prescribed", one, (), ("enum", "const"))
                continue
            known, unknown = kinds(one) & _ALL, sorted(kinds(one) - _ALL)
            if unknown and (self._strict or not known):
                raise ConfigError(
                    f"{unknown[0]!r:.200} is no type of a JSON schema.",
                    hint=f"Write {_MEANT.get(unknown[0].lower(), ', '.join(map(repr, sorted(_ALL))))}.",
                )
        return found

    def _check(self, text: str, *marks: str) -> None:
        """Refuse a text that could not be read back."""
        for mark in filter(None, map(str.strip, marks)):
            if mark in text:
                raise ConfigError(
                    f"{text!r:.200} cannot be written in a call of this model: it holds {mark!r}.",
                    hint="Name it in another way.",
                )


def _not_enforced(what: str) -> ConfigError:
    return ConfigError(
        f"a schema cannot be enforced while writing: {what}, in calls as this model writes them.",
        hint="Simplify it, or leave strict out, which lets unknown keywords pass.",
    )


def _may_be_text(branch: Mapping[str, Any]) -> bool:
    found = kinds(branch)
    return not prescribed(branch) and (not found or "string" in found)


def _sized(schema: Mapping[str, Any]) -> str | None:
    least, most = (_size(schema.get(keyword)) for keyword in ("minLength", "maxLength"))
    return None if least == most == "" else rf"/(.|\n){{{least or 0},{most}}}/"


def _size(given: Any) -> str:
    return str(int(given)) if isinstance(given, int | float) and 0 <= given < 1 << 31 else ""


def _without(mark: str) -> str:
    return rf"~/(.|\n)*{escaped(mark)}(.|\n)*/"


def _without_heads(marks: Sequence[str]) -> str:
    """A text in which no first character of these marks is followed by a second one, as it rarely is."""
    first = escaped("".join({mark[0] for mark in marks}))
    second = escaped("".join({mark[1:2] for mark in marks}))
    return f"/([^{first}]|[{first}]+[^{first}{second}])*[{first}]*/"


def _searched(schema: Mapping[str, Any]) -> str | None:
    """A pattern, which may match anywhere in a text; None where llguidance does not know its syntax."""
    pattern = schema.get("pattern")
    if not isinstance(pattern, str):
        return None
    begins, ends = pattern.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$$", pattern) is not None
    bare = pattern[begins : len(pattern) - ends]
    if (begins or ends) and _alternates(bare):
        return None  # The anchor belongs to one alternative only.
    made = f"{'' if begins else _ANY}({bare}){'' if ends else _ANY}"
    made = _ascii(re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", made.replace("\n", r"\n")))
    flaw = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(f"start: X\nX: /{made}/"))
    return None if flaw else f"/{made}/"


def _ascii(pattern: str) -> str:
    """A pattern whose digits and letters are ASCII's, as in JSON; llguidance takes any of Unicode's."""
    signs = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
    return re.sub(r"\\.", lambda found: signs.get(found[0], found[0]), pattern)


def _alternates(pattern: str) -> bool:
    """Whether a pattern has alternatives that are in no group."""
    bare = re.sub(r"\\.|\[[^\]]*\]", "", pattern)
    while (without := re.sub(r"\([^()]*\)", "", bare)) != bare:
        bare = without
    return "|" in bare


def _formatted(schema: Mapping[str, Any]) -> str | None:
    found = _FORMATS.get(str(schema.get("format")))
    return f"/{found}/" if found else None


def _key_but(names: Mapping[str, Any]) -> str:
    """A name that is none of these."""
    others = "|".join(map(escaped, names))
    return rf"/[A-Za-z_][A-Za-z0-9_]{{0,63}}/{f' & ~/{others}/' if others else ''}"


_ANY = r"(.|\n)*"
