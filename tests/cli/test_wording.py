"""What the library says of parameters, told of options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rsd_integrations.cli import main
from rsd_integrations.cli.app import build
from rsd_integrations.cli.wording import in_options, options_of
from rsd_integrations.prm.registry import find_prm_format, prm_format_names

if TYPE_CHECKING:
    from tests.cli.conftest import Rsd


def options(*arguments: str) -> dict[str, str]:
    return options_of(build(), arguments)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "device='cuda' is not here. Use device=\"cpu\".",
            "--device 'cuda' is not here. Use --device \"cpu\".",
        ),
        ("Pass prm_format= one of 'a', 'b'.", "Pass --prm-format one of 'a', 'b'."),
        ("Choose another prm_format.", "Choose another --prm-format."),
        ("Give one device=.", "Give one --device."),
        ("cannot read draft='org/d': gone", "cannot read --draft 'org/d': gone"),
        ("use one of 'step', or a callable reward -> probability; or none", "use one of 'step'; or none"),
        (
            'raise attempts: draft_kwargs={"attempts": 20}.',
            """raise attempts: --draft-kwargs '{"attempts": 20}'.""",
        ),
        ("Set VLLM_API_KEY, or give draft_kwargs={'api_key': ...}.", "Set VLLM_API_KEY."),
        # What is no option of this command, or no parameter, stays.
        ("max_batch_size=3, its rsd_prm and compile", "max_batch_size=3, its rsd_prm and compile"),
        (
            "the draft's dtype, 'prm_format', tokenizer.seed=1",
            "the draft's dtype, 'prm_format', tokenizer.seed=1",
        ),
    ],
)
def test_names_of_parameters_become_those_of_options(said: str, told: str) -> None:
    assert in_options(said, options("ask", "draft", "--device", "cuda")) == told


def test_options_are_those_of_the_command() -> None:
    assert "max_batch_size" in options("bench", "accuracy", "--max-batch-size", "4")
    assert "max_batch_size" not in options("ask", "bench")
    assert in_options("Lower max_batch_size.", options("tune")) == "Lower --max-batch-size."
    assert in_options("Lower max_batch_size.", options("doctor")) == "Lower --max-batch-size."
    assert (
        in_options("Without compile=True it works.", options("bench", "speed"))
        == "Without --compile it works."
    )
    assert options("bench") == {}
    assert in_options("seed=1", options("bench")) == "seed=1"


def test_a_device_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "?", "--device", "cuda:99"]) == 2
    said = "error: --device 'cuda:99' is not available here. Use --device \"cpu\".\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("choice", ["none-such", "auto"])
def test_a_prm_whose_format_is_not_known(rsd: Rsd, choice: str) -> None:
    rsd.open = lambda: find_prm_format(choice, None, None)  # type: ignore[assignment, return-value]
    result = rsd("ask", "?")
    names = ", ".join(map(repr, prm_format_names()))
    assert result.err.endswith(f". Pass --prm-format one of {names}.\n")


def test_a_weighting_that_is_none(rsd: Rsd) -> None:
    assert "callable" not in rsd("ask", "?", "--weighting", "best").err
