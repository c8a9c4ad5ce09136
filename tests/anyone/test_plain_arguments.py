"""verify() with arguments that are no tensors: numbers, flags, words, in order and by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx


class Net(nn.Module):
    """A network that takes a number, a flag and a word beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(
        self, x: Tensor, scale: float = 2.0, flag: bool = False, other: Tensor | None = None, mode: str = "sum"
    ) -> Tensor:
        hidden = self.a(x) * scale
        hidden = hidden.relu() if flag else hidden
        found = self.b(hidden if mode == "sum" else -hidden)
        return found if other is None else found + other


X, OTHER = torch.rand(4, 5), torch.rand(4, 3)
CALLS: dict[str, Any] = {
    "number": (X, 3.0),
    "number and flag": (X, 3.0, True),
    "between tensors": (X, 3.0, True, OTHER),
    "word": (X, 3.0, True, OTHER, "difference"),
    "none": (X, 3.0, True, None, "difference"),
    "by name": {"x": X, "scale": 3.0, "flag": True},
    "by name, with another tensor": {"x": X, "mode": "difference", "other": OTHER, "flag": True},
}


@pytest.mark.parametrize("call", CALLS)
def test_equal_networks_are_equal_and_others_are_not(call: str) -> None:
    torch.manual_seed(0)
    network, given = Net().eval(), CALLS[call]
    made = bcos_fx.bcosify(network, example_inputs=given, recipe="equivalent")
    assert bcos_fx.verify(network, network, inputs=given).ok
    assert bcos_fx.verify(network, made, inputs=given).ok
    wrong = Net().eval()
    wrong.load_state_dict(network.state_dict())
    with torch.no_grad():
        wrong.b.weight += 1e-2
    assert not bcos_fx.verify(network, wrong, inputs=given).ok
    assert not bcos_fx.verify(wrong, made, inputs=given).ok


@pytest.mark.parametrize(
    ("call", "place", "value"), [("number", 1, 4.0), ("word", 4, "sum"), ("by name", "flag", False)]
)
def test_a_value_that_differs_from_the_traced_one_is_noticed(call: str, place: Any, value: Any) -> None:
    torch.manual_seed(0)
    network, given = Net().eval(), CALLS[call]
    made = bcos_fx.bcosify(network, example_inputs=given, recipe="equivalent")
    if isinstance(given, dict):
        other: Any = {**given, place: value}
    else:
        other = tuple(value if at == place else item for at, item in enumerate(given))
    assert not bcos_fx.verify(network, made, inputs=other).ok


def test_values_alone_are_refused() -> None:
    with pytest.raises(bcos_fx.errors.UsageError, match="expected a tensor"):
        bcos_fx.verify(Net(), Net(), inputs=(3.0,))
