"""Networks whose result for one sample depends on the others: never an explanation of another number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bcos_fx


class Between(nn.Module):
    """Two layers, and something between them that concerns the samples of a batch."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(4, 5), nn.Linear(5, 3), between
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x).relu()))


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "a mean over samples is taken off": lambda h: h - h.mean(0),
    "a mean over samples is added": lambda h: h + h.mean(0, keepdim=True),
    "attention between samples": lambda h: (h @ h.mT).softmax(-1) @ h,
    "statistics of the batch": lambda h: (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt(),
    "a running sum": lambda h: h.cumsum(0),
    "turned round": lambda h: h.flip(0),
}
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "a softmax over samples": lambda h: h * h.softmax(0),
    "divided by the largest of all": lambda h: h / h.amax(),
    "a mask of attention between samples": lambda h: (
        (h @ h.mT).masked_fill(~torch.eye(h.shape[0], dtype=torch.bool), float("-inf")).softmax(-1) @ h
    ),
    "a mean of weights": lambda h: h * torch.ones_like(h).mean(0),
    "a sum that is taken off again": lambda h: h + h.sum(0) * 0,
}


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", MIXING)
def test_samples_that_depend_on_each_other_are_refused_and_explained_as_a_whole(name: str, rewritten: bool) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    network: nn.Module = Between(MIXING[name])
    value = network(x).detach()
    if rewritten:
        network = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent")
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        bcos_fx.explain(network, x, 1)
    assert "depends on the others of its batch" in str(caught.value)
    assert "batch_axis=None" in (caught.value.hint or "")
    found = bcos_fx.explain(network, x, (2, 1), batch_axis=None)
    torch.testing.assert_close(found.output[0], value[2, 1])
    torch.testing.assert_close(found.contributions.sum() + found.constants.total()[0], value[2, 1])
    assert found.complete
    alone = bcos_fx.explain(network, x[:1], 1)
    torch.testing.assert_close(alone.output, network(x[:1]).detach()[:, 1])


def test_the_line_is_named() -> None:
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        bcos_fx.explain(Between(MIXING["a mean over samples is added"]), torch.randn(3, 4, dtype=torch.float64), 1)
    assert "h + h.mean(0, keepdim=True)" in (caught.value.where or "")


def test_samples_second_that_depend_on_each_other_are_refused() -> None:
    network = Between(lambda h: h + h.mean(1, keepdim=True))
    with pytest.raises(bcos_fx.BcosFxError, match="depends on the others of its batch"):
        bcos_fx.explain(network, torch.randn(5, 3, 4, dtype=torch.float64), (2, 1), batch_axis=1)


@pytest.mark.parametrize("name", APART)
def test_samples_that_only_seem_to_are_explained(name: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    network = Between(APART[name])
    found = bcos_fx.explain(network, x, 1)
    torch.testing.assert_close(found.output, network(x).detach()[:, 1])
    assert found.complete


def test_a_norm_that_stays_in_train_mode_is_named() -> None:
    class Stays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def train(self, mode: bool = True) -> Stays:
            super().train(mode)
            self.norm.train()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).relu().mean((2, 3))

    with pytest.raises(bcos_fx.BcosFxError, match="does not repeat") as caught:
        bcos_fx.explain(Stays().eval(), torch.rand(2, 3, 8, 8), 1)
    assert "the module 'norm' stays in train mode after eval()" in (caught.value.where or "")
