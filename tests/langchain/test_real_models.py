"""On real architectures with random weights, in this process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from rsd_integrations import RSDPipeline
from rsd_integrations.errors import EngineClosedError, PromptError
from rsd_integrations.langchain import ChatRSD
from tests.counting import QUESTION
from tests.langchain.modes import MODES, Recorder
from tests.tiny_models import saved, tokenizer, trio

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")

TOOL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LIMITS = {"max_tokens": 24, "max_step_tokens": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models on disk, as users have them."""
    return saved(trio("Llama"), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tiny() -> Iterator[ChatRSD]:
    """Over models that are loaded already."""
    llm = ChatRSD(**trio("Llama"), device="cpu", weighting="constant", seed=7, **LIMITS)
    yield llm
    llm.load().close()


def test_over_a_pipeline_that_was_closed() -> None:
    with RSDPipeline.pocket() as pipe:
        llm = ChatRSD.from_pipeline(pipe)
    with pytest.raises(EngineClosedError, match="was closed"):
        llm.invoke(QUESTION)
    with pytest.raises(EngineClosedError, match="was closed"):
        llm.get_num_tokens(QUESTION)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_pipelines_answer(tiny: Any, mode: str) -> None:
    chat = [{"role": "user", "content": QUESTION}]
    if "chain" in mode:
        chat.insert(0, {"role": "system", "content": "Count."})
    expected = tiny.load().generate(chat, config=tiny.config)
    handler = Recorder()
    assert MODES[mode](tiny, [handler]) == expected.text
    assert expected.steps
    assert [data["text"] for _, data, _ in handler.custom] == [step.text for step in expected.steps]
    assert handler.ended[0].usage_metadata["input_tokens"] == expected.usage.prompt_tokens


def test_folders_are_loaded_when_needed(folders: Any) -> None:
    llm = ChatRSD(**folders, device="cpu", **LIMITS)
    assert llm.profile is not None
    assert llm.profile["max_input_tokens"] == 512 - LIMITS["max_tokens"]
    message = llm.invoke(QUESTION)
    assert message.response_metadata["model_name"] == folders["target"]
    assert llm.profile["max_input_tokens"] == 512 - LIMITS["max_tokens"]
    assert ChatRSD(**folders, device="cpu").load() is llm.load()
    assert [answer.content for answer in llm.batch([QUESTION] * 3)] == [message.content] * 3
    with pytest.raises(PromptError, match="do not fit the window"):
        llm.invoke("word " * 600)
    llm.load().close()


def test_tokens_are_the_targets_own(tiny: Any) -> None:
    words = tokenizer("ascii")
    assert tiny.get_token_ids("Ava has 12 marbles.") == words.encode("Ava has 12 marbles.")
    chat = [SystemMessage("Be brief."), HumanMessage("Hello")]
    rendered = words.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert tiny.get_num_tokens_from_messages(chat) == len(rendered)
    assert tiny.get_num_tokens("Hello") < len(rendered)


def test_control_tokens_in_messages_are_text(tiny: Any) -> None:
    end = tokenizer("ascii").convert_tokens_to_ids("<|im_end|>")
    assert end not in tiny.get_token_ids("a<|im_end|>b")
    plain = tiny.get_num_tokens_from_messages([HumanMessage("ab")])
    spelled = tiny.get_num_tokens_from_messages([HumanMessage("a<|im_end|>b")])
    assert spelled > plain + 1


def test_tool_turns_go_through_the_models_template() -> None:
    words = copy.deepcopy(tokenizer("ascii"))
    words.chat_template = TOOL_TEMPLATE
    call = {"name": "add", "args": {"a": 1, "b": "x"}, "id": "c1"}
    chat = [
        HumanMessage("1+2?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("3<|im_end|>", tool_call_id="c1"),
    ]
    models = {role: (model, words) for role, (model, _) in trio("Llama").items()}
    llm = ChatRSD(**models, device="cpu", **LIMITS)
    with llm.load() as pipe:
        from rsd_integrations.langchain.messages import to_chat

        backend: Any = pipe.backend
        ids = backend.target.open(to_chat(chat)).tokens
        text = words.decode(ids, skip_special_tokens=False)
        assert '<tool_call>{"name": "add", "arguments": {"a": 1, "b": "x"}}</tool_call>' in text
        assert "<|im_start|>tool\n3<|im_end|>" in text
        assert list(ids).count(words.convert_tokens_to_ids("<|im_end|>")) == 3
        assert llm.invoke(chat).response_metadata["rsd"]["steps"] > 0
