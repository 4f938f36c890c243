"""A script that follows instructions: it calls the tools it is given and writes documents of a schema."""

from __future__ import annotations

import json
import re
from typing import Any

from rsd_integrations.output import Output

__all__ = ["follow", "instance"]


def follow(prompt: Any, index: int, text: str, output: Output) -> str | None:
    """Steps of a model that does what it is told (a ``StepScript``)."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answered = messages[-1]["role"] == "tool"
    if output.tools and (output.choice == "required" or not answered):
        names = [function["function"]["name"] for function in output.tools]
        asked = " ".join(str(message.get("content")) for message in messages if message["role"] == "user")
        named = [name for name in names if name in asked] or names
        calls = [_call(name, output, asked) for name in (named if output.parallel else named[:1])]
        return calls[index] if index < len(calls) else None
    if output.schema is not None:
        return json.dumps(_document(output.schema, str(messages[-1]["content"]))) if index == 0 else None
    if answered:
        return f"The tool says {messages[-1]['content']}." if index == 0 else None
    return f"Step {index}.\n\n" if index < 4 else None


def _document(schema: Any, asked: str) -> Any:
    """Any object will do in JSON mode: one with the keys that are asked for."""
    free = schema == {"type": "object"}
    return dict.fromkeys(re.findall(r"'([^']+)'", asked), "some text") if free else instance(schema)


def _call(name: str, output: Output, asked: str) -> str:
    schema = dict(output.functions)[name]
    arguments = instance(schema)
    quoted = re.findall(r"'([^']+)'", asked)
    numbers = iter(re.findall(r"\d+", asked))
    for key, part in schema.get("properties", {}).items():
        if part.get("type") == "integer":
            arguments[key] = int(next(numbers, "1"))
        elif part.get("type") == "string" and quoted:
            arguments[key] = quoted[0]
    return (
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"
    )


def instance(schema: Any, root: Any = None) -> Any:
    """Some value of a JSON schema."""
    root = schema if root is None else root
    if "$ref" in schema:
        found = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        return instance(found, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return instance(schema[key][0], root)
    made = {
        "object": lambda: {name: instance(part, root) for name, part in schema.get("properties", {}).items()},
        "array": lambda: [instance(schema.get("items", {}), root)],
        "string": lambda: "some text",
        "integer": lambda: 1,
        "number": lambda: 1.5,
        "boolean": lambda: True,
        "null": lambda: None,
    }
    return made[schema.get("type", "string")]()
