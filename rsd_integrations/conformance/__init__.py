"""What any backend must do, as tests to subclass in a test file of your own. Needs pytest.

::

    from collections.abc import Iterator

    import pytest

    from rsd_integrations.conformance import ScorerKit, WriterKit
    from rsd_integrations.protocols import Scorer, Writer
    from my_package import MyScorer, MyWriter

    class TestMyWriter(WriterKit):
        @pytest.fixture
        def writer(self) -> Iterator[Writer]:
            writer = MyWriter(...)
            yield writer
            writer.close()

    class TestMyScorer(ScorerKit):
        @pytest.fixture
        def scorer(self) -> Scorer:
            return MyScorer(...)

A writer must be deterministic at temperature 0, and write at least three tokens of text for each of
``PROMPTS`` before it ends an answer. One that can be constrained to tools and forms passes ``ConstraintKit``
too. Override a test that cannot hold for your model.
"""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "'pytest', which runs these tests, is not installed. Run: pip install pytest.", name="pytest"
    ) from error

# Before they are imported: otherwise a failure does not show the values that were compared.
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in ("steps", "writers", "scorers", "forms")))

from rsd_integrations.conformance.forms import ConstraintKit  # noqa: E402
from rsd_integrations.conformance.scorers import ScorerKit  # noqa: E402
from rsd_integrations.conformance.steps import PROMPTS  # noqa: E402
from rsd_integrations.conformance.writers import WriterKit  # noqa: E402

__all__ = ["PROMPTS", "ConstraintKit", "ScorerKit", "WriterKit"]
