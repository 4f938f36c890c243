"""The recipe's stages: what each is made from, and what of an output folder still holds."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path

from rsd_integrations.errors import ConfigError
from rsd_integrations.files import write
from rsd_integrations.pocket.loop import Report
from rsd_integrations.pocket.recipes import Extent, digest

# In order, each with the stages whose results it is made from.
NEEDS: dict[str, tuple[str, ...]] = {
    "tokenizer": (),
    "base": ("tokenizer",),
    "target": ("base",),
    "trunk": ("tokenizer",),
    "draft": ("tokenizer",),
    "rollouts": ("base", "draft"),
    "prm": ("trunk", "rollouts"),
    "threshold": ("draft", "target", "prm"),
    "eval": ("threshold",),
    "card": ("eval",),
}
_RESULTS = {
    "tokenizer": "tokenizer/tokenizer.json",
    "trunk": "trunk/weights.pt",
    "rollouts": "rollouts/finished",
    "threshold": "threshold.json",
    "eval": "eval.json",
    "card": "MODEL_CARD.md",
}


def result_of(out: Path, stage: str) -> Path:
    """What is there when a stage is finished."""
    return out / _RESULTS.get(stage, f"{stage}/hf/config.json")


def claim(out: Path, extent: Extent) -> None:
    """Note how much of which recipe a folder holds, or see that it is what is asked for.

    Raises:
        ConfigError: it is another.
    """
    path = out / "recipe.json"
    if not path.exists():
        write(path, json.dumps({**asdict(extent), "digest": digest()}))
    noted = json.loads(path.read_text(encoding="utf-8"))
    version, begun = noted.pop("digest"), Extent(**noted)
    if begun != extent:
        theirs, ours = (str(one) or "the whole recipe" for one in (begun, extent))
        raise ConfigError(
            f"{str(out)!r} was begun with {theirs}, and this is {ours}.",
            hint="Give another --out, or go on with what it was begun with.",
        )
    if version != digest():
        raise ConfigError(
            f"{str(out)!r} was begun with another version of the recipe.",
            hint="Give another --out, or go on with that version. If all that changed comes after what you "
            f"keep, remove {path}.",
        )


def begin(out: Path, stage: str, report: Report) -> None:
    """Move out of the way what a stage makes anew: its result, and whatever was made from that.

    Raises:
        FileNotFoundError: a stage that it needs is not finished.
    """
    needed = (result_of(out, need) for need in NEEDS[stage])
    if missing := [result for result in needed if not result.exists()]:
        raise FileNotFoundError(f"{missing[0]} is missing: run the stages before this one")
    after = {stage}
    for other, needs in NEEDS.items():
        if after.intersection(needs):
            after.add(other)
    if not result_of(out, stage).exists():
        after.remove(stage)  # It was interrupted, and goes on.
    places = (out / result_of(out, other).relative_to(out).parts[0] for other in NEEDS if other in after)
    if old := [place for place in places if place.exists()]:
        folders = (out / f"replaced-{number}" for number in itertools.count(1))
        aside = next(folder for folder in folders if not folder.exists())
        aside.mkdir()
        for place in old:
            place.rename(aside / place.name)
        names = ", ".join(place.name for place in old)
        report(f"{stage} is made anew; moved to {aside}, to be made again: {names}")
