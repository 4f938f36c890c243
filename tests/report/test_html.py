from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rsd_integrations.errors import ConfigError
from rsd_integrations.report.html import display_steps, to_html, to_page
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import Generation
from tests.report.conftest import generate

VOID = {"meta"}


class Reader(HTMLParser):
    """Text by the class of the block it stands in; checks that tags pair up."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str, str]] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        block = next((name for tag, name in reversed(self.open) if "rsd-step" in name), "")
        self.texts.append((block, self.open[-1][0] if self.open else "", data))


def test_every_step_has_its_block(generation: Generation) -> None:
    texts = Reader(to_html(generation)).texts
    assert ("rsd-step rsd-accepted", "pre", "She buys 9 more: 12 + 9 = 21.") in texts
    assert ("rsd-step rsd-rejected", "pre", "Then 12 more: 21 + 12 = 35.") in texts
    assert ("rsd-step rsd-target", "pre", "Then 12 more: 21 + 12 = 33.") in texts
    assert ("rsd-step rsd-accepted", "span", "✓ 1 kept") in texts
    assert ("rsd-step rsd-rejected", "span", "✗ 2 rejected") in texts
    assert ("rsd-step rsd-rejected", "span", "reward 0.200") in texts
    assert texts[texts.index(("", "div", "answer")) + 1] == ("", "pre", "33")


def test_nothing_is_struck_out(generation: Generation) -> None:
    """A line through a text hides minus and equals signs."""
    assert "line-through" not in to_html(generation)
    assert not Reader(to_html(generation)).tags & {"del", "s"}


def test_an_answer_that_the_steps_show_is_not_shown_again() -> None:
    html = to_html(generate("One.\n\n", "Two."))
    assert html.count("Two.") == 1
    assert ">answer<" not in html
    assert ">(nothing was written)<" in to_html(generate(""))


def test_the_draft_alone_keeps_nothing() -> None:
    html = to_html(generate("One.\n\n", "Two.", threshold=0.0))
    assert "→ 1 draft" in html
    assert "kept" not in html
    assert "steps: 2, draft only" in html


def test_chances_are_never_shown_as_certain() -> None:
    with scripted_pipeline(["One."], rewards=[0.6]) as pipe:
        made = pipe.generate("?", weighting="constant", acceptance_rate=0.999999, seed=0)
    assert "reward 0.600, probability to be kept 0.99<" in to_html(made)


def test_the_cost_is_told(generation: Generation) -> None:
    html = to_html(generation)
    assert generation.usage.flops_ratio is not None
    assert f"{generation.usage.flops_ratio.paper:.2f}x of the target alone (paper accounting)" in html
    assert "steps: 2 of 3 kept (67 %), threshold 0.7" in html
    assert f'<th scope="row">target</th><td>{generation.usage.target.generated}</td>' in html
    assert f'<th scope="row">PRM</th><td>{generation.usage.prm.generated}</td>' in html
    assert '<th scope="col">generated / scored</th>' in html


def test_what_holds_no_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is no Generation.*llm\.load\(\)\.generate"):
        to_html("an answer")  # type: ignore[arg-type]


def test_model_text_stays_text() -> None:
    nasty = "<script>alert(1)</script>&lt;img src=x onerror=y>\x01'\""
    reader = Reader(to_page(generate(f"{nasty}\n\n", f"\\boxed{{{nasty}}}"), question=nasty))
    assert not reader.tags & {"script", "img"}
    shown = nasty.replace("\x01", "\ufffd")
    assert sum(data == shown for _, _, data in reader.texts) == 3


def test_a_fragment_for_notebooks_and_a_page_for_files(generation: Generation) -> None:
    assert to_html(generation).startswith("<div")
    assert display_steps(generation)._repr_html_() == to_html(generation) == str(display_steps(generation))
    assert "show_generation" in repr(display_steps(generation))
    page = to_page(generation, question="How many?")
    assert page.startswith("<!doctype html>")
    assert 'charset="utf-8"' in page
    shown = [text for _, _, text in Reader(page).texts]
    assert shown[shown.index("question") + 1] == "How many?"
    assert "<h1>RSD step by step</h1>" in page
    assert "<h1>" not in to_html(generation)
    about = to_page(generation, about="draft <d>, 2026-11-30")
    assert "<h1>RSD step by step</h1>" in about
    assert "draft &lt;d&gt;, 2026-11-30" in about


def test_nothing_is_loaded_from_elsewhere(generation: Generation) -> None:
    assert not re.search(r"https?:|//|src=|href=|@import|url\(", to_page(generation))


def test_colours_do_not_fix_the_text_colour(generation: Generation) -> None:
    """A theme we cannot see decides on the text colour; solid backgrounds could hide it."""
    style = re.findall(r"<style>(.*?)</style>", to_html(generation), re.DOTALL)[0]
    assert set(re.findall(r"[{;]color:([^;}]+)", style)) == {"inherit"}
    assert all(
        value == "none" or value.startswith("rgba(") for value in re.findall(r"background:([^;}]+)", style)
    )


def test_lines_of_a_question_stay_lines(generation: Generation) -> None:
    page = to_page(generation, question="One:\n  two\nthree?")
    assert '<pre class="rsd-question" dir="auto">One:\n  two\nthree?</pre>' in page
    (style,) = re.findall(r"[.]rsd pre{([^}]*)}", page)
    assert "white-space:pre-wrap" in style.replace("\n", "").split(";")


def test_text_reads_in_its_own_direction() -> None:
    """Hebrew and Arabic from the right, each part by its own first letter."""
    said, wrong = "\u05e9\u05dc\u05d5\u05dd.\n\n", "No.\n\n"
    with scripted_pipeline([wrong], [said], 0.1) as pipe:
        page = to_page(pipe.generate("?", max_steps=1), question=said)
    texts = re.findall(r"<(\w+)([^>]*)>(?:<\w+>)?(?=\u05e9|No)", page)
    assert {tag for tag, _ in texts} == {"pre"}, "notebooks take dollars outside it for formulas"
    assert len(texts) == 4
    assert all('dir="auto"' in attributes for _, attributes in texts)


def test_an_unfinished_answer_says_so() -> None:
    said = "stopped at a length limit ({}): the answer may be unfinished (see max_tokens, max_steps and "
    assert said.format("3 tokens, 1 step") in to_html(generate("One long step.", max_tokens=3))
    html = to_html(generate(*["One\n\n"] * 3, max_steps=2))
    assert html.index(said.format("10 tokens, 2 steps")) < html.index("FLOPs"), "where it is seen"
