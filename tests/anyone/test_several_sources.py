"""Explaining by any input, by its own name, and by several at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.explanation.joint import JointExplanation


class Siamese(nn.Module):
    """One encoder for two photographs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(16, 4)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.fc(torch.cat([self.encoder(before), self.encoder(after)], 1))


class Difference(Siamese):
    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.fc(torch.cat([self.encoder(after) - self.encoder(before), self.encoder(after)], 1).relu())


class ColourAndDepth(nn.Module):
    """Two encoders, joined late."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.depth, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.fc((self.colour(before) + self.depth(after[:, :1])).relu().amax((2, 3)))


class ImageAndTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(6, 8), nn.Linear(16, 4)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.fc(torch.cat([self.conv(before).relu().mean((2, 3)), self.table(after).relu()], 1))


class Stacked(nn.Module):
    """Joined before the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.fc(self.conv(torch.cat((before, after), dim=1)).relu().mean((2, 3)))


NETWORKS: dict[str, Any] = {
    "siamese": Siamese,
    "difference": Difference,
    "two encoders": ColourAndDepth,
    "image and table": ImageAndTable,
    "stacked": Stacked,
}
BOTH = ["before", "after"]


def given(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(2)
    network = NETWORKS[name]().double().eval()
    second = (6,) if name == "image and table" else (3, 8, 8)
    return network, {"before": torch.rand(2, 3, 8, 8).double(), "after": torch.rand(2, *second).double()}


def gradients(network: nn.Module, inputs: dict[str, Tensor], target: int) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    found = torch.autograd.grad(network(**leaves)[:, target].sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def converted(network: nn.Module, inputs: dict[str, Tensor]) -> nn.Module:
    return bcos_fx.bcosify(network, example_inputs=inputs, recipe="equivalent")


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_is_a_source(name: str, rewritten: bool) -> None:
    network, inputs = given(name)
    model = converted(network, inputs) if rewritten else network
    expected = gradients(network, inputs, 1)
    for source in BOTH:
        found = bcos_fx.explain(model, inputs, 1, source=source)
        torch.testing.assert_close(found.input_weights, expected[source], rtol=1e-9, atol=1e-11)
        assert found.complete
        assert torch.equal(found.inputs, inputs[source])
        assert found.residual.abs().max() < 1e-12
        assert certified(model, inputs, source).source == source


def certified(model: nn.Module, inputs: dict[str, Tensor], source: Any) -> Any:
    found = bcos_fx.certify(model, inputs, source=source)
    assert found.ok, found.to_text()
    assert found.completeness is not None
    assert found.completeness.ok, found.to_text()
    return found


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", NETWORKS)
def test_several_share_one_sum(name: str, rewritten: bool) -> None:
    network, inputs = given(name)
    model = converted(network, inputs) if rewritten else network
    joint = bcos_fx.explain(model, inputs, 1, source=BOTH)
    assert isinstance(joint, JointExplanation)
    assert list(joint) == BOTH
    expected = gradients(network, inputs, 1)
    for source in BOTH:
        torch.testing.assert_close(joint[source].input_weights, expected[source], rtol=1e-9, atol=1e-11)
    by_hand = sum(joint.totals.values()) + joint.constants.total()
    torch.testing.assert_close(by_hand, network(**inputs)[:, 1].detach(), rtol=1e-9, atol=1e-11)
    assert not any("before" in constant or "after" in constant for constant in joint.constants)
    for source, contributions in joint.contributions.items():
        torch.testing.assert_close(contributions.flatten(1).sum(1), joint.totals[source], rtol=1e-9, atol=1e-11)
        assert joint[source].residual.abs().max() < 1e-12
    assert joint.complete
    assert "from before" in repr(joint)
    assert "W(x)·before + W(x)·after" in certified(model, inputs, BOTH).to_text()


def test_one_of_a_list_is_a_mapping_too() -> None:
    network, inputs = given("siamese")
    joint = bcos_fx.explain(network, inputs, 1, source=["after"])
    single = bcos_fx.explain(network, inputs, 1, source="after")
    assert torch.equal(joint["after"].weights, single.weights)
    assert joint.constants.keys() == single.constants.keys()


def test_an_input_and_a_layer() -> None:
    network, inputs = given("image and table")
    joint = bcos_fx.explain(network, inputs, 1, source=["before", "table"])
    torch.testing.assert_close(joint["before"].weights, gradients(network, inputs, 1)["before"])
    assert joint["table"].encoded.shape == (2, 8)
    assert joint.residual.abs().max() < 1e-12


def test_the_other_input_is_one_constant() -> None:
    network, inputs = given("image and table")
    alone = bcos_fx.explain(network, inputs, 1)
    table = network.table(inputs["after"]).relu() @ network.fc.weight[1, 8:]
    torch.testing.assert_close(alone.constants["the input after"], table.detach(), rtol=1e-9, atol=1e-12)


def test_batches_are_joined_sample_by_sample() -> None:
    network, inputs = given("two encoders")
    whole = bcos_fx.explain(network, inputs, 1, source=BOTH)
    pieces = bcos_fx.explain(network, inputs, 1, source=BOTH, batch_size=1)
    for source in BOTH:
        torch.testing.assert_close(whole[source].weights, pieces[source].weights)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no layer named 'nowhere'"),
        ([], "name at least one"),
        (["before", "before"], "none twice"),
        (["before", "nowhere"], "no layer named 'nowhere'"),
    ],
)
def test_other_names_are_refused(source: Any, message: str) -> None:
    network, inputs = given("siamese")
    with pytest.raises(UsageError, match=message):
        bcos_fx.explain(network, inputs, 1, source=source)


def test_integers_and_what_has_no_samples_are_refused() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.fc = nn.Embedding(9, 6), nn.Embedding(5, 6), nn.Linear(6, 3)

        def forward(self, ids: Tensor) -> Tensor:
            places = self.places(torch.arange(5))[None]
            return self.fc((self.words(ids) + places).mean(1))

    ids = torch.randint(0, 9, (2, 5))
    with pytest.raises(UsageError, match="'ids' holds integers"):
        bcos_fx.explain(Text().eval(), ids, 0, source="ids")
    with pytest.raises(UsageError, match="does not hold the 2 samples"):
        bcos_fx.explain(Text().eval(), ids, 0, source="places")
    assert bcos_fx.explain(Text().eval(), ids, 0, source="words").complete


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.fc((self.conv(x).relu() * scale[:, :, None, None]).mean((2, 3)))


def test_a_network_of_an_encoded_image_and_another_input_is_saved(tmp_path: Path) -> None:
    given = [torch.rand(2, 3, 8, 8), torch.rand(2, 4)]
    network = bcos_fx.bcosify(_Scaled().eval(), example_inputs=given, recipe="equivalent")
    assert [spec.encoded for spec in network.record.inputs] == [True, False]
    bcos_fx.save(network, tmp_path / "scaled.safetensors")
    assert torch.equal(bcos_fx.load(tmp_path / "scaled.safetensors")(*given), network(*given))


def test_a_graph_of_two_kinds_of_nodes_is_compared_on_other_graphs() -> None:
    """The rows of a list of edges count different nodes, so numbers of one are out of range in the other."""

    class TwoKinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item, self.head = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, user: Tensor, item: Tensor, buys: Tensor) -> Tensor:
            got = self.user(user).relu().index_add(0, buys[0], self.item(item).relu()[buys[1]])
            return self.head(got)

    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 2, 2], [1, 3, 0, 2]])
    given = {"user": torch.rand(3, 4), "item": torch.rand(4, 5), "buys": edges}
    made = bcos_fx.bcosify(TwoKinds().eval(), example_inputs=given, recipe="equivalent", batch_axis=None)
    found = made.report.figures.verification
    assert found is not None
    assert {(row["name"], row["verdict"]) for row in found["comparisons"]} >= {("eval, batch 2", "equal")}
    for source in ("user", "item"):
        assert bcos_fx.explain(made, given, (1, 1), source=source, batch_axis=None).complete
