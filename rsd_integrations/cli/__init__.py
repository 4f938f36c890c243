"""``rsd``: the command line. Importing this loads neither typer nor torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rsd_integrations.cli.models import OpenPipeline, open_pipeline
from rsd_integrations.cli.streams import open_streams

__all__ = ["main"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None, *, open_pipeline: OpenPipeline = open_pipeline) -> int:
    """Run ``rsd``.

    Args:
        argv: the arguments; those of the process by default.
        open_pipeline: makes the pipeline of a choice of models (tests bring scripted ones).

    Returns:
        0: it went well; 1: a run or a check failed; 2: wrong usage; 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with open_streams():
            return _run(arguments, open_pipeline)
    except KeyboardInterrupt:  # From the import of the commands: once they run, they handle it.
        return INTERRUPTED


def _run(arguments: list[str], open_pipeline: OpenPipeline) -> int:
    try:
        from rsd_integrations.cli.app import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich", "click"):
            raise
        print(f'error: rsd needs {missing}: pip install "rsd-integrations[cli]"', file=sys.stderr)
        return 1
    return run(arguments, open_pipeline)
