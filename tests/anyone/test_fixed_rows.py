"""Networks written for batches of one size: rows by number, sizes of the batch in branches. Never a raw error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError


class Rows(nn.Module):
    """Two layers, and something between them that concerns the samples of a batch."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 5), nn.Linear(5, 3), between
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x).relu()))


def unpacked(h: Tensor) -> Tensor:
    first, second, third, fourth = h
    return torch.stack([first + fourth, second, third, fourth])


# All need four samples, or give something else for another number of them.
OF_FOUR: dict[str, Callable[[Tensor], Tensor]] = {
    "rows by number": lambda h: h[[0, 1, 3]],
    "one row by number": lambda h: h[0] + h[1] + h[3],
    "unpacked": unpacked,
    "reshaped": lambda h: h.reshape(4, -1),
    "a constant for each row": lambda h: h * torch.arange(1.0, 5.0).to(h)[:, None],
    "narrowed": lambda h: h.narrow(0, 1, 3),
    "selected": lambda h: h.index_select(0, torch.tensor([3, 0])),
    "read as a number": lambda h: torch.stack([h[i] * (i + 1) for i in range(len(h))]),
    "a branch": lambda h: h if h.shape[0] == 4 else 0.5 * h,
    "a factor": lambda h: h * float(h.shape[0]),
}


@pytest.mark.parametrize("call", [bcos_fx.certify, bcos_fx.explain], ids=["certify", "explain"])
@pytest.mark.parametrize("name", OF_FOUR)
def test_the_place_is_named(name: str, call: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    network = Rows(OF_FOUR[name])
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        call(network, torch.randn(4, 4, dtype=torch.float64))
    assert "test_fixed_rows.py" in (caught.value.where or "")
    assert "batch_axis=None" in (caught.value.hint or "")


@pytest.mark.parametrize("name", sorted(OF_FOUR.keys() - {"a constant for each row"}))
def test_a_conversion_names_the_place_too(name: str) -> None:
    torch.manual_seed(0)
    network = Rows(OF_FOUR[name])
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        bcos_fx.bcosify(network, example_inputs=torch.randn(4, 4, dtype=torch.float64), recipe="equivalent")
    assert "test_fixed_rows.py" in (caught.value.where or "")
    assert "batch_axis=" in (caught.value.hint or "")


@pytest.mark.parametrize("name", OF_FOUR)
def test_as_a_whole_they_are_explained(name: str) -> None:
    torch.manual_seed(0)
    network = Rows(OF_FOUR[name])
    x = torch.randn(4, 4, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    value = network(leaf)
    where = (0, 1) if value.dim() == 2 else (1,)
    value[where].backward()
    found = bcos_fx.explain(network, x, where, batch_axis=None)
    torch.testing.assert_close(found.weights[0], leaf.grad)
    torch.testing.assert_close(found.output, value[where].detach().reshape(1))
    assert found.complete
    assert bcos_fx.certify(network, x, batch_axis=None).ok


@pytest.mark.parametrize("name", OF_FOUR)
def test_a_conversion_names_the_samples_or_takes_the_whole(name: str) -> None:
    torch.manual_seed(0)
    network = Rows(OF_FOUR[name])
    x = torch.randn(4, 4, dtype=torch.float64)
    made = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", batch_axis=None)
    with torch.no_grad():
        torch.testing.assert_close(made(x), network(x))
    other = x[:3] if name != "narrowed" else x[:2]
    try:
        found = made(other)
    except bcos_fx.BcosFxError:
        return
    torch.testing.assert_close(found, network(other))


# One sample's dimension goes too, so that its classes stand where samples do.
SQUEEZED: dict[str, Callable[[Tensor], Tensor]] = {
    "function": lambda h: torch.squeeze(h[:, None]),
    "method": lambda h: h.unsqueeze(2).squeeze(),
    "two dimensions": lambda h: h.unsqueeze(2).squeeze((0, 2)),
    "in place": lambda h: h[..., None].squeeze_(),
    "one number": lambda h: h[:, :1].squeeze(),
}


@pytest.mark.parametrize("name", SQUEEZED)
@pytest.mark.parametrize("samples", [1, 3])
def test_squeezed_samples_are_named(name: str, samples: int) -> None:
    torch.manual_seed(0)
    network = Rows(SQUEEZED[name])
    network.b = nn.Identity()
    x = torch.randn(samples, 4, dtype=torch.float64)
    target = 0 if network(x).dim() > 1 else None
    if samples > 1:
        assert bcos_fx.explain(network, x, target).complete
        return
    with pytest.raises(UsageError, match="for 1 sample the explained value has shape") as caught:
        bcos_fx.explain(network, x)
    assert "test_fixed_rows.py" in (caught.value.where or "")
    assert "squeeze(dim)" in (caught.value.hint or "")


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_what_holds_for_any_number_of_samples_is_no_false_alarm(samples: int) -> None:
    torch.manual_seed(0)
    network = Rows(lambda h: h if h.shape[1] == 5 else 0.5 * h)
    x = torch.randn(samples, 4, dtype=torch.float64)
    found = bcos_fx.explain(network, x, 1)
    torch.testing.assert_close(found.output, network(x)[:, 1].detach())


@pytest.mark.parametrize("recipe", ["equivalent", "bcosification", "matched"])
@pytest.mark.parametrize("before", [True, False])
def test_a_pooled_map_without_its_samples_dimension_converts(recipe: str, before: bool) -> None:
    """pool(x).squeeze() gives (C,) for one image, in the network and in its conversion."""
    head = nn.Linear(4, 3) if before else nn.Conv2d(4, 3, 1)
    squeeze = Between(torch.squeeze)
    order = (squeeze, head) if before else (head, squeeze)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *order).double().eval()
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    made = bcos_fx.bcosify(network, example_inputs=x, recipe=recipe)
    assert made(x[:1]).shape == network(x[:1]).shape == (3,)
    assert bcos_fx.explain(made, x, 1).complete
    if recipe == "equivalent":
        torch.testing.assert_close(made(x[:1]), network(x[:1]))
    assert "flatten(1) does not" in str(made.report)


class Between(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
