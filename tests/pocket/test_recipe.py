"""The recipe as a whole: how much of it is done, and a trio that loads and that ``--install`` copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rsd_integrations import RSDPipeline  # noqa: E402
from rsd_integrations.bench.accuracy import measure  # noqa: E402
from rsd_integrations.bench.environment import weights_sha256  # noqa: E402
from rsd_integrations.bench.results import AccuracyReport, Point, PRMQuality  # noqa: E402
from rsd_integrations.bench.stats import wilson  # noqa: E402
from rsd_integrations.langchain import ChatRSD  # noqa: E402
from rsd_integrations.pocket import card, pocket_paths, recommended_threshold, train  # noqa: E402
from rsd_integrations.pocket.export import export  # noqa: E402
from rsd_integrations.pocket.loop import Budget  # noqa: E402
from rsd_integrations.pocket.model import make_config  # noqa: E402
from rsd_integrations.pocket.recipes import PRM_BUDGET, ROLLOUTS, STAGES, Extent  # noqa: E402
from rsd_integrations.pocket.task import held_out  # noqa: E402
from rsd_integrations.pocket.tokenizer import load_tokenizer  # noqa: E402
from rsd_integrations.pocket.train import Workshop, cheapest_of_best, install, main, parse  # noqa: E402
from rsd_integrations.types import ROLES, FLOPs  # noqa: E402
from tests.oracle import Party, Terms, naive_rsd  # noqa: E402


def as_trained(role: str) -> Any:
    """A model of the package as the recipe had it before its export: a Qwen2."""
    kind = "ForTokenClassification" if role == "prm" else "ForCausalLM"
    llama = getattr(transformers, f"Llama{kind}").from_pretrained(getattr(pocket_paths(), role))
    old = llama.config
    config = make_config(
        old.vocab_size, hidden=old.hidden_size, layers=old.num_hidden_layers, heads=old.num_attention_heads,
        mlp=old.intermediate_size, head_dim=old.head_dim,
    )  # fmt: skip
    config.tie_word_embeddings = old.tie_word_embeddings
    if role == "prm":
        config.num_labels = 2
        config.rsd_prm = {name: value for name, value in old.rsd_prm.items() if name != "threshold"}
    model = getattr(transformers, f"Qwen2{kind}")(config)
    missing, surplus = model.load_state_dict(llama.state_dict(), strict=False)
    assert not missing and all(name.endswith("o_proj.bias") for name in surplus)
    return model


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """An output folder whose stages are all finished, with the package's own weights."""
    shop = Workshop(parse(["--out", str(tmp_path_factory.mktemp("out"))]))
    load_tokenizer(pocket_paths().target).save_pretrained(shop.out / "tokenizer")
    for role in ROLES:
        shop.keep(role, as_trained(role))
    for name in ("base/hf/config.json", "trunk/weights.pt", "rollouts/finished", "eval.json"):
        (shop.out / name).parent.mkdir(parents=True, exist_ok=True)
        (shop.out / name).touch()
    (shop.out / "threshold.json").write_text(
        _report(recommended_threshold()).model_dump_json(), encoding="utf-8"
    )
    (shop.out / "MODEL_CARD.md").write_text("# Measured", encoding="utf-8")
    return shop


@pytest.fixture(scope="module")
def trio(shop: Workshop) -> dict[str, str]:
    main(["--out", str(shop.out)])
    return {role: str(shop.out / "trio" / role) for role in ROLES}


def test_the_trio_has_the_tokens_it_was_trained_on(shop: Workshop, trio: dict[str, str]) -> None:
    text = held_out(1)[0].solution
    expected = shop.tokenizer().encode(text)
    assert len(expected) < len(text) / 2.5
    for folder in trio.values():
        assert transformers.AutoTokenizer.from_pretrained(folder).encode(text) == expected


def test_it_answers_as_it_did_in_training(shop: Workshop, trio: dict[str, str]) -> None:
    problems = held_out(2, seed=79)
    parties = [Party(shop.load(role).eval(), shop.tokenizer()) for role in ROLES]
    terms = Terms(threshold=recommended_threshold(), max_tokens=512)
    expected = [naive_rsd(*parties, problem.question, terms).text for problem in problems]
    with RSDPipeline.from_pretrained(**trio, device="cpu") as pipe:
        assert [pipe.generate(problem.question).text for problem in problems] == expected
    with ChatRSD(**trio, device="cpu") as model:
        assert model.invoke(problems[0].question).content == expected[0]


def test_the_recipe_says_what_to_load(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(shop.out)])
    *_, last = capsys.readouterr().out.splitlines()
    folders = ", ".join(f'"{shop.out / "trio" / role}"' for role in ROLES)
    assert last == f"the trio is finished: RSDPipeline.from_pretrained({folders})"


@pytest.mark.parametrize(
    ("problems", "thresholds"), [(1, (0.95,)), pytest.param(3, (0.5, 0.95), marks=pytest.mark.slow)]
)
def test_the_last_stages_measure_as_the_bench_does(
    problems: int,
    thresholds: tuple[float, ...],
    shop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "THRESHOLDS", thresholds)
    out = shutil.copytree(shop.out, tmp_path / "out")
    (out / "recipe.json").unlink(missing_ok=True)  # The models are as good for a trial.
    stages = [word for name in ("threshold", "eval", "card") for word in ("--stage", name)]
    main(["--out", str(out), "--scale", str(problems / 500), *stages])
    chosen, measured = (
        AccuracyReport.model_validate_json((out / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("threshold", "eval")
    )
    assert measured.recommended_threshold == cheapest_of_best(chosen.points)
    paths = {role: out / "trio" / role for role in ROLES}
    assert measured.weights_sha256 == weights_sha256(paths)
    with RSDPipeline.from_pretrained(*map(str, paths.values()), device="cpu") as pipe:
        assert pipe.recommended_threshold == measured.recommended_threshold
        for report, split in ((chosen, "validation"), (measured, "held_out")):
            points = measure(pipe, held_out(problems, split=split), thresholds).points
            assert _results(report.points) == _results(points)
    text = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    for point in measured.points[1:-1]:
        total = f"{point.flops_share.total:.3f} ({1 / point.flops_share.total:.1f}x) |"
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {point.threshold} |"))
        assert row.endswith(total)
    assert "| target | 4,024,320 |" in text  # As exported: with biases that a Qwen2 has not.
    assert f"| RSD at {measured.recommended_threshold} |" in text and measured.date[:10] in text


def _results(points: Sequence[Point]) -> list[dict[str, Any]]:
    """All but times; ``recommended`` is another one's when the threshold is yet to be chosen."""
    return [point.model_dump(exclude={"seconds", "recommended"}) for point in points]


@given(
    rsd=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=6),
    draft=st.integers(0, 3),
)
def test_the_threshold_is_the_cheapest_of_the_best(rsd: list[tuple[int, int]], draft: int) -> None:
    ways = [("draft", draft, 0), *(("rsd", *way) for way in rsd), ("target", 4, 10)]
    points = [_point(kind, place, right, flops) for place, (kind, right, flops) in enumerate(ways)]
    chosen = points[int(cheapest_of_best(points))]
    assert chosen.kind == "rsd"
    for other in points[1:-1]:
        better = other.accuracy.value - chosen.accuracy.value
        assert better < 0 or (better == 0 and other.flops.paper >= chosen.flops.paper)


def _point(kind: Any, place: int, right: int, flops: int) -> Point:
    share = wilson(right, 4)
    return Point(
        kind=kind, threshold=place, accuracy=share, by_length=(), against_target=share, acceptance_rate=1.0,
        rewritten=0, target_idle=0, flops=FLOPs(paper=flops, total=10 - flops),
        flops_share=FLOPs(paper=1, total=1), mean_tokens=1, unfinished=0, seconds=None,
    )  # fmt: skip


def _report(threshold: float) -> AccuracyReport:
    quality = PRMQuality(
        auc=None, steps=0, wrong_steps=0, all_steps=None, all_steps_count=0, all_wrong_steps=0
    )
    return AccuracyReport(
        command="", date="", versions={"torch": "", "transformers": ""}, hardware={"gpu": "one"},
        settings={"problems": 4}, weights_sha256={}, recommended_threshold=threshold,
        points=(_point("rsd", threshold, 4, 1),), prm=quality,
    )  # fmt: skip


def test_the_chosen_threshold_is_the_one_that_is_noted(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured names another: the format's default, as none was chosen yet."""
    shop = Workshop(train.parse(["--out", str(shutil.copytree(shop.out, tmp_path / "out"))]))
    measured = _report(0.7).model_copy(update={"recommended_threshold": 0.5})
    monkeypatch.setattr(shop, "measure", lambda *_: measured)
    train.run_threshold(shop)
    noted = AccuracyReport.model_validate_json((shop.out / "threshold.json").read_text(encoding="utf-8"))
    assert noted.recommended_threshold == shop.load("prm").config.rsd_prm["threshold"] == 0.7


def test_a_new_reward_model_has_no_threshold_yet(
    shop: Workshop,
    trio: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _rsd_prm(shop.out)["threshold"] == recommended_threshold()
    out = shutil.copytree(shop.out, tmp_path / "out")
    monkeypatch.setitem(train.RUN, "prm", lambda shop: shop.keep("prm", as_trained("prm")))
    main(["--out", str(out), "--stage", "prm"])
    assert _rsd_prm(out) == {"format": "trl", "chat": True, "separator": "\n\n"}
    assert "the trio is finished" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"MODEL_CARD.md is missing: run all stages"):
        install(out, tmp_path / "weights")


def _rsd_prm(out: Path) -> dict[str, Any]:
    config = json.loads((out / "trio" / "prm" / "config.json").read_text(encoding="utf-8"))
    return dict(config["rsd_prm"])


def test_what_is_not_for_loading_has_no_tokenizer(shop: Workshop) -> None:
    """One saved there would load as another: see ``export``."""
    assert not list(shop.out.glob("*/hf/tokenizer*"))


def test_installed_is_the_export_byte_for_byte(shop: Workshop, trio: dict[str, str], tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "NOTES.md").write_text("Those of other weights", encoding="utf-8")
    install(shop.out, weights)
    assert not (weights / "NOTES.md").exists()
    for role in ROLES:
        export(shop.load(role), shop.tokenizer(), tmp_path / "export" / role)
        assert _files(tmp_path / "weights" / role) == _files(tmp_path / "export" / role)
        model, words = "model.safetensors", "tokenizer.json"
        ours, package = _files(tmp_path / "weights" / role), _files(getattr(pocket_paths(), role))
        assert (ours[model], ours[words]) == (package[model], package[words])
    assert (weights / "MODEL_CARD.md").read_text(encoding="utf-8") == "# Measured"
    (notes := shop.out / "NOTES.md").write_text("Their own", encoding="utf-8")
    install(shop.out, weights)
    notes.unlink()
    assert (weights / "NOTES.md").read_text(encoding="utf-8") == "Their own"


def _sections(text: str) -> dict[str, str]:
    parts = [part.partition("\n") for part in text.split("\n## ")]
    return {title: body for title, _, body in parts}


def test_the_package_has_the_card_that_the_recipe_would_write() -> None:
    """But for what was measured; its notes are kept beside it."""
    weights = pocket_paths().draft.parent
    made = _sections(card.render(weights, Extent(), _report(0.95), dict.fromkeys(ROLES, 1)))
    shipped = _sections((weights / "MODEL_CARD.md").read_text(encoding="utf-8"))
    assert list(made) == list(shipped)
    for title in ("# The pocket trio", "The task", "Made by"):
        assert made[title] == shipped[title]
    assert "watched the training" in made["Made by"]


def test_the_card_of_a_trial_tells_its_own_story(tmp_path: Path) -> None:
    extent = Extent(minutes=2.0, scale=0.001)
    made = card.render(tmp_path, extent, _report(0.95), dict.fromkeys(ROLES, 1))
    assert "--out pocket-train --minutes 2.0 --scale 0.001\n```" in made and "budgets are in minutes" in made
    assert "blend" not in made and "watched" not in made and "--install" not in made


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_unfinished_is_installed(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    (weights / "draft").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run all stages before --install"):
        install(tmp_path / "out", weights)
    assert (weights / "draft").exists()


def test_a_model_trained_anew_is_handed_over_anew(shop: Workshop, trio: dict[str, str]) -> None:
    folder = Path(trio["draft"])
    before = (folder / "model.safetensors").read_bytes()
    draft = shop.load("draft")
    with torch.no_grad():
        draft.model.norm.weight.mul_(2)
    shop.keep("draft", draft)
    main(["--out", str(shop.out)])
    assert (folder / "model.safetensors").read_bytes() != before


def test_the_whole_recipe_is_the_default() -> None:
    extent = parse([])
    whole = Extent(extent.minutes, extent.tokens, extent.scale)
    assert {name: whole.stage(name) for name in STAGES} == STAGES
    assert whole.budget(PRM_BUDGET) == PRM_BUDGET
    assert whole.rollouts() == ROLLOUTS
    assert whole.count(500) == 500


@given(scale=st.floats(1e-9, 1.0))
def test_a_scale_is_of_everything(scale: float) -> None:
    part = Extent(scale=scale)
    for stage, whole in ((part.stage(name), STAGES[name]) for name in STAGES):
        assert (stage.shape, stage.seed) == (whole.shape, whole.seed)
        pairs = zip(stage.phases, whole.phases, strict=True)
        assert all(_is_share(own.budget.tokens, all_.budget.tokens, scale) for own, all_ in pairs)
    assert _is_share(part.budget(PRM_BUDGET).tokens, PRM_BUDGET.tokens, scale)
    for own, all_ in zip(part.rollouts(), ROLLOUTS, strict=True):
        assert own[:2] == all_[:2] and _is_share(own[2], all_[2], scale)


def _is_share(part: int | None, whole: int | None, scale: float) -> bool:
    return part is not None and whole is not None and part >= 1 and abs(part - whole * scale) <= 1


def test_tokens_are_those_of_each_phase() -> None:
    asked = Extent(tokens=3000, scale=0.01)
    assert {phase.budget for phase in asked.stage("trunk").phases} == {Budget(tokens=3000)}
    assert asked.budget(PRM_BUDGET) == Budget(tokens=3000)
    assert asked.rollouts()[0][2] == 3


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "all"])
def test_no_share(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--scale", text])
    assert f"--scale: {text!r} is no share above 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_recipe_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(["--out", str(out), "--scale", "0.0005"])
    with RSDPipeline.from_pretrained(*(str(out / "trio" / role) for role in ROLES), device="cpu") as pipe:
        assert pipe.generate(held_out(1)[0].question, max_tokens=20).usage.draft.generated > 0
    text = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "--out pocket-train --scale 0.0005\n```" in text
    assert "Greedy, 1 problems" in text and "draft at temperature 0.0: 1," in text
    capsys.readouterr()
    main(["--out", str(out), "--scale", "0.0005"])  # Nothing is done twice.
    assert len(capsys.readouterr().out.splitlines()) == 1
