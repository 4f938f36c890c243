from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rsd_integrations.testing import scripted_pipeline
from rsd_integrations.types import Generation

DRAFT = ["She buys 9 more: 12 + 9 = 21.\n\n", "Then 12 more: 21 + 12 = 35.\n\n", "The answer is \\boxed{33}."]
TARGET = ["unused\n\n", "Then 12 more: 21 + 12 = 33.\n\n"]


@pytest.fixture
def generation() -> Generation:
    with scripted_pipeline(DRAFT, TARGET, [0.9, 0.2, 0.95]) as pipe:
        return pipe.generate("How many?", seed=0)


def generate(*steps: str, **fields: Any) -> Generation:
    """An answer of accepted draft steps."""
    with scripted_pipeline(list(steps)) as pipe:
        return pipe.generate("?", **fields)


def extent(bars: Any) -> Any:
    """Where error bars lie, in pixels: matplotlib tells it of no collection of lines."""
    from matplotlib.transforms import Bbox

    ends = bars.get_transform().transform(np.concatenate(bars.get_segments()))
    return Bbox([ends.min(axis=0), ends.max(axis=0)])
