"""Reasoning models: thinking and answer apart, in results and in streams, however the text is cut."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations.backends.shared.reasoning import reasoning_tags
from rsd_integrations.errors import ConfigError
from rsd_integrations.output import Output
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.protocols import Backend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter, scripted_pipeline
from rsd_integrations.text.thoughts import ReasoningSplitter, ReasoningTags
from tests.tiny_models import CHATML, tokenizer

TAGS = ReasoningTags()
SCRIPT = ["<think>\nFirst, add.\n\n", "Then check.\n</think>\n\n", "It is 4.\n\n", "Done."]


def test_thinking_and_answer_are_kept_apart() -> None:
    with scripted_pipeline(SCRIPT, tags=TAGS) as pipe:
        out = pipe.generate("2 + 2?")
    assert out.reasoning == "First, add.\n\nThen check."
    assert out.text == "It is 4.\n\nDone."
    # Steps inside the thinking are steps like others.
    assert [step.text for step in out.steps] == SCRIPT


def test_streams_give_both_apart_and_fold_to_the_result() -> None:
    with scripted_pipeline(SCRIPT, tags=TAGS) as pipe:
        events = list(pipe.stream("2 + 2?"))
        awaited = asyncio.run(pipe.agenerate("2 + 2?"))
    out = events[-1].generation
    assert out is not None
    assert "".join(event.delta for event in events) == out.text == awaited.text
    assert "".join(event.reasoning_delta for event in events) == out.reasoning == awaited.reasoning
    assert "think" not in out.text + (out.reasoning or "")


def test_a_rejected_step_inside_the_thinking_is_rewritten() -> None:
    with scripted_pipeline(
        SCRIPT, ["<think>\nWell.\n\n", *SCRIPT[1:]], rewards=[0.1, 0.9], tags=TAGS
    ) as pipe:
        out = pipe.generate("2 + 2?")
    assert out.reasoning == "Well.\n\nThen check."
    assert out.text == "It is 4.\n\nDone."


@pytest.mark.parametrize("tags", [TAGS, ReasoningTags(open_in_prompt=True)])
@pytest.mark.parametrize("cut", [512, 1])
def test_stop_strings_are_of_the_answer(tags: ReasoningTags, cut: int) -> None:
    """Not of the thinking before it, which may name them; steps may cut the markup anywhere."""
    script = ["<think>\nNo END in sight.\n\n", "END?\n</think>\n\n", "It is 4.\n\n", "END. So."]
    script = [text.removeprefix("<think>" if tags.open_in_prompt else "") for text in script]
    written = script if cut > 1 else list("".join(script))
    with scripted_pipeline(written, tags=tags) as pipe:
        out = pipe.generate("2 + 2?", stop="END", max_step_tokens=cut)
    assert out.reasoning == "No END in sight.\n\nEND?"
    assert (out.text, out.finish_reason) == ("It is 4.\n\n", "stop")


def test_the_end_of_the_thinking_as_a_stop_string() -> None:
    with scripted_pipeline(SCRIPT, tags=TAGS) as pipe:
        out = pipe.generate("2 + 2?", stop=TAGS.closing)
    assert (out.reasoning, out.text) == ("First, add.\n\nThen check.", "")


def test_a_prompt_that_opens_the_thinking() -> None:
    tags = ReasoningTags(open_in_prompt=True)
    with scripted_pipeline(["Add.\n</think>\n\n", "4."], tags=tags) as pipe:
        out = pipe.generate("2 + 2?")
    assert (out.reasoning, out.text) == ("Add.", "4.")


@pytest.mark.parametrize(
    ("tags", "first"),
    [(TAGS, SCRIPT[0]), (ReasoningTags(open_in_prompt=True), SCRIPT[0].removeprefix("<think>"))],
)
def test_thoughts_before_a_document_are_steps(tags: ReasoningTags, first: str) -> None:
    """Whoever opened them; the document itself is one."""
    document = '{"a":\n\n 4}'
    whole = first + SCRIPT[1] + document

    def script(prompt: object, index: int, text: str) -> str | None:
        return whole[len(text) :] or None

    with scripted_pipeline(script, tags=tags) as pipe:
        out = pipe.generate("2 + 2?", output=Output.of(response_format={"type": "json_object"}))
    assert [step.text for step in out.steps] == [first, SCRIPT[1] + document]
    assert (out.reasoning, out.text) == ("First, add.\n\nThen check.", document)


def test_a_document_without_thoughts_is_one_step() -> None:
    """Of a model that might have thought."""
    document = '{"a":\n\n 4}'
    form = Output.of(response_format={"type": "json_object"})
    with scripted_pipeline(lambda prompt, index, text: document[len(text) :] or None, tags=TAGS) as pipe:
        assert [step.text for step in pipe.generate("2 + 2?", output=form).steps] == [document]


@pytest.mark.parametrize("other", [None, ReasoningTags()])
def test_models_that_do_not_begin_alike_are_refused(other: ReasoningTags | None) -> None:
    """R1's distillations and Qwen 2.5, say: thoughts would be taken for the answer, and forms be broken."""
    inside = ScriptedWriter(["Add.\n</think>\n\n", "4."], tags=ReasoningTags(open_in_prompt=True))
    outside = ScriptedWriter(["4."], tags=other)
    for draft, target, said in (
        (inside, outside, "of the draft ends within its thinking, that of the target does not"),
        (outside, inside, "of the target ends within its thinking, that of the draft does not"),
    ):
        with RSDPipeline(Backend(draft, target, ScriptedScorer([1.0]))) as pipe:
            with pytest.raises(ConfigError, match=said):
                pipe.generate("2 + 2?")
            assert pipe.generate("2 + 2?", threshold=1.1 if target is inside else 0.0).reasoning == "Add."
            assert pipe.generate("2 + 2?", threshold=0.0 if target is inside else 1.1).text == "4."
    assert inside.open_sessions == outside.open_sessions == 0


def test_models_that_mark_their_thoughts_in_different_ways_are_refused() -> None:
    """One would take the other's thoughts for the answer."""
    draft = ScriptedWriter(["<think>Add.</think>", "4."], tags=ReasoningTags())
    target = ScriptedWriter(["[THINK]Add.[/THINK]", "4."], tags=ReasoningTags("[THINK]", "[/THINK]"))
    with RSDPipeline(Backend(draft, target, ScriptedScorer([1.0]))) as pipe:
        with pytest.raises(ConfigError, match=r"draft '<think></think>' and the target '\[THINK\]"):
            pipe.generate("2 + 2?")
        assert pipe.generate("2 + 2?", threshold=1.1).reasoning == "Add."


def test_a_model_that_does_not_think_has_no_reasoning() -> None:
    with scripted_pipeline(["  It is 4, not <think>5</think>."], tags=TAGS) as pipe:
        out = pipe.generate("2 + 2?")
    assert out.reasoning is None
    assert out.text == "  It is 4, not <think>5</think>."


def test_cut_off_in_mid_thought() -> None:
    with scripted_pipeline(SCRIPT, tags=TAGS) as pipe:
        out = pipe.generate("2 + 2?", max_tokens=15)
    assert (out.reasoning, out.text, out.finish_reason) == ("First,", "", "length")


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", "\n", " ", "a", "b<"]), max_size=12),
    st.data(),
)
def test_splitting_does_not_depend_on_the_chunks(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    tags = ReasoningTags(open_in_prompt=data.draw(st.booleans()))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    edges = [0, *cuts, len(text)]

    def split(chunks: list[str]) -> tuple[str, str]:
        splitter = ReasoningSplitter(tags)
        pairs = [splitter.push(chunk) for chunk in chunks] + [splitter.push("", final=True)]
        return "".join(answer for answer, _ in pairs), "".join(thought for _, thought in pairs)

    assert split([text[a:b] for a, b in pairwise(edges)]) == split([text])


def test_text_behind_marks_does_not_depend_on_the_chunks() -> None:
    text = "<think>Hm.</think><a>4</a>  or so, yes"
    for chunks in ([text], [*text]):
        splitter = ReasoningSplitter(ReasoningTags(answer="<a>", end="</a>"))
        assert "".join(splitter.push(chunk)[0] for chunk in chunks) == "4or so, yes"


def _thinking_tokenizer(*, special: bool = False, **attributes: object) -> object:
    import copy

    made = copy.deepcopy(tokenizer())
    made.add_tokens(["<think>", "</think>"], special_tokens=special)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def test_tags_come_from_the_vocabulary() -> None:
    assert reasoning_tags(tokenizer()) is None
    assert reasoning_tags(_thinking_tokenizer()) == ReasoningTags("<think>", "</think>")


def test_tags_come_from_the_response_template_first() -> None:
    template = {"fields": {"reasoning_content": {"open": "<|channel>thought\n", "close": "<channel|>"}}}
    found = reasoning_tags(_thinking_tokenizer(response_template=template))
    assert found == ReasoningTags("<|channel>thought", "<channel|>")


@pytest.mark.parametrize("opening", ["<think>", "<think>\n"])
def test_a_template_may_open_the_thinking(opening: str) -> None:
    template = CHATML.replace("assistant\n", "assistant\n" + opening)
    tok = _thinking_tokenizer(chat_template=template)
    prompt = tok.apply_chat_template(  # type: ignore[attr-defined]
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    found = reasoning_tags(tok, tuple(prompt))
    assert found is not None
    assert found.open_in_prompt
