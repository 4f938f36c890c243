"""``chat_template_kwargs``: what a chat template may be told besides the chat."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rsd_integrations import RSDConfig, RSDPipeline
from rsd_integrations.bench.questions import Question
from rsd_integrations.bench.tune import tune
from rsd_integrations.errors import ConfigError, PromptLengthError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from tests.tiny_models import CHATML, tokenizer, trio

OFF = {"enable_thinking": False}
SHUT = "{% if add_generation_prompt and enable_thinking is false %}<none>\n\n</none>\n\n{% endif %}"
"""What Qwen 3's template does."""
LIMITS: Any = {"max_tokens": 24, "max_steps": 3}


def words(template: str) -> Any:
    made = copy.deepcopy(tokenizer("ascii"))
    made.chat_template = template
    return made


def pipeline(draft: str = CHATML + SHUT, target: str = CHATML + SHUT) -> RSDPipeline:
    models = trio()
    for role, template in (("draft", draft), ("target", target)):
        models[role] = models[role][0], words(template)
    return RSDPipeline.from_pretrained(**models, device="cpu", max_batch_size=2, max_length=200)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.1])
def test_an_answer_is_that_of_a_template_that_says_so_itself(threshold: float) -> None:
    said = CHATML + SHUT.replace("enable_thinking is false", "true")
    with pipeline() as pipe, pipeline(said, said) as oracle:
        told = pipe.generate("2 + 2?", threshold=threshold, chat_template_kwargs=OFF, **LIMITS)
        expected = oracle.generate("2 + 2?", threshold=threshold, **LIMITS)
        plain = pipe.generate("2 + 2?", threshold=threshold, **LIMITS)
        assert (told.text, told.usage) == (expected.text, expected.usage)
        assert told.usage.prompt_tokens > plain.usage.prompt_tokens
        assert pipe.count_tokens("2 + 2?", chat_template_kwargs=OFF) == told.usage.prompt_tokens


def test_each_template_is_told_what_it_looks_at() -> None:
    with pipeline(target=CHATML) as pipe:
        backend: Any = pipe.backend
        lengths = {
            role: [
                getattr(backend, role).count([{"role": "user", "content": "x"}], variables=told)
                for told in ({}, OFF)
            ]
            for role in ("draft", "target")
        }
        assert lengths["draft"][0] < lengths["draft"][1]
        assert lengths["target"][0] == lengths["target"][1]
        assert pipe.generate("x", chat_template_kwargs=OFF, **LIMITS).steps
        with pytest.raises(ConfigError, match=r"look at no variable 'enable_thinkin'\. Look for variables"):
            pipe.generate("x", chat_template_kwargs={"enable_thinkin": False}, **LIMITS)


def test_tuning_counts_what_it_asks() -> None:
    asked = [Question("2 + 2?", "4", lambda text, known: True)]
    with pipeline() as pipe:
        room = 200 - pipe.count_tokens("2 + 2?")
        with pytest.raises(PromptLengthError, match="has a window of 200"):
            tune(pipe, asked, [0.5], RSDConfig(max_tokens=room, chat_template_kwargs=OFF))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tools": []}, "must not set 'tools', which is no variable"),
        ({"add_generation_prompt": False}, "'add_generation_prompt'"),
        ({"a": object()}, "chat_template_kwargs"),
        ({1: 2}, "chat_template_kwargs"),
        ("enable_thinking", "chat_template_kwargs"),
    ],
)
def test_what_is_no_variable_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RSDConfig(chat_template_kwargs=given)


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
def test_adapters_have_it_for_all_calls_or_one(kind: Any) -> None:
    def asked(model: Any, **call: Any) -> int:
        if kind is ChatRSD:
            return int(model.invoke("2 + 2?", **call).usage_metadata["input_tokens"])
        return int(model.complete("2 + 2?", **call).raw["usage"]["prompt_tokens"])

    with pipeline() as pipe:
        plain, told = (
            kind.from_pipeline(pipe, **LIMITS, **more) for more in ({}, {"chat_template_kwargs": OFF})
        )
        assert asked(plain) < asked(told) == asked(plain, chat_template_kwargs=OFF)
        assert asked(told, chat_template_kwargs={}) == asked(plain)
        if kind is ChatRSD:
            assert told.get_num_tokens("2 + 2?") == plain.get_num_tokens("2 + 2?")
            chat = [("human", "2 + 2?")]
            from langchain_core.messages import convert_to_messages

            assert told.get_num_tokens_from_messages(convert_to_messages(chat)) == asked(told)
