"""Scripted models, which users write tests with."""

from __future__ import annotations

from rsd_integrations.testing import scripted_pipeline


def test_a_step_without_a_delimiter_ends_the_answer() -> None:
    with scripted_pipeline(["one\n\nleft out", "two", "three"]) as pipe:
        answer = pipe.generate("x")
    assert (answer.text, answer.finish_reason) == ("one\n\ntwo", "stop")
