"""Tokens that a model has no embedding of: added to its tokenizer, or another model's."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch.failures import Embedded
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.errors import PromptError
from rsd_integrations.types import Prompt
from tests.recording import Recordings
from tests.tiny_models import tokenizer, trio

ODD = "Hello <new> there"


def more(*, special: bool = False) -> Any:
    """A tokenizer with a token that the model was not resized for."""
    made = copy.deepcopy(tokenizer("ascii"))
    made.add_tokens(["<new>"], special_tokens=special)
    return made


def load(architecture: str, *roles: str, **options: Any) -> RSDPipeline:
    given = trio(architecture, architecture)
    given |= {role: (given[role][0], more()) for role in roles}
    return RSDPipeline.from_pretrained(**given, device="cpu", **options)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3_5Text"])
@pytest.mark.parametrize(
    ("roles", "threshold"), [(("draft", "target"), 0.0), (("draft", "target"), 2.0), (("prm",), 0.5)]
)
def test_a_prompt_with_such_a_token_is_refused_by_name(
    architecture: str, roles: tuple[str, ...], threshold: float
) -> None:
    known = len(tokenizer("ascii"))
    with load(architecture, *roles) as pipe:
        told = rf"token {known}, but '\w+' has embeddings of {known} tokens.*resize_token_embeddings"
        before = pipe.generate("Hello", threshold=threshold, max_tokens=9).text
        streams = [pipe.stream(text, threshold=threshold, max_tokens=9) for text in ("Hello", ODD)]
        with pytest.raises(PromptError, match=told):
            streams[1].result()
        assert streams[0].result().text == before, "the others go on"


def test_what_is_launched_whole_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_integrations.backends.torch.launch.recorder_for", lambda device: Recordings())
    with load("Llama", "draft", "target") as pipe, pytest.raises(PromptError, match="embeddings of"):
        pipe.generate(ODD, threshold=0.0, max_tokens=9)


def first_only(prompt: Prompt, steps: tuple[str, ...]) -> float:
    return float(len(steps) == 1)


def test_a_text_of_the_other_model_is_checked_as_it_is_encoded() -> None:
    """The draft's vocabulary is another one: its text becomes tokens of the target's."""
    given = trio("Llama", "Llama", ("ascii", "ascii-b", "ascii")) | {"prm": first_only}
    with RSDPipeline.from_pretrained(**given, device="cpu") as pipe:
        made = pipe.generate("Hello", threshold=0.5, max_step_tokens=4, max_tokens=12)
    assert [step.source for step in made.steps[:2]] == ["draft", "target"]
    target, letters = given["target"][0], copy.deepcopy(tokenizer("ascii-b"))
    letters.add_tokens([made.steps[0].text.strip()[:3]])
    given["target"] = (target, letters)
    with (
        RSDPipeline.from_pretrained(**given, device="cpu") as pipe,
        pytest.raises(PromptError, match=rf"token {len(letters) - 1}, but"),
    ):
        pipe.generate("Hello", threshold=0.5, max_step_tokens=4, max_tokens=12)


@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_no_text_has_may_lack_its_embedding(special: bool) -> None:
    given: dict[str, Any] = {role: (model, more(special=special)) for role, (model, _) in trio().items()}
    with (
        RSDPipeline.from_pretrained(**given, device="cpu") as pipe,
        RSDPipeline.from_pretrained(**trio()) as as_ever,
    ):
        made, wanted = (one.generate("Hello", threshold=0.5, max_tokens=20) for one in (pipe, as_ever))
    assert made.text == wanted.text


def test_the_highest_token_counts() -> None:
    known = Embedded("model", 5)
    known.check([])
    known.check([SlotFeed(0, 0, [0, 4]), SlotFeed(1, 0, [4])])
    with pytest.raises(PromptError, match="token 5"):
        known.check([SlotFeed(0, 0, [0, 4]), SlotFeed(1, 0, [1, 5, 2])])
    Embedded("model", None).check([SlotFeed(0, 0, [10**9])])
