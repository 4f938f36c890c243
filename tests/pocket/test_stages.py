"""What an output folder of the recipe is taken for: which trio's, and which stages are finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rsd_integrations.errors import ConfigError  # noqa: E402
from rsd_integrations.pocket import recipes, rollouts, train  # noqa: E402
from rsd_integrations.pocket.loop import save_weights  # noqa: E402
from rsd_integrations.pocket.model import make_config, new_model  # noqa: E402
from rsd_integrations.pocket.stages import NEEDS, result_of  # noqa: E402
from rsd_integrations.pocket.train import Workshop, main, parse  # noqa: E402

Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command with stages that only leave a result; which of them ran."""
    ran: list[str] = []

    def leave(name: str) -> Callable[[Workshop], None]:
        def stage(shop: Workshop) -> None:
            ran.append(name)
            result = result_of(shop.out, name)
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_text(str(len(ran)), encoding="utf-8")

        return stage

    for name in NEEDS:
        monkeypatch.setitem(train.RUN, name, leave(name))
    monkeypatch.setattr(Workshop, "hand_over", lambda _shop: None)

    def command(*arguments: str) -> list[str]:
        before = len(ran)
        main(["--out", str(tmp_path), *arguments])
        return ran[before:]

    return command


def test_a_folder_holds_one_trio(run: Run, tmp_path: Path) -> None:
    assert run("--scale", "0.0005") == list(NEEDS)
    trial = r"was begun with --scale 0\.0005, and this is"
    with pytest.raises(ConfigError, match=rf"{trial} the whole recipe\. Give another --out"):
        run()
    with pytest.raises(ConfigError, match=rf"{trial} --tokens 3000 --scale 0\.0005\."):
        run("--tokens", "3000", "--scale", "0.0005", "--stage", "base")
    result_of(tmp_path, "prm").unlink()
    assert run("--scale", "0.0005") == ["prm", "threshold", "eval", "card"]


def test_a_folder_is_of_one_version_of_the_recipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    for name, value in (("DRAFT_BLEND", 0.5), ("generate", lambda _seed: iter(()))):
        with monkeypatch.context() as changed:
            changed.setattr(recipes, name, value)
            with pytest.raises(ConfigError, match=r"another version of the recipe\. Give another --out"):
                run()
    assert run() == []


@pytest.mark.parametrize("trial", ["--scale 0.001", "--tokens 3000", "--minutes 1.0"])
def test_a_trial_is_not_installed(trial: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*trial.split(), "--install"])
    assert f"a trio of the whole recipe, and this is one of {trial};" in capsys.readouterr().err
    assert parse(["--install"]).install


def test_a_stage_that_is_named_begins_anew(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    (tmp_path / "base" / "checkpoint.pt").touch()
    (tmp_path / "target" / "hf" / "config.json").unlink()  # Interrupted: it goes on from the old base.
    (tmp_path / "target" / "checkpoint.pt").touch()
    assert run("--stage", "base") == ["base"]
    stale = ["target", "rollouts", "prm", "threshold", "eval", "card"]
    assert not (tmp_path / "base" / "checkpoint.pt").exists() and not (tmp_path / "target").exists()
    assert not any(result_of(tmp_path, name).exists() for name in stale)
    aside = tmp_path / "replaced-1"
    assert (aside / "base" / "checkpoint.pt").exists() and (aside / "target" / "checkpoint.pt").exists()
    assert result_of(aside, "prm").read_text(encoding="utf-8") == "7"
    said = capsys.readouterr().out
    assert f"base is made anew; moved to {aside}, to be made again: base, target, rollouts, prm, thr" in said
    assert run() == stale
    assert run("--stage", "card", "--stage", "eval") == ["eval", "card"]
    assert sorted(path.name for path in (tmp_path / "replaced-2").iterdir()) == ["MODEL_CARD.md", "eval.json"]


def test_a_stage_that_was_interrupted_goes_on(run: Run, tmp_path: Path) -> None:
    (checkpoint := tmp_path / "tokenizer" / "checkpoint.pt").parent.mkdir()
    checkpoint.touch()
    run("--stage", "tokenizer")
    assert checkpoint.exists() and not (tmp_path / "replaced-1").exists()


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("prm", "rollouts.finished"), ("threshold", "draft.hf.config.json"), ("eval", "threshold.json")],
)
def test_a_stage_waits_for_those_before(run: Run, stage: str, missing: str, tmp_path: Path) -> None:
    run("--stage", "tokenizer", "--stage", "trunk")
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing: run the stages before this one"):
        run("--stage", stage)


class Killed(BaseException):
    """As a kill, which no code outlives."""


def test_what_is_half_written_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(_data: Any, file: Any, *_arguments: Any, **_options: Any) -> None:
        Path(file).write_bytes(b"{")
        raise Killed

    def half(file: Path, _text: str, **_options: Any) -> None:
        torn(None, file)

    model = new_model(make_config(8, hidden=32, layers=1, heads=2, mlp=8, head_dim=16), 0)
    shop = Workshop(parse(["--out", str(tmp_path)]))
    with monkeypatch.context() as dying:
        dying.setattr("transformers.modeling_utils.safe_save_file", torn)
        dying.setattr(torch, "save", torn)
        dying.setattr(Path, "write_text", half)
        for write in (
            lambda: shop.keep("base", model),
            lambda: save_weights(tmp_path / "trunk" / "weights.pt", model),
            lambda: rollouts.save(tmp_path / "rollouts" / "base-0.0.jsonl", ()),
        ):
            with pytest.raises(Killed):
                write()
    for result in ("base/hf", "trunk/weights.pt", "rollouts/base-0.0.jsonl"):
        assert not (tmp_path / result).exists()
    shop.keep("base", model)
    shop.keep("base", model)
    assert result_of(tmp_path, "base").exists() and len(list((tmp_path / "base").iterdir())) == 1
