from __future__ import annotations

import copy
import math
import weakref

import pytest
import torch
from torch import Tensor, fx, nn

from bcos_fx.errors import UsageError
from bcos_fx.testing import randomise_
from bcos_fx.verification import first_divergence


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(y.mean((2, 3)))


@pytest.fixture
def graph() -> fx.GraphModule:
    return fx.symbolic_trace(randomise_(Branching(), 0).double().eval())


@pytest.fixture
def photos() -> Tensor:
    return torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["stem", "left", "right", "head"])
def test_names_the_first_wrong_node(graph: fx.GraphModule, photos: Tensor, name: str) -> None:
    wrong = copy.deepcopy(graph)
    wrong.get_submodule(name).get_parameter("weight").data.mul_(1.01)
    for node in wrong.graph.nodes:
        node.meta["source"] = f"branching.py: {node.name}"
    found = first_divergence(graph, wrong, photos, photos, tolerance=1e-9)
    assert found is not None
    assert found.node == name
    assert found.source == f"branching.py: {name}"
    assert 1e-3 < found.error < 1
    assert found.shape_original == found.shape_converted is not None


def test_equal_graphs_do_not_diverge(graph: fx.GraphModule, photos: Tensor) -> None:
    assert first_divergence(graph, copy.deepcopy(graph), photos, photos, tolerance=1e-12) is None


def test_skipped_nodes_are_passed_over(graph: fx.GraphModule, photos: Tensor) -> None:
    wrong = copy.deepcopy(graph)
    wrong.left.weight.data.mul_(1.01)
    found = first_divergence(graph, wrong, photos, photos, tolerance=1e-9, skip={"left", "cat"})
    assert found is not None
    assert found.node == "mean"


def test_inserted_and_reordered_nodes_are_no_divergence(graph: fx.GraphModule, photos: Tensor) -> None:
    """The right branch before the left one, and a node that only the converted graph has."""
    moved = copy.deepcopy(graph)
    nodes = {node.name: node for node in moved.graph.nodes}
    nodes["left"].prepend(nodes["right"])
    with moved.graph.inserting_after(nodes["cat"]):
        doubled = moved.graph.call_method("mul", (nodes["cat"], 1.0))
    nodes["mean"].replace_input_with(nodes["cat"], doubled)
    moved.recompile()
    assert first_divergence(graph, moved, photos, photos, tolerance=1e-12) is None
    moved.right.bias.data[0] += 1
    found = first_divergence(graph, moved, photos, photos, tolerance=1e-12)
    assert found is not None
    assert found.node == "right"


def test_a_renamed_culprit_is_found_at_the_next_node(graph: fx.GraphModule, photos: Tensor) -> None:
    wrong = copy.deepcopy(graph)
    node = next(node for node in wrong.graph.nodes if node.name == "left")
    with wrong.graph.inserting_after(node):
        replacement = wrong.graph.create_node("call_method", "mul", (node.args[0], 2.0), name="rewritten")
    node.replace_all_uses_with(replacement)
    wrong.graph.erase_node(node)
    wrong.recompile()
    found = first_divergence(graph, wrong, photos, photos, tolerance=1e-9)
    assert found is not None
    assert found.node == "cat"


def test_shapes_failures_and_nan_are_divergences(graph: fx.GraphModule, photos: Tensor) -> None:
    cropped = copy.deepcopy(graph)
    cropped.left = nn.Sequential(cropped.left, nn.MaxPool2d(2))
    found = first_divergence(graph, cropped, photos, photos, tolerance=1e-9)
    assert found is not None
    assert (found.node, found.error, found.shape_converted) == ("left", math.inf, (2, 4, 3, 3))
    narrow = copy.deepcopy(graph)
    narrow.head = nn.Linear(7, 2).double()
    found = first_divergence(graph, narrow, photos, photos, tolerance=1e-9)
    assert found is not None
    assert found.node == "head"
    assert found.failure is not None
    broken = copy.deepcopy(graph)
    broken.right.bias.data[0] = math.nan
    found = first_divergence(graph, broken, photos, photos, tolerance=1e-9)
    assert found is not None
    assert (found.node, found.error) == ("right", math.inf)
    assert first_divergence(broken, copy.deepcopy(broken), photos, photos, tolerance=1e-9) is None


def test_other_inputs_may_be_given_to_each(graph: fx.GraphModule, photos: Tensor) -> None:
    class Standardised(nn.Module):
        def __init__(self, stem: nn.Module) -> None:
            super().__init__()
            self.stem = stem

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.stem((x - 0.5) * 2))

    converted = fx.symbolic_trace(Standardised(graph.stem))
    assert (
        first_divergence(graph, converted, (photos - 0.5) * 2, {"x": photos}, tolerance=1e-9, skip={"output"}) is None
    )
    found = first_divergence(graph, converted, [photos], (photos,), tolerance=1e-9)
    assert found is not None
    assert found.node == "stem"


def test_values_are_freed_as_it_goes() -> None:
    """Of a chain of a hundred values a handful is alive at any time."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal most
            y = x + 1
            alive.append(weakref.ref(y))
            most = max(most, sum(ref() is not None for ref in alive))
            return y

    class Leaves(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, Step)

    chain = nn.Sequential(*(Step() for _ in range(100)))
    graph = fx.GraphModule(chain, Leaves().trace(chain))
    assert first_divergence(graph, copy.deepcopy(graph), torch.rand(3), torch.rand(3), tolerance=1e-9) is not None
    same = torch.rand(3)
    for skip in ((), [f"_{index}" for index in range(95)]):
        del alive[:]
        most = 0
        assert first_divergence(graph, copy.deepcopy(graph), same, same, tolerance=1e-9, skip=skip) is None
        assert len(alive) == 200
        assert most <= 8


def test_inputs_that_the_original_does_not_take(graph: fx.GraphModule) -> None:
    with pytest.raises(UsageError, match="original graph cannot run"):
        first_divergence(graph, graph, torch.rand(2, 5, 8, 8).double(), torch.rand(2, 3, 8, 8).double(), tolerance=1e-9)
