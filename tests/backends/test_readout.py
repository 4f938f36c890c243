"""How a model's forward is called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from rsd_integrations.backends.torch.readout import read_hidden, read_logits

NOW = next(name for name in ("cache", "past_key_values") if hasattr(BaseModelOutputWithPast(), name))
"""What this transformers' own models call a cache."""


class Before(torch.nn.Module):
    """As before transformers 5.24."""

    def forward(self, input_ids: Any, past_key_values: Any = None) -> Any:
        return answer(input_ids, past_key_values)


class Since(torch.nn.Module):
    def forward(self, input_ids: Any, cache: Any = None) -> Any:
        return answer(input_ids, cache)


class Wrapper(torch.nn.Module):
    """Names nothing, as PEFT's do."""

    def forward(self, input_ids: Any, **more: Any) -> Any:
        assert more.keys() <= {NOW}
        return answer(input_ids, more.get(NOW))


def answer(ids_NT: torch.Tensor, cache: Any) -> Any:
    states = torch.full((*ids_NT.shape, 2), 0.0 if cache is None else cache)
    return SimpleNamespace(logits=states, last_hidden_state=states)


@pytest.mark.parametrize("kind", [Before, Since, Wrapper])
@pytest.mark.parametrize("cache", [None, 7.0])
def test_the_cache_by_the_name_that_a_model_knows(kind: type[torch.nn.Module], cache: float | None) -> None:
    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, 3, dtype=torch.long)}
    if cache is not None:
        inputs["cache"] = cache
    for readout in (read_logits(kind()), read_hidden(kind(), lambda hidden_MD: hidden_MD)):
        read_NC2, _ = readout(inputs, torch.tensor([2]))
        assert read_NC2.tolist() == [[[cache or 0.0] * 2]]


@pytest.mark.parametrize("places", [("cpu",), ("cpu", "meta")])
def test_a_model_on_several_devices_is_given_no_tensor_of_columns(places: tuple[str, ...]) -> None:
    """Accelerate would move it to where the model begins, and it is wanted where it ends."""

    class Apart(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = (torch.nn.Parameter(torch.zeros(1, device=place)) for place in places)
            self.weights = torch.nn.ParameterList(weights)

        def forward(self, input_ids: torch.Tensor, logits_to_keep: Any = 0) -> Any:
            assert isinstance(logits_to_keep, list) == (len(places) > 1)
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids)[:, logits_to_keep].float())

    read_NCV, likeliest_NC = read_logits(Apart())(
        {"input_ids": torch.tensor([[3, 1, 2]])}, torch.tensor([0, 2])
    )
    assert read_NCV.argmax(-1).tolist() == likeliest_NC.tolist() == [[3, 2]]
