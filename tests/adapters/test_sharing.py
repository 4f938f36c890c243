"""Which objects share a pipeline: those whose names mean the same models, here and now."""

from __future__ import annotations

import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_integrations import RSDPipeline
from rsd_integrations.adapters.sharing import source_key
from rsd_integrations.adapters.sources import find_source
from rsd_integrations.errors import BackendError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.llama_index import RSDLLM
from rsd_integrations.pocket import pocket_paths
from rsd_integrations.pocket.task import held_out
from rsd_integrations.prm import registry
from rsd_integrations.prm.trl import TRLFormat
from tests.vllm.double import double

NAMED: dict[str, Any] = {"draft": "d", "target": "t", "prm": "p"}
SERVED: dict[str, Any] = {"draft": "http://a:1", "target": "http://b:1", "prm": "http://c:1"}
QUESTION = next(iter(held_out(1))).question
both = pytest.mark.parametrize("cls", [ChatRSD, RSDLLM])


def half(prompt: Any, steps: Any) -> float:
    return 0.5


# Over servers: what goes with each question.

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "api_key": st.sampled_from(["alice-1", "bob-2"]),
        "headers": st.dictionaries(
            st.sampled_from(["X-Tenant", "X-Route"]), st.sampled_from(["alice-1", "v-2"])
        ),
        "token": st.sampled_from(["hub-1", "hub-2"]),
        "model": st.sampled_from(["m", "n"]),
    },
)


@given(one=OPTIONS, other=OPTIONS, role=st.sampled_from([*SERVED]))
def test_what_is_sent_with_each_question_tells_servers_apart(one: Any, other: Any, role: str) -> None:
    def sent(options: Any) -> Any:
        return {name: options.get(name) or None for name in ("api_key", "headers", "model")}

    first, second = (ChatRSD(**SERVED, **{f"{role}_kwargs": options}) for options in (one, other))
    assert (first.source is second.source) == (sent(one) == sent(other))
    assert pickle.loads(pickle.dumps(first)).source is first.model_copy().source is first.source
    shown = repr((source_key(first.source.spec), vars(first.source), first.source.name))
    assert not any(secret in shown for secret in ("alice-1", "bob-2", "v-2", "hub-"))


@both
def test_the_key_of_all_servers(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = cls(**SERVED, api_key="alice")
    assert cls(**SERVED, api_key="alice").source is alice.source
    assert cls(**SERVED, api_key="bob").source is not alice.source is not cls(**SERVED).source
    assert cls(
        **SERVED, api_key="bob", **{f"{role}_kwargs": {"api_key": "alice"} for role in SERVED}
    ).source is (alice.source)
    monkeypatch.setenv("VLLM_API_KEY", "alice")
    assert cls(**SERVED).source is alice.source
    # With a function among the servers.
    beside = SERVED | {"prm": half}
    mixed = cls(**beside, api_key="alice")
    assert cls(**beside, api_key="alice").source is mixed.source is not cls(**beside, api_key="bob").source
    # Models in this process are sent nothing.
    assert cls(**NAMED, api_key="alice").source is cls(**NAMED, api_key="bob").source


def test_nobody_asks_with_the_key_of_another() -> None:
    paths = pocket_paths()
    with (
        double(paths.draft, key="old") as draft,
        double(paths.target, key="old") as target,
        double(paths.prm, key="old") as prm,
    ):
        urls = {"draft": draft.url, "target": target.url, "prm": prm.url}

        def asked(model: ChatRSD) -> Any:
            target.asked.clear()
            model.invoke(QUESTION, max_tokens=4, threshold=1.1)
            return target.asked[-1][1]["headers"]

        held = ChatRSD(**urls, api_key="old", target_kwargs={"headers": {"X-Tenant": "alice"}})
        assert asked(held)["X-Tenant"] == "alice"
        assert asked(ChatRSD(**urls, api_key="old", target_kwargs={"headers": {"X-Tenant": "bob"}}))[
            "X-Tenant"
        ] == ("bob")
        with pytest.raises(BackendError, match="401"):
            ChatRSD(**urls, api_key="not-a-key").invoke(QUESTION)
        for server in (draft, target, prm):
            server.key = "new"
        assert asked(ChatRSD(**urls, api_key="new"))["Authorization"] == "Bearer new"
        held.api_key = "new"  # type: ignore[assignment]
        assert asked(held)["Authorization"] == "Bearer new"
        held.close()


SPELLINGS = st.tuples(
    st.sampled_from(["http://", "HTTP://", " http://"]), st.sampled_from(["", "/", "/v1", "/v1/"])
)


@given(spelled=SPELLINGS, listed=st.booleans())
def test_however_a_url_is_spelled(spelled: tuple[str, str], listed: bool) -> None:
    url: Any = f"{spelled[0]}a:1{spelled[1]}"
    held = find_source(SERVED)
    assert find_source(SERVED | {"draft": [url] if listed else url}) is held
    assert find_source(SERVED | {"draft": f"{spelled[0]}a:1/other{spelled[1]}"}) is not held


def test_headers_that_cannot_be_sent_are_refused_by_the_load() -> None:
    wrong = ChatRSD(**SERVED, draft_kwargs={"headers": {"X-Tenant": "alice\n"}})
    assert wrong.source is not ChatRSD(**SERVED).source
    with pytest.raises(ValueError, match="hold what no header can"):
        wrong.load()


# Folders: names are relative to the working directory.


@pytest.fixture
def projects(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        for folder in ("draft", "target", "prm", "words"):
            (tmp_path / name / folder).mkdir(parents=True)
    return tmp_path / "one", tmp_path / "two"


FOLDERS: dict[str, Any] = {"draft": "draft", "target": "target", "prm": "prm"}


@both
def test_a_folders_name_means_the_one_that_is_here(
    cls: Any, projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, loads: list[Any]
) -> None:
    one, two = projects
    monkeypatch.chdir(one)
    first, lazy = cls(**FOLDERS), cls(**FOLDERS, device="cpu")
    pipe, before = first.load(), lazy.source
    monkeypatch.chdir(two)
    second = cls(**FOLDERS)
    assert second.load() is not pipe
    assert first.load() is pipe, "what is loaded stays"
    assert lazy.source is cls(**FOLDERS, device="cpu").source is not before, (
        "what is loaded now is loaded from here"
    )
    monkeypatch.chdir(one)
    assert cls(**FOLDERS).load() is pipe
    assert len(loads) == 2
    # Names and saved objects are as they were given.
    assert first.source.name == second.source.name
    assert first.draft == "draft"


@pytest.mark.parametrize("role", [*FOLDERS])
@pytest.mark.parametrize("spelled", ["./{}", "{}/", "../one/{}", "{}/../{}", "link-to-{}", "{here}/{}"])
def test_however_a_folder_is_spelled(
    role: str, spelled: str, projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = projects[0]
    monkeypatch.chdir(here)
    (here / f"link-to-{role}").symlink_to(role)
    held = find_source(FOLDERS)
    assert find_source(FOLDERS | {role: spelled.replace("{here}", str(here)).replace("{}", role)}) is held
    assert find_source(FOLDERS | {role: Path(role)}) is held
    assert find_source(FOLDERS | {role: "words"}) is not held


@pytest.mark.parametrize(
    ("models", "option"), [(NAMED, "tokenizer"), (SERVED, "tokenizer"), (SERVED, "source")], ids=str
)
def test_nor_do_tokenizers_stay_behind(
    models: Any, option: str, projects: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = projects
    monkeypatch.chdir(one)
    held = find_source({**models, "target_kwargs": {option: "words"}})
    assert find_source({**models, "target_kwargs": {option: str(one / "words")}}) is held
    monkeypatch.chdir(two)
    assert find_source({**models, "target_kwargs": {option: "words"}}) is not held


# PRM formats that are registered again, as by a notebook's cell that is corrected.


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_formats", dict(registry._formats))


def cell(reward: float) -> type[TRLFormat]:
    class Mine(TRLFormat):
        name = "mine"

        def reward(self, outputs: Any) -> float:
            return reward

    return registry.register_prm_format(Mine)


@both
@pytest.mark.usefixtures("formats")
@pytest.mark.parametrize("form", ["mine", "auto"])
def test_a_format_that_is_registered_again_counts(cls: Any, form: str, loads: list[Any]) -> None:
    cell(0.1)
    first, lazy = cls(**NAMED, prm_format=form), cls(**NAMED, prm_format=form, device="cpu")
    pipe, before = first.load(), lazy.source
    assert cls(**NAMED, prm_format=form).load() is pipe
    cell(0.9)
    assert cls(**NAMED, prm_format=form).load() is not pipe
    assert first.load() is pipe, "what is loaded stays"
    assert lazy.source is not before
    assert len(loads) == 2


@pytest.mark.usefixtures("formats")
def test_other_formats_are_no_matter() -> None:
    cell(0.1)
    scored = NAMED | {"prm": half}
    held = [find_source(NAMED | {"prm_format": "trl"}), find_source(NAMED | {"prm_format": TRLFormat})]
    held.append(find_source(scored))
    cell(0.9)
    assert find_source(NAMED | {"prm_format": "trl"}) is held[0]
    assert find_source(NAMED | {"prm_format": TRLFormat}) is held[1]
    assert find_source(scored) is held[2]


@pytest.mark.usefixtures("formats")
def test_its_rewards_are_the_new_ones() -> None:
    def rewards(model: ChatRSD) -> set[float]:
        seen: list[Any] = []
        model.invoke(QUESTION, on_step=lambda step: seen.append(step.reward), max_steps=2)
        return set(seen)

    cell(0.1)
    with ChatRSD.pocket(prm_format="mine") as first:
        assert rewards(first) == {0.1}
        cell(0.9)
        with ChatRSD.pocket(prm_format="mine") as second:
            assert rewards(second) == {0.9}
            assert rewards(first) == {0.1}


# Names that are members of an Enum.


class Model(str, Enum):
    DRAFT = str(pocket_paths().draft)
    TARGET = str(pocket_paths().target)
    PRM = str(pocket_paths().prm)


MEMBERS = {"draft": Model.DRAFT, "target": Model.TARGET, "prm": Model.PRM}


@both
def test_an_enums_member_is_its_value(cls: Any) -> None:
    names = {role: member.value for role, member in MEMBERS.items()}
    made = cls(**MEMBERS, device="cpu")
    assert made.model_names == names
    assert made.source is cls(**names, device="cpu").source
    assert "Model" not in made.source.name + repr(made)


def test_an_enums_member_is_loaded_by_its_value() -> None:
    with RSDPipeline.from_pretrained(**MEMBERS, device="cpu") as pipe:
        assert pipe.backend.draft.info.name == Model.DRAFT.value
