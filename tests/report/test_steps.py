from __future__ import annotations

from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from rsd_integrations.report.steps import show_events, show_generation
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import Generation, StepEvent
from tests.report.conftest import DRAFT, TARGET, generate


def terminal(width: int = 100, *, colour: bool = True) -> Console:
    return Console(
        record=True,
        file=StringIO(),
        width=width,
        force_terminal=True,
        color_system="standard" if colour else None,
        highlight=False,
        legacy_windows=False,
    )


def styled(console: Console) -> list[Text]:
    """What was printed, line by line, with its styles."""
    assert isinstance(console.file, StringIO)
    return [Text.from_ansi(line) for line in console.file.getvalue().splitlines()]


def style_at(line: Text, part: str) -> str:
    start = line.plain.index(part)
    return " ".join(str(span.style) for span in line.spans if span.start <= start < span.end)


def line_with(console: Console, part: str) -> Text:
    return next(line for line in styled(console) if part in line.plain)


def test_labels_are_coloured_and_no_text_is_struck_out(generation: Generation) -> None:
    console = terminal()
    show_generation(generation, console)
    kept, rejected, rewrite = (line_with(console, part) for part in ("= 21.", "= 35.", "= 33."))
    assert "color(2)" in style_at(kept, "kept")
    assert "color(1)" in style_at(rejected, "rejected")
    assert style_at(kept, "She buys") == style_at(rewrite, "Then 12") == ""
    assert style_at(rejected, "Then 12") == "dim"
    assert kept.plain.startswith("✓ kept     0.900  She buys")
    assert rejected.plain.startswith("✗ rejected 0.200  Then 12")
    assert rewrite.plain.startswith("→ target          Then 12")


def test_without_colour_words_and_marks_still_tell(generation: Generation) -> None:
    console = terminal(colour=False)
    show_generation(generation, console)
    text = console.export_text()
    assert "\x1b[3" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert "✓ kept" in text
    assert "✗ rejected" in text


@pytest.mark.parametrize("width", [24, 40, 59, 60, 100])
def test_nothing_is_lost_or_too_wide_at_any_width(generation: Generation, width: int) -> None:
    console = terminal(width)
    show_generation(generation, console, 1.5)
    lines = console.export_text(styles=False).splitlines()
    assert max(map(len, lines)) <= width
    everything = "".join("".join(lines).split()).replace("│", "")
    for part in ("12+9=21.", "21+12=35.", "21+12=33.", "answer33", "papera", "1.50s"):
        assert part in everything, part
    assert ("forwarded" in everything) == (width >= 54)


def test_a_narrow_terminal_puts_the_label_above(generation: Generation) -> None:
    console = terminal(40)
    show_generation(generation, console)
    lines = console.export_text().splitlines()
    assert lines[0].rstrip() == "✓ kept     0.900"
    assert lines[1].rstrip() == "  She buys 9 more: 12 + 9 = 21."


def test_a_pipe_without_unicode_gets_ascii(generation: Generation) -> None:
    class Ascii(StringIO):
        encoding = "ascii"

    file = Ascii()
    show_generation(generation, Console(file=file, width=80))
    assert "+ kept     0.900  She buys" in file.getvalue()
    assert file.getvalue().isascii()


def test_what_models_write_is_no_markup_and_no_escape_sequence() -> None:
    file = StringIO()
    show_generation(
        generate("[red]x[/red] [/] \x1b[2J\x1b]0;title\x07.\n\n", "\\boxed{[b]}"), Console(file=file)
    )
    assert "[red]x[/red] [/] \ufffd[2J\ufffd]0;title\ufffd." in file.getvalue()
    assert "answer  [b]" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_chance_shows_its_probability() -> None:
    with scripted_pipeline(["One."], rewards=[0.6]) as pipe:
        generation = pipe.generate("?", weighting="constant", acceptance_rate=0.999999, seed=0)
    file = StringIO()
    show_generation(generation, Console(file=file))
    assert "kept     0.600 p=0.99" in file.getvalue()


@pytest.mark.parametrize(
    ("threshold", "words"), [(0.0, "steps     3, draft only"), (1.1, "steps     3, target only")]
)
def test_one_model_alone_is_called_so(threshold: float, words: str) -> None:
    file = StringIO()
    with scripted_pipeline(DRAFT, TARGET) as pipe:
        show_generation(pipe.generate("?", threshold=threshold), Console(file=file))
    assert words in file.getvalue()
    assert "kept" not in file.getvalue(), "nothing was scored"
    assert file.getvalue().startswith(f"→ {words.split()[2]:<16}")


def test_an_answer_that_the_steps_show_is_not_shown_again() -> None:
    file = StringIO()
    show_generation(generate("One.\n\n", "Two."), Console(file=file))
    assert file.getvalue().count("Two.") == 1
    assert "answer" not in file.getvalue()


def test_a_single_step_is_counted() -> None:
    file = StringIO()
    for threshold in (0.0, 0.7, 1.1):
        with scripted_pipeline(["One."], ["One."]) as pipe:
            show_generation(pipe.generate("?", threshold=threshold), Console(file=file))
    lines = [line for line in file.getvalue().splitlines() if line.startswith("steps")]
    assert [line.partition("  ")[2].strip() for line in lines] == [
        "1, draft only",
        "1 of 1 kept (100 %), threshold 0.7",
        "1, target only",
    ]


def test_a_view_of_an_unfinished_answer_speaks_of_parameters() -> None:
    """Whoever calls it wrote Python: there are no options."""
    file = StringIO()
    show_generation(generate("One.\n\n", "Two.\n\n", max_steps=1), Console(file=file, width=200))
    assert "(6 tokens, 1 step): the answer may be unfinished (see max_tokens, max_steps" in file.getvalue()
    assert "--" not in file.getvalue()


def test_nothing_written_is_said() -> None:
    file = StringIO()
    with scripted_pipeline(DRAFT, delay=0.2) as pipe:
        show_generation(pipe.generate("?", timeout=0.05), Console(file=file))
    assert "cancelled: the answer is unfinished" in file.getvalue()
    assert "(nothing was written)" in file.getvalue()


def test_the_live_view_shows_the_step_in_the_making_and_leaves_the_committed_ones() -> None:
    console = terminal()
    assert isinstance(console.file, StringIO)
    drawn: dict[str, str] = {}

    def watched(events: Iterator[StepEvent]) -> Iterator[StepEvent]:
        for event in events:
            before = len(console.file.getvalue())  # type: ignore[attr-defined]
            yield event
            # Resumed once the view asks for the next event: this one has been drawn.
            drawn[f"{event.type} {event.index}"] = console.file.getvalue()[before:]  # type: ignore[attr-defined]

    with scripted_pipeline(DRAFT, TARGET, [0.9, 0.2, 0.95]) as pipe:
        shown = show_events(watched(pipe.stream("How many?")), console)
    assert shown.finish_reason == "stop"
    assert "… proposed" in drawn["proposed 1"]
    assert "21 + 12 = 35." in drawn["proposed 1"]
    assert "… scored   0.200" in drawn["scored 1"]
    assert "✗ rejected 0.200" in drawn["rejected 1"]
    assert "the target is writing step 2" in drawn["rejected 1"]
    assert "→ target" in drawn["committed 1"]
    assert "writing step 3" in drawn["committed 1"]
    final = [line.plain for line in styled(console)]
    assert sum("✓ kept     0.900" in line for line in final) == 1
    assert any("cost" in line for line in final)


def test_a_stream_that_breaks_off_is_an_error() -> None:
    with scripted_pipeline(DRAFT) as pipe:
        events = list(pipe.stream("?"))[:-1]
    with pytest.raises(RuntimeError, match="finished"):
        show_events(events, Console(file=StringIO()))
