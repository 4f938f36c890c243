from __future__ import annotations

import io
import json
import sys
from datetime import date
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rsd_integrations.cli import main
from rsd_integrations.pocket import DESCRIPTION
from rsd_integrations.types import Generation
from rsd_integrations.weighting import NAMES

if TYPE_CHECKING:
    from tests.cli.conftest import Rsd

OWN = [part for role in ("draft", "target", "prm") for part in (f"--{role}", f"org/{role}")]


def test_a_pipe_gets_one_plain_line_a_step(rsd: Rsd) -> None:
    result = rsd("ask", "How many?")
    assert result.code == 0
    assert result.out.splitlines()[1:7] == [
        "✓ kept     0.900  12 + 9 = 21.",
        "✗ rejected 0.200  21 + 12 = 35.",
        "→ target          21 + 12 = 33.",
        "✓ kept     0.950  The answer is \\boxed{33}.",
        "",
        "answer  33",
    ]
    assert "\x1b" not in result.out
    assert result.err == ""


def test_the_cost_stands_below(rsd: Rsd) -> None:
    generation = Generation.model_validate_json(rsd("ask", "How many?", "--json").out)
    out = rsd("ask", "How many?").out
    ratio = generation.usage.flops_ratio
    assert ratio is not None
    assert "steps     2 of 3 kept (67 %), threshold 0.7" in out
    assert (
        f"FLOPs     {ratio.paper:.2f}x of the target alone (paper accounting), {ratio.total:.2f}x (total)"
        in out
    )
    used = generation.usage
    for done, use in (("generated", used.draft), ("generated", used.target), ("scored", used.prm)):
        assert f"{use.generated} tokens {done}, {use.discarded} discarded, {use.forwarded} forwarded" in out
    assert "time " in out


def test_a_long_step_is_not_wrapped_in_a_pipe(rsd: Rsd) -> None:
    long = "word " * 60 + "end."
    rsd.scripted([long])
    assert any(line.endswith(long) for line in rsd("ask", "?", *OWN).out.splitlines())


def test_json_is_the_generation_and_nothing_else(rsd: Rsd) -> None:
    result = rsd("ask", "How many?", "--json", "--seed", "7")
    generation = Generation.model_validate_json(result.out)
    assert generation.text == "12 + 9 = 21.\n\n21 + 12 = 33.\n\nThe answer is \\boxed{33}."
    assert [step.source for step in generation.steps] == ["draft", "target", "draft"]
    assert generation.seed == 7
    assert result.err == ""


@pytest.mark.parametrize(
    ("options", "sources"),
    [
        (["--threshold", "0"], ["draft"] * 3),
        (["--threshold", "1.5"], ["target"] * 3),
        (["--threshold", "0.93"], ["target", "target", "draft"]),
        (["--weighting", "clip", "--seed", "2"], None),
    ],
)
def test_options_reach_the_models(rsd: Rsd, options: list[str], sources: list[str] | None) -> None:
    made = Generation.model_validate_json(rsd("ask", "How many?", "--json", *options).out)
    if sources is None:
        assert [step.acceptance_probability for step in made.steps] == [0.9, 0.2, 0.95]
    else:
        assert [step.source for step in made.steps] == sources


@pytest.mark.parametrize(
    ("weighting", "threshold"), [("step", 0.7), ("logistic", 0.7), ("constant", None), ("clip", None)]
)
def test_a_threshold_is_told_where_it_plays_a_part(rsd: Rsd, weighting: str, threshold: float | None) -> None:
    options = ["ask", "How many?", "--weighting", weighting, "--seed", "1"]
    (line,) = [line for line in rsd(*options).out.splitlines() if line.startswith("steps ")]
    assert line.endswith("threshold 0.7" if threshold else " %)")
    assert json.loads(rsd(*options, "--json").out)["threshold"] == threshold


def test_help_names_all_weightings(rsd: Rsd) -> None:
    told = " ".join(rsd("ask", "--help").out.replace("│", " ").split())
    assert f"One of {', '.join(NAMES)}." in told


def test_any_other_setting_is_given_as_json(rsd: Rsd) -> None:
    rsd.scripted(["One. ", "Two. ", "Three."])
    made = rsd(
        "ask", "?", "--config", '{"step_delimiter": ". ", "stop": ["Three"], "max_steps": 9}', "--json"
    )
    assert [step.text for step in Generation.model_validate_json(made.out).steps] == ["One. ", "Two. ", ""]


def test_several_candidates_are_asked_for(rsd: Rsd) -> None:
    rsd.scripted(["One.\n\n", "Two."], max_batch_size=4)
    made = rsd("ask", "?", "--draft-candidates", "3", "--temperature", "1", "--json")
    assert [len(step.candidates) for step in Generation.model_validate_json(made.out).steps] == [3, 3]


@pytest.mark.parametrize(("candidates", "length"), [(1, 100), (12, None)])
def test_models_get_the_room_that_one_question_needs(rsd: Rsd, candidates: int, length: int | None) -> None:
    rsd.scripted(["One."], max_batch_size=12)
    longer = [] if length is None else ["--max-length", str(length)]
    assert rsd("ask", "?", "--draft-candidates", str(candidates), "--temperature", "1", *longer).code == 0
    assert (rsd.choices[-1].max_batch_size, rsd.choices[-1].max_length) == (candidates, length)


def test_a_question_that_does_not_fit_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "How many marbles? " * 20, "--max-length", "50"]) == 2
    assert "or raise --max-length, here to 1024 at most" in capsys.readouterr().err


def test_a_page_that_was_there_stays_until_there_is_another(rsd: Rsd, tmp_path: Path) -> None:
    page = tmp_path / "steps.html"

    def fail() -> None:
        assert page.exists() == (page.name in before)
        raise OSError("no models")

    rsd.open = fail  # type: ignore[assignment]
    before: set[str] = set()
    assert rsd("ask", "?", "--html", str(page)).code == 1
    assert not page.exists()
    page.write_text("an earlier page")
    before.add(page.name)
    assert rsd("ask", "?", "--html", str(page)).code == 1
    assert page.read_text() == "an earlier page"


def test_a_length_limit_is_told(rsd: Rsd) -> None:
    result = rsd("ask", "How many?", "--max-tokens", "9")
    assert result.code == 0
    assert "stopped at a length limit" in result.out
    assert json.loads(rsd("ask", "How many?", "--max-tokens", "9", "--json").out)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("steps", "window", "options", "said"),
    [
        (
            4,
            None,
            ["--max-tokens", "9"],
            "(9 tokens, 3 steps): the answer may be unfinished (see --max-tokens)",
        ),
        (
            101,
            None,
            [],
            "(300 tokens, 100 steps): the answer may be unfinished (raise max_steps in --config)",
        ),
        (101, None, ["--max-tokens", "999"], "(raise max_steps in --config)"),
        (101, 50, [], "(raise --max-length if the models take more)"),
    ],
)
def test_what_ended_an_answer_is_told_in_options(
    rsd: Rsd, tmp_path: Path, steps: int, window: int | None, options: list[str], said: str
) -> None:
    page = tmp_path / "steps.html"
    rsd.scripted(["A\n\n"] * steps, **({"window": window} if window else {}))
    assert said in rsd("ask", "How many?", *OWN, *options, "--html", str(page)).out
    assert said in unescape(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("options", "tokens", "said"),
    [
        ([], 256, "(the pocket trio solves only word problems like those in README.md)"),
        (["--max-tokens", "300"], 300, "(see --max-tokens)"),
        (["--max-length", "400"], None, "(raise --max-length if the models take more)"),
        (["--config", '{"max_steps": 1, "max_step_tokens": 9}'], 9, "(raise max_steps in --config)"),
    ],
)
def test_the_pocket_trio_stops_where_no_limit_was_given(
    rsd: Rsd, tmp_path: Path, options: list[str], tokens: int | None, said: str
) -> None:
    page = tmp_path / "steps.html"
    rsd.scripted(["is " * 200] * 9, window=400)
    shown = rsd("ask", "What is the capital of France?", *options, "--html", str(page)).out
    assert said in shown
    assert said in unescape(page.read_text(encoding="utf-8"))
    assert tokens is None or f"({tokens} tokens, " in shown


@pytest.mark.parametrize("arguments", [["-"], []])
def test_a_question_can_be_piped_in(rsd: Rsd, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    seen: list[object] = []

    def write(prompt: object, index: int, text: str) -> str | None:
        seen.append(prompt)
        return "\\boxed{4}" if index == 0 else None

    rsd.scripted(write)
    monkeypatch.setattr(sys, "stdin", io.StringIO("2 + 2?\n"))
    assert "answer  4" in rsd("ask", *arguments).out
    assert seen[0] == "2 + 2?"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_pipe_is_utf8_in_any_locale_and_may_have_a_mark(
    rsd: Rsd, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    seen: list[object] = []
    rsd.scripted(lambda prompt, index, text: None if index else seen.append(prompt) or "4")
    for mark in ("", "\ufeff"):
        pipe = io.BytesIO(f"{mark}Is √4 ≤ 2?\r\nOr 3 €?\r\n".encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe, encoding=encoding))
        assert rsd("ask").code == 0
    assert seen == ["Is √4 ≤ 2?\nOr 3 €?"] * 2


@pytest.mark.parametrize("locale", ["utf-8", "ascii"])  # The latter is the C locale's.
def test_an_argument_is_utf8_in_the_c_locale_too(rsd: Rsd, locale: str) -> None:
    seen: list[object] = []
    rsd.scripted(lambda prompt, index, text: None if index else seen.append(prompt) or "4")
    assert rsd("ask", "Is √4 ≤ 2?".encode().decode(locale, "surrogateescape")).code == 0
    assert seen == ["Is √4 ≤ 2?"]


def test_the_html_page_is_written_beside_any_output(rsd: Rsd, tmp_path: Path) -> None:
    page = tmp_path / "steps.html"
    result = rsd("ask", "A <question>?", "--json", "--html", str(page))
    assert Generation.model_validate_json(result.out)
    written = page.read_text(encoding="utf-8")
    assert "A &lt;question&gt;?" in written
    assert "21 + 12 = 35." in written
    assert f"the pocket trio; {date.today().isoformat()}" in written
    assert rsd("ask", "?", *OWN, "--html", str(page)).code == 0
    named = "draft scripted-draft, target scripted-target, PRM scripted-prm; "
    assert named in page.read_text(encoding="utf-8")


def test_the_pocket_trio_says_what_it_is_for_and_others_do_not(rsd: Rsd) -> None:
    assert rsd("ask", "How many?").out.splitlines()[0] == DESCRIPTION
    other = rsd("ask", "How many?", *OWN)
    assert DESCRIPTION not in other.out


def test_models_are_loaded_as_asked(rsd: Rsd) -> None:
    rsd("ask", "?", "--device", "cpu")
    rsd(
        *["ask", "?", "--draft", "org/d", "--target", "org/t", "--prm", "org/p"],
        *["--prm-format", "skywork", "--dtype", "bfloat16"],
    )
    pocket, other = rsd.choices
    assert pocket.is_pocket
    assert pocket.device == "cpu"
    assert (other.draft, other.target, other.prm) == ("org/d", "org/t", "org/p")
    assert (other.prm_format, other.dtype, other.device) == ("skywork", "bfloat16", None)
