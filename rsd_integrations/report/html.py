"""The step view as HTML: one self-contained fragment for notebooks, one page for a file.

Colours are either the reader's own text colour or mid-tones and translucent fills, because a
notebook does not tell a fragment whether its theme is light or dark.
"""

from __future__ import annotations

from html import escape

from rsd_integrations.errors import ConfigError
from rsd_integrations.report.answer import answer_of, chance_text, reward_text, step_text
from rsd_integrations.report.words import Remedy, cost_lines, ending, in_python, token_rows
from rsd_integrations.text.printable import printable
from rsd_integrations.types import Generation, RoleUsage, Step

__all__ = ["StepsHTML", "display_steps", "to_html", "to_page"]

_STYLE = """
.rsd{font:14px/1.5 system-ui,sans-serif;max-width:60rem;color:inherit}
.rsd *{color:inherit}
.rsd .rsd-step{border-left:4px solid;margin:.4rem 0;padding:.3rem .7rem;border-radius:3px;
break-inside:avoid;-webkit-print-color-adjust:exact;print-color-adjust:exact}
.rsd .rsd-accepted{border-color:#2a9d5c;background:rgba(42,157,92,.12)}
.rsd .rsd-rejected{border-color:#d64545;background:rgba(214,69,69,.12)}
.rsd .rsd-target{border-color:#9a5fd0;background:rgba(154,95,208,.12)}
.rsd .rsd-rejected+.rsd-target{margin-left:1.5rem}
.rsd .rsd-label{font-weight:600;font-size:.85em}
.rsd .rsd-reward{font-weight:400;font-size:.85em;opacity:.8;margin-left:.6em;
font-variant-numeric:tabular-nums}
.rsd pre{font:inherit;font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;
margin:.15rem 0 0;padding:0;background:none;border:0}
.rsd .rsd-question,.rsd .rsd-answer{font-family:inherit;margin:0 0 .6rem}
.rsd .rsd-answer{font-size:1.15em;font-weight:700}
.rsd table{border-collapse:collapse;font-size:.9em;background:none;margin:.5rem 0}
.rsd th,.rsd td{padding:.15rem .8rem .15rem 0;text-align:right;background:none;border:0}
.rsd th:first-child{text-align:left}
.rsd th{font-weight:400;opacity:.75}
.rsd .rsd-warning{border-left:4px solid #d69a00;padding-left:.7rem;margin:.4rem 0}
.rsd .rsd-note{font-family:inherit;opacity:.8;font-size:.9em;margin:.2rem 0;
white-space:pre-wrap;overflow-wrap:anywhere}
""".strip()

_PAGE_STYLE = (
    ":root{color-scheme:light dark}body{margin:2rem auto;padding:0 1rem;max-width:60rem}"
    "h1{font:600 1.3rem/1.5 system-ui,sans-serif;margin:0 0 .4rem}h1+.rsd{margin-bottom:1rem}"
)

_NOTHING = "(nothing was written)"
_HEADINGS = ("tokens", "generated / scored", "discarded", "forwarded")


def to_html(generation: Generation, *, question: str | None = None, remedy: Remedy = in_python) -> str:
    """One ``<div>`` with its own style: every step, the answer, and what it cost. All text escaped.

    Args:
        generation: the answer.
        question: what was asked, shown above it.
        remedy: tells what to do about an answer that a length limit ended.

    Raises:
        ConfigError: it is no ``Generation``: messages and responses of frameworks hold no steps.
    """
    if not isinstance(generation, Generation):
        raise ConfigError(
            f"{generation!r:.100} is no Generation.",
            hint="Pass what a pipeline's generate returns; of a ChatRSD or RSDLLM, llm.load().generate(...).",
        )
    # All text is in <pre>, which notebooks do not search for formulas: "$3 and ... $12" is none.
    return "".join(
        [
            f'<div class="rsd"><style>{_STYLE}</style>',
            "" if question is None else _named("question", question),
            *[_step(step) for step in generation.steps],
            f'<div class="rsd-warning">{escape(told)}</div>' if (told := ending(generation, remedy)) else "",
            "" if (answer := answer_of(generation)) is None else _named("answer", answer),
            _cost(generation),
            "</div>",
        ]
    )


def to_page(
    generation: Generation, *, question: str | None = None, remedy: Remedy = in_python, about: str = ""
) -> str:
    """A whole HTML document that loads nothing and follows the reader's light or dark setting.

    Args:
        generation: the answer.
        question: what was asked, shown above it.
        remedy: tells what to do about an answer that a length limit ended.
        about: a line under the heading, such as which models answered, and when.
    """
    below = f'<div class="rsd"><div class="rsd-note">{_text(about)}</div></div>' if about else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>RSD step by step</title><style>{_PAGE_STYLE}</style></head>"
        f"<body><main><h1>RSD step by step</h1>{below}"
        f"{to_html(generation, question=question, remedy=remedy)}</main></body></html>\n"
    )


class StepsHTML:
    """Shows itself in notebooks; ``str()`` is the HTML."""

    def __init__(self, html: str) -> None:
        self._html = html

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return "<StepsHTML, for notebooks; for a terminal: rsd_integrations.report.steps.show_generation>"

    def __str__(self) -> str:
        return self._html


def display_steps(generation: Generation, *, question: str | None = None) -> StepsHTML:
    """For the last line of a notebook cell: ``display_steps(pipe.generate(question))``.

    Raises:
        ConfigError: it is no ``Generation``.
    """
    return StepsHTML(to_html(generation, question=question))


def _text(text: str) -> str:
    return escape(printable(text))


def _named(name: str, text: str) -> str:
    """The question or the answer, with its name above it."""
    shown = _text(text) or _NOTHING
    return f'<div class="rsd-note">{name}</div><pre class="rsd-{name}" dir="auto">{shown}</pre>'


def _step(step: Step) -> str:
    reward = "" if step.reward is None else f"reward {reward_text(step.reward)}"
    if 0.0 < step.acceptance_probability < 1.0:
        reward += f", probability to be kept {escape(chance_text(step.acceptance_probability))}"
    if step.accepted:
        label = f"→ {step.index + 1} draft" if step.reward is None else f"✓ {step.index + 1} kept"
        return _block("accepted", label, reward, _pre(step.text))
    rewrite = _block("target", f"→ {step.index + 1} target", "", _pre(step.text))
    if step.rejected_text is None:
        return rewrite
    rejected = _pre(step.rejected_text)
    return _block("rejected", f"✗ {step.index + 1} rejected", reward, rejected) + rewrite


def _pre(text: str) -> str:
    return f'<pre dir="auto">{escape(step_text(text))}</pre>'


def _block(kind: str, label: str, reward: str, content: str) -> str:
    return (
        f'<div class="rsd-step rsd-{kind}"><span class="rsd-label">{label}</span>'
        f'<span class="rsd-reward">{reward}</span>{content}</div>'
    )


def _cost(generation: Generation) -> str:
    notes = [f"{name}: {words}" for name, words in cost_lines(generation)]
    return (
        "".join(f'<div class="rsd-note">{escape(note)}</div>' for note in notes)
        + "<table><tr>"
        + "".join(f'<th scope="col">{heading}</th>' for heading in _HEADINGS)
        + "</tr>"
        + "".join(_row(name, use) for name, use in token_rows(generation.usage))
        + "</table>"
    )


def _row(name: str, use: RoleUsage) -> str:
    cells = "".join(f"<td>{count:,}</td>" for count in (use.generated, use.discarded, use.forwarded))
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'
