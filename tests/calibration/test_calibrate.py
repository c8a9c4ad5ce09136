"""What calibrate takes, keeps, reports and refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bcos_fx
from bcos_fx.calibration import calibrate, calibrate_, measure_original
from bcos_fx.convert import bcosify
from bcos_fx.errors import UsageError
from bcos_fx.testing import randomise_
from tests.calibration.test_against_slow import Bare, Normed, difference, made


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_copy_is_calibrated_and_the_model_stays() -> None:
    original, network, images = made(Normed)
    before, was = state(network), state(original)
    found = bcos_fx.calibrate(network, images, original)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, was[name]) for name, value in original.state_dict().items())
    assert network.report.figures.calibration is None
    assert found is not network


def test_in_place_parameters_and_modes_stay_what_they_were() -> None:
    original, network, images = made(Normed)
    network.train()
    network.norm1.eval()
    parameters, modes = list(network.parameters()), [m.training for m in network.modules()]
    calibration = calibrate_(network, images, original)
    assert all(a is b and a.requires_grad for a, b in zip(parameters, network.parameters(), strict=True))
    assert modes == [m.training for m in network.modules()]
    assert network.report.figures.calibration is calibration
    assert calibration.before is None


FORMS = {
    "tensor": lambda x, y: x,
    "list of batches": lambda x, y: [x[:4], x[4:]],
    "generator": lambda x, y: (part for part in x.split(3)),
    "dataset": TensorDataset,
    "images and labels": lambda x, y: (x, y),
    "array": lambda x, y: x.numpy(),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=3),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_come_in_any_form(form: str) -> None:
    _, network, images = made(Normed)
    given = FORMS[form](images, torch.arange(10) % 4)
    assert difference(calibrate(network, given), calibrate(network, images)) < 1e-12


def test_accuracy_and_agreement_are_those_of_the_networks() -> None:
    original, network, images = made(Normed)
    labels = torch.arange(10) % 4
    found = calibrate(network, TensorDataset(images, labels), original, batch_size=4)
    calibration = found.report.figures.calibration
    assert calibration is not None
    with torch.no_grad():
        answers = {"o": original(images).argmax(1), "a": network(images).argmax(1), "z": found(images).argmax(1)}
    for said, key in ((calibration.before, "a"), (calibration.after, "z")):
        assert said is not None
        assert said.agreement == pytest.approx(float((answers[key] == answers["o"]).double().mean()))
        assert said.accuracy == pytest.approx(float((answers[key] == labels).double().mean()))


def test_it_is_deterministic_and_survives_saving(tmp_path: Path) -> None:
    original, network, images = made(Bare)
    first, second = calibrate(network, images, original), calibrate(network, images, original)
    assert difference(first, second) == 0
    loaded = bcos_fx.load(bcos_fx.save(first, tmp_path / "c.safetensors"))
    assert loaded.report == first.report
    assert loaded.report.figures.calibration is not None
    assert "Calibrated on 10 images" in loaded.report.to_text()
    assert torch.equal(loaded(images), first(images))


@pytest.mark.parametrize("kind", [Normed, Bare])
@pytest.mark.parametrize("bias", ["keep", "strip"])
def test_the_calibrated_network_is_certified_and_complete(kind: Any, bias: str) -> None:
    original, network, images = made(kind, bias=bias)
    found = bcos_fx.certify(calibrate(network, images, original), images)
    assert found.ok
    assert found.completeness is not None
    assert found.completeness.worst <= 1e-9


def test_at_b_1_gains_are_exactly_1() -> None:
    _, network, images = made(Bare, b=1.0)
    found = calibrate(network, images)
    assert difference(found, network) == 0
    assert all(change.scale == change.lowest == change.highest == 1 for change in layers_of(found))


def test_at_b_1_with_statistics_of_the_same_images_nothing_changes() -> None:
    original, _, images = made(Normed)
    with torch.no_grad():
        for momentum_free in (m for m in original.modules() if isinstance(m, nn.BatchNorm2d)):
            momentum_free.momentum = 1.0
        original.norm1.train()
        original(images)
        original.eval().norm2.train()
        original(images)
        original.eval()
    network = bcosify(original, example_inputs=images[:2], recipe="equivalent", verified=False)
    found = calibrate(network, images, original, batch_size=4)
    assert difference(found, network) < 1e-12


def layers_of(network: Any) -> Any:
    return network.report.figures.calibration.layers


def test_dead_channels_keep_their_scale_and_are_counted() -> None:
    original, _, images = made(Normed)
    with torch.no_grad():
        original.conv1.weight[1] = 0
        original.conv1.bias[1] = -3.0
    network = bcosify(original, example_inputs=images[:2], b=2.0, bias="keep", pool="keep", head="keep", verified=False)
    found = calibrate(network, images, original)
    assert all(bool(torch.isfinite(value).all()) for value in found.state_dict().values())
    assert {change.node: change.dead for change in layers_of(found)}["norm1"] == 1
    assert found.norm1.running_var[1] == network.norm1.running_var[1]
    assert found.norm1.running_mean[1] == pytest.approx(-3.0)
    assert "1 of 4" in found.report.to_text()
    assert bool(torch.isfinite(found(images)).all())


class Twice(nn.Module):
    """A norm that is called twice, and a linear layer whose weight is another's too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(torch.relu(self.norm(x)))))
        return self.head(torch.relu(self.second(x)))


def test_what_cannot_be_calibrated_is_left_and_said() -> None:
    original = randomise_(Twice()).double().eval()
    x = torch.randn(12, 6, dtype=torch.float64)
    network = bcosify(original, example_inputs=x[:2], b=2.0, bias="keep", head="keep", verified=False)
    before = state(network)
    found = calibrate(network, x, original)
    calibration = found.report.figures.calibration
    assert calibration is not None
    assert "called 2 times" in calibration.kept["norm"]
    assert "used elsewhere" in calibration.kept["second"]
    assert [change.node for change in calibration.layers] == ["head"]
    changed = {name for name, value in found.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_bcosify_calibrates_at_once_and_plan_does_not() -> None:
    original, network, images = made(Bare)
    options: dict[str, Any] = {"b": 2.0, "scale": "cosine", "bias": "keep", "pool": "keep", "head": "keep"}
    at_once = bcosify(original, example_inputs=images[:2], calibration_images=images, verified=False, **options)
    assert difference(at_once, calibrate(network, images, original)) == 0
    planned = bcos_fx.plan(original, example_inputs=images[:2], calibration_images=images, **options)
    assert planned.figures.calibration is None
    assert planned == at_once.report.without_figures()


def test_a_conversion_at_b_1_serves_as_reference() -> None:
    original, network, images = made(Normed)
    equivalent = bcosify(original, example_inputs=images[:2], recipe="equivalent", verified=False)
    assert difference(calibrate(network, images, equivalent), calibrate(network, images, original)) < 1e-9


# ----- what is refused


def refused(*arguments: Any, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        calibrate(*arguments, **options)
    assert caught.value.hint or caught.value.where or "the network takes" in caught.value.what
    return caught.value


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(0, 3, 6, 6), "no images"),
        ([], "no images"),
        (torch.rand(3, 6, 6), "has shape"),
        (torch.rand(2, 1, 6, 6), "has shape"),
        (torch.zeros(2, 3, 6, 6, dtype=torch.int64), "int64"),
        (torch.full((2, 3, 6, 6), math.nan), "nan"),
        (5 * torch.ones(2, 3, 6, 6), "not in [0, 1]"),
        ("photos", "there is no data at photos"),
        (None, "is a NoneType"),
        ([{"x": 1}], "a batch is a dict"),
        ([(torch.rand(2, 3, 6, 6), torch.zeros(3, dtype=torch.long))], "not 2 class indices"),
    ],
)
def test_odd_images_are_refused_and_nothing_changes(images: Any, said: str) -> None:
    _, network, _ = made(Normed)
    before = state(network)
    assert said in refused(network, images).what
    with pytest.raises(UsageError):
        calibrate_(network, images)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_odd_networks_are_refused() -> None:
    original, network, images = made(Normed)
    assert "not a converted network" in refused(original, images).what
    assert "float16" in refused(copy.deepcopy(network).half(), images).what
    assert "bfloat16" in refused(copy.deepcopy(network).bfloat16(), images).what
    bare_original, bare, _ = made(Bare, bias="strip")
    error = refused(bare, images)
    assert "nothing to calibrate" in error.what
    assert "biases were removed" in str(error.where)
    assert "original=" in str(error.hint)
    again = calibrate(bare, images, bare_original)
    assert "calibrated before" in str(refused(calibrate(made(Bare)[1], images), images).where)
    assert difference(calibrate(again, images, bare_original), again) < 1e-9


def test_another_original_is_refused_with_the_node() -> None:
    original, network, images = made(Normed)
    error = refused(network, images, made(Bare)[0])
    assert "not the network that was converted" in error.what
    assert "node" in str(error.where)
    assert "is a str" in refused(network, images, "resnet18").what
    wide = copy.deepcopy(original)
    wide.norm1, wide.conv1 = nn.BatchNorm2d(8).double().eval(), nn.Conv2d(3, 8, 3, padding=1).double()
    wide.conv2 = nn.Conv2d(8, 4, 3, groups=2).double()
    wide.forward = lambda x: Normed.forward(wide, x)
    with pytest.raises(bcos_fx.BcosFxError):
        calibrate(network, images, wide)


def test_targets_of_other_images_are_refused() -> None:
    original, network, images = made(Normed)
    assert "8 images" in refused(network, images, measure_original(network, images[:8], original)).what


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


def test_a_network_without_anything_to_calibrate_is_refused() -> None:
    x = torch.rand(2, 4)
    network = bcosify(Nothing(), example_inputs=x, verified=False, head="keep")
    assert "neither a batch norm nor a B-cos layer" in str(refused(network, x).where)
