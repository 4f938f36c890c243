"""Tests of a ``Writer`` that keeps answers to a form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rsd_integrations.conformance.steps import PROMPTS, keep, told, work, write
from rsd_integrations.output import Output
from rsd_integrations.protocols import Writer, WriterSession, Written
from rsd_integrations.types import ToolCall

FORM = {"type": "object", "properties": {"a": {"enum": ["x y", "z"]}, "b": {"type": "boolean"}}}
FORMED = Output.of(
    response_format={"type": "json_schema", "json_schema": {"schema": FORM | {"required": ["a", "b"]}}}
)
DOCUMENTS = [{"a": a, "b": b} for a in ("x y", "z") for b in (True, False)]
CALLED = Output.of(
    tools=[{"type": "function", "function": {"name": "look", "parameters": FORM | {"required": ["a", "b"]}}}],
    tool_choice="required",
    parallel_tool_calls=False,
)


class ConstraintKit:
    """Tests of a ``Writer`` that keeps answers to a form. Its models must take tools."""

    def document(self, writer: Writer, session: WriterSession, text: str) -> Any:
        """The document that a text and the rest of the session's answer make together."""
        while True:
            (written,) = write(writer, [session], [work(200, delimiters=("\0",))])
            text += written.text
            keep(session, written)
            if written.end != "limit":
                return json.loads(text)

    @pytest.mark.parametrize("seed", [None, 1, 2, 3])
    def test_a_document_keeps_to_its_form(self, writer: Writer, seed: int | None) -> None:
        session = writer.open(PROMPTS[0], FORMED)
        (written,) = write(writer, [session], [work(200, delimiters=("\0",), seed=seed)])
        assert written.end == "eos"
        assert json.loads(written.text) in DOCUMENTS
        session.close()

    @pytest.mark.parametrize("seed", [1, 2])
    def test_the_form_goes_on_over_steps(self, writer: Writer, seed: int) -> None:
        session = writer.open(PROMPTS[0], FORMED)
        pieces: list[Written] = []
        while not pieces or pieces[-1].end != "eos":
            (written,) = write(writer, [session], [work(3, delimiters=("\0",), seed=seed)])
            keep(session, written)
            pieces.append(written)
        assert len(pieces) > 1
        assert json.loads("".join(written.text for written in pieces)) in DOCUMENTS
        session.close()

    def test_a_rejected_part_leaves_no_trace(self, writer: Writer) -> None:
        straight, winding = writer.open(PROMPTS[0], FORMED), writer.open(PROMPTS[0], FORMED)
        (first,) = write(writer, [straight], [work(2, delimiters=("\0",))])
        for seed in (5, 6):  # Rejected twice, at different lengths.
            write(writer, [winding], [work(seed, delimiters=("\0",), seed=seed)])
        keep(straight, first)
        keep(winding, first, own=False)
        assert self.document(writer, straight, first.text) == self.document(writer, winding, first.text)
        for session in (straight, winding):
            session.close()

    def test_company_without_a_form_is_free(self, writer: Writer) -> None:
        formed, free = writer.open(PROMPTS[0], FORMED), writer.open(PROMPTS[1])
        document, words = write(writer, [formed, free], [work(200, delimiters=("\0",)), work(5)])
        alone = writer.open(PROMPTS[1])
        assert told(words) == told(write(writer, [alone], [work(5)])[0])
        assert json.loads(document.text) in DOCUMENTS
        for session in (formed, free, alone):
            session.close()

    @pytest.mark.parametrize("seed", [None, 1, 2])
    def test_a_forced_call_can_be_read(self, writer: Writer, seed: int | None) -> None:
        assert writer.takes_tools
        session = writer.open(PROMPTS[0], CALLED)
        (written,) = write(writer, [session], [work(200, delimiters=("\0",), seed=seed)])
        assert session.reader is not None
        (call,) = list(session.reader.read(written.text) or [])
        assert isinstance(call, ToolCall)
        assert (call.name, call.arguments in DOCUMENTS) == ("look", True)
        session.close()
