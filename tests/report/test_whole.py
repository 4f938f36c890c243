from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from rsd_integrations.report.whole import print_whole


@pytest.mark.parametrize("width", [12, 40])
def test_a_table_and_its_title_do_not_fold_to_each_other(width: int) -> None:
    file = StringIO()
    table = Table("a", "wide heading that stays")
    table.add_row("1", "2")
    print_whole(table, Console(file=file, width=width), "a [b] title")
    narrow = Table("a")
    print_whole(narrow, Console(file=file, width=width), "wider than")
    lines = file.getvalue().splitlines()
    assert lines[0] == "a [b] title"
    assert any("wide heading that stays" in line for line in lines)
    assert "wider than" in lines
