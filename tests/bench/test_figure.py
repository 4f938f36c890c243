from __future__ import annotations

from pathlib import Path

import pytest

from rsd_integrations.bench.figure import draw_tuning
from rsd_integrations.bench.results import TuneReport
from rsd_integrations.pocket import pocket_paths
from rsd_integrations.types import Role
from tests.bench.test_tune import DRAFT, TARGET

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("painted")


def title(models: dict[Role, str], problems: int = 300) -> list[str]:
    report = TuneReport(
        command="", date="", versions={}, hardware={}, models=models, points=(DRAFT, TARGET),
        settings={"questions_from": "data/gsm8k.jsonl", "problems": problems},
        auc=None, drafts=0, drafts_wrong=0, within=0.01, items=(),
    )  # fmt: skip
    return str(draw_tuning(report)._suptitle.get_text()).splitlines()


def test_models_share_a_line_where_they_fit() -> None:
    told = title({"draft": "Qwen/Qwen2.5-0.5B", "target": "Qwen/Qwen2.5-7B", "prm": "a/PRM-7B"}, problems=1)
    assert told == ["draft Qwen2.5-0.5B, target Qwen2.5-7B, PRM PRM-7B", "gsm8k.jsonl, 1 question"]


def test_long_names_have_a_line_each() -> None:
    names = (
        "Qwen2.5-Math-1.5B-Instruct-GPTQ-Int8",
        "DeepSeek-R1-Distill-Qwen-32B-bnb-4bit",
        "Llama3.1-8B-PRM-Data",
    )
    draft, target, prm = names
    assert title({"draft": f"Qwen/{draft}", "target": f"deepseek/{target}", "prm": f"x/{prm}"}) == [
        f"draft {draft}",
        f"target {target}",
        f"PRM {prm}",
        "gsm8k.jsonl, 300 questions",
    ]


def test_the_pocket_trio_is_called_so_and_a_trio_of_ones_own_by_its_folder() -> None:
    paths: dict[Role, Path] = {role: getattr(pocket_paths(), role) for role in ("draft", "target", "prm")}
    assert title({role: str(path) for role, path in paths.items()})[0] == "the pocket trio"
    own = title({role: str(Path("mine", "trio", role)) for role in paths})[0]
    assert own == "draft mine/trio/draft, target mine/trio/target, PRM mine/trio/prm".replace(
        "/", str(Path("/"))[-1]
    )
