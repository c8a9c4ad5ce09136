"""Which dimension holds the channels: contributions of sequences, waveforms, planes, clips, volumes and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx

PLACE, PLANE = ("position",), ("row", "column")
Body = Callable[[nn.ModuleList, Tensor], Tensor]


class Net(nn.Module):
    """Parts, and what is computed of them."""

    def __init__(self, body: Body, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.body = nn.ModuleList(parts), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.parts, x)


def patches(m: Any, x: Tensor) -> Tensor:
    cut = x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5)
    return m[0](cut.flatten(3).flatten(1, 2)).relu().mean(1)


def frames(m: Any, x: Tensor) -> Tensor:
    n, t = x.shape[:2]
    return m[0](x.reshape(-1, *x.shape[2:])).relu().mean((2, 3)).view(n, t, -1).mean(1)


def whole(m: Any, x: Tensor) -> Tensor:
    return m[0](x.transpose(1, 2)).relu().mean((2, 3, 4))


def last(m: Any, x: Tensor) -> Tensor:
    return m[0](x.permute(0, 3, 1, 2)).relu().mean((2, 3))


def scaled(m: Any, x: Tensor) -> Tensor:
    return m[0](((x - 0.5) / 0.2).movedim(-1, 1)).relu().mean((2, 3))


def folded(m: Any, x: Tensor) -> Tensor:
    return F.conv1d(x, m[0].weight).relu().sum(-1)


# name -> network, shape of one sample, the channels' dimension, names of the others
CASES: dict[str, tuple[nn.Module, tuple[int, ...], int | None, tuple[str, ...]]] = {
    "channels, time": (Net(lambda m, x: m[0](x).relu().mean(2), nn.Conv1d(4, 3, 3)), (4, 9), 1, PLACE),
    "channels, time by a function": (Net(folded, nn.Conv1d(4, 3, 3, bias=False)), (4, 9), 1, PLACE),
    "norm first": (Net(lambda m, x: m[1](m[0](x)).mean(2), nn.BatchNorm1d(4), nn.Conv1d(4, 3, 3)), (4, 9), 1, PLACE),
    "tokens": (Net(lambda m, x: m[0](x).relu().mean(1), nn.Linear(4, 3)), (9, 4), 2, PLACE),
    "tokens by a product": (Net(lambda m, x: (x @ m[0].weight.T).mean(1), nn.Linear(4, 3)), (9, 4), 2, PLACE),
    "channels to tokens": (Net(lambda m, x: m[0](x.mT).mean(1), nn.Linear(4, 3)), (4, 9), 1, PLACE),
    "waveform": (Net(lambda m, x: m[0](x[:, None]).relu().mean(2), nn.Conv1d(1, 3, 3)), (9,), None, PLACE),
    "waveform of one channel": (Net(lambda m, x: m[0](x).relu().mean(2), nn.Conv1d(1, 3, 3)), (1, 9), 1, PLACE),
    "plane": (Net(lambda m, x: m[0](x.unsqueeze(1)).relu().mean((2, 3)), nn.Conv2d(1, 3, 3)), (9, 8), None, PLANE),
    "channels last": (Net(last, nn.Conv2d(5, 3, 3)), (9, 8, 5), 3, PLANE),
    "scaled channels last": (Net(scaled, nn.Conv2d(3, 3, 3)), (9, 8, 3), 3, PLANE),
    "image": (Net(lambda m, x: m[0](x).relu().mean((2, 3)), nn.Conv2d(5, 3, 3)), (5, 9, 8), 1, PLANE),
    "patches": (Net(patches, nn.Linear(48, 3)), (3, 8, 8), 1, PLANE),
    "clip, frame by frame": (Net(frames, nn.Conv2d(2, 3, 3)), (4, 2, 6, 5), 2, ("frame", *PLANE)),
    "clip, at once": (Net(whole, nn.Conv3d(2, 3, 3)), (4, 2, 6, 5), 2, ("frame", *PLANE)),
    "volume": (Net(lambda m, x: m[0](x).mean((2, 3, 4)), nn.Conv3d(2, 3, 3)), (2, 4, 6, 5), 1, ("slice", *PLANE)),
    "table": (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), (5,), None, ("feature",)),
}  # fmt: skip


def gradient_times_input(network: nn.Module, x: Tensor, target: int) -> Tensor:
    """W(x)·x of a network of selections, by autograd and nothing of this package."""
    leaf = x.clone().requires_grad_()
    network(leaf)[:, target].sum().backward()
    assert leaf.grad is not None
    return leaf.grad * x


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", CASES)
def test_contributions_are_summed_over_the_channels(name: str, rewritten: bool) -> None:
    torch.manual_seed(0)
    network, shape, channel, places = CASES[name]
    network = network.double().eval()
    for parameter in network.parameters():
        parameter.data.abs_()  # where a ReLU lets nothing pass W(x) is 0, whatever the axes are
    x = torch.rand(2, *shape, dtype=torch.float64)
    explained = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", input="none") if rewritten else network
    found = bcos_fx.explain(explained, x, 1)
    each = gradient_times_input(network, x, 1)
    assert (found.channel_axis, found.axes) == (channel, places)
    wanted = each if channel is None else each.sum(channel)
    torch.testing.assert_close(found.contributions, wanted, rtol=1e-9, atol=1e-12)
    assert found.complete
    assert not found.notes
    both = bcos_fx.explain(explained, x, [[1, 0], [1, 2]])
    torch.testing.assert_close(both.contributions[:, 0], wanted, rtol=1e-9, atol=1e-12)
    assert both.contributions.shape[2:] == wanted.shape[1:]


def test_what_the_graph_leaves_open_is_noted_and_can_be_named() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(20, 3)).double().eval()
    x = torch.rand(2, 4, 5, dtype=torch.float64)
    found = bcos_fx.explain(network, x, 0)
    assert "channel_axis=" in found.notes[0]
    named = bcos_fx.explain(network, x, 0, channel_axis=1)
    assert not named.notes
    torch.testing.assert_close(named.contributions, (network[1].weight[0].view(4, 5) * x).sum(1))


@pytest.mark.parametrize("axis", [0, 3, -4, True, "last"])
def test_an_axis_that_is_none_is_refused(axis: Any) -> None:
    network = nn.Sequential(nn.Linear(5, 3)).eval()
    with pytest.raises(bcos_fx.errors.UsageError, match="channel_axis"):
        bcos_fx.explain(network, torch.rand(2, 4, 5), (0, 1), channel_axis=axis)


def test_tokens_and_texts_follow_the_axis() -> None:
    network, _, _, _ = CASES["channels, time"]
    found = bcos_fx.explain(network.double().eval(), torch.rand(1, 4, 3 + 2, dtype=torch.float64), 0)
    named = found.with_tokens(["a", "b", "c", "d", "e"])
    lines = named.to_text().splitlines()
    assert [line.split()[-1] for line in lines[1:6]] == ["a", "b", "c", "d", "e"]
    table, _, _, _ = CASES["table"]
    text = bcos_fx.explain(table.double().eval(), torch.rand(1, 5, dtype=torch.float64), 0).to_text()
    assert "feature 0" in text
    assert "position" not in text
