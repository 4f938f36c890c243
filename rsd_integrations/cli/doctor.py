"""``rsd doctor``: is everything there, and would these models fit?"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsd_integrations.adapters.extras import misfits, version_of
from rsd_integrations.cli import options
from rsd_integrations.cli.console import open_console
from rsd_integrations.cli.models import ModelChoice, open_pipeline
from rsd_integrations.config import DEFAULT_THRESHOLD
from rsd_integrations.report.whole import print_text, print_whole
from rsd_integrations.report.words import many, role_name
from rsd_integrations.text.printable import printable
from rsd_integrations.types import ROLES

if TYPE_CHECKING:
    from rsd_integrations.backends.torch.memory import ModelMemory
    from rsd_integrations.prm import PRMFormat

_REQUIRED = ("torch", "transformers", "pydantic", "llguidance", "jinja2")
_EXTRAS = {
    "langchain-core": ("langchain", "ChatRSD"),
    "llama-index-core": ("llamaindex", "RSDLLM"),
    "matplotlib": ("report", "plots of rsd bench and rsd tune"),
    "math-verify": ("math", "formulas as answers in rsd tune"),
    "aiohttp": ("vllm", "models behind vLLM servers"),
    "accelerate": ("gpu", "device_map, and loading straight onto a GPU"),
}
_LENGTH = 4096
"""Most tokens of prompt and answer: the default of ``RSDPipeline.from_pretrained``."""


@dataclass(frozen=True)
class _Line:
    """One thing that was looked at."""

    what: str
    found: str
    fine: bool | None
    """None: it is missing, which only matters to those who use it."""


def doctor(
    *,
    draft: options.Draft = None,
    target: options.Target = None,
    prm: options.PRM = None,
    prm_format: options.PRMFormat = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    draft_kwargs: options.DraftKwargs = None,
    target_kwargs: options.TargetKwargs = None,
    prm_kwargs: options.PRMKwargs = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests at once, in this process.")] = 8,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help=f"Most tokens of prompt and answer; {_LENGTH}, or as many as servers take."),
    ] = None,
) -> None:
    """Check the installation; tell how much memory three models need, without loading them; try servers."""
    choice = ModelChoice(
        draft,
        target,
        prm,
        prm_format,
        device,
        dtype,
        max_length=max_length,
        draft_kwargs=draft_kwargs,
        target_kwargs=target_kwargs,
        prm_kwargs=prm_kwargs,
    )
    console = open_console()
    lines = list(_installation())
    _print(lines, console)
    if not all(line.fine is not False for line in lines):
        raise typer.Exit(1)
    if choice.is_served:
        _print_served(choice, console)
        return
    models = _memory(choice)
    if not _print_memory(models, max_batch_size, console):
        raise typer.Exit(1)


def _installation() -> Iterator[_Line]:
    yield _Line("python", platform.python_version(), True)
    for package in _REQUIRED:
        yield _package(package, "", "", needed=True)
    for package, (extra, use) in _EXTRAS.items():
        yield _package(package, extra, f"; for {use}")
        if version_of(package):
            yield from (_package(part, extra, "") for part in misfits(extra) if part != package)
    yield from _devices()
    yield _compiler()
    yield _pocket()


def _package(package: str, extra: str, use: str, *, needed: bool = False) -> _Line:
    """Whether it is installed, in a supported version."""
    found, asked = version_of(package), f'"rsd-integrations[{extra}]"' if extra else "rsd-integrations"
    bad = False if needed else None
    if found is None:
        return _Line(package, f"missing{use}: pip install {asked}", bad)
    if wanted := misfits(extra).get(package):
        return _Line(package, f"{found}{use} {wanted} is needed: pip install -U {asked}", bad)
    return _Line(package, found, True)


def _devices() -> Iterator[_Line]:
    try:
        from rsd_integrations.backends.torch.free_memory import devices
    except ImportError as error:
        yield _Line("devices", f"torch and transformers do not load: {error}", False)
        return
    for name, what in devices().items():
        yield _Line(name, what, True)


def _compiler() -> _Line:
    """What ``torch.compile`` needs beside torch."""
    names = filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl"))
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        return _Line("C++ compiler", "missing; for compile=True: install g++ or clang++", None)
    return _Line("C++ compiler", f"{found}, for compile=True", True)


def _pocket() -> _Line:
    from rsd_integrations.pocket import pocket_paths

    try:
        return _Line("pocket trio", str(pocket_paths().draft.parent), True)
    except FileNotFoundError as error:
        return _Line("pocket trio", str(error), False)


def _print_served(choice: ModelChoice, console: Console) -> None:
    """What the servers serve, once each of them has answered as it should.

    Raises:
        RSDError: a server does not answer as it should.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("model", "server"):
        table.add_column(heading, overflow="fold")
    for heading in ("params", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    with open_pipeline(choice) as pipe:
        backend = pipe.backend
        for role in ROLES:
            info = getattr(backend, role).info
            url = choice.models[role]
            table.add_row(
                role_name(role),
                _named(Path(info.name).name),
                _named(url if isinstance(url, str) else "\n".join(url)),
                _count(info.parameters),
                str(info.window),
            )
    print_whole(table, console)
    if (form := getattr(backend.prm, "format", None)) is not None:
        _print_form(form, console)
    console.print("all three answer")
    for role, model in (("draft", backend.draft), ("target", backend.target)):
        if not getattr(model, "holds_grammars", True):
            print_text(
                f"{role}: structured output and forced calls are written token by token; faster with "
                '--structured-outputs-config \'{"backend": "guidance"}\'',
                console,
            )


def _memory(choice: ModelChoice) -> list[ModelMemory]:
    from rsd_integrations.backends.torch.memory import trio_memory
    from rsd_integrations.pocket import pocket_paths

    models = choice.models
    if choice.is_pocket:
        models = {role: getattr(pocket_paths(), role) for role in ROLES}
    return trio_memory(
        models,
        device=choice.device or ("cpu" if choice.is_pocket else None),
        dtype=choice.dtype or "auto",
        max_length=choice.max_length or _LENGTH,
        prm_format=choice.form or "auto",
        **choice.kwargs,
    )


def _print(lines: list[_Line], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    for line in lines:
        mark = {True: Text("ok", "green"), False: Text("MISSING", "bold red"), None: Text("-", "dim")}
        table.add_row(line.what, Text(line.found), mark[line.fine])
    console.print(table)


def _print_memory(models: list[ModelMemory], requests: int, console: Console) -> bool:
    """Whether everything fits, as far as that is known."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("model", overflow="fold", max_width=26)
    for heading in ("device", "dtype", "params", "weights", "cache", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        table.add_row(
            role_name(model.role),
            _named(Path(model.name).name),
            model.device,
            _named(f"{model.dtype}, {model.quantization}" if model.quantization else model.dtype),
            _count(model.parameters),
            "not counted" if model.weights is None else _size(model.weights),
            _size(model.cache(requests)),
            str(model.window),
        )
    print_whole(table, console)
    console.print(Text(f"cache: what is kept of {many(requests, 'request')} at full length", "dim"))
    for form in (model.form for model in models if model.form is not None):
        _print_form(form, console)
    where = dict.fromkeys(model.device for model in models)
    fits = [_fits(device, models, requests, console) for device in where]
    return all(fits)


def _print_form(form: PRMFormat, console: Console) -> None:
    """How the PRM reads steps, which its name may have decided."""
    known = form.recommended_threshold
    threshold = f"{DEFAULT_THRESHOLD} (arbitrary: rsd tune measures)" if known is None else f"{known}"
    print_text(f"PRM format: {form.name}, default threshold {threshold}", console)


def _fits(device: str, models: list[ModelMemory], requests: int, console: Console) -> bool:
    """Whether what is to be on a device fits there, as far as that is known."""
    from rsd_integrations.backends.torch.free_memory import device_memory

    here = [model for model in models if model.device == device]
    sizes = [model.weights for model in here if model.weights is not None]
    if len(sizes) < len(here):
        kinds = ", ".join(dict.fromkeys(model.quantization or "" for model in here if model.weights is None))
        said = f"{device}: no verdict, because quantized weights ({kinds}) are not counted here"
        console.print(_named(said))
        return True
    weights = sum(sizes)
    needed = weights + sum(model.cache(requests) for model in here)
    free = device_memory(device)
    if free is None:
        console.print(f"{device}: {_size(needed)} needed before activations")
        return True
    fits = needed <= free
    verdict = "fits" if fits else "DOES NOT FIT"
    if fits and any(model.device == "device_map" for model in models):
        verdict = "no verdict, because a device_map may put more there"
    console.print(f"{device}: {_size(needed)} needed before activations, {_size(free)} free: {verdict}")
    if not fits:
        most = (free - weights) // sum(model.cache(1) for model in here)
        smaller = "no request would: take smaller models, a smaller dtype or quantized weights"
        console.print(f"  max_batch_size={most} would fit" if most > 0 else f"  {smaller}")
    return fits


def _named(text: str) -> Text:
    """What a server or checkpoint calls itself is neither markup nor a terminal's command."""
    return Text(printable(text))


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"
