"""Query and chat engines, selectors, rerankers and evaluators over scripted models, without a network."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import (
    Document,
    PromptHelper,
    PromptTemplate,
    VectorStoreIndex,
    get_response_synthesizer,
)
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.evaluation import FaithfulnessEvaluator
from llama_index.core.extractors import DocumentContextExtractor
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.selectors import LLMSingleSelector, PydanticSingleSelector
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import QueryEngineTool

from rsd_integrations.errors import AskedError, ConfigError
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.testing import scripted_pipeline
from tests.follower import follow

DOCUMENTS = [Document(text="The sky is blue.", id_="sky"), Document(text="Grass is green.", id_="grass")]
BOXED = r"Since 1 < 2, \boxed{so}." + "\n\n"
"""Reasoning in front of JSON: its braces are none of the JSON's."""


def answer(prompt: Any, index: int, text: str) -> str | None:
    """What a good model would say to each of LlamaIndex's prompts."""
    asked = "\n".join(str(turn["content"]) for turn in prompt)
    if "sub-questions" in asked:
        items = [
            {"sub_question": "Which colour has the sky?", "tool_name": "sky"},
            {"sub_question": "Which colour has grass?", "tool_name": "grass"},
        ]
        steps = [f"```json\n{json.dumps({'items': items})}\n```"]
    elif "Some choices are given" in asked:
        steps = ['[{"choice": 2, "reason": "It asks for grass."}]']
    elif "relevance score" in asked:
        steps = ["Doc: 2, Relevance: 9\nDoc: 1, Relevance: 3"]
    elif "supported by the context" in asked:
        steps = ["YES"]
    elif "standalone question" in asked:
        steps = ["Which colour has grass?"]
    else:
        steps = ["Well.\n\n", "Green." if "green" in asked.lower() else "Who knows."]
    return steps[index] if index < len(steps) else None


@pytest.fixture
def pipe() -> Iterator[RSDPipeline]:
    with scripted_pipeline(answer, rewards=[0.9]) as made:
        made.backend.draft.takes_tools = False  # type: ignore[misc]
        yield made


@pytest.fixture
def llm(pipe: RSDPipeline) -> RSDLLM:
    return RSDLLM.from_pipeline(pipe)


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(DOCUMENTS, embed_model=MockEmbedding(embed_dim=4))


SPEAKING = [mode for mode in ResponseMode if mode not in (ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY)]


@pytest.mark.parametrize("mode", SPEAKING)
async def test_every_response_mode(llm: RSDLLM, index: VectorStoreIndex, mode: ResponseMode) -> None:
    engine = index.as_query_engine(llm=llm, response_mode=mode)
    expected = "Who knows." if mode == ResponseMode.GENERATION else "Green."
    for response in (engine.query("Which colour?"), await engine.aquery("Which colour?")):
        assert expected in str(response)
        assert str(response).count("Well.") >= 1


@pytest.mark.parametrize("mode", [ResponseMode.COMPACT, ResponseMode.TREE_SUMMARIZE, ResponseMode.REFINE])
async def test_streaming_queries(llm: RSDLLM, index: VectorStoreIndex, mode: ResponseMode) -> None:
    engine = index.as_query_engine(llm=llm, response_mode=mode, streaming=True)
    response: Any = engine.query("Which colour?")
    assert "".join(response.response_gen).endswith("Well.\n\nGreen.")
    aresponse: Any = await engine.aquery("Which colour?")
    assert "".join([text async for text in aresponse.async_response_gen()]).endswith("Well.\n\nGreen.")


CHATS = [ChatMode.SIMPLE, ChatMode.CONTEXT, ChatMode.CONDENSE_QUESTION, ChatMode.CONDENSE_PLUS_CONTEXT]


@pytest.mark.parametrize("mode", CHATS)
async def test_chat_engines(llm: RSDLLM, index: VectorStoreIndex, mode: ChatMode) -> None:
    expected = "Who knows." if mode == ChatMode.SIMPLE else "Green."

    def engine() -> Any:
        return index.as_chat_engine(chat_mode=mode, llm=llm)

    one = engine()
    assert expected in str(one.chat("Which colour has grass?"))
    assert expected in str(one.chat("And again?"))
    assert expected in str(await engine().achat("Which colour has grass?"))
    assert expected in "".join(engine().stream_chat("Which colour has grass?").response_gen)
    stream = await engine().astream_chat("Which colour has grass?")
    assert expected in "".join([text async for text in stream.async_response_gen()])


def tools(llm: RSDLLM) -> list[QueryEngineTool]:
    """One engine a document."""
    made = []
    for document in DOCUMENTS:
        index = VectorStoreIndex.from_documents([document], embed_model=MockEmbedding(embed_dim=4))
        name = document.doc_id
        made.append(
            QueryEngineTool.from_defaults(
                index.as_query_engine(llm=llm), name=name, description=f"All on {name}."
            )
        )
    return made


async def test_a_router(llm: RSDLLM) -> None:
    engine = RouterQueryEngine(
        selector=LLMSingleSelector.from_defaults(llm=llm), query_engine_tools=tools(llm), llm=llm
    )
    for response in (engine.query("Which colour has grass?"), await engine.aquery("Which colour has grass?")):
        assert "Green." in str(response)
        assert response.metadata["selector_result"].ind == 1


async def test_a_router_by_function_calls() -> None:
    with scripted_pipeline(follow) as calling, scripted_pipeline(answer) as answering:
        llm = RSDLLM.from_pipeline(calling)
        engine = RouterQueryEngine(
            selector=PydanticSingleSelector.from_defaults(llm=llm),
            query_engine_tools=tools(RSDLLM.from_pipeline(answering)),
            llm=llm,
        )
        response = await engine.aquery("Number 1?")
        assert response.metadata["selector_result"].ind == 0


async def test_sub_questions(llm: RSDLLM) -> None:
    engine = SubQuestionQueryEngine.from_defaults(
        tools(llm),
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        use_async=False,
        verbose=False,
    )
    assert "Green." in str(engine.query("Compare."))
    assert "Green." in str(await engine.aquery("Compare."))


def test_reranking(llm: RSDLLM) -> None:
    nodes = [NodeWithScore(node=TextNode(text=document.text), score=0.5) for document in DOCUMENTS]
    ranked = LLMRerank(llm=llm, top_n=2).postprocess_nodes(nodes, query_str="Which colour has grass?")
    assert [(node.text, node.score) for node in ranked] == [
        ("Grass is green.", 9.0),
        ("The sky is blue.", 3.0),
    ]


async def test_an_evaluator(llm: RSDLLM, index: VectorStoreIndex) -> None:
    response = index.as_query_engine(llm=llm).query("Which colour?")
    judge = FaithfulnessEvaluator(llm=llm)
    assert judge.evaluate_response(response=response).passing
    assert (await judge.aevaluate_response(response=response)).passing


def test_on_the_pocket_trio(index: VectorStoreIndex) -> None:
    """Real models: what comes back is what the pipeline says to the same prompt."""
    seen: list[Any] = []
    with RSDLLM.pocket(max_tokens=30, seed=0, on_step=seen.append) as llm:
        response: Any = index.as_query_engine(llm=llm, streaming=True).query("Ava has 12 marbles. And?")
        text = "".join(response.response_gen)
        assert text == "".join(step.text for step in seen)
        assert len(response.source_nodes) == 2


@pytest.mark.parametrize("mode", ["compact", "refine"])
def test_what_engines_pack_fits_the_smallest_window(mode: Any) -> None:
    """Here the PRM's, which reads the prompt too."""
    with scripted_pipeline(["so"]) as pipe:
        pipe.backend.prm.info = dataclasses.replace(pipe.backend.prm.info, window=1500)  # type: ignore[misc]
        llm = RSDLLM.from_pipeline(pipe, max_tokens=60)
        helper = PromptHelper.from_llm_metadata(llm.metadata, tokenizer=list)
        synthesizer = get_response_synthesizer(llm=llm, response_mode=mode, prompt_helper=helper)
        node = NodeWithScore(node=TextNode(text="The sky is blue. " * 300))
        assert "so" in str(synthesizer.synthesize("Which colour?", [node]))


@pytest.mark.parametrize(
    ("mode", "system"),
    [
        ("simple_summarize", None),
        ("tree_summarize", "You count marbles, and nothing else."),
        *(
            pytest.param(mode, system, marks=pytest.mark.slow)
            for mode, system in (
                ("tree_summarize", None),
                ("compact_accumulate", None),
                ("simple_summarize", "You count marbles, and nothing else."),
                ("compact_accumulate", "You count marbles, and nothing else."),
            )
        ),
    ],
)
def test_what_engines_pack_leaves_room_for_the_chat_template(
    mode: Any, system: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These fill the window to the last token."""
    llm = RSDLLM.pocket(max_tokens=8, system_prompt=system)
    # As Settings.tokenizer sets it.
    monkeypatch.setattr("llama_index.core.global_tokenizer", llm.load().token_ids)
    synthesizer = get_response_synthesizer(llm=llm, response_mode=mode)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "sixteen", "marbles", "and", "Ava"]
    for seed in range(2):
        text = " ".join(random.Random(seed).choices(words, k=300))
        assert str(synthesizer.synthesize("How many?", [NodeWithScore(node=TextNode(text=text))]))


@pytest.mark.parametrize("system", [None, "s" * 700])
def test_what_fits_is_packed_whole(system: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex takes the system prompt off the window itself. One character is one token here."""
    monkeypatch.setattr("llama_index.core.global_tokenizer", list)
    asked: list[Any] = []

    def script(prompt: Any, index: int, text: str) -> str | None:
        asked.append(prompt)
        return None if index else "So."

    with scripted_pipeline(script, window=2000) as pipe:
        llm = RSDLLM.from_pipeline(pipe, max_tokens=200, system_prompt=system)
        room = 1720 - len(system or "")
        synthesizer = get_response_synthesizer(
            llm=llm,
            response_mode=ResponseMode.SIMPLE_SUMMARIZE,
            text_qa_template=PromptTemplate("{context_str} {query_str}"),
        )
        synthesizer.synthesize("?", [NodeWithScore(node=TextNode(text="x" * room))])
    assert "x" * room in asked[0][-1]["content"]


@pytest.mark.parametrize("frame", [-100, 1500])
def test_a_window_is_never_more_than_the_models(frame: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates may leave a system prompt out, or put more around a text than there is room for."""
    with scripted_pipeline(["so"], window=2000) as pipe:
        llm = RSDLLM.from_pipeline(pipe, system_prompt="s" * 50)
        for writer in (pipe.backend.draft, pipe.backend.target):
            monkeypatch.setattr(type(writer), "count", lambda *_: 51 + frame, raising=True)
        assert llm.metadata.context_window == llm.window == 2000


def test_a_prompt_that_llama_index_packed_too_full_says_so() -> None:
    llm = RSDLLM.pocket(max_tokens=8)
    synthesizer = get_response_synthesizer(llm=llm, response_mode=ResponseMode.SIMPLE_SUMMARIZE)
    node = NodeWithScore(node=TextNode(text="Qjx, zvk! " * 400))
    with pytest.raises(AskedError, match="do not fit") as caught:
        synthesizer.synthesize("How many?", [node])
    assert "Settings.tokenizer = llm.load().token_ids" in caught.value.hint


async def test_asking_for_one_answer_is_asking_for_nothing_more(llm: RSDLLM) -> None:
    """ragas does so with each LLM of LlamaIndex, and takes what is raised for a score of NaN."""
    assert llm.complete("Which?", n=1).text == (await llm.acomplete("Which?", n=1)).text
    with pytest.raises(ConfigError, match="'n'"):
        llm.complete("Which?", n=2)


async def test_an_extractor_that_sends_headers_of_servers() -> None:
    """DocumentContextExtractor logs errors, and leaves the metadata out."""
    store = SimpleDocumentStore()
    store.add_documents(DOCUMENTS)
    node = TextNode(text="blue", relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="sky")})
    with scripted_pipeline(["It is of the sky."]) as pipe:
        extractor = DocumentContextExtractor(
            docstore=store, llm=RSDLLM.from_pipeline(pipe), max_context_length=500, show_progress=False
        )
        assert await extractor.aextract([node]) == [{"context": "It is of the sky."}]
