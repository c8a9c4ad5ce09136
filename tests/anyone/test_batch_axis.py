"""Samples that lie along another dimension than the first, or none: sequences (L, N, E), graphs, lists of edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import bcos_fx
from bcos_fx.cli import app


class Recurrent(nn.Module):
    """Attention-free mixing of positions, samples second."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.inner, self.fc = nn.Linear(6, 6), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mixed(x).relu().mean(0))

    def mixed(self, x: Tensor) -> Tensor:
        return self.mix(self.inner(x).relu().permute(1, 2, 0)).permute(2, 0, 1)


class PerPosition(Recurrent):
    """The same with a class for each position: (L, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mixed(x).relu())


class FixedGraph(nn.Module):
    """Two graph convolutions over an adjacency of its own; nodes first, no samples."""

    def __init__(self, *, pooled: bool = False, keep: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.pooled, self.keep = nn.Linear(5, 6), nn.Linear(6, 3), pooled, keep
        self.register_buffer("adjacency", torch.rand(7, 7).softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.adjacency @ self.b((self.adjacency @ self.a(x)).relu())
        return nodes.mean(0, keepdim=self.keep) if self.pooled else nodes


class GivenGraph(FixedGraph):
    """The adjacency comes as a second input."""

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:  # type: ignore[override]
        return adjacency @ self.b((adjacency @ self.a(x)).relu())


class Edges(FixedGraph):
    """Messages along a list of edges."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
        source, sink = edge_index
        hidden = self.a(x)
        return self.b(torch.zeros_like(hidden).index_add(0, sink, hidden[source]).relu())


def gradient(network: nn.Module, given: tuple[Tensor, ...], pick: Any) -> tuple[Tensor, Tensor]:
    """The value and its gradient, by autograd and nothing of this package."""
    leaf = given[0].clone().requires_grad_()
    value = pick(network(leaf, *given[1:]))
    value.sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("kind", [Recurrent, PerPosition])
def test_sequences_with_samples_second(kind: type[Recurrent], rewritten: bool) -> None:
    torch.manual_seed(0)
    network = kind().double().eval()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    target, pick = (2, lambda y: y[:, 2]) if kind is Recurrent else ((4, 1), lambda y: y[4, :, 1])
    wanted, slope = gradient(network, (x,), pick)
    given = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", batch_axis=1) if rewritten else network
    found = bcos_fx.explain(given, x, target, batch_axis=1)
    torch.testing.assert_close(found.output, wanted)
    torch.testing.assert_close(found.weights, slope.movedim(1, 0))
    torch.testing.assert_close(found.contributions, (slope * x).sum(2).T)
    assert (found.complete, len(found)) == (True, 3)
    assert not any(name.startswith("network.") for name in found.constants)
    torch.testing.assert_close(found.contributions.sum(1) + found.constants.total(), wanted)


GRAPHS: list[tuple[Any, Any, Any]] = [
    (FixedGraph, (4, 2), lambda y: y[4, 2]),
    (lambda: FixedGraph(pooled=True), 2, lambda y: y[2]),
    (lambda: FixedGraph(pooled=True, keep=True), 2, lambda y: y[0, 2]),
    (GivenGraph, (4, 2), lambda y: y[4, 2]),
    (Edges, (4, 2), lambda y: y[4, 2]),
]


def inputs_of(network: nn.Module) -> tuple[Tensor, ...]:
    x = torch.randn(7, 5, dtype=torch.float64)
    if type(network) is GivenGraph:
        return x, torch.rand(7, 7, dtype=torch.float64)
    return (x, torch.randint(0, 7, (2, 12))) if type(network) is Edges else (x,)


@pytest.mark.parametrize(
    ("make", "target", "pick"), GRAPHS, ids=["nodes", "graph", "graph of one row", "given", "edges"]
)
def test_graphs_are_one_sample(make: Any, target: Any, pick: Any) -> None:
    torch.manual_seed(0)
    network = make().double().eval()
    given = inputs_of(network)
    wanted, slope = gradient(network, given, pick)
    found = bcos_fx.explain(network, given[0], target, others=given[1:], batch_axis=None)
    torch.testing.assert_close(found.output, wanted.reshape(1))
    torch.testing.assert_close(found.weights[0], slope)
    torch.testing.assert_close(found.contributions[0], (slope * given[0]).sum(1))
    assert found.complete
    torch.testing.assert_close(found.contributions.sum() + found.constants.total()[0], wanted.reshape(()))
    by_name = dict(zip(("x", "adjacency" if type(network) is GivenGraph else "edge_index"), given, strict=False))
    again = bcos_fx.explain(network, by_name, target, batch_axis={"x": None})
    assert torch.equal(again.contributions, found.contributions)


@pytest.mark.parametrize(
    ("make", "target", "pick"), GRAPHS, ids=["nodes", "graph", "graph of one row", "given", "edges"]
)
def test_graphs_are_converted_and_proved_as_a_whole(make: Any, target: Any, pick: Any) -> None:
    torch.manual_seed(0)
    network = make().double().eval()
    given = inputs_of(network)
    made = bcos_fx.bcosify(network, example_inputs=given, recipe="equivalent", batch_axis=None)
    assert made.report.figures.verification is not None
    assert made.report.figures.verification["detail"].startswith("equal")
    with torch.no_grad():
        torch.testing.assert_close(made(*given), network(*given))
    found = bcos_fx.explain(made, given[0], target, others=given[1:], batch_axis=None)
    _, slope = gradient(network, given, pick)
    torch.testing.assert_close(found.weights[0], slope)
    changed = bcos_fx.bcosify(network, example_inputs=given, b=1.5, batch_axis=None)
    assert bcos_fx.explain(changed, given[0], target, others=given[1:], batch_axis=None).complete


class Masked(Recurrent):
    """A padding mask (N, L) beside sequences (L, N, E)."""

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:  # type: ignore[override]
        kept = (~padding).T.unsqueeze(2).to(x.dtype)
        return self.fc((self.inner(x).relu() * kept).sum(0) / kept.sum(0))


def test_every_input_has_its_own_axis_by_name() -> None:
    torch.manual_seed(0)
    network = Masked().double().eval()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    padding = torch.rand(3, 6) > 0.6
    found = bcos_fx.explain(network, {"x": x, "padding": padding}, 1, batch_axis={"x": 1, "padding": 0})
    wanted, slope = gradient(network, (x, padding), lambda y: y[:, 1])
    torch.testing.assert_close(found.output, wanted)
    torch.testing.assert_close(found.weights, slope.movedim(1, 0))


@pytest.mark.parametrize("mask", ["bool", "float"])
def test_a_causal_mask_of_numbers_is_as_one_of_truth_values(mask: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, norm_first=True).double().eval()

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.fc = layer, nn.Linear(4, 3).double()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.fc(self.layer(x, src_mask=mask).mean(0))

    network = Causal().eval()
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    given = hidden if mask == "bool" else torch.zeros(6, 6, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    found = bcos_fx.explain(network, x, 1, others=(given,), batch_axis=1)
    with torch.no_grad():
        torch.testing.assert_close(found.output, network(x, hidden)[:, 1])
    assert found.complete
    torch.testing.assert_close(found.contributions.sum(1) + found.constants.total(), found.output)


@pytest.mark.parametrize(
    ("axis", "words"),
    [(3, "from 0 to 2"), (True, "batch_axis"), ({"y": 1}, "not an input"), (2, "batch_axis="), (None, "class")],
)
def test_an_axis_that_is_none_is_refused(axis: Any, words: str) -> None:
    network = Recurrent().eval()
    with pytest.raises(bcos_fx.BcosFxError, match=words):
        bcos_fx.explain(network, torch.randn(6, 3, 4), batch_axis=axis).summary()


def test_without_an_axis_the_error_names_it() -> None:
    network = FixedGraph().eval()
    for call in (bcos_fx.explain, bcos_fx.certify):
        with pytest.raises(bcos_fx.BcosFxError, match="batch_axis") as caught:
            call(network, torch.randn(7, 5))  # type: ignore[operator]
        assert not isinstance(caught.value, RuntimeError)
    with pytest.raises(bcos_fx.BcosFxError, match="batch_axis"):
        bcos_fx.bcosify(network, example_inputs=torch.randn(7, 5))


def test_bags_of_embeddings_are_explained_by_the_bags() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.EmbeddingBag(10, 6, mode="mean"), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    words = torch.randint(0, 10, (4, 5))
    found = bcos_fx.explain(network, words, 1, source="0")
    bags = network[0](words)
    torch.testing.assert_close(found.contributions, (bags > 0) * bags * network[2].weight[1])


def inner(network: nn.Module, layer: str, given: tuple[Tensor, ...]) -> Tensor:
    """What a layer returns, by a hook."""
    caught: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _, __, value: caught.append(value))
    with torch.no_grad():
        network(*given)
    handle.remove()
    return caught[0]


def by_layer(network: nn.Module, layer: str, given: tuple[Tensor, ...], pick: Any) -> tuple[Tensor, Tensor]:
    """A layer's value, and the gradient of the output by it: a hook puts a leaf in its place."""
    leaf = inner(network, layer, given).requires_grad_()
    handle = network.get_submodule(layer).register_forward_hook(lambda *_: leaf)
    pick(network(*given)).sum().backward()
    handle.remove()
    assert leaf.grad is not None
    return leaf.detach(), leaf.grad


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
def test_layers_of_sequences_explain_and_are_explained(rewritten: bool) -> None:
    torch.manual_seed(0)
    network = Recurrent().double().eval()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    given = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", batch_axis=1) if rewritten else network
    start, slope = by_layer(network, "inner", (x,), lambda y: y[:, 2])  # (6, 3, 5)
    found = bcos_fx.explain(given, x, 2, source="inner", batch_axis=1, channel_axis=2)
    torch.testing.assert_close(found.weights, slope.movedim(1, 0))
    torch.testing.assert_close(found.contributions, (start * slope).sum(2).T)
    torch.testing.assert_close(found.output, network(x).detach()[:, 2])
    middle = bcos_fx.explain(given, x, (4, 1), output="inner", batch_axis=1)
    torch.testing.assert_close(middle.output, inner(network, "inner", (x,))[4, :, 1])
    wanted = torch.zeros(3, 6, 4, dtype=torch.float64)
    wanted[:, 4] = network.inner.weight[1].detach()
    torch.testing.assert_close(middle.weights, wanted)
    # The layer that mixes positions holds (samples, channels, positions): samples first.
    start, slope = by_layer(network, "mix", (x,), lambda y: y[:, 2])  # (3, 5, 6)
    torch.testing.assert_close(bcos_fx.explain(given, x, 2, source="mix", batch_axis=1).weights, slope)
    assert all(one.complete for one in (found, middle))


class Beside(Recurrent):
    """A second sequence, samples first."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc((self.inner(x) + self.inner(y).transpose(0, 1)).relu().mean(0))


def test_several_sources_share_one_sum_where_samples_are_second() -> None:
    torch.manual_seed(0)
    network = Beside().double().eval()
    x, y = torch.randn(6, 3, 4, dtype=torch.float64), torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    axes = {"x": 1, "y": 0}
    joint = bcos_fx.explain(network, {"x": x, "y": y.detach()}, 1, source=["x", "y"], batch_axis=axes)
    wanted, slope = gradient(network, (x, y), lambda found: found[:, 1])
    assert y.grad is not None
    torch.testing.assert_close(joint["x"].weights, slope.movedim(1, 0))
    torch.testing.assert_close(joint["y"].weights, y.grad)
    torch.testing.assert_close(sum(joint.totals.values()) + joint.constants.total(), wanted)


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("kind", [FixedGraph, GivenGraph, Edges])
def test_layers_of_graphs_explain_and_are_explained(kind: Any, rewritten: bool) -> None:
    torch.manual_seed(0)
    network = kind().double().eval()
    given = inputs_of(network)
    made = bcos_fx.bcosify(network, example_inputs=given, recipe="equivalent", batch_axis=None)
    start, slope = by_layer(network, "a", given, lambda y: y[4, 2])
    asked: dict[str, Any] = {"others": given[1:], "batch_axis": None}
    found = bcos_fx.explain(made if rewritten else network, given[0], (4, 2), source="a", **asked)
    torch.testing.assert_close(found.weights[0], slope)
    torch.testing.assert_close(found.contributions[0], (start * slope).sum(1))
    middle = bcos_fx.explain(made if rewritten else network, given[0], (3, 1), output="a", **asked)
    torch.testing.assert_close(middle.output[0], inner(network, "a", given)[3, 1])
    assert found.complete
    assert middle.complete


class Merged(Recurrent):
    """Samples and positions share a dimension inside: (L * N, E)."""

    def forward(self, x: Tensor) -> Tensor:
        length, samples, _ = x.shape
        return self.fc(self.inner(x.reshape(length * samples, -1)).relu().reshape(length, samples, -1).mean(0))


def test_a_layer_whose_samples_share_a_dimension_is_that_of_one_sample() -> None:
    torch.manual_seed(0)
    network = Merged().double().eval()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    start, slope = by_layer(network, "inner", (x,), lambda y: y[:, 2])  # (18, 5)
    found = bcos_fx.explain(network, x, 2, source="inner", batch_axis=1)
    torch.testing.assert_close(found.weights, slope.reshape(6, 3, 5).movedim(1, 0))
    assert found.complete
    assert start.shape == (18, 5)


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
def test_certify_takes_the_axis(rewritten: bool) -> None:
    torch.manual_seed(0)
    network = PerPosition().double().eval()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    given = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", batch_axis=1) if rewritten else network
    for source in (None, "inner", ["x"]):
        found = bcos_fx.certify(given, x, source=source, batch_axis=1)
        assert found.ok
        assert found.completeness is not None
        assert found.completeness.verdict == "complete"
        assert len(found.completeness.output) == 3
    wanted = network(x).detach()[0, :, 0]  # the first number of each sample is that of position 0
    torch.testing.assert_close(bcos_fx.certify(given, x, batch_axis=1).completeness.output[:, 0], wanted)  # type: ignore[union-attr]
    with pytest.raises(bcos_fx.BcosFxError, match="from 0 to 2"):
        bcos_fx.certify(given, x, batch_axis=5)
    if not rewritten:
        with pytest.raises(bcos_fx.BcosFxError, match="without inputs"):
            bcos_fx.certify(given, batch_axis=1)


def test_inputs_with_different_numbers_of_samples_are_refused() -> None:
    network = Masked().double().eval()
    given = {"x": torch.randn(6, 3, 4, dtype=torch.float64), "padding": torch.rand(2, 6) > 0.6}
    with pytest.raises(bcos_fx.BcosFxError, match="'x' 3 and 'padding' 2"):
        bcos_fx.explain(network, given, 1, batch_axis={"x": 1, "padding": 0})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"batch_axis": 7}, "from 0 to 2"),
        ({"batch_axis": {"y": 1}}, "not an input"),
        ({"batch_axis": 1, "images": torch.rand(2, 3, 8, 8)}, "leave images out"),
        ({"batch_axis": 1, "example_inputs": None}, "without example_inputs"),
    ],
    ids=["dimension", "name", "images", "no example"],
)
def test_an_axis_that_does_not_fit_is_refused_by_the_conversion(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(bcos_fx.BcosFxError, match=words):
        bcos_fx.bcosify(Recurrent().eval(), **{"example_inputs": torch.randn(6, 3, 4), **asked})


def test_other_lengths_are_converted_again_where_samples_are_second() -> None:
    torch.manual_seed(0)

    class Lengths(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            scale = 1.0 if x.shape[0] == 6 else 0.5
            return self.fc(self.inner(x).relu().mean(0)) * scale

    network = Lengths().double().eval()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    made = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", batch_axis=1, keep_source=True)
    with torch.no_grad():
        for length in (6, 1, 9):
            other = torch.randn(length, 3, 4, dtype=torch.float64)
            torch.testing.assert_close(made(other), network(other))
    found = bcos_fx.explain(made, other, 1, batch_axis=1)
    torch.testing.assert_close(found.output, network(other).detach()[:, 1])


def test_an_image_holds_its_samples_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    made = bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 8, 8), recipe="equivalent")
    words = r"an image \(N, 3, 8, 8\) with the samples in dimension 0, and batch_axis is 1"
    for call in (bcos_fx.explain, bcos_fx.certify):
        with pytest.raises(bcos_fx.BcosFxError, match=words) as caught:
            call(made, torch.rand(2, 3, 8, 8), batch_axis=1)
        assert "leave batch_axis= out" in (caught.value.hint or "")
    bcos_fx.save(made, tmp_path / "made.safetensors")
    found = CliRunner().invoke(app, ["check", str(tmp_path / "made.safetensors"), "--batch-axis", "1"])
    assert found.exit_code == 2
    assert "and --batch-axis is 1" in " ".join(found.output.split())
    whole = bcos_fx.explain(made, torch.rand(2, 3, 8, 8), (1, 2), batch_axis=None)
    assert whole.complete
