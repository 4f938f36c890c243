"""Execute the notebooks of cookbook/ without a network, and hold them to what they show.

``--write`` stores the outputs in the notebooks; without it, a notebook fails that raises, writes to stderr,
or whose stored outputs are missing, of other kinds than those of today, or of other words. Numbers may differ
from machine to machine.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

COOKBOOK = Path(__file__).parent.parent / "cookbook"
PRELUDE = """
import socket as _socket
import warnings as _warnings
_warnings.filterwarnings("ignore", message="IProgress not found")  # Who has ipywidgets is none of ours.
_unix = getattr(_socket, "AF_UNIX", None)  # Windows has none.
def _guard(connect):
    def guarded(self, address):
        if self.family != _unix and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"the cookbook must run without a network, not call {address}")
        return connect(self, address)
    return guarded
_socket.socket.connect = _guard(_socket.socket.connect)
_socket.socket.connect_ex = _guard(_socket.socket.connect_ex)
"""

_VARYING = re.compile(r"[-+]?\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?%?|\b(True|False)\b|\*(?=\n)")


def shown_by(cell: Any) -> list[str]:
    """What a cell shows, without numbers, choices made by chance, and what lines them up."""
    told = [
        (o.get("name") or o["output_type"], o.get("text") or o.get("data", {}).get("text/html", ""))
        for o in cell.get("outputs", [])
    ]
    return [f"{kind}: {' '.join(_VARYING.sub(' ', text).split())}" for kind, text in told]


def run(path: Path, *, write: bool) -> list[str]:
    """What is wrong with a notebook."""
    notebook = nbformat.read(path, as_version=4)
    stored = [shown_by(cell) for cell in notebook.cells]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(PRELUDE))
    where = {"metadata": {"path": str(COOKBOOK)}}
    NotebookClient(notebook, timeout=300, resources=where, coalesce_streams=True).execute()
    del notebook.cells[0]
    shown = [shown_by(cell) for cell in notebook.cells]
    errors = [o.text for cell in notebook.cells for o in cell.get("outputs", ()) if o.get("name") == "stderr"]
    wrong = [f"it writes to stderr: {error!r:.400}" for error in errors]
    if write:
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        for index, cell in enumerate(notebook.cells):
            cell.id = f"cell-{index}"
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.execution_count = None
        for output in (o for cell in notebook.cells for o in cell.get("outputs", ())):
            if "execution_count" in output:
                output.execution_count = None
        nbformat.write(notebook, path)
    if not write and shown != stored:
        differing = [i for i, (now, then) in enumerate(zip(shown, stored, strict=True)) if now != then]
        wrong.append(f"stored outputs of cells {differing} are not what they show now: run with --write")
    return wrong


if __name__ == "__main__":
    failed = False
    for path in sorted(COOKBOOK.glob("*.ipynb")):
        wrong = run(path, write="--write" in sys.argv)
        print(path.name, "; ".join(wrong) or "runs", flush=True)
        failed = failed or bool(wrong)
    sys.exit(failed)
