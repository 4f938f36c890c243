"""Train the pocket trio: ``python -m rsd_integrations.pocket.train``.

Stages run in order and each leaves its result in the output folder; a stage
that was interrupted goes on from its last checkpoint, and one that is finished
is run again only if ``--stage`` names it. Its old result is then moved to
``OUT/replaced-1`` (``-2``, ...), and so is all that was made from that: without
``--stage`` these are made again. A folder holds one trio: with other ``--minutes``,
``--tokens`` or ``--scale`` than it was begun with it is refused.

The finished models lie in ``trio`` of the output folder:
``RSDPipeline.from_pretrained("OUT/trio/draft", "OUT/trio/target", "OUT/trio/prm")``
loads them (the folders named ``hf`` are the recipe's own, and no tokenizer loads from them).
Nothing is written into the package without ``--install``.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from rsd_integrations.bench.accuracy import measure
from rsd_integrations.bench.results import AccuracyReport, Point
from rsd_integrations.bench.sweep import Watch
from rsd_integrations.files import remove, whole, write
from rsd_integrations.pipeline import RSDPipeline
from rsd_integrations.pocket import card, rollouts
from rsd_integrations.pocket.export import as_llama, export
from rsd_integrations.pocket.loop import Report, save_weights, train_language_model
from rsd_integrations.pocket.model import count_parameters, grow, make_config, new_model
from rsd_integrations.pocket.prm import build_prm, freeze_trunk, train_prm
from rsd_integrations.pocket.recipes import (
    DRAFT_BLEND,
    EVALUATION_PROBLEMS,
    PRM_BUDGET,
    PRM_SEED,
    STAGES,
    THRESHOLDS,
    VALIDATION_PROBLEMS,
    Extent,
    Stage,
)
from rsd_integrations.pocket.stages import NEEDS, begin, claim, result_of
from rsd_integrations.pocket.task import SEPARATOR, held_out
from rsd_integrations.pocket.tokenizer import build_tokenizer, load_tokenizer
from rsd_integrations.pocket.trunk import TrunkModel
from rsd_integrations.types import ROLES

TRIO = "trio"
PROGRAM = "python -m rsd_integrations.pocket.train"
WEIGHTS = Path(__file__).parent / "weights"


class Workshop:
    """The output folder and the settings all stages share."""

    def __init__(self, options: argparse.Namespace, report: Report = print, command: str = PROGRAM) -> None:
        self.out = Path(options.out)
        self.device: str = options.device
        self.extent = _extent(options)
        self.report, self.command = report, command

    def tokenizer(self) -> Any:
        """The shared tokenizer, built by the first stage."""
        return load_tokenizer(self.out / "tokenizer")

    def finished(self, name: str) -> Path:
        """Where a stage keeps its finished Hugging Face folder."""
        return self.out / name / "hf"

    def keep(self, name: str, model: Any) -> None:
        """Save a finished model; the tokenizer would not load from a Qwen2 folder (see ``export``)."""
        with whole(self.finished(name)) as folder:
            model.to("cpu").save_pretrained(folder)

    def load(self, name: str) -> Any:
        """A finished model; the reward model with its threshold, once that is chosen."""
        if name != "prm":
            return AutoModelForCausalLM.from_pretrained(self.finished(name))
        prm = AutoModelForTokenClassification.from_pretrained(self.finished(name))
        if (chosen := result_of(self.out, "threshold")).exists():
            prm.config.rsd_prm = {**prm.config.rsd_prm, "threshold": _read(chosen).recommended_threshold}
        return prm

    def export(self) -> dict[str, Path]:
        """Bring what is finished of the trio into folders that any loader takes (see ``export``)."""
        remove(self.out / TRIO)
        folders: dict[str, Path] = {
            name: self.out / TRIO / name for name in ROLES if result_of(self.out, name).exists()
        }
        for name, folder in folders.items():
            export(self.load(name), self.tokenizer(), folder)
        return folders

    def hand_over(self) -> None:
        """Leave the trio as it is to be loaded, and say where."""
        folders = self.export()
        if result_of(self.out, "threshold").exists():
            named = ", ".join(f'"{folder}"' for folder in folders.values())
            self.report(f"the trio is finished: RSDPipeline.from_pretrained({named})")

    def measure(self, split: str, count: int) -> AccuracyReport:
        """Draft, target and RSD at each threshold on so many problems of a split."""
        folders = self.export()
        problems = held_out(self.extent.count(count), split=split)
        watch = Watch(on_run=lambda name, left: self.report(f"{split}: {name}, {left} problems"))
        with RSDPipeline.from_pretrained(*map(str, folders.values()), device=self.device) as pipe:
            settings: dict[str, Any] = {
                "problems": len(problems),
                "seed": 0,
                "split": split,
                "batch_size": pipe.backend.max_batch_size,
                "thresholds": ",".join(map(str, THRESHOLDS)),
            }
            report = measure(
                pipe, problems, THRESHOLDS,
                command=self.command, folders=folders, settings=settings, watch=watch,
            )  # fmt: skip
        for point in report.points:
            self.report(
                f"{split}: {point.kind} {point.threshold}  accuracy {point.accuracy.value:.3f}  "
                f"FLOPs {point.flops_share.paper:.3f} paper, {point.flops_share.total:.3f} total"
            )
        return report


def run_tokenizer(shop: Workshop) -> None:
    """Collect the vocabulary."""
    tokenizer = build_tokenizer()
    with whole(shop.out / "tokenizer") as folder:
        tokenizer.save_pretrained(folder)
    shop.report(f"tokenizer: {len(tokenizer)} entries")


def run_base(shop: Workshop) -> None:
    """The small model that the target grows from."""
    stage = shop.extent.stage("base")
    model = new_model(_config(shop, stage), stage.seed)
    _train(shop, "base", model, stage)
    shop.keep("base", model)


def run_draft(shop: Workshop) -> None:
    """The draft: trained in two phases, then set back a little towards the first."""
    stage = shop.extent.stage("draft")
    model = new_model(_config(shop, stage), stage.seed)
    _train(shop, "draft", model, stage)
    first, second = (
        torch.load(shop.out / "draft" / f"phase{number}" / "checkpoint.pt", weights_only=True)["model"]
        for number in (0, 1)
    )
    model.load_state_dict(first)
    shop.keep("draft/first", model)
    model.load_state_dict({key: torch.lerp(first[key], second[key], DRAFT_BLEND) for key in second})
    shop.keep("draft", model)


def run_target(shop: Workshop) -> None:
    """Grow the base model without changing what it computes, and train on."""
    stage = shop.extent.stage("target")
    base, shape = shop.load("base"), stage.shape
    model = grow(base, layers=shape.layers, heads=shape.heads, mlp=shape.mlp, seed=stage.seed)
    _train(shop, "target", model, stage)
    shop.keep("target", model)


def run_trunk(shop: Workshop) -> None:
    """The language model under the reward model."""
    _train(shop, "trunk", _new_trunk(shop), shop.extent.stage("trunk"))


def run_rollouts(shop: Workshop) -> None:
    """Let draft and base model write solutions and label every step."""
    for number, (name, temperature, count) in enumerate(shop.extent.rollouts()):
        path = shop.out / "rollouts" / f"{name.replace('/', '-')}-{temperature}.jsonl"
        if path.exists():
            continue
        model = shop.load(name).to(shop.device).eval()
        torch.manual_seed(PRM_SEED + number)
        began = time.monotonic()
        made = rollouts.guided_rollouts(
            model, shop.tokenizer(), seed=PRM_SEED * 100 + number, count=count,
            temperature=temperature, device=shop.device,
        )  # fmt: skip
        total = rollouts.save(path, made)
        shop.report(f"rollouts: {path.name} {total} records, {time.monotonic() - began:.0f} s")


def run_prm(shop: Workshop) -> None:
    """Build the reward model on the trunk and train it; its threshold is another stage."""
    tokenizer = shop.tokenizer()
    trunk = _new_trunk(shop)
    trunk.load_state_dict(torch.load(shop.out / "trunk" / "weights.pt", weights_only=True))
    prm = build_prm(trunk, PRM_SEED)
    freeze_trunk(prm)
    records = [
        record for path in sorted((shop.out / "rollouts").glob("*.jsonl")) for record in rollouts.load(path)
    ]
    train_prm(
        prm,
        tokenizer,
        records,
        shop.extent.budget(PRM_BUDGET),
        shop.out / "prm",
        seed=PRM_SEED,
        device=shop.device,
        report=shop.report,
    )
    prm.config.rsd_prm = {"format": "trl", "chat": True, "separator": SEPARATOR}
    shop.keep("prm", prm)


def run_threshold(shop: Workshop) -> None:
    """Choose the threshold on validation problems; what was measured goes to ``threshold.json``."""
    report = shop.measure("validation", VALIDATION_PROBLEMS)
    chosen = report.model_copy(update={"recommended_threshold": cheapest_of_best(report.points)})
    shop.report(f"recommended threshold {chosen.recommended_threshold}")
    write(result_of(shop.out, "threshold"), chosen.model_dump_json(indent=1))


def cheapest_of_best(points: Sequence[Point]) -> float:
    """Of the thresholds with the best accuracy the one with the fewest FLOPs, in the paper's count."""
    best = max(point.accuracy.value for point in points if point.kind == "rsd")
    good = [point for point in points if point.kind == "rsd" and point.accuracy.value == best]
    return min(good, key=lambda point: point.flops.paper).threshold


def run_eval(shop: Workshop) -> None:
    """Measure everything on held-out problems; numbers go to ``eval.json``."""
    report = shop.measure("held_out", EVALUATION_PROBLEMS)
    write(result_of(shop.out, "eval"), report.model_dump_json(indent=1))


def _read(path: Path) -> AccuracyReport:
    return AccuracyReport.model_validate_json(path.read_text(encoding="utf-8"))


def run_card(shop: Workshop) -> None:
    """Write the model card from what was measured."""
    sizes: dict[str, int] = {name: count_parameters(as_llama(shop.load(name))) for name in ROLES}
    text = card.render(shop.out, shop.extent, _read(result_of(shop.out, "eval")), sizes)
    write(result_of(shop.out, "card"), text)


RUN: dict[str, Callable[[Workshop], None]] = {name: globals()[f"run_{name}"] for name in NEEDS}


def _new_trunk(shop: Workshop) -> TrunkModel:
    stage = STAGES["trunk"]
    return TrunkModel(_config(shop, stage), stage.seed)


def _config(shop: Workshop, stage: Stage) -> Any:
    return make_config(len(shop.tokenizer()), **asdict(stage.shape))


def _train(shop: Workshop, name: str, model: Any, stage: Stage) -> None:
    for number, phase in enumerate(stage.phases):
        train_language_model(
            model, shop.tokenizer(), phase.recipe, phase.budget,
            shop.out / name / f"phase{number}", device=shop.device, report=shop.report,
        )  # fmt: skip
    save_weights(shop.out / name / "weights.pt", model)


def install(out: Path, weights: Path = WEIGHTS) -> None:
    """Copy the finished trio and its card, with the notes that it ends with, into the package.

    Raises:
        FileNotFoundError: some of it is not there.
    """
    wanted = [*(out / TRIO / name / "config.json" for name in ROLES), out / "MODEL_CARD.md"]
    if missing := [path for path in wanted if not path.exists()]:
        raise FileNotFoundError(f"{missing[0]} is missing: run all stages before --install")
    for name in ROLES:
        shutil.rmtree(weights / name, ignore_errors=True)
        shutil.copytree(out / TRIO / name, weights / name)
    shutil.copy(out / "MODEL_CARD.md", weights / "MODEL_CARD.md")
    remove(weights / "NOTES.md")  # Those of the weights before.
    if (out / "NOTES.md").exists():
        shutil.copy(out / "NOTES.md", weights / "NOTES.md")


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0")
    return value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--out", default="pocket-train", help="where checkpoints and results go")
    parser.add_argument(
        "--stage", choices=tuple(NEEDS), action="append",
        help="only this stage (repeatable), anew if it is finished: its result, and what was made from that, "
        "is moved aside",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, help="training minutes of each phase")
    parser.add_argument("--tokens", type=int, help="training tokens of each phase")
    parser.add_argument(
        "--scale", type=_scale, default=1.0,
        help="share of the recipe: of tokens, rollouts and measured problems (0.001 runs all of it in "
        "minutes, for models that can do nothing)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--install", action="store_true", help="copy the finished trio into the package")
    options = parser.parse_args(arguments)
    if options.install and _extent(options) != Extent():
        parser.error(
            f"--install copies a trio of the whole recipe, and this is one of {_extent(options)}; "
            "it can be loaded from OUT/trio"
        )
    return options


def _extent(options: argparse.Namespace) -> Extent:
    return Extent(options.minutes, options.tokens, options.scale)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages asked for, or all that are not finished."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    given = shlex.join(sys.argv[1:] if arguments is None else arguments)
    shop = Workshop(options, lambda line: print(line, flush=True), f"{PROGRAM} {given}".rstrip())
    claim(shop.out, shop.extent)
    for name in NEEDS:
        result = result_of(shop.out, name)
        if name in options.stage if options.stage else not result.exists():
            begin(shop.out, name, shop.report)
            RUN[name](shop)
            if not result.exists():
                result.touch()
    shop.hand_over()
    if options.install:
        install(shop.out)


if __name__ == "__main__":
    main()
