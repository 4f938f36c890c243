"""For ``pytest -p tests.second_device.plugin``: every model that is loaded goes to the second device.

Tests that hook the models that they give away, or count called forwards, fail there: these are not called.
"""

from __future__ import annotations

import copy
from typing import Any

from rsd_integrations.backends.torch import loading
from tests.second_device.device import NAME

_writing, _reward = loading._writing_model, loading.load_reward_model


def _there(model: Any) -> Any:
    return copy.deepcopy(model).to(NAME)


loading._writing_model = lambda *given: _there(_writing(*given))
loading.load_reward_model = lambda *given, **more: _there(_reward(*given, **more))
