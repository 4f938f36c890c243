"""Options that several commands have: which models they run, and how these decode."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = [
    "DECODING",
    "FLAG",
    "PRM",
    "Config",
    "Device",
    "Draft",
    "DraftKwargs",
    "Dtype",
    "PRMFormat",
    "PRMKwargs",
    "Target",
    "TargetKwargs",
]

_MODELS = "Models (all three, or none for the pocket trio)"
DECODING = "Decoding"
FLAG: dict[str, Any] = {"metavar": ""}
"""Of options without a value: beside them typer would print "<bool>", as if they took one."""


Draft = Annotated[
    str | None,
    typer.Option(
        help="Folder, hub id, or URL of a vLLM server (replicas: with commas between).",
        rich_help_panel=_MODELS,
    ),
]
Target = Annotated[str | None, typer.Option(help="Likewise.", rich_help_panel=_MODELS)]
PRM = Annotated[str | None, typer.Option(help="Likewise.", rich_help_panel=_MODELS)]
PRMFormat = Annotated[
    str | None,
    typer.Option(
        help="How the PRM reads steps: a name, or module:Class of your own; detected if not given.",
        rich_help_panel=_MODELS,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, ...; a GPU if there is one (pocket trio: the CPU).", rich_help_panel=_MODELS
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, ...; the checkpoints' if not given.", rich_help_panel=_MODELS),
]
DraftKwargs = Annotated[
    str | None,
    typer.Option(
        help='Options of this model alone, as JSON: \'{"model": "served-name", "source": "hub/id"}\'.',
        rich_help_panel=_MODELS,
    ),
]
TargetKwargs = Annotated[str | None, typer.Option(help="Likewise.", rich_help_panel=_MODELS)]
PRMKwargs = Annotated[str | None, typer.Option(help="Likewise.", rich_help_panel=_MODELS)]
Config = Annotated[
    str | None,
    typer.Option(
        help='Further settings (of RSDConfig), as JSON: \'{"top_p": 0.8, "repetition_penalty": 1.05}\'.',
        rich_help_panel=DECODING,
    ),
]
