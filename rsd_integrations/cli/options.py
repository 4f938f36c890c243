"""Options that several commands have: which models they run, and how these decode."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

FLAG: dict[str, Any] = {"metavar": ""}
"""Of options without a value: beside them typer would print "<bool>", as if they took one."""

_of_models = partial(typer.Option, rich_help_panel="Models (all three, or none for the pocket trio)")
decoding = partial(typer.Option, rich_help_panel="Decoding")
"""Makes options that say how the models decode."""

Draft = Annotated[
    str | None, _of_models(help="Folder, hub id, or URL of a vLLM server (replicas: with commas between).")
]
Target = Annotated[str | None, _of_models(help="Likewise.")]
PRM = Annotated[str | None, _of_models(help="Likewise.")]
PRMFormat = Annotated[
    str | None,
    _of_models(help="How the PRM reads steps: a name, or module:Class of your own; detected if not given."),
]
Device = Annotated[
    str | None, _of_models(help="cpu, cuda, cuda:1, ...; a GPU if there is one (pocket trio: the CPU).")
]
Dtype = Annotated[str | None, _of_models(help="float32, bfloat16, ...; the checkpoints' if not given.")]
DraftKwargs = Annotated[
    str | None,
    _of_models(
        help='Options of this model alone, as JSON: \'{"model": "served-name", "source": "hub/id"}\'.'
    ),
]
TargetKwargs = Annotated[str | None, _of_models(help="Likewise.")]
PRMKwargs = Annotated[str | None, _of_models(help="Likewise.")]
Config = Annotated[
    str | None,
    decoding(
        help='Further settings (of RSDConfig), as JSON: \'{"top_p": 0.8, "repetition_penalty": 1.05}\'.'
    ),
]
