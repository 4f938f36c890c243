"""What README.md says is run, and what the house promises is checked."""

from __future__ import annotations

import gc
import importlib
import re
import zipfile
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import rsd_integrations
from rsd_integrations import RSDConfig, RSDPipeline
from rsd_integrations.adapters import sources
from rsd_integrations.prm import prm_format_names
from rsd_integrations.weighting import NAMES
from tests.tiny_models import causal, token_classifier, tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- test -->\n```python\n(.*?)```", README, re.DOTALL)
SOURCES = sorted((ROOT / "rsd_integrations").rglob("*.py"))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models that take tools, for whoever names models of the hub."""
    load, check = RSDPipeline.from_pretrained, sources.check_tools
    models = {
        "Qwen/Qwen2.5-1.5B-Instruct": (causal("Qwen2", 0, "tools"), tokenizer("tools")),
        "Qwen/Qwen2.5-7B-Instruct": (causal("Qwen2", 1, "tools"), tokenizer("tools")),
        "Qwen/Qwen2.5-Math-PRM-7B": (token_classifier(0, "ascii"), tokenizer("ascii")),
    }

    def instead(**given: Any) -> dict[str, Any]:
        return {
            name: models.get(value, value) if isinstance(value, str) else value
            for name, value in given.items()
        }

    monkeypatch.setattr(RSDPipeline, "from_pretrained", lambda **given: load(**instead(**given)))
    monkeypatch.setattr(sources, "check_tools", lambda **given: check(**instead(**given)))


# LlamaIndex leaves an event loop behind that it made for itself.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_run(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})
    gc.collect()


def test_there_are_code_blocks_to_run() -> None:
    assert BLOCKS


def test_the_tree_names_every_folder() -> None:
    folders = {path.parent.relative_to(ROOT / "rsd_integrations") for path in SOURCES} - {Path()}
    names = [folder.as_posix() for folder in folders]
    missing = [one for one in names if f"{one}/" not in README and one != "backends"]
    assert missing == []


@pytest.mark.parametrize("name", [*RSDConfig.model_fields, *NAMES, *prm_format_names()])
def test_what_can_be_chosen_is_named(name: str) -> None:
    assert re.search(rf'`"?{name}\b', README), name


def test_files_the_readme_shows_are_there() -> None:
    for name in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / name).exists(), name


def test_links_within_the_readme_lead_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    named = re.findall(r"\]\(#([^)]+)\)", README)
    assert named
    assert set(named) <= anchors


def test_what_the_readme_and_its_tests_need_is_in_the_source_distribution() -> None:
    builder = SdistBuilder(str(ROOT))
    packed = {Path(file.distribution_path).as_posix() for file in builder.recurse_included_files()}
    linked = re.findall(r"\]\(((?!http|#)[^)]+)\)", README)
    for name in [*linked, "constraints.txt", ".ci/run", "tests/test_readme.py", "dev/gpu.sh"]:
        assert name in packed, name
    assert {path.relative_to(ROOT).as_posix() for path in SOURCES} <= packed


def test_what_is_published_names_no_folder_of_ours() -> None:
    """Of a machine, or beside the repository."""
    builder = SdistBuilder(str(ROOT))
    notes = [
        Path(file.path)
        for file in builder.recurse_included_files()
        if "dev" in Path(file.relative_path).parts
    ]
    assert len(notes) > 10
    ours = re.compile(r"(?<!\w)/(tmp/w|work|root|home)/|\.\./shared/")
    found = [path.name for path in notes if ours.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_the_wheel_holds_the_package_and_what_the_ecosystem_imports(tmp_path: Path) -> None:
    """Really built: hatchling moves what is to be elsewhere too, and does so only then."""
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    hub, elsewhere = "rsd_integrations/llama_index/hub", "llama_index/llms/rsd"
    files = (path for path in (ROOT / "rsd_integrations").rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert packed == {name.replace(hub, elsewhere) for name in names}
    assert {f"{one}/py.typed" for one in ("rsd_integrations", elsewhere)} <= packed


def test_what_is_pinned_is_made_for_the_oldest_python() -> None:
    oldest = "3.10"
    assert f'requires-python = ">={oldest}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": oldest}):
            assert _made_for(pin).contains(oldest), f'{line}; python_version >= "..."'


def _made_for(pin: Requirement) -> SpecifierSet:
    """Which Pythons the pinned version is made for; any where another one is installed."""
    try:
        told = metadata(pin.name)
    except PackageNotFoundError:
        return SpecifierSet()
    is_it = pin.specifier.contains(told["Version"], prereleases=True)
    return SpecifierSet((told.get("Requires-Python") if is_it else "") or "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_file_outgrows_a_reader(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_rules_of_imports_name_every_module() -> None:
    """A module that the lists of import-linter do not name would be held to no rule."""
    rules = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[[tool.importlinter.contracts]]")
    names = {path.relative_to(ROOT / "rsd_integrations").parts[0].removesuffix(".py") for path in SOURCES}
    for rule, spared in (
        (rules[1], {"__init__"}),
        (rules[2], {"__init__", "__main__", "backends", "pocket"}),
    ):
        assert names - set(re.findall(r"rsd_integrations\.(\w+)", rule)) == spared


def test_nothing_executes_what_a_model_wrote() -> None:
    for path in SOURCES:
        assert not re.search(r"(?<![\w.])(exec|eval)\(", path.read_text(encoding="utf-8")), path


def test_what_to_install_is_quoted_as_every_shell_takes_it() -> None:
    assert [path for path in SOURCES if "pip install '" in path.read_text(encoding="utf-8")] == []


def test_files_are_read_and_written_alike_in_any_locale() -> None:
    for path in SOURCES:
        assert not re.search(
            r"(read|write)_text\((?!.*(encoding=|utf-8))", path.read_text(encoding="utf-8")
        ), path


def _public() -> list[str]:
    told = str(rsd_integrations.__doc__)
    return re.findall(r"``([a-z_.]+)``", told[told.index("Public are") :])


def test_modules_that_are_not_public_list_no_names() -> None:
    """Elsewhere a name without underscore is for other modules. Two lists are read: by help(), by a table."""
    listing = {path for path in SOURCES if re.search(r"^__all__ =", path.read_text(encoding="utf-8"), re.M)}
    named = (name.replace(".", "/") for name in (*_public(), "weighting", "langchain/errors"))
    allowed = {ROOT / f"rsd_integrations/{name}.py" for name in named}
    assert [path for path in listing - allowed if path.name != "__init__.py"] == []


def test_what_is_shown_to_users_is_public() -> None:
    named = {name: importlib.import_module(f"rsd_integrations.{name}").__all__ for name in _public()}
    notebooks = (path.read_text(encoding="utf-8") for path in (ROOT / "cookbook").glob("*.ipynb"))
    users = (ROOT / "tests/typed_user.py").read_text(encoding="utf-8")
    for text in (README, users, *notebooks):
        for module, names in re.findall(r"from rsd_integrations\.([\w.]+) import ([\w, ]+)", text):
            assert set(names.split(", ")) <= set(named[module])
        for names in re.findall(r"from rsd_integrations import ([\w, ]+)", text):
            assert set(names.split(", ")) <= set(rsd_integrations.__all__)


def test_what_a_public_module_defines_is_named_in_it() -> None:
    from rsd_integrations import types

    defined = {
        name for name, value in vars(types).items() if getattr(value, "__module__", "") == types.__name__
    }
    assert {name for name in defined if not name.startswith("_")} <= set(types.__all__)
