"""The twelve defects of the reference code (BaohaoLiao/RSD), and that this package has none of them."""

from __future__ import annotations

import ast
import copy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rsd_integrations
from rsd_integrations import Generation, RSDPipeline
from rsd_integrations.protocols import Backend
from rsd_integrations.testing import ScriptedScorer, ScriptedWriter, scripted_pipeline
from tests.oracle import Party, plain_generate
from tests.tiny_models import causal, token_classifier, tokenizer, trio

TWELVE = [f"step {n}.\n\n" for n in range(12)]


@pytest.fixture(scope="module")
def tiny() -> Iterator[RSDPipeline]:
    with load() as pipe:
        yield pipe


def load(draft: Any = None, target: Any = None, prm: Any = None, **options: Any) -> RSDPipeline:
    own = {"draft": draft, "target": target, "prm": prm}
    models = trio() | {role: source for role, source in own.items() if source}
    return RSDPipeline.from_pretrained(**models, device="cpu", **options)


@pytest.mark.parametrize("alone", [True, False])
def test_01_patience_no_other_request_cuts_an_answer_off(alone: bool) -> None:
    """There, when no request ended for four steps, all were cut; a lone problem stopped at step 5."""
    with scripted_pipeline(TWELVE) as pipe:
        company = [] if alone else [pipe.stream(f"other {n}") for n in range(6)]
        generation = pipe.generate("x")
        assert len(generation.steps) == 13  # The last one is the end of sequence.
        assert generation.finish_reason == "stop"
        assert all(stream.result().text == "".join(TWELVE) for stream in company)


def test_02_a_length_cut_is_not_a_stop() -> None:
    with scripted_pipeline(TWELVE) as pipe:
        assert pipe.generate("x", max_tokens=15).finish_reason == "length"
        assert pipe.generate("x", max_steps=2).finish_reason == "length"
        # A step that is cut ends the step, not the answer.
        cut = pipe.generate("x", max_step_tokens=4)
        assert (cut.finish_reason, cut.text) == ("stop", "step" * 12)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("place", [0, 3, 7])
def test_02_every_end_of_sequence_id_ends_the_answer(threshold: float, place: int) -> None:
    tok, model = tokenizer("ascii"), copy.deepcopy(causal("Qwen2", 0, "ascii"))
    ids, _ = plain_generate(Party(model, tok), "hello there", 20)
    model.generation_config.eos_token_id = [tok.eos_token_id, ids[place]]
    with load((model, tok), (model, tok)) as pipe:
        generation = pipe.generate("hello there", threshold=threshold, max_tokens=20)
    first = ids.index(ids[place])
    assert generation.finish_reason == "stop"
    assert generation.usage.completion_tokens == first + 1
    assert generation.text == tok.decode(ids[:first])  # Not text: it is the end.


def test_03_many_samples_of_one_prompt(tiny: RSDPipeline) -> None:
    streams = [tiny.stream("hello", seed=n, temperature=1.0, max_tokens=12) for n in range(16)]
    texts = [stream.result().text for stream in streams]
    assert len(set(texts)) > 8
    assert texts[3] == tiny.generate("hello", seed=3, temperature=1.0, max_tokens=12).text


@pytest.mark.parametrize("prompt", ["hi", "a long prompt " * 12])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
def test_04_the_budget_is_the_answer_s_and_counts_no_prompt(
    tiny: RSDPipeline, prompt: str, threshold: float
) -> None:
    generation = tiny.generate(prompt, max_tokens=25, threshold=threshold, step_delimiter="e", seed=0)
    counted = sum(_own_tokens(step) for step in generation.steps)
    assert counted == generation.usage.completion_tokens <= 25
    if generation.finish_reason == "length":
        assert counted == 25


def _own_tokens(step: Any) -> int:
    return int(step.draft_tokens if step.source == "draft" else step.target_tokens)


def test_05_prompt_and_prm_tokens_are_counted(tiny: RSDPipeline) -> None:
    generation = tiny.generate("hello there", max_tokens=30, threshold=0.5, step_delimiter="e")
    used = generation.usage
    assert used.draft.forwarded > used.prompt_tokens
    assert used.prm.forwarded > used.prm.generated > 0
    assert used.prm.flops.paper > 0
    assert used.flops.total > used.flops.paper


def test_05_the_acceptance_rate_is_of_steps() -> None:
    with scripted_pipeline(["a\n\n", "long " * 20], ["A\n\n", "B"], [0.9, 0.1]) as pipe:
        assert pipe.generate("x").acceptance_rate == 0.5


def test_06_text_fused_behind_a_delimiter_is_kept() -> None:
    """The tiny vocabulary merges "s.\\n\\nT" into one token, as real ones do with ".\\n\\n"."""
    tok = tokenizer("ascii")
    fused = [index for entry, index in tok.get_vocab().items() if "ĊĊ" in entry and entry[-1] != "Ċ"]
    assert fused
    with load((always(fused[0]), tok)) as pipe:
        generation = pipe.generate("hello", threshold=0, max_tokens=4)
    piece = tok.decode([fused[0]])
    assert [step.text for step in generation.steps] == [piece] * 4
    assert generation.text == piece * 4


def always(token: int) -> Any:
    """A model that writes one token for ever."""
    model = copy.deepcopy(causal("Qwen2", 0, "ascii"))

    def insist(module: Any, args: Any, output: Any) -> Any:
        output = output.clone()
        output[..., token] += 1e4
        return output

    model.lm_head.register_forward_hook(insist)
    return model


def test_06_no_step_sends_the_text_again(tiny: RSDPipeline) -> None:
    generation = tiny.generate(
        "hi", weighting="constant", acceptance_rate=1.0, step_delimiter=" ", max_tokens=60
    )
    assert len(generation.steps) > 5
    used = generation.usage
    assert used.draft.forwarded == used.prompt_tokens + used.completion_tokens - 1
    assert used.prm.forwarded <= used.prompt_tokens + used.prm.generated


def test_06_a_draft_that_repeats_itself_ends_by_its_limits() -> None:
    tok = tokenizer("ascii")
    letter, line = (tok.encode(text)[0] for text in ("x", "\n"))
    for token, end in ((letter, 3), (line, 3)):
        with load((always(token), tok), (always(token), tok)) as pipe:
            for threshold in (0.0, 0.5, 2.0):
                generation = pipe.generate("hi", threshold=threshold, max_step_tokens=5, max_steps=end)
                assert (generation.finish_reason, len(generation.steps)) == ("length", 3)
                assert generation.text == tok.decode([token]) * 15


def test_07_nobody_waits_for_the_slowest() -> None:
    """A request of many short steps ends while another one still writes its first."""
    rounds: list[list[Any]] = []
    submitted = threading.Event()

    def draft(prompt: Any, index: int, text: str) -> str | None:
        if prompt == "slow":
            return "x" * 5000
        return "ab\n\n" if index < 5 else None

    class Watching(ScriptedWriter):
        def advance(self, sessions: Any) -> Any:
            assert submitted.wait(60)  # No round is over before both requests are there.
            rounds.append([session.prompt for session in sessions])
            return super().advance(sessions)

    writer = Watching(draft)
    with RSDPipeline(Backend(writer, ScriptedWriter(draft), ScriptedScorer([1.0]))) as pipe:
        slow, fast = pipe.stream("slow", max_step_tokens=5000), pipe.stream("fast")
        submitted.set()
        assert fast.result().finish_reason == "stop"
        # Lockstep would have 5000 rounds before the second of the fast one's steps.
        fasts = [number for number, prompts in enumerate(rounds) if "fast" in prompts]
        assert fasts[-1] < 100
        assert sum("slow" in rounds[number] for number in fasts) >= 4
        slow.close()


def test_07_rewrites_of_some_do_not_stop_the_drafts_of_others() -> None:
    rounds: list[tuple[str, int]] = []
    submitted = threading.Event()

    class Noting(ScriptedWriter):
        def advance(self, sessions: Any) -> Any:
            assert submitted.wait(60)  # No round is over before both requests are there.
            rounds.extend((self.info.name, len(session.prompt)) for session in sessions)
            return super().advance(sessions)

    def reward(prompt: Any, index: int, body: str) -> float:
        return 0.0 if prompt == "x" else 1.0

    draft, target = Noting(["ab\n\n"] * 30, name="d"), Noting(["long step\n\n"] * 30, name="t")
    with RSDPipeline(Backend(draft, target, ScriptedScorer(reward))) as pipe:
        streams = [pipe.stream("x"), pipe.stream("yy")]
        submitted.set()
        texts = [stream.result().text for stream in streams]
    assert texts == ["long step\n\n" * 30, "ab\n\n" * 30]
    # Between two rounds of the target's there are rounds of the other one's draft.
    first = rounds.index(("t", 1))
    assert ("d", 2) in rounds[first : first + 12]


def test_08_each_model_has_its_own_chat_template() -> None:
    tok, other = tokenizer("ascii"), copy.deepcopy(tokenizer("ascii-b"))
    other.chat_template = "{% for m in messages %}Q: {{ m.content }} A:{% endfor %}"
    draft, target = causal("Qwen2", 0, "ascii"), causal("Llama", 1, "ascii-b")
    with load((draft, tok), (target, other)) as pipe:
        backend: Any = pipe.backend
        opened = [backend.draft.open("hello"), backend.target.open("hello")]
        texts = [party.decode(session.tokens) for party, session in zip((tok, other), opened, strict=True)]
        assert texts[0] == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        assert texts[1] == "Q: hello A:"
        for threshold, party in ((0.0, Party(draft, tok)), (2.0, Party(target, other))):
            expected = plain_generate(party, "hello", 16)[1]
            assert pipe.generate("hello", threshold=threshold, max_tokens=16).text == expected


def test_09_there_are_weightings_and_seeds(tiny: RSDPipeline) -> None:
    def run(**fields: Any) -> Generation:
        return tiny.generate("hello there", step_delimiter="e", max_tokens=30, temperature=1.0, **fields)

    texts = {
        (weighting, seed): run(weighting=weighting, seed=seed).text
        for weighting in ("step", "constant", "clip", "sigmoid", "logistic")
        for seed in (1, 2)
    }
    assert len({text for (_, seed), text in texts.items() if seed == 1}) > 1
    for (weighting, seed), text in texts.items():
        assert run(weighting=weighting, seed=seed).text == text


def test_10_nothing_that_a_model_writes_is_executed() -> None:
    """No source of the package runs text as code; the few ways to do so are not even named."""
    root = Path(rsd_integrations.__file__).parent
    forbidden = {"exec", "eval", "compile", "__import__", "execfile"}
    modules = {"subprocess", "os.system", "code", "runpy", "pty"}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden, f"{path}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not modules & {alias.name for alias in node.names}, f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.module not in modules, f"{path}:{node.lineno}"


def test_10_code_in_an_answer_stays_text(tmp_path: Path) -> None:
    code = f"```python\nopen({str(tmp_path / 'pwned')!r}, 'w')\n```\n\n"
    with scripted_pipeline([code, "{{ 7 * 7 }} {% raise %}"]) as pipe:
        assert pipe.generate("{{ 7 * 7 }}").text == code + "{{ 7 * 7 }} {% raise %}"
    assert not list(tmp_path.iterdir())


def test_11_one_process_one_device_no_server(tiny: RSDPipeline) -> None:
    backend: Any = tiny.backend
    tiny.generate("x", max_tokens=4, weighting="constant", acceptance_rate=0.5)
    devices = {
        layer.keys.device
        for model in (backend.draft, backend.target, backend.prm)
        for layer in model.runner.cache.layers
        if layer.is_initialized
    }
    assert len(devices) == 1
    assert "vllm" not in sys.modules


def test_12_a_threshold_belongs_to_a_format() -> None:
    tok, prm = tokenizer("ascii"), copy.deepcopy(token_classifier(0, "ascii"))
    with load(prm=(prm, tok)) as pipe:
        of_format = pipe.recommended_threshold
        assert pipe.generate("x", max_tokens=2).threshold == of_format == 0.5
    prm.config.rsd_prm = {**prm.config.rsd_prm, "threshold": 0.35}
    with load(prm=(prm, tok)) as pipe:
        assert pipe.generate("x", max_tokens=2).threshold == pipe.recommended_threshold == 0.35
        assert pipe.generate("x", max_tokens=2, threshold=0.9).threshold == 0.9
    with scripted_pipeline(["a"]) as pipe:
        assert pipe.generate("x").threshold == pipe.recommended_threshold == 0.7


def test_12_a_reward_depends_on_the_separator() -> None:
    tok, rewards = tokenizer("ascii"), []
    for separator in ("\n", "\n\n"):
        prm = copy.deepcopy(token_classifier(0, "ascii"))
        prm.config.rsd_prm = {**prm.config.rsd_prm, "separator": separator}
        with load(prm=(prm, tok)) as pipe:
            rewards.append(pipe.generate("x", max_tokens=4).steps[0].reward)
    assert rewards[0] != pytest.approx(rewards[1], abs=1e-3)
