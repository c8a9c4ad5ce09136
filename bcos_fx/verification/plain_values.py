"""Arguments that are not tensors: numbers, flags, words. They belong to the call and are the same in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from bcos_fx.network import BcosNetwork


class WithValues(nn.Module):
    """A network that is called with some arguments fixed.

    Args:
        network: left as it is.
        values: place among the positional arguments, or name -> the value.
    """

    def __init__(self, network: nn.Module, values: Mapping[Any, Any]) -> None:
        super().__init__()
        self.network, self.values = network, dict(values)
        self.train(network.training)

    def forward(self, *tensors: Tensor, **named: Tensor) -> Any:
        """Call the network on tensors, in order or by name, and the fixed values in their places."""
        arguments: list[Any] = list(tensors)
        for place in sorted(key for key in self.values if isinstance(key, int)):
            arguments.insert(place, self.values[place])
        return self.network(*arguments, **named, **{k: v for k, v in self.values.items() if isinstance(k, str)})


def split_values(inputs: object) -> tuple[Any, dict[Any, Any]]:
    """Return the tensors among a call's arguments, and the other values by their place or name.

    Args:
        inputs: a tensor, positional arguments or keyword arguments; tuples inside are left to be refused.
    """
    if isinstance(inputs, Mapping):
        items: list[tuple[Any, Any]] = list(inputs.items())
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
        items = list(enumerate(inputs))
    else:
        return inputs, {}
    values = {key: value for key, value in items if value is None or isinstance(value, bool | int | float | str)}
    tensors = {key: value for key, value in items if key not in values}
    if not values or not tensors:
        return inputs, {}
    return (tensors if isinstance(inputs, Mapping) else tuple(tensors.values())), values


def fix_values(network: nn.Module, values: Mapping[Any, Any]) -> nn.Module:
    """Return a network to be called on tensors alone: a graph holds what the values were when it was traced."""
    return network if not values or isinstance(network, BcosNetwork | fx.GraphModule) else WithValues(network, values)
