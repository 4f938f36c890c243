"""What ``test_real.py`` starts ends with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gated import wait_for
from tests.vllm import real


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells so what runs")
def test_servers_that_hang_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them, and what they have started, whichever hangs."""
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\ntrap '' TERM\nsleep 600 &\necho $$ $!\nwait\n")
    hangs.chmod(0o700)
    monkeypatch.setattr(real, "_GRACE", 0.05)
    logs = [tmp_path / "0.log", tmp_path / "1.log"]

    def there(*of_server: Any) -> None:
        wait_for(lambda: all(log.exists() and log.read_text() for log in logs))

    monkeypatch.setattr(real, "_wait", there)
    with real.serve(str(hangs), [(tmp_path, []), (tmp_path, [])], tmp_path):
        started = [int(number) for log in logs for number in log.read_text().split()]
    assert len(started) == 4
    wait_for(lambda: not any(map(_runs, started)))


def _runs(number: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to ask how."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
