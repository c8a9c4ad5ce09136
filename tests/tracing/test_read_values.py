"""Python code may ask a mask whether it masks anything: the graph holds for both answers, or refuses one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import TraceError, UsageError
from bcos_fx.tracing import require, trace


class Masked(nn.Module):
    """A mean over tokens, which leaves the mask out where it masks nothing, as libraries do."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.wrong = wrong

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.layer(x)
        if mask.all():
            return x.mean(1) + self.wrong
        weights = mask.to(x.dtype)
        return (x * weights.unsqueeze(2)).sum(1) / weights.sum(1, keepdim=True)


def checks(graph_module: Any) -> int:
    return sum(node.target is require for node in graph_module.graph.nodes)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


PADDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
FULL = torch.ones(2, 5, dtype=torch.long)


def test_the_branch_that_is_right_for_every_mask_needs_no_check(tokens: Tensor) -> None:
    network = Masked().eval()
    found = trace(network, (tokens, PADDED))
    assert checks(found.graph_module) == 0
    assert len(found.notes) == 1
    assert "reads False" in found.notes[0]
    assert "too" in found.notes[0]
    for mask in (FULL, PADDED, PADDED.flip(0)):
        torch.testing.assert_close(found.graph_module(tokens, mask), network(tokens, mask))


def test_the_branch_that_leaves_the_mask_out_refuses_one_that_masks(tokens: Tensor) -> None:
    network = Masked().eval()
    found = trace(network, (tokens, FULL))
    assert checks(found.graph_module) == 1
    assert "refused" in found.notes[0]
    torch.testing.assert_close(found.graph_module(tokens, FULL), network(tokens, FULL))
    with pytest.raises(TraceError, match="reads True, and now it would read False") as caught:
        found.graph_module(tokens, PADDED)
    assert "if mask.all()" in str(caught.value)


def test_an_explanation_is_refused_where_the_network_refuses(tokens: Tensor) -> None:
    """What is explained does not read the check; without it, another function than the network's is explained."""
    example = {"x": tokens, "mask": FULL}
    network = bcos_fx.bcosify(Masked(wrong=0.1).eval(), example_inputs=example, recipe="equivalent", input="none")
    assert bcos_fx.certify(network, example).ok
    for run in (network, lambda *given: bcos_fx.explain(network, given[0], others=given[1:])):
        run(tokens, FULL)
        with pytest.raises(TraceError, match="reads True, and now it would read False"):
            run(tokens, PADDED)
    with pytest.raises(TraceError, match="reads True, and now it would read False"):
        bcos_fx.certify(network, {"mask": PADDED, "x": tokens})
    with pytest.raises(UsageError, match="no input 'maks'"):
        bcos_fx.certify(network, {"x": tokens, "maks": FULL})
    with pytest.raises(UsageError, match=r"1 input given, the network takes 2 \(x, mask\)"):
        bcos_fx.certify(network, tokens)


def test_branches_that_differ_keep_their_check(tokens: Tensor) -> None:
    found = trace(Masked(wrong=0.1).eval(), (tokens, PADDED))
    assert checks(found.graph_module) == 1
    with pytest.raises(TraceError, match="reads False"):
        found.graph_module(tokens, FULL)


class Picky(Masked):
    """Takes no mask that masks nothing."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if mask.all():
            raise KeyError("nothing is masked")
        return super().forward(x, mask)


def test_made_up_masks_that_the_module_does_not_take_leave_the_check(tokens: Tensor) -> None:
    found = trace(Picky().eval(), (tokens, PADDED))
    assert checks(found.graph_module) > 0
    with pytest.raises(TraceError, match="reads False"):
        found.graph_module(tokens, FULL)


class Length(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x[:, : int(lengths.max())].sum(1)


def test_a_number_is_checked_too(tokens: Tensor) -> None:
    found = trace(Length(), (tokens, torch.tensor([3, 2])))
    assert torch.equal(found.graph_module(tokens, torch.tensor([1, 3])), tokens[:, :3].sum(1))
    with pytest.raises(TraceError, match="reads 3, and now it would read 4"):
        found.graph_module(tokens, torch.tensor([4, 1]))


class Thresholded(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * 2 if (x * mask).sum() > 0 else x


def test_values_of_a_measured_input_are_still_refused(tokens: Tensor) -> None:
    with pytest.raises(TraceError, match="reads the values of a tensor that depends on the input"):
        trace(Thresholded(), (tokens, torch.ones(2, 5, 1, dtype=torch.long)))
