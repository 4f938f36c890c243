"""For tests of the bench."""

from __future__ import annotations

import pytest

from rsd_integrations.bench import figure
from rsd_integrations.report.plot import blank


@pytest.fixture(autouse=True)
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are files here and nothing else, but where a test asks for "painted": it takes the most time."""
    if "painted" not in request.fixturenames:
        monkeypatch.setattr(figure, "accuracy_figure", lambda points, title: blank(1, 1))


@pytest.fixture
def painted() -> None:
    """Plots as they are."""
