"""Models that come as objects beside loaded ones, and who runs them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from rsd_integrations import RSDPipeline
from rsd_integrations.errors import ConfigError, PromptError, PromptLengthError, RewardError
from rsd_integrations.langchain import ChatRSD
from rsd_integrations.pocket import pocket_paths
from rsd_integrations.pocket.task import held_out
from rsd_integrations.prm import Feed
from rsd_integrations.protocols import Backend, Scored, WindowFull
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter, scripted_pipeline
from tests.awaited import Awaited
from tests.gated import Gated

QUESTION = held_out(1)[0].question
SCRIPT = ["one\n\n", "two\n\n", "three"]


@pytest.fixture(scope="module")
def pocket() -> Iterator[RSDPipeline]:
    with RSDPipeline.pocket() as pipe:
        yield pipe


class Lacking:
    """A model that has all of another's but one thing."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name = model, name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._model, name)


class TestObjects:
    """A writer or scorer of one's own in a loaded trio."""

    def test_a_scorer_beside_loaded_writers(self, pocket: RSDPipeline) -> None:
        with RSDPipeline.pocket(prm=ScriptedScorer([0.0])) as pipe:
            assert pipe.generate(QUESTION).text == pocket.generate(QUESTION, threshold=1.1).text
        with RSDPipeline.pocket(prm=ScriptedScorer([1.0])) as pipe:
            assert pipe.generate(QUESTION).text == pocket.generate(QUESTION, threshold=0).text

    def test_a_writer_beside_loaded_models(self, pocket: RSDPipeline) -> None:
        """The loaded PRM has its say of what a script writes, and the target goes on behind it."""
        known = pocket.generate(QUESTION, threshold=1.1)
        first = known.steps[0].text
        with RSDPipeline.pocket(draft=ScriptedWriter([first, "Nonsense: 1 + 1 = 7.\n\n"])) as pipe:
            out = pipe.generate(QUESTION, max_steps=2)
        assert [step.source for step in out.steps] == ["draft", "target"]
        assert out.text == "".join(step.text for step in known.steps[:2])

    def test_in_adapters(self) -> None:
        paths, scorer = pocket_paths(), ScriptedScorer([0.0], name="mine")
        llm = ChatRSD(draft=paths.draft, target=paths.target, prm=scorer)
        out = llm.invoke(QUESTION)
        assert out.response_metadata["rsd"]["acceptance_rate"] == 0.0

    def test_tools_are_refused_where_a_writer_takes_none(self) -> None:
        class Silent(ScriptedWriter):
            def __init__(self) -> None:
                super().__init__(SCRIPT, name="silent")
                self.takes_tools = False

        llm = ChatRSD(draft=Silent(), target=ScriptedWriter(SCRIPT), prm=ScriptedScorer([1.0]))
        with pytest.raises(ConfigError, match="'silent' takes no tools"):
            llm.bind_tools([{"name": "add", "description": "Add.", "parameters": {"type": "object"}}])

    @pytest.mark.parametrize("role", ["draft", "target", "prm"])
    def test_options_for_loading_are_refused(self, role: str) -> None:
        mine = ScriptedScorer([1.0]) if role == "prm" else ScriptedWriter(SCRIPT)
        with pytest.raises(ConfigError, match=f"{role}_kwargs is for a {role} that is loaded"):
            RSDPipeline.pocket(**{role: mine, f"{role}_kwargs": {"dtype": "float32"}})


class TestParts:
    """What a backend is made of."""

    @pytest.mark.parametrize(
        ("parts", "told"),
        [
            (("a folder", ScriptedWriter(SCRIPT), ScriptedScorer([1.0])), "draft='a folder' .* no 'open'"),
            ((ScriptedWriter(SCRIPT),) * 2 + (ScriptedWriter(SCRIPT),), "prm=.* has no 'score'"),
            ((ScriptedWriter(SCRIPT), ScriptedWriter, ScriptedScorer([1.0])), "target=.* has no 'info'"),
        ],
    )
    def test_parts_that_cannot_work_are_refused(self, parts: Any, told: str) -> None:
        with pytest.raises(ConfigError, match=told):
            RSDPipeline(Backend(*parts))

    @pytest.mark.parametrize(
        ("role", "name"),
        [
            *(
                ("draft", name)
                for name in ("advance", "check", "close", "count", "encode", "info", "looks_at")
            ),
            *(("target", name) for name in ("open", "takes_tools")),
            *(("prm", name) for name in ("close", "info", "open", "score")),
        ],
    )
    def test_a_part_that_lacks_something_is_refused_at_once(self, role: str, name: str) -> None:
        parts: dict[str, Any] = {
            "draft": ScriptedWriter(SCRIPT),
            "target": ScriptedWriter(SCRIPT),
            "prm": ScriptedScorer([1.0]),
        }
        parts[role] = Lacking(parts[role], name)
        with pytest.raises(ConfigError, match=rf"{role}=.* of a Backend has no '{name}'\."):
            RSDPipeline(Backend(**parts))

    @pytest.mark.parametrize("name", ["count", "takes_tools"])
    def test_it_is_refused_before_the_others_are_loaded(self, name: str) -> None:
        given: Any = Lacking(ScriptedWriter(SCRIPT), name)
        with pytest.raises(ConfigError, match=rf"draft=.* of a Backend has no '{name}'\."):
            RSDPipeline.from_pretrained(given, "/no/such/folder", "/none")

    def test_what_only_some_sessions_need_may_be_missing(self) -> None:
        parts = [Lacking(Awaited(one), "go_on") for one in (ScriptedWriter(SCRIPT), ScriptedWriter(SCRIPT))]
        with RSDPipeline(RemoteBackend(*parts, Awaited(ScriptedScorer([1.0])))) as pipe:  # type: ignore[arg-type]
            assert pipe.generate("count").text == "one\n\ntwo\n\nthree"

    def test_awaited_parts_go_into_a_backend_of_servers(self) -> None:
        class Remote:
            info = ScriptedScorer([1.0]).info

            def open(self, prompt: Any) -> Any: ...

            async def score(self, session: Any, step: Any) -> Any: ...

            async def aclose(self) -> None: ...

        with pytest.raises(ConfigError, match=r"prm=.* of a Backend has no 'close'"):
            RSDPipeline(Backend(ScriptedWriter(SCRIPT), ScriptedWriter(SCRIPT), Remote()))  # type: ignore[arg-type]

    def test_two_open_pipelines_do_not_share_a_model(self, pocket: RSDPipeline) -> None:
        backend = pocket.backend
        assert isinstance(backend, Backend)
        with pytest.raises(ConfigError, match=r"the draft .* is at work in another pipeline"):
            RSDPipeline(replace(backend, prm=ScriptedScorer([1.0])))
        assert pocket.generate(QUESTION).text  # It is as it was.

    def test_a_busy_object_is_refused_before_the_others_are_loaded(self) -> None:
        with scripted_pipeline(SCRIPT) as pipe, pytest.raises(ConfigError, match="at work in another"):
            RSDPipeline.from_pretrained("/no/such/folder", "/none", pipe.backend.prm)

    def test_models_that_were_closed_with_their_pipeline_are_refused(self) -> None:
        backend = RSDPipeline.pocket().backend  # Nobody holds the pipeline, so it closes.
        assert isinstance(backend, Backend)
        with pytest.raises(ConfigError, match=r"the draft .* was closed with its pipeline"):
            RSDPipeline(replace(backend, prm=ScriptedScorer([1.0])))
        backend.draft.close()

    def test_a_closed_pipeline_s_objects_may_go_on(self) -> None:
        parts = ScriptedWriter(SCRIPT), ScriptedWriter(SCRIPT), ScriptedScorer([1.0])
        for _ in range(2):
            with RSDPipeline(Backend(*parts)) as pipe:
                assert pipe.generate("count").text == "one\n\ntwo\n\nthree"

    def test_one_object_for_draft_and_target(self) -> None:
        writer = ScriptedWriter(SCRIPT)
        with RSDPipeline(Backend(writer, writer, ScriptedScorer([0.0]))) as pipe:
            assert pipe.generate("count").text == "one\n\ntwo\n\nthree"


class TestWritersThatAreWrong:
    """What they raise fails their own requests; the engine goes on."""

    def test_a_draft_that_cannot_guess_beside_a_target_that_asks_it_to(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draft = ScriptedWriter(SCRIPT)
        target = ScriptedWriter(SCRIPT, parameters=10 * draft.info.parameters)
        session = type(target.open("x"))
        wanted = property(lambda self: int(self.writer is target))
        monkeypatch.setattr(session, "wanted", wanted)
        with RSDPipeline(Backend(draft, target, ScriptedScorer([0.0]))) as pipe:
            with pytest.raises(AssertionError, match="wants guesses"):
                pipe.generate("x")
            assert pipe.generate("x", threshold=0.0).text == "".join(SCRIPT)
            assert draft.open_sessions == 0

    def test_a_draft_that_says_it_goes_on_and_cannot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Asked to while its step waits for company, which here are two more that are still drafted."""
        draft = Gated(lambda prompt, index, text: ("a" if prompt == "short" else "b" * 30) + "\n\n")
        session = type(draft.open("x"))
        monkeypatch.setattr(session, "goes_on", property(lambda self: self.prompt == "short"))
        with RSDPipeline(Backend(draft, ScriptedWriter(SCRIPT), ScriptedScorer([1.0]), 4)) as pipe:
            good = [pipe.stream(f"long {number}", max_steps=2) for number in range(2)]
            bad = pipe.stream("short")
            draft.gate.set()
            with pytest.raises(AssertionError, match="wants guesses"):
                bad.result()
            assert all(len(stream.result().steps) == 2 for stream in good)
            assert pipe.generate("long", max_steps=1).steps


class TestScore:
    """Rewards of an answer that is there."""

    def test_they_are_those_of_the_run(self, pocket: RSDPipeline) -> None:
        out = pocket.generate(QUESTION, threshold=1e-9)
        rewards = pocket.score(QUESTION, [step.text for step in out.steps])
        assert rewards == pytest.approx([step.reward for step in out.steps], abs=1e-4)

    def test_a_rewrite_s_are_its_own(self, pocket: RSDPipeline) -> None:
        """In a run it has the reward of what it replaced."""
        out = pocket.generate(QUESTION, threshold=1.1)
        texts = [step.text for step in out.steps]
        rewards = pocket.score(QUESTION, texts)
        with RSDPipeline.pocket(draft=ScriptedWriter(texts)) as pipe:
            drafted = pipe.generate(QUESTION, threshold=1e-9)
        assert rewards == pytest.approx([step.reward for step in drafted.steps], abs=1e-4)

    def test_sync_and_async_in_company(self, pocket: RSDPipeline) -> None:
        texts = [step.text for step in pocket.generate(QUESTION).steps]
        alone = pocket.score(QUESTION, texts)

        async def together() -> Any:
            answers = [pocket.agenerate(QUESTION) for _ in range(2)]
            return await asyncio.gather(*[pocket.ascore(QUESTION, texts) for _ in range(3)], *answers)

        *rewards, first, second = asyncio.run(together())
        assert rewards == [pytest.approx(alone, abs=1e-4)] * 3
        assert first.text == second.text

    def test_blank_steps_leave_the_reward(self) -> None:
        with scripted_pipeline(SCRIPT, rewards=[0.3, 0.6, 0.9]) as pipe:
            assert pipe.score("count", [" \n", "a", "", "b\n\n"]) == [0.0, 0.3, 0.3, 0.6]
            assert pipe.score("count", []) == []

    def test_what_has_no_room_has_no_reward(self) -> None:
        with scripted_pipeline(SCRIPT, rewards=[0.5], window=10) as pipe:
            assert pipe.score("12345", ["abc", "defghijkl", "x"]) == [0.5, None, None]

    def test_what_is_far_too_long_is_refused_before_it_is_encoded(self, pocket: RSDPipeline) -> None:
        huge = "marbles " * 200_000
        for asked in ((huge, ["a"]), (QUESTION, ["a", huge])):
            with pytest.raises(PromptLengthError, match="of 1600000 characters does not fit the window"):
                pocket.score(*asked)
        with pytest.raises(PromptLengthError, match="prompt tokens do not fit the window"):
            pocket.score("marbles " * 1500, ["a"])

    def test_a_config_of_several_candidates_takes_one_row(self) -> None:
        with scripted_pipeline(SCRIPT, max_batch_size=2) as pipe:
            config = pipe_config(draft_candidates=3, temperature=1.0)
            assert pipe.score("count", ["a"], config=config) == [1.0]

    def test_delimiters_are_the_config_s(self) -> None:
        seen: list[str] = []

        def reward(prompt: Any, index: int, body: str) -> float:
            seen.append(body)
            return 0.5

        with scripted_pipeline(SCRIPT, rewards=reward) as pipe:
            pipe.score("count", ["a;", "b;"], config=None)
            config = pipe.resolved(pipe_config(step_delimiter=(";",)))
            pipe.score("count", ["a;", "b;"], config=config)
        assert seen == ["a;", "b;", "a", "b"]

    @pytest.mark.parametrize("steps", ["text", 3, None, {"a": 1}, [b"x"], [None]])
    def test_what_are_no_steps_is_refused(self, pocket: RSDPipeline, steps: Any) -> None:
        with pytest.raises(PromptError, match=r"is no list of texts|is no string"):
            pocket.score(QUESTION, steps)

    def test_a_failure_reaches_the_caller_alone(self) -> None:
        def reward(prompt: Any, index: int, body: str) -> float:
            return 2.0 if body == "bad" else 0.5

        with scripted_pipeline(SCRIPT, rewards=reward) as pipe:
            with pytest.raises(RewardError, match=r"reward 2.0, .* for step 1: 'bad'"):
                pipe.score("count", ["good", "bad"])
            assert pipe.score("count", ["good"]) == [0.5]

    def test_closing_ends_it(self) -> None:
        asked, go_on = threading.Event(), threading.Event()

        class Waiting(ScriptedScorer):
            def score(self, sessions: Any, work: Any) -> Any:
                asked.set()
                return super().score(sessions, work) if go_on.is_set() else [None] * len(work)

        pipe = RSDPipeline(Backend(ScriptedWriter(SCRIPT), ScriptedWriter(SCRIPT), Waiting([0.5])))
        failed: list[Any] = []

        def ask() -> None:
            try:
                pipe.score("count", ["a"])
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(20)
        pipe.close()
        thread.join(20)
        assert "closed" in str(failed[0])

    def test_over_awaited_models(self) -> None:
        parts: Any = ScriptedWriter(SCRIPT), ScriptedWriter(SCRIPT), ScriptedScorer([0.3, 0.6])
        with RSDPipeline(RemoteBackend(*map(Awaited, parts))) as pipe:
            assert pipe.score("count", ["a", "b"]) == [0.3, 0.6]
            assert parts[2].open_sessions == 0


def pipe_config(**fields: Any) -> Any:
    from rsd_integrations import RSDConfig

    return RSDConfig(**fields)


class TestScorersThatAreWrong:
    """A scorer that gives no reward is an error, and not a PRM without room."""

    @pytest.mark.parametrize(
        "given",
        [0.9, None, Scored(None, 1), Scored("good", 1), (0.9, 3)],
        ids=repr,  # type: ignore[arg-type]
    )
    def test_what_is_no_reward(self, given: Any) -> None:
        class Wrong(ScriptedScorer):
            def score(self, sessions: Any, work: Any) -> Any:
                return [given if given is not None else object()] * len(work)

        with (
            RSDPipeline(Backend(ScriptedWriter(SCRIPT), ScriptedWriter(SCRIPT), Wrong([1.0]))) as pipe,
            pytest.raises(RewardError, match=r"the PRM gave .* for step 0: 'one'"),
        ):
            pipe.generate("count")

    def test_no_room_is_none(self) -> None:
        class Full(ScriptedScorer):
            def score(self, sessions: Any, work: Any) -> Any:
                return [WindowFull()] * len(work)

        with RSDPipeline(Backend(ScriptedWriter(SCRIPT), ScriptedWriter(["T"]), Full([1.0]))) as pipe:
            [step] = pipe.generate("count").steps
        assert (step.source, step.reward) == ("target", None)


class TestFormatsThatAreWrong:
    """A PRM format of one's own that fails is named."""

    @pytest.mark.parametrize(
        ("method", "instead", "told"),
        [
            ("step", lambda body, index: Feed((5, 6), read=-1), "'trl' cannot lay out a step: .*read=-1"),
            ("step", lambda body, index: Feed((5, 6), read=2), "read=2"),
            ("step", lambda body, index: Feed((5, 6), read=1, probe=3), "probe=3"),
            ("step", lambda body, index: Feed((), read=0), "read=0 .* not among its 0 ids"),
            ("step", lambda body, index: ((5, 6), 1), "is no Feed"),
            ("step", lambda body, index: {}["my bug"], "cannot lay out a step: KeyError: 'my bug'"),
            ("prompt", lambda messages: {}["my bug"], "cannot lay out a prompt: KeyError: 'my bug'"),
            ("reward", lambda outputs: {}["my bug"], "cannot read a reward from .*: KeyError: 'my bug'"),
        ],
    )
    def test_it(
        self, pocket: RSDPipeline, monkeypatch: pytest.MonkeyPatch, method: str, instead: Any, told: str
    ) -> None:
        prm: Any = pocket.backend.prm
        with monkeypatch.context() as patch:
            patch.setattr(prm.format, method, instead)
            with pytest.raises(RewardError, match=told):
                pocket.generate(QUESTION)
        assert pocket.generate(QUESTION).text
