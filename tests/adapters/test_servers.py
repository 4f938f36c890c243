"""Frameworks' model classes and the command line over servers' URLs."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from rsd_integrations import RSDPipeline
from rsd_integrations.bench.results import TuneReport
from rsd_integrations.cli import main
from rsd_integrations.errors import BackendError, ConfigError, ModelError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.opening import are_servers, open_models
from rsd_integrations.pocket import pocket_paths
from rsd_integrations.pocket.task import held_out
from tests.vllm.double import double

QUESTION = next(iter(held_out(1))).question
NOWHERE = dict.fromkeys(("draft", "target", "prm"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    paths = pocket_paths()
    with double(paths.draft) as draft, double(paths.target) as target, double(paths.prm) as prm:
        yield {"draft": draft.url, "target": target.url, "prm": prm.url}


@pytest.fixture(scope="module")
def answer() -> str:
    with RSDPipeline.pocket() as pipe:
        return pipe.generate(QUESTION).text


def test_chat_model(urls: dict[str, str], answer: str) -> None:
    with ChatRSD(**urls) as model:
        first, second = model.invoke(QUESTION), model.invoke(QUESTION)
        assert first.content == answer
        # Its name, not its URL, from the first answer on.
        assert first.response_metadata["model_name"] == second.response_metadata["model_name"]
        assert "http" not in first.response_metadata["model_name"]
        assert "".join(str(chunk.content) for chunk in model.stream(QUESTION)) == answer
        assert asyncio.run(model.ainvoke([HumanMessage(QUESTION)])).content == answer
        assert [one.content for one in model.batch([QUESTION, QUESTION])] == [answer, answer]
        form = {"title": "note", "type": "object", "properties": {"a": {"enum": ["x\n\ny", "z"]}}}
        form["required"] = ["a"]
        assert model.with_structured_output(form, method="json_schema").invoke(QUESTION)["a"] in (
            "x\n\ny",
            "z",
        )  # type: ignore[index]
        assert ChatRSD(**urls).source is model.source
        assert pickle.loads(pickle.dumps(model)).source is model.source
        assert model.window == 1024


def test_llm(urls: dict[str, str], answer: str) -> None:
    with RSDLLM(**urls) as llm:
        assert llm.complete(QUESTION).text.strip() == answer.strip()
        assert asyncio.run(llm.acomplete(QUESTION)).text.strip() == answer.strip()
        assert llm.window == 1024


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
def test_servers_have_limits_of_their_own_unless_set(cls: Any, urls: dict[str, str]) -> None:
    with cls(**urls, draft_candidates=16, temperature=0.7, max_tokens=900) as made:
        assert made.load().backend.max_batch_size == 256
        assert made.window == 1024
    with cls(**urls, max_batch_size=8, max_length=512) as made:
        assert made.load().backend.max_batch_size == 8
        assert made.window == 512
    with pytest.raises(ValueError, match="max_batch_size=8"):
        cls(**urls, max_batch_size=8, draft_candidates=16, temperature=0.7)
    with pytest.raises(ValueError, match="leaves no room"):
        cls(**urls, max_length=512, max_tokens=900)


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
def test_a_key_is_for_all_that_have_none(cls: Any, urls: dict[str, str]) -> None:
    with double(pocket_paths().draft, key="sesame") as draft, double(pocket_paths().prm, key="other") as prm:
        guarded = {**urls, "draft": draft.url, "prm": prm.url}
        with cls(**guarded, api_key="sesame", prm_kwargs={"api_key": "other"}) as made:
            assert made.load().generate(QUESTION, max_tokens=3).text
            assert "sesame" not in repr(made) + str(made.model_dump()) + repr(made.source.spec)


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
@pytest.mark.parametrize("url", ["http://u:sesame@h:1", "HTTP://h?key=sesame", " http://sesame@h"])
def test_secrets_in_urls_are_refused_before_anything_shows_them(cls: Any, url: str) -> None:
    for given in (url, [NOWHERE["draft"], url]):
        with pytest.raises(ValueError, match="a user, a password, a query or a fragment") as refused:
            cls(**{**NOWHERE, "draft": given})
        assert "sesame" not in str(refused.value) + str(refused.value.errors())


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
def test_nothing_is_asked_before_it_is_needed(cls: Any) -> None:
    made = cls(**NOWHERE, draft_kwargs={"attempts": 1, "api_key": "sesame", "headers": {"a": "sesame"}})
    assert "sesame" not in repr(made) + str(made.model_dump())
    with pytest.raises(BackendError, match=r"the draft's server at .* cannot be reached"):
        made.load()


def test_tools_are_asked_of_the_servers(urls: dict[str, str]) -> None:
    def look(a: str) -> str:
        """Look."""
        return a

    with (
        ChatRSD(**urls) as model,
        pytest.raises((ConfigError, ValueError), match="takes no tools"),
    ):
        model.bind_tools([look]).invoke(QUESTION)


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prm": "some/prm"}, r"draft and target name servers, prm does not: 'some/prm'.*Serve all three"),
        ({"device": "cpu"}, "device is for models in this process"),
        ({"compile": True, "dtype": "float32"}, "dtype, compile are for models in this process"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(cls: Any, changed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**{**NOWHERE, **changed})


def test_replicas_are_a_list(urls: dict[str, str]) -> None:
    assert are_servers([urls["draft"], urls["draft"]], urls["target"], urls["prm"])
    assert not are_servers("a/b", "c/d", "e/f", ["device"])
    replicas = {**urls, "draft": [urls["draft"], urls["draft"]]}
    with open_models(**replicas) as pipe, ChatRSD(**replicas) as model:
        assert pipe.generate(QUESTION, max_tokens=3).text
        assert model.invoke(QUESTION, max_tokens=3).content


def _command(urls: dict[str, str]) -> list[str]:
    return [part for role, url in urls.items() for part in (f"--{role}", url)]


def test_command_line(urls: dict[str, str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", QUESTION, *_command(urls), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == answer
    assert main(["doctor", *_command(urls)]) == 0
    told = capsys.readouterr().out
    assert "PRM format: trl, default threshold 0.95\nall three answer" in told
    assert urls["prm"].removeprefix("http://") in "".join(told.split())
    assert "token by token" not in told
    with double(pocket_paths().draft, grammars=False) as draft:
        assert main(["doctor", *_command({**urls, "draft": draft.url})]) == 0
    assert "draft: structured output and forced calls are written token by token" in capsys.readouterr().out


def test_command_line_with_what_is_wrong(urls: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["ask", QUESTION, *_command({**urls, "prm": "some/prm"})], "Serve all three"),
        (["ask", QUESTION, *_command(urls), "--device", "cpu"], "device is for models in this process"),
        (["doctor", *_command({**urls, "draft": urls["prm"]})], "answered 404 to /v1/completions"),
        (["doctor", *_command(urls), "--device", "cpu"], "device is for models in this process"),
    ):
        assert main(arguments) != 0
        captured = capsys.readouterr()
        assert message in " ".join((captured.out + captured.err).split())


def test_command_line_with_replicas_and_options(
    urls: dict[str, str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with double(pocket_paths().draft) as other:
        command = _command({**urls, "draft": f"{urls['draft']},{other.url}"})
        # Its own tokenizer by another name.
        command += [
            "--target-kwargs",
            json.dumps({"source": str(pocket_paths().target), "max_concurrency": 3}),
        ]
        assert main(["ask", QUESTION, *command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["text"] == answer
        assert main(["doctor", *command, "--max-length", "512"]) == 0
        told = capsys.readouterr().out
        assert other.url.removeprefix("http://") in "".join(told.split())
        assert told.count(" 512 ") == 3
        assert main(["doctor", *command[:-1], '{"modle": "x"}']) == 2
        assert "unknown --target-kwargs 'modle'. Did you mean 'model'?" in capsys.readouterr().err


@pytest.mark.slow
def test_tuning_over_servers_measures_the_same(urls: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    problems = held_out(2)
    file.write_text(
        "\n".join(json.dumps({"question": one.question, "answer": one.answer}) for one in problems)
    )
    options = [str(file), "--thresholds", "0.95", "--max-tokens", "512", "--out"]
    assert main(["tune", *options, str(tmp_path / "here")]) == 0
    assert main(["tune", *options, str(tmp_path / "there"), *_command(urls)]) == 0
    here, there = (
        TuneReport.model_validate_json((tmp_path / name / "tune.json").read_bytes())
        for name in ("here", "there")
    )
    assert here.auc == there.auc
    for one, other in zip(here.points, there.points, strict=True):
        same = {"kind", "threshold", "accuracy", "acceptance_rate", "rewritten", "mean_tokens", "recommended"}
        assert one.model_dump(include=same) == other.model_dump(include=same)
        assert one.flops.paper == other.flops.paper


def test_names_of_servers_and_checkpoints_cannot_steer_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    name = "\x1b]0;owned\x07\x1b[31m\x9b32m[bold]EVIL\u202e"
    folder = tmp_path / name
    shutil.copytree(pocket_paths().draft, folder)
    with ExitStack() as stack:
        paths = pocket_paths()
        served = [stack.enter_context(double(path, names=(name,))) for path in (paths.draft, paths.target)]
        prm = stack.enter_context(double(paths.prm, names=(name,)))
        urls = dict(zip(NOWHERE, [*(one.url for one in served), prm.url], strict=True))
        assert main(["doctor", *_command(urls)]) == 0
        served[0].root = f"/nowhere/{name}"
        assert main(["doctor", *_command(urls)]) == 1
    local = {"draft": str(folder), "target": str(folder), "prm": str(paths.prm)}
    assert main(["doctor", *_command(local)]) == 0
    told = capsys.readouterr()
    assert (told.out + told.err).count("[bold]EVIL") >= 3 + 1 + 2
    assert (told.out + told.err).replace("\n", "").isprintable()


def test_why_a_model_cannot_be_read_cannot_either() -> None:
    with pytest.raises(ModelError) as failed:
        RSDPipeline.from_pretrained("/nowhere/\x1b[31m\u202e", "t", "p")
    assert str(failed.value).isprintable()
