"""The floor that all adapters stand on."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.load import dumpd, load

from rsd_integrations.adapters import extras, sources
from rsd_integrations.adapters.calls import PER_CALL, call_settings
from rsd_integrations.adapters.chat import check_chat, merge_turns
from rsd_integrations.adapters.checks import check_on_step
from rsd_integrations.adapters.settings import RSDSettings
from rsd_integrations.adapters.sources import PipelineSource, find_source
from rsd_integrations.adapters.specs import label
from rsd_integrations.adapters.steps import notify, step_event, summarise
from rsd_integrations.adapters.whole import cut_off, no_document, no_whole_call
from rsd_integrations.config import RSDConfig
from rsd_integrations.errors import ConfigError, ModelError, PromptError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.output import Output
from rsd_integrations.pocket import EXAMPLE_QUESTIONS
from rsd_integrations.prm.trl import TRLFormat
from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import ROLES, Step

SPEC = {"draft": "d", "target": Path("t"), "prm": "p", "draft_kwargs": {"dtype": "float32", "x": [1, 2]}}


def squared(reward: float) -> float:
    return reward**2


def step(**fields: Any) -> Step:
    return Step(
        **{
            "index": 0,
            "source": "draft",
            "accepted": True,
            "reward": 0.5,
            "acceptance_probability": 1.0,
            "text": "x",
            **fields,
        }
    )


def test_the_same_models_are_one_source() -> None:
    source = find_source(SPEC)
    assert find_source(json.loads(json.dumps(SPEC, default=str)) | {"target": Path("t")}) is source
    assert find_source(SPEC | {"draft": "other"}) is not source
    assert find_source({**SPEC, "draft_kwargs": {"dtype": "float16"}}) is not source
    assert find_source({"draft": 1, "target": 1, "prm": 1}) is not find_source(
        {"draft": True, "target": 1, "prm": 1}
    )
    assert pickle.loads(pickle.dumps(source)) is source
    half = find_source(SPEC | {"dtype": torch.float16})
    assert half is not find_source(SPEC | {"dtype": torch.float32})
    assert pickle.loads(pickle.dumps(half)) is half
    # However a folder or a dtype is spelled.
    assert find_source(SPEC | {"dtype": "float16"}) is half
    assert find_source(SPEC | {"target": "t"}) is source
    assert find_source({**SPEC, "draft_kwargs": {"dtype": torch.float32, "x": [1, 2]}}) is source
    listed = find_source({**SPEC, "draft_kwargs": {"files": [Path("a"), (Path("b"),)]}})
    assert find_source({**SPEC, "draft_kwargs": {"files": ["a", ("b",)]}}) is listed


def test_loaded_models_are_one_source_by_identity() -> None:
    class Model:
        pass

    one, two = Model(), Model()
    source = find_source({"draft": one, "target": (one, "words"), "prm": one})
    assert find_source({"draft": one, "target": (one, "words"), "prm": one}) is source
    assert find_source({"draft": two, "target": (one, "words"), "prm": one}) is not source
    with pytest.raises(ConfigError, match="cannot be pickled"):
        pickle.dumps(source)


class Mine(TRLFormat):
    """A format that its module has by its name."""


def mine(tokenizer: Any, options: Any) -> Mine:
    return Mine(tokenizer, options)


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
@pytest.mark.parametrize("form", [Mine, mine])
def test_a_format_that_has_a_name_is_pickled_by_it(cls: Any, form: Any) -> None:
    model = cls.pocket(prm_format=form)
    again = pickle.loads(pickle.dumps(model))
    assert again.prm_format is form
    assert again.source is model.source
    assert pickle.loads(pickle.dumps(model.source)) is model.source
    assert not model.is_portable  # Its code is no data: no cache outlives it.


def test_another_process_finds_the_format() -> None:
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).prm_format.__name__)"
    sent = pickle.dumps(ChatRSD.pocket(prm_format=TRLFormat))
    run = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert run.stdout.split() == [b"TRLFormat"]


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
def test_a_format_without_a_name_is_to_be_registered(cls: Any) -> None:
    class Local(TRLFormat):
        pass

    for form in (Local, Mine.__new__(Mine), lambda tokenizer, options: Mine(tokenizer)):
        said = f"{cls.__name__} with prm_format={form!r} cannot be pickled."
        with pytest.raises(ConfigError, match=re.escape(said) + ".*register_prm_format"):
            pickle.dumps(cls.pocket(prm_format=form))
    both = cls(draft=object(), target="t", prm="p", prm_format=Local)
    with pytest.raises(ConfigError, match="over a live pipeline or loaded models cannot be pickled"):
        pickle.dumps(both)


def test_a_source_nobody_holds_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_load", lambda spec: scripted_pipeline(["x"]))
    source = find_source(SPEC)
    engine = source.get()._engine
    del source
    gc.collect()
    assert engine.closed


def test_many_threads_load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    start = threading.Barrier(8)

    def load(spec: Any) -> Any:
        loads.append(spec)
        return scripted_pipeline(["x"])

    monkeypatch.setattr(sources, "_load", load)
    source, got = PipelineSource(SPEC), []

    def work() -> None:
        start.wait()
        got.append(source.get())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(set(map(id, got))) == 1
    got[0].close()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("org/model", "org/model"),
        (Path("a/b"), str(Path("a/b"))),
        (("org/model", object()), "org/model"),
        (3.5, "3.5"),
    ],
)
def test_labels(model: Any, name: str) -> None:
    assert label(model) == name


def test_call_settings_override_the_objects() -> None:
    with scripted_pipeline(["x"]) as pipe:
        settings = RSDSettings(pipeline=pipe, threshold=0.3, timeout=5)
        call = call_settings(settings, {"threshold": 0.9, "timeout": None, "stop": "END"})
        assert (call.config.threshold, call.timeout, call.config.stop) == (0.9, None, ("END",))
        assert call_settings(settings, {}).config == RSDConfig(threshold=0.3)
        assert call.model_name(settings.model_names) == "scripted-target"
        named = call_settings(settings.model_copy(update={"model": "mine"}), {})
        assert named.model_name(settings.model_names) == "mine"
        assert set(RSDConfig.model_fields) < set(PER_CALL)
        with pytest.raises(ConfigError, match="trace_steps='all'"):
            call_settings(settings, {"trace_steps": "all"})


@pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
def test_models_are_given_by_name(kind: Any) -> None:
    name = kind.__name__
    with pytest.raises(TypeError, match=rf"{name} takes its models by name: {name}\(draft="):
        kind("a", "b", "c")


def test_merging_turns() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": ""},
        {"role": "user", "content": "b"},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "assistant", "content": "c"},
    ]
    assert merge_turns(turns) == [{"role": "user", "content": "a\n\nb"}, *turns[3:]]
    with pytest.raises(PromptError, match="the chat is empty"):
        check_chat([{"role": "user", "content": " "}])
    check_chat([{"role": "assistant", "content": "", "tool_calls": [{}]}])


def test_steps_and_summaries_are_json() -> None:
    with scripted_pipeline(["a\n\n", "b"], ["A\n\n", "B"], [0.9, 0.1]) as pipe:
        generation = pipe.generate("hi", threshold=0.5)
    told = summarise(generation)
    assert json.loads(json.dumps(told)) == told
    assert [told[f"{role}_tokens"] for role in ("draft", "target", "prm")] == [
        generation.usage.draft.generated,
        generation.usage.target.generated,
        generation.usage.prm.generated,
    ]
    names, data = zip(*(step_event(one, 0.5) for one in generation.steps), strict=True)
    assert names == ("rsd_step_accepted", "rsd_step_rejected")
    assert json.loads(json.dumps(data[1]))["rejected_text"] == "b"


def test_a_listener_that_fails_spoils_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Step] = []

    def broken(one: Step) -> None:
        raise OSError("broken")

    with caplog.at_level(logging.WARNING):
        notify([broken, seen.append], step())
    assert seen == [step()]
    assert "failed on step 0" in caplog.text


def test_no_framework_and_no_torch_is_loaded() -> None:
    code = (
        "import sys, rsd_integrations.adapters.calls, rsd_integrations.adapters.steps\n"
        "print([n for n in ('torch', 'transformers', 'langchain_core', 'llama_index') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("adapter", "missing", "extra"),
    [("langchain", "langchain_core", "langchain"), ("llama_index", "llama_index.core", "llamaindex")],
)
def test_a_framework_that_is_missing_is_named_with_its_extra(adapter: str, missing: str, extra: str) -> None:
    script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("langchain_core", "llama_index"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import rsd_integrations.{adapter}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f'{missing!r} is not installed. Run: pip install "rsd-integrations[{extra}]".' in done.stderr


def test_versions_that_do_not_do_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installers see to them only where the extra is asked for."""
    lines = [
        "torch>=2.6",
        'tomli>=2; python_version < "3"',
        'langchain-core>=1.6; extra == "langchain"',
        'llama-index-core<0.15,>=0.14.23; extra == "llamaindex"',
        'llama-index-workflows>=2.18; extra == "llamaindex"',
    ]
    installed = {"torch": "2.13.0+cpu", "langchain-core": "0.3.86", "llama-index-core": "0.15.0rc1"}
    monkeypatch.setattr(extras, "requires", lambda name: lines)
    monkeypatch.setattr(extras, "version_of", installed.get)
    monkeypatch.setattr(extras, "version", installed.__getitem__)
    assert extras.misfits() == {}
    assert extras.misfits("llamaindex") == {"llama-index-core": "<0.15,>=0.14.23"}
    with pytest.raises(
        ImportError, match=r"langchain-core 0\.3\.86 is installed, but >=1\.6 is needed"
    ) as raised:
        extras.require("langchain_core", "langchain")
    assert 'pip install -U "rsd-integrations[langchain]"' in str(raised.value)
    installed |= {"torch": "2.5.1", "langchain-core": "1.7.0.dev3"}
    assert extras.misfits() == {"torch": ">=2.6"}
    extras.require("langchain_core", "langchain")


def test_what_is_installed_here_does() -> None:
    assert [extras.misfits(extra) for extra in ("", "langchain", "llamaindex", "vllm")] == [{}] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("held", ["nothing", "the source's lock", "a load", "the registry's lock"])
def test_after_a_fork_new_objects_work(held: str) -> None:
    """The parent's pipeline has no thread in the child, and locks may have been held by threads."""
    script = f"""
import os
from rsd_integrations.adapters import extras, sources
from rsd_integrations.errors import EngineClosedError
from rsd_integrations.prm.trl import TRLFormat
from rsd_integrations.testing import scripted_pipeline

sources._load = lambda spec: scripted_pipeline(["fine"])
spec = {{"draft": "d", "target": "t", "prm": "p"}}
source = sources.find_source(spec)
assert source.get().generate("x").text == "fine"
unloaded = sources.find_source({{**spec, "draft": "other"}})
{{"nothing": lambda: None, "the source's lock": unloaded._lock.acquire, "a load": unloaded._join,
  "the registry's lock": sources._registry.lock.acquire}}[{held!r}]()
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    assert source.get().closed
    try:
        source.get().generate("x")
    except EngineClosedError as error:
        assert "forked" in str(error), error
    assert sources.find_source(spec) is not source
    assert sources.find_source(spec).get().generate("x").text == "fine"
    assert unloaded.get().generate("x").text == "fine"
    os._exit(0)
finally:
    os._exit(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


class Awaited:
    async def __call__(self, step: Step) -> None:
        """Never reached."""

    async def method(self, step: Step) -> None:
        """Nor this."""

    def plain(self, step: Step) -> None:
        """This is."""


@pytest.mark.parametrize(
    "wrong", [Awaited(), Awaited().method, partial(Awaited().method), partial(Awaited())]
)
def test_on_step_is_nothing_to_await(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="on_step must be a plain function"):
        check_on_step(wrong)
    with pytest.raises(ValueError, match="on_step must be a plain function"):
        RSDSettings(pipeline="pocket", on_step=wrong)
    assert check_on_step(Awaited().plain)


@pytest.mark.parametrize("wrong", ["5", (3, 5), True, 0, -1, float("nan"), [1]])
def test_a_timeout_that_is_none(wrong: Any) -> None:
    with scripted_pipeline(["x"]) as pipe:
        with pytest.raises(ConfigError, match=r"timeout=.* is no time"):
            pipe.generate("x", timeout=wrong)
        with pytest.raises(ConfigError, match=r"timeout=.* is no time"):
            call_settings(RSDSettings(pipeline=pipe), {"timeout": wrong})
        assert pipe.generate("x", timeout=60).text == "x"


@pytest.mark.parametrize("wrong", [5, "tools", {"type": "function"}])
def test_tools_that_are_no_list(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"tools=.* is no list of tools"):
        Output.of(tools=wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draft_candidates": 4}, "draft_candidates=4 are all the same at temperature 0"),
        ({"draft_candidates": 9, "temperature": 1.0}, "do not fit max_batch_size=8"),
        ({"prm_format": "nope"}, "there is no PRM format 'nope'. Use 'auto', one of 'judge'"),
        ({"prm_format": 3}, "there is no PRM format 3"),
        ({"dtype": "float17"}, "dtype='float17' is no dtype"),
        ({"dtype": 16}, "dtype=16 is no dtype"),
        ({"dtype": torch.int8}, "dtype=torch.int8 is no dtype"),
        ({"dtype": "float8_e4m3fn"}, "dtype='float8_e4m3fn' is no dtype"),
        ({"target_kwargs": {"dtype": "half-ish"}}, "target_kwargs: dtype='half-ish' is no dtype"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RSDSettings(draft="d", target="t", prm="p", **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"draft_candidates": 4, "temperature": 1.0},
        {"draft_candidates": 9, "temperature": 1.0, "max_batch_size": 9},
        {"draft_candidates": 9, "temperature": 1.0, "threshold": 2.0},
        {"prm_format": "trl"},
        {"prm_format": lambda tokenizer, options: None},
        {"dtype": torch.bfloat16},
        {"dtype": "bfloat16", "draft_kwargs": {"dtype": torch.float64}},
    ],
)
def test_what_may_work_is_not_refused(fields: Any) -> None:
    assert RSDSettings(draft="d", target="t", prm="p", **fields).draft == "d"


def test_a_live_pipelines_rows_are_known() -> None:
    with (
        scripted_pipeline(["x"], max_batch_size=2) as pipe,
        pytest.raises(ValueError, match="do not fit max_batch_size=2"),
    ):
        RSDSettings(pipeline=pipe, draft_candidates=3, temperature=1.0)


# Both classes, whose frameworks bring fields and ways to save of their own.

BOTH = pytest.mark.parametrize("kind", [ChatRSD, RSDLLM])
ASKED: dict[Any, tuple[Any, Any]] = {
    ChatRSD: (ChatRSD.invoke, ChatRSD.ainvoke),
    RSDLLM: (RSDLLM.complete, RSDLLM.acomplete),
}


@BOTH
def test_no_models_named_tells_both_ways(kind: Any) -> None:
    ways = rf"no models are named.*draft=.*{kind.__name__}\.pocket\(\) or {kind.__name__}\.from_pipeline"
    with pytest.raises(ValueError, match=ways):
        kind()
    with pytest.raises(ValueError, match="target and prm missing"):
        kind(draft="d")


@BOTH
def test_none_is_no_value_of_most_settings(kind: Any) -> None:
    """As LangChain's own callers pass it on: the object's stop holds."""
    unset = dict.fromkeys({*RSDConfig.model_fields} - {"threshold", "max_tokens", "top_k", "seed"})
    with scripted_pipeline(["a b\n\n", "END c"]) as pipe:
        llm = kind.from_pipeline(pipe, stop="END", temperature=0.5)
        answer = ASKED[kind][0](llm, "x", **unset)
        assert (answer.content if kind is ChatRSD else answer.text) == "a b\n\n"
        assert call_settings(llm, unset).config == llm.config
        assert kind.from_pipeline(pipe, **unset).config.stop == ()


def half(prompt: Any, steps: Any) -> float:
    return 0.5


@BOTH
def test_a_function_stands_in_for_the_pocket_prm(kind: Any) -> None:
    llm = kind.pocket(prm=half)
    assert llm.model_names == {"draft": "pocket-draft", "target": "pocket-target", "prm": "half"}
    assert kind.pocket(prm=half).source is llm.source
    assert kind.pocket().source is not llm.source
    assert llm.window == kind.pocket().window
    with pickle.loads(pickle.dumps(llm)) as again:
        rewards: list[float | None] = []
        ASKED[kind][0](
            again, EXAMPLE_QUESTIONS[0], threshold=0.4, on_step=lambda step: rewards.append(step.reward)
        )
    assert set(rewards) == {0.5}


@BOTH
def test_every_config_field_is_a_field(kind: Any) -> None:
    for name, field in RSDConfig.model_fields.items():
        assert kind.model_fields[name].default == field.default


@BOTH
async def test_a_missing_folder_has_a_clear_error(kind: Any, tmp_path: Path) -> None:
    llm, (ask, asked) = kind(**dict.fromkeys(("draft", "target", "prm"), str(tmp_path / "gone"))), ASKED[kind]
    with pytest.raises(ModelError, match="gone"):
        ask(llm, "x")
    with pytest.raises(ModelError, match="gone"):
        await asked(llm, "x")


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("limits", [{}, {"max_batch_size": 8}, {"max_length": 4096, "max_batch_size": 3}])
@BOTH
def test_limits_that_nobody_set_are_not_saved(kind: Any, limits: Any) -> None:
    """Servers have their own."""
    llm = kind(draft="http://a", target="http://b", prm="http://c", **limits)
    back = (
        load(dumpd(llm), allowed_objects=[ChatRSD], valid_namespaces=["rsd_integrations"])
        if kind is ChatRSD
        else RSDLLM.from_dict(llm.to_dict())
    )
    assert back.source is llm.source
    assert {"max_batch_size", "max_length"} & back.model_fields_set == set(limits)


@BOTH
def test_help_tells_what_fields_mean(kind: Any) -> None:
    own = set(RSDSettings.model_fields) - set(RSDConfig.model_fields)
    missing = [name for name in (*own, "threshold", "stop") if f"\n    {name}: " not in kind.__doc__]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", "steps. Bound"),
        ('{"a": "x', """steps; it ends in '{"a": "x'. Bound"""),
        ("no" * 101, f"steps; it ends in ...'{'no' * 100}'. Bound"),
    ],
)
def test_what_is_cut_off_tells_how_it_ends(text: str, end: str) -> None:
    assert f"{end} the lengths in the schema, or raise max_tokens" in str(cut_off(text, "length"))
    told = end.removeprefix("steps").removesuffix("Bound")
    assert told in str(no_document(text)) and told in str(no_whole_call(text))


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
def test_a_pickle_over_servers_has_the_limits_that_were_set(cls: Any) -> None:
    urls = dict.fromkeys(ROLES, "http://127.0.0.1:9")
    for model in (cls(**urls), cls(**urls, max_length=4096)):
        again = model
        for _ in range(2):
            again = pickle.loads(pickle.dumps(again))
            assert again.source is model.source
        assert again.max_length == model.max_length


@pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])
def test_a_weighting_without_a_name_is_not_lost(cls: Any) -> None:
    """LlamaIndex would leave it out of the pickle, and the copy would accept other steps."""
    assert pickle.loads(pickle.dumps(cls.pocket(weighting=squared))).weighting is squared
    local = cls.pocket(weighting=lambda reward: reward)
    with pytest.raises(
        ConfigError, match=r"with weighting=<function .*lambda.* cannot be pickled\..*name of its own\.$"
    ):
        pickle.dumps(local)
