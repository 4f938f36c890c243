"""What users write, as type checkers see it. .ci/run checks it (mypy --strict, no plugin); it never runs."""

from __future__ import annotations

from pathlib import Path

import torch
from langchain_core.tools import tool
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse
from pydantic import BaseModel
from typing_extensions import assert_type

from rsd_integrations import AsyncEventStream, EventStream, Output, RewardFunction, RSDConfig, RSDPipeline
from rsd_integrations.config import ConfigFields
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pocket import EXAMPLE_QUESTIONS
from rsd_integrations.types import RequestCounts, Step


class Answer(BaseModel):
    value: int


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def on_step(step: Step) -> None:
    print(step.accepted, step.reward)


def settings() -> str:
    RSDConfig(stop="END", step_delimiter=["\n\n", "\n"], weighting=lambda reward: reward)
    variables = {"enable_thinking": False}
    RSDConfig(chat_template_kwargs=variables)
    return RSDConfig(threshold=0.7, stop=["END"], step_delimiter="\n", weighting="logistic", seed=1).stop[0]


def pipeline() -> float:
    pipe = RSDPipeline.from_pretrained(
        "draft", Path("target"), "prm", dtype=torch.bfloat16, draft_kwargs={"device": "cuda:1"}
    )
    pipe.generate([{"role": "user", "content": "x"}], threshold=0.5, stop=["a"])
    for event in pipe.stream("x", output=Output.of(response_format={"type": "json_object"})):
        if event.step is not None:
            print(event.delta, event.step.reward)
    return pipe.generate("x").usage.flops.paper


def asked(pipe: RSDPipeline) -> str:
    fields: ConfigFields = {"threshold": None, "stop": "END", "weighting": lambda reward: reward}
    pipe.generate("x", config=RSDConfig().override(**fields), timeout=3, **fields)
    RSDPipeline.pocket(prm=right, max_batch_size=4, draft_kwargs={"dtype": "float32"})
    RSDConfig().override(seed=None, chat_template_kwargs={"enable_thinking": False}, temperature=1)
    return pipe.generate("x", step_delimiter=["\n"], top_k=None, draft_candidates=2).text


async def wrong(pipe: RSDPipeline) -> None:
    """What checkers find: an ignored error that is none is one, too."""
    pipe.generate("x", max_new_tokens=5)  # type: ignore[call-arg]
    pipe.stream("x", temperature="hot")  # type: ignore[arg-type]
    pipe.astream("x", thresold=1.0)  # type: ignore[call-arg]
    await pipe.agenerate("x", weighting="best")  # type: ignore[arg-type]
    RSDPipeline.pocket(max_batch_sze=3)  # type: ignore[call-arg]
    RSDConfig().override(thresold=1)  # type: ignore[call-arg]
    ChatRSD(draft="a", target="b", prm="c", thresold=1)  # type: ignore[call-arg]
    RSDLLM(draft="a", target="b", prm="c", threshold="high")  # type: ignore[arg-type]


def right(prompt: object, steps: tuple[str, ...]) -> float:
    return float(bool(steps[-1]))


async def judged(prompt: object, steps: tuple[str, ...]) -> float:
    return right(prompt, steps)


def rewards() -> list[float | None]:
    RSDPipeline.from_vllm("http://a", "http://b", judged)
    RSDPipeline.from_vllm("http://a", ["http://b", "http://c"], RewardFunction(right, threshold=0.5))
    ChatRSD(draft="a", target="b", prm=judged)
    pipe = RSDPipeline.from_pretrained("a", "b", right)
    print(pipe.requests.waiting)
    return pipe.score("x", ["a", "b"])


def counted(pipe: RSDPipeline) -> RequestCounts:
    return pipe.requests


def streams(pipe: RSDPipeline) -> tuple[EventStream, AsyncEventStream]:
    return pipe.stream("x"), pipe.astream("x")


async def awaited() -> str:
    async with RSDPipeline.pocket() as pipe:
        async for event in pipe.astream("x"):
            print(event.delta)
        return (await pipe.agenerate("x")).text


def langchain(pipe: RSDPipeline) -> str:
    ChatRSD(draft="http://a", target="http://b", prm="http://c", api_key="key")
    ChatRSD(draft="a", target=Path("b"), prm="c", threshold=0.7, stop=["END"], on_step=on_step, max_tokens=5)
    ChatRSD.from_pipeline(pipe, temperature=0.7, stop="END").with_structured_output(Answer).invoke("hi")
    llm = ChatRSD.pocket(threshold=0.9)
    llm.bind_tools([add], tool_choice="any").invoke("hi")
    return "".join(chunk.text for chunk in llm.stream("hi"))


def llama_index(pipe: RSDPipeline) -> str:
    llm = RSDLLM(draft="a", target="b", prm="c", stop=["END"], system_prompt="Be brief.", api_key="key")
    assert_type(llm.complete("x"), CompletionResponse)
    return str(
        assert_type(RSDLLM.from_pipeline(pipe, temperature=0.3).chat([ChatMessage("x")]), ChatResponse)
    )


def pocket() -> str:
    return EXAMPLE_QUESTIONS[0]
