"""Run a command block of README.md, exactly as it stands there.

A block is named by the comment line in front of it: ``<!-- ci: NAME -->``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def block(name: str) -> str:
    """The shell commands of a named block."""
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"<!-- ci: {name} -->\n+```bash\n(.*?)```", text, re.DOTALL)
    if not found:
        sys.exit(f"README.md has no block named {name!r}")
    return found[1]


if __name__ == "__main__":
    commands = block(sys.argv[1])
    print(commands, flush=True)
    sys.exit(
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], cwd=README.parent, check=False
        ).returncode
    )
