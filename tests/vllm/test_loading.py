"""What is wrong with servers, addresses and options shows when a pipeline is made."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.vllm import client
from rsd_integrations.backends.vllm.asking import Labelling, Pooling
from rsd_integrations.errors import BackendError, ConfigError, ModelError, RSDError
from rsd_integrations.pocket import pocket_paths
from rsd_integrations.pocket.task import held_out
from tests.tiny_models import causal, tokenizer
from tests.vllm.conftest import Trio
from tests.vllm.double import double, encrypt

QUESTION = next(iter(held_out(1))).question


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_PAUSE", 0.01)


def test_sizes_are_those_of_the_models(trio: Trio, pocket: RSDPipeline) -> None:
    for role in ("draft", "target", "prm"):
        over, within = (getattr(pipe.backend, role).info for pipe in (trio.pipe, pocket))
        assert over.pair_flops == within.pair_flops
        assert over.parameters == within.parameters
        assert (over.window, over.threshold, over.longest) == (1024, within.threshold, 1024)


@pytest.mark.parametrize(
    ("role", "given", "message"),
    [
        ("draft", "localhost:8000", r"draft='localhost:8000' is no URL.*http://"),
        ("target", [], r"target=\[\] is no URL"),
        ("prm", 3, "prm=3 is no URL"),
        ("draft", ["http://x", None], "draft=None is no URL"),
        ("draft", "http://x/v1?key=secret", "draft: a URL names a user, a password, a query or a fragment"),
        ("draft", "http://x#", "a query or a fragment"),
        ("draft", "ftp://x", "is no URL"),
        ("draft", "http://x:99999999", "is no URL"),
        ("draft", "http://x:port", "is no URL"),
        ("draft", "http://[::1", "is no URL"),
    ],
)
def test_what_is_no_url(trio: Trio, role: str, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RSDPipeline.from_vllm(**{**trio.urls, role: given})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle": "x"}, r"unknown draft_kwargs 'modle'. Did you mean 'model'"),
        ({"timeout": 0}, "timeout=0 is no time"),
        ({"timeout": True}, "timeout=True is no time"),
        ({"attempts": 0}, "attempts=0"),
        ({"max_concurrency": 1.5}, r"max_concurrency=1\.5"),
        ({"model": 3}, "model=3 is no text"),
        ({"api_key": 3}, "api_key is no text"),
        ({"headers": "a: b"}, "headers are no mapping"),
        ({"headers": {"a": 1}}, "headers hold what no header can"),
        ({"headers": {"a": "secret\n"}}, "headers hold what no header can"),
        ({"api_key": "secret\u20ac"}, "api_key or headers hold what no header can"),
        ({"patience": -1}, "patience=-1 is no time"),
        ({"headers": {"a b": "secret"}}, "headers hold what no header can"),
        ({"headers": {"Content-Length": "7"}}, "headers hold what no header can"),
        ({"model": "nope"}, r"does not serve 'nope' but \["),
        ("x", "draft_kwargs='x' is no mapping"),
    ],
)
def test_options_are_checked(trio: Trio, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        RSDPipeline.from_vllm(**trio.urls, draft_kwargs=options)
    assert "secret" not in str(refused.value)


def test_a_key_may_end_in_a_line_break_and_urls_in_white_space(trio: Trio) -> None:
    with (
        double(pocket_paths().draft, key="sesame") as guarded,
        RSDPipeline.from_vllm(
            **{**trio.urls, "draft": f" {guarded.url}/v1/\n"}, draft_kwargs={"api_key": "sesame\n"}
        ) as pipe,
    ):
        assert pipe.generate(QUESTION, max_tokens=3).text
        with pytest.raises(ConfigError, match="names a user, a password") as refused:
            RSDPipeline.from_vllm(**{**trio.urls, "draft": guarded.url.replace("//", "//bob:secret@")})
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("name", "value"), [("max_length", 1), ("max_batch_size", 0), ("max_length", "x")])
def test_limits_are_checked(trio: Trio, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}="):
        RSDPipeline.from_vllm(**trio.urls, **{name: value})


def test_max_length_shortens_the_window(trio: Trio) -> None:
    with RSDPipeline.from_vllm(**trio.urls, max_length=200) as pipe:
        assert pipe.backend.target.info.window == 200
        answer = pipe.generate(QUESTION, threshold=1.1, step_delimiter="\0")
        assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 200


def test_a_server_that_is_not_there(trio: Trio) -> None:
    with pytest.raises(BackendError, match=r"the prm's server at http://127\.0\.0\.1:9 cannot be reached"):
        RSDPipeline.from_vllm(**{**trio.urls, "prm": "http://127.0.0.1:9"}, prm_kwargs={"attempts": 1})


def test_a_server_that_is_no_vllm(trio: Trio) -> None:
    long = [{"id": "x", "max_model_len": "1024"}]
    for body in ({"models": []}, [], {"data": 3}, {"data": long}):
        trio.draft.faults.append(lambda handler, body=body: handler.say(200, body) or True)
        with pytest.raises(BackendError, match="to /v1/models"):
            RSDPipeline.from_vllm(**trio.urls)


def test_one_of_several_models(trio: Trio) -> None:
    root = str(pocket_paths().draft)
    with double(pocket_paths().draft, names=("base", "alias", "lora", "other")) as server:
        server.cards = [
            {"id": "base", "root": root, "parent": None, "max_model_len": 300},
            {"id": "alias", "root": root, "parent": None, "max_model_len": 300},
            {"id": "lora", "root": "/adapters/sql", "parent": "base", "max_model_len": None},
        ]
        urls = {**trio.urls, "draft": server.url}
        for given, served in ((None, "base"), ("alias", "alias"), ("lora", "lora")):
            with RSDPipeline.from_vllm(**urls, draft_kwargs={"model": given}) as pipe:
                pipe.generate(QUESTION, max_tokens=3)
                info = pipe.backend.draft.info
            assert (server.asked[-1][1]["model"], info.name) == (served, served)
            assert (info.window, info.longest) == (300, 300)
        server.cards.append({"id": "other", "root": "/else", "parent": None})
        with pytest.raises(
            ConfigError, match=r"serves \['alias', 'base', 'lora', 'other'\].*draft_kwargs=\{'mod"
        ):
            RSDPipeline.from_vllm(**urls)


def test_replicas_are_all_looked_at(trio: Trio) -> None:
    with double(pocket_paths().draft) as second, double(pocket_paths().draft, names=("x",)) as stranger:
        second.window = 500
        replicas = [trio.draft.url, second.url]
        with RSDPipeline.from_vllm(
            **{**trio.urls, "draft": ["http://127.0.0.1:9", *replicas]}, draft_kwargs={"attempts": 2}
        ) as pipe:
            assert pipe.backend.draft.info.window == 500
            assert pipe.generate(QUESTION, max_tokens=3).text
        with pytest.raises(ConfigError, match=r"replicas of draft serve different models: .*'x'"):
            RSDPipeline.from_vllm(**{**trio.urls, "draft": [*replicas, stranger.url]})


def test_a_replica_whose_certificate_is_not_accepted_is_left_out(trio: Trio, tmp_path: Path) -> None:
    with double(pocket_paths().draft) as second:
        urls = {**trio.urls, "draft": [encrypt(second, tmp_path), trio.draft.url]}
        with RSDPipeline.from_vllm(**urls) as pipe:
            assert pipe.generate(QUESTION, max_tokens=3).text


def test_replicas_that_all_are_just_starting_are_waited_for(trio: Trio) -> None:
    with double(pocket_paths().draft) as second:
        for server, failures in ((trio.draft, 2), (second, 3)):
            server.faults += [lambda handler: handler.say(503, {}) or True] * failures
        urls = {**trio.urls, "draft": [trio.draft.url, second.url]}
        with RSDPipeline.from_vllm(**urls, draft_kwargs={"attempts": 4}) as pipe:
            assert pipe.generate(QUESTION, max_tokens=3).text


def test_replicas_none_of_which_is_there(trio: Trio) -> None:
    trio.draft.asked.clear()
    trio.draft.faults += [lambda handler: handler.say(503, {}) or True] * 9
    for gone in ([trio.draft.url, "http://127.0.0.1:9"], trio.draft.url):
        with pytest.raises(BackendError, match=r"draft's server .* answered 503 "):
            RSDPipeline.from_vllm(**{**trio.urls, "draft": gone}, draft_kwargs={"attempts": 3})
    assert len(trio.draft.asked) == 3 + 3
    trio.draft.faults.clear()


def test_a_key_that_a_server_repeats_is_not_told(trio: Trio) -> None:
    key = {"api_key": "sesame-street"}
    card: Any = {"data": [{"id": "x", "max_model_len": "sesame-street"}]}
    trio.draft.faults += [lambda handler: handler.say(200, card) or True]
    with pytest.raises(BackendError, match=r"\*\*\*.* to /v1/models"):
        RSDPipeline.from_vllm(**trio.urls, draft_kwargs=key)
    waits = {**key, "ahead": False}  # Else a stream of the request before may take the fault.
    with RSDPipeline.from_vllm(**trio.urls, draft_kwargs=waits, prm_kwargs=key) as pipe:
        for server in (trio.prm, trio.draft):
            server.faults += [lambda handler: handler.say(200, {"got": "sesame-street"}) or True]
            with pytest.raises(BackendError, match=r"answered .*\*\*\*"):
                pipe.generate(QUESTION, threshold=0.5)


def test_each_replica_that_answers_is_tried(trio: Trio) -> None:
    with (
        double(pocket_paths().draft, key="sesame") as guarded,
        double(pocket_paths().prm, activates=True) as other,
        double(pocket_paths().prm, pools="tags", tag=22) as wrong,
        double(pocket_paths().draft, grammars=False) as plain,
    ):
        with pytest.raises(BackendError, match="answered 401"):
            RSDPipeline.from_vllm(**{**trio.urls, "draft": [trio.draft.url, guarded.url]})
        with pytest.raises(ConfigError, match="some replicas of prm give probabilities and some logits"):
            RSDPipeline.from_vllm(**{**trio.urls, "prm": [trio.prm.url, other.url]})
        with pytest.raises(BackendError, match="step_tag_id"):
            RSDPipeline.from_vllm(**{**trio.urls, "prm": [trio.prm.url, wrong.url]})
        with RSDPipeline.from_vllm(**{**trio.urls, "draft": [trio.draft.url, plain.url]}) as pipe:
            assert pipe.backend.draft.holds_grammars is False  # type: ignore[union-attr]


def test_models_without_a_root_are_not_one_and_the_same(trio: Trio) -> None:
    with double(pocket_paths().draft, names=("a", "b")) as server:
        server.root = None
        urls = {**trio.urls, "draft": server.url}
        options = {"source": str(pocket_paths().draft)}
        with pytest.raises(ConfigError, match=r"serves \['a', 'b'\]"):
            RSDPipeline.from_vllm(**urls, draft_kwargs=options)
        with RSDPipeline.from_vllm(**urls, draft_kwargs={**options, "model": "b"}) as pipe:
            assert pipe.backend.draft.info.name == "b"


def test_a_tokenizer_of_another_model_is_found_out(trio: Trio, tmp_path: Path) -> None:
    shutil.copytree(pocket_paths().draft, tmp_path / "mixed")
    path = tmp_path / "mixed" / "tokenizer.json"
    saved = json.loads(path.read_text())
    words = [word for word, number in saved["model"]["vocab"].items() if number > 300]
    for word, number in zip(words, [saved["model"]["vocab"][word] for word in reversed(words)], strict=True):
        saved["model"]["vocab"][word] = number
    path.write_text(json.dumps(saved))
    with pytest.raises(ModelError, match=r"of which the tokenizer on this side makes .*'source'"):
        RSDPipeline.from_vllm(**trio.urls, draft_kwargs={"tokenizer": str(tmp_path / "mixed")})


@pytest.mark.parametrize("does", ["hold to", "pass over", "refuse"])
def test_what_servers_do_with_grammars_is_found_out(trio: Trio, does: str) -> None:
    with double(pocket_paths().draft, grammars=does == "hold to") as draft:
        if does == "refuse":  # The third question: after the card and some words.
            refusal = {"error": {"message": "no grammars here"}}
            draft.faults += [lambda _: False] * 2 + [lambda handler: handler.say(400, refusal) or True]
        with RSDPipeline.from_vllm(**{**trio.urls, "draft": draft.url}) as pipe:
            assert pipe.backend.draft.holds_grammars is (does == "hold to")  # type: ignore[union-attr]
        assert "grammar" in draft.asked[2][1]["structured_outputs"]


def test_a_model_that_sees_is_measured_by_what_reads_text(trio: Trio, tmp_path: Path) -> None:
    """Ministral 3 and Qwen 3-VL are no causal language models to transformers; eyes read no text."""
    own = transformers.AutoConfig.from_pretrained(pocket_paths().draft)
    eyes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Mistral3Config(text_config=own, vision_config={"model_type": "pixtral", **eyes})
    here = tmp_path / "here"
    shutil.copytree(pocket_paths().draft, here)
    config.save_pretrained(here)
    with RSDPipeline.from_vllm(**trio.urls, draft_kwargs={"source": str(here)}) as pipe:
        info = pipe.backend.draft.info  # type: ignore[union-attr]
        known = trio.pipe.backend.draft.info  # type: ignore[union-attr]
        head = own.vocab_size * own.hidden_size if own.tie_word_embeddings else 0
        assert info.pair_flops == known.pair_flops
        assert known.parameters <= info.parameters <= known.parameters + head
        assert pipe.generate(QUESTION, max_tokens=3).text


@pytest.mark.parametrize(("pools", "tag"), [("all", -1), ("last", -1), ("tags", 349)])
def test_probabilities_in_place_of_logits_are_known_for_such(
    trio: Trio, pocket: RSDPipeline, pools: str, tag: int
) -> None:
    """Of servers that do not know how to leave the activation out, and do not say so."""
    with (
        double(pocket_paths().prm, activates=True, pools=pools, tag=tag) as prm,
        RSDPipeline.from_vllm(**{**trio.urls, "prm": prm.url}) as pipe,
    ):
        over, within = (
            [step.reward for step in one.generate(QUESTION, weighting="clip", seed=0).steps]
            for one in (pipe, pocket)
        )
        assert over == pytest.approx(within, abs=1e-4)


def test_files_may_be_elsewhere_on_this_side(trio: Trio, tmp_path: Path) -> None:
    moved = tmp_path / "here"
    shutil.copytree(pocket_paths().draft, moved)
    (moved / "model.safetensors").unlink()  # Weights are the server's.
    with double(pocket_paths().draft, names=("far",)) as server:
        server.root = "/on/the/server"
        urls = {**trio.urls, "draft": server.url}
        with pytest.raises(ModelError, match=r"serves 'far' from '/on/the/server'.*draft_kwargs={'source'"):
            RSDPipeline.from_vllm(**urls)
        with RSDPipeline.from_vllm(**urls, draft_kwargs={"source": str(moved)}) as pipe:
            assert pipe.generate(QUESTION, max_tokens=3).text


def test_code_is_trusted_of_a_named_source_alone(trio: Trio) -> None:
    """Else it would be that of any repository or folder that a server names."""
    for trusted in ({}, {"tokenizer": str(pocket_paths().draft)}):
        trio.target.asked.clear()
        with pytest.raises(ConfigError, match="target_kwargs: trust_remote_code=True without a 'source'"):
            RSDPipeline.from_vllm(**trio.urls, target_kwargs={"trust_remote_code": True, **trusted})
        assert not trio.target.asked
    named = {"trust_remote_code": True, "source": str(pocket_paths().target)}
    for options in (named, {"trust_remote_code": False}):
        with RSDPipeline.from_vllm(**trio.urls, target_kwargs=options) as pipe:
            assert pipe.generate(QUESTION, max_tokens=3).text


@pytest.mark.parametrize(("pools", "tag"), [("all", -1), ("last", -1), ("tags", 349)])
def test_prms_pool_as_they_like(trio: Trio, pocket: RSDPipeline, pools: str, tag: int) -> None:
    with (
        double(pocket_paths().prm, pools=pools, tag=tag) as prm,
        RSDPipeline.from_vllm(**{**trio.urls, "prm": prm.url}) as pipe,
    ):
        over, within = pipe.generate(QUESTION), pocket.generate(QUESTION)
        rewards = [step.reward for step in within.steps]
        assert [step.reward for step in over.steps] == pytest.approx(rewards, abs=1e-4)
        cached = over.usage.prm.forwarded == within.usage.prm.forwarded
        assert cached is (pools == "last")


@pytest.mark.parametrize("where", ["nowhere", "What", "1"])
def test_a_wrong_step_tag_is_found_out(trio: Trio, where: str) -> None:
    """No row, or one or several elsewhere: servers say nothing of it."""
    fed = trio.pipe.backend.prm.open("What is 1 + 1?").lay_out("1 + 1 = 2.")[0]  # type: ignore[union-attr]
    (tag,) = (
        [151651] if where == "nowhere" else trio.prm.tokenizer.encode(where, add_special_tokens=False)[:1]
    )
    assert (fed.count(tag) == 0) is (where == "nowhere")
    with (
        double(pocket_paths().prm, pools="tags", tag=tag) as prm,
        pytest.raises(BackendError, match="step_tag_id"),
    ):
        RSDPipeline.from_vllm(**{**trio.urls, "prm": prm.url})


def test_a_writer_in_the_prm_s_place(trio: Trio) -> None:
    with pytest.raises(RSDError, match="PRM format"):
        RSDPipeline.from_vllm(**{**trio.urls, "prm": trio.draft.url})
    with pytest.raises(BackendError, match=r"answered 404 to /v1/completions.*--runner pooling"):
        RSDPipeline.from_vllm(**{**trio.urls, "draft": trio.prm.url})


def test_a_language_model_judges_by_its_labels(trio: Trio, tmp_path: Path) -> None:
    """Whose window holds the token, too, that is asked for."""
    model, tok = causal("Llama", 5, "ascii", max_position_embeddings=1024), tokenizer("ascii")
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    with (
        double(tmp_path) as judge,
        RSDPipeline.from_vllm(**{**trio.urls, "prm": judge.url}, prm_format="judge") as over,
        RSDPipeline.from_pretrained(
            *map(str, (trio.draft.folder, trio.target.folder, tmp_path)), prm_format="judge", device="cpu"
        ) as within,
    ):
        assert over.backend.prm.info.window == 1023
        rewards = [
            [step.reward for step in pipe.generate(QUESTION, weighting="clip", seed=0).steps]
            for pipe in (over, within)
        ]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)
        assert len(set(rewards[0])) > 1


def test_labels_in_the_answer_of_a_language_model(trio: Trio) -> None:
    labels = Labelling((5, 9, 40))
    tokens = [1, 681, 201, 641]
    trio.target.asked.clear()
    status, answer = trio.target.answer("/v1/completions", labels.question(tokens))
    read = labels.read(answer)
    assert status == 200
    assert (len(read.outputs), read.rows, read.cached) == (3, 1, True)
    assert all(value < 0 for value in read.outputs)


@pytest.mark.parametrize("asking", [Labelling((1, 2)), Pooling()])
@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"data": []},
        {"data": [{"data": [["x"]]}]},
        {"data": [{"data": [[10**400]]}]},
        {"choices": [{"logprobs": None}]},
    ],
)
def test_an_answer_without_rewards(asking: Any, answer: Any) -> None:
    with pytest.raises(BackendError, match="holds no reward"):
        asking.read(answer)


def test_it_is_made_and_used_on_a_running_loop(trio: Trio) -> None:
    async def main() -> str:
        async with RSDPipeline.from_vllm(**trio.urls) as pipe:
            return (await pipe.agenerate(QUESTION, max_tokens=5)).text

    assert asyncio.run(main())


@pytest.mark.parametrize(
    "choice",
    [{}, {"token_ids": None, "finish_reason": "stop"}, {"token_ids": [], "finish_reason": "length"}],
)
def test_a_server_that_gives_no_tokens(trio: Trio, choice: Any) -> None:
    trio.draft.faults.append(lambda handler: handler.say(200, {"choices": [choice]}) or True)
    with pytest.raises(BackendError, match=r"return_token_ids|wrote nothing"):
        trio.pipe.generate(QUESTION, threshold=0.0)


def test_an_end_that_is_not_among_the_tokens(trio: Trio) -> None:
    """As older servers give it."""
    ended = {"choices": [{"token_ids": [], "finish_reason": "stop", "stop_reason": None, "text": ""}]}
    trio.draft.faults.append(lambda handler: handler.say(200, ended) or True)
    answer = trio.pipe.generate(QUESTION, threshold=0.0)
    assert (answer.text, answer.finish_reason, answer.usage.completion_tokens) == ("", "stop", 1)
    assert json.loads(answer.model_dump_json())["text"] == ""
