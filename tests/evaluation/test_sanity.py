"""Weight randomisation: what must change does, what must not does not, and maps are compared as written out by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.convert import bcosify
from bcos_fx.errors import UsageError
from bcos_fx.evaluation.sanity import SIMILARITIES, randomise_, similarities, weight_randomisation
from bcos_fx.methods.baselines import baselines
from bcos_fx.methods.method import Method, dynamic_linear
from tests.evaluation.made_methods import made
from tests.methods.small_classifiers import residual, some_images

RANK, ABSOLUTE, SSIM = SIMILARITIES
IMAGES, TARGETS = some_images(2), torch.tensor([[0, 3], [2, 2]])


def edges(network: nn.Module) -> Method:
    """A map that has nothing to do with the network."""

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        found = images.diff(dim=3, append=images[..., :1]).sum(1, keepdim=True)
        return found.expand(-1, targets.shape[1], -1, -1)

    return made(maps)


def of_weights(network: nn.Module) -> Method:
    """A map that is a layer's weights: it changes with that layer alone."""
    return made(lambda images, targets: network.second.weight.detach()[:2, :2].repeat(1, 1, 4, 4))


def gradient(network: nn.Module) -> Method:
    return baselines("gradient", network=network)[0]


def test_an_edge_detector_does_not_notice() -> None:
    found = weight_randomisation(edges, residual(), IMAGES, TARGETS)
    for name, values in found.similarities.items():
        torch.testing.assert_close(values, torch.ones_like(values), msg=name)
    assert found.layers == ("classifier", "norm", "second", "first")
    assert found.left_out == ()


def test_a_gradient_notices() -> None:
    pytest.importorskip("captum")
    found = weight_randomisation(gradient, residual(), IMAGES, TARGETS)
    assert abs(found.measured[RANK].mean) < 0.35
    assert found.measured[SSIM].mean < 0.7
    assert found.similarities[RANK].shape == (4, 2, 2)


def test_the_callers_network_stays_as_it_is() -> None:
    network = residual()
    state = copy.deepcopy(network.state_dict())
    for mode in ("cascading", "independent"):
        weight_randomisation(edges, network, IMAGES, TARGETS, mode=mode)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(part._forward_hooks for part in network.modules())


def test_cascading_goes_on_and_independent_begins_anew() -> None:
    """The map is one layer's weights: independently it differs at that layer alone, cascading from there on."""
    values = {
        mode: weight_randomisation(of_weights, residual(), IMAGES, TARGETS, mode=mode).similarities[RANK].mean((1, 2))
        for mode in ("cascading", "independent")
    }
    same = {mode: [round(float(v), 6) == 1 for v in row] for mode, row in values.items()}
    assert same == {"cascading": [True, True, False, False], "independent": [True, True, False, True]}
    again = weight_randomisation(of_weights, residual(), IMAGES, TARGETS).similarities[RANK].mean((1, 2))
    assert torch.equal(again, values["cascading"])
    other = weight_randomisation(of_weights, residual(), IMAGES, TARGETS, seed=1).similarities[RANK].mean((1, 2))
    assert not torch.equal(other, again)


def test_layers_can_be_named_with_all_below_them() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    found = weight_randomisation(dynamic_linear, network, IMAGES.float(), TARGETS, layers=["0"])
    assert found.layers == ("0",)
    assert found.measured[RANK].mean < 0.9
    with pytest.raises(UsageError, match=r"no module named '0\.2'"):
        weight_randomisation(dynamic_linear, network, IMAGES.float(), TARGETS, layers=["0.2"])
    with pytest.raises(UsageError, match="'1' has no parameters"):
        weight_randomisation(dynamic_linear, network, IMAGES.float(), TARGETS, layers=["1"])
    with pytest.raises(UsageError, match="names no module"):
        weight_randomisation(dynamic_linear, network, IMAGES.float(), TARGETS, layers=[])


def test_the_last_called_comes_first_whatever_the_order_of_attributes() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused, self.first = nn.Conv2d(4, 4, 1), nn.Linear(2, 2), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x)).mean((2, 3))

    found = weight_randomisation(edges, Backwards().double(), IMAGES, TARGETS)
    assert (found.layers, found.left_out) == (("last", "first"), ("unused",))


def test_new_weights_have_the_mean_and_spread_of_the_old() -> None:
    layer = nn.Linear(300, 300)
    with torch.no_grad():
        layer.weight.normal_(0.3, 2.0)
        layer.bias.fill_(0.7)
    network, before = nn.Sequential(layer), layer.weight.detach().clone()
    randomise_(network, "0", torch.Generator().manual_seed(0), alone=True, drawn=set())
    after = layer.weight.detach()
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=0.02)
    assert float(after.std()) == pytest.approx(float(before.std()), rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1])) < 0.02
    assert torch.equal(layer.bias, torch.full((300,), 0.7))


def test_shared_weights_are_drawn_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    drawn: set[str] = set()
    generator = torch.Generator().manual_seed(0)
    randomise_(network, "1", generator, alone=True, drawn=drawn)
    after = network[0].weight.detach().clone()
    randomise_(network, "0", generator, alone=True, drawn=drawn)
    assert torch.equal(network[0].weight, after)
    assert network[1].weight is network[0].weight


def ranks(values: list[float]) -> Tensor:
    """Ranks of numbers, equal ones sharing the mean of their places."""
    return torch.tensor([sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values])


def test_rank_correlations_are_those_of_ranks() -> None:
    a, b = torch.randn(2, 2, 4, 5), (2 * torch.randn(2, 2, 4, 5)).round()
    found = similarities(a, b)
    for n in range(2):
        for k in range(2):
            for name, change in ((RANK, lambda v: v), (ABSOLUTE, torch.abs)):
                pair = [ranks(change(m[n, k]).flatten().tolist()) for m in (a, b)]
                expected = float(torch.corrcoef(torch.stack(pair))[0, 1])
                assert float(found[name][n, k]) == pytest.approx(expected, abs=1e-5)


def test_similarities_of_known_maps() -> None:
    maps = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    for other, expected in ((maps, (1, 1, 1)), (-maps, (-1, 1, 1)), (5 * maps, (1, 1, 1))):
        assert [float(v.mean()) for v in similarities(maps, other).values()] == pytest.approx(expected, abs=1e-6)
    for chance in (torch.randn_like(maps), torch.zeros_like(maps)):
        assert all(abs(float(v.mean())) < 0.35 for v in similarities(maps, chance).values())
    small = torch.rand(1, 1, 4, 5)
    assert [float(v) for v in similarities(small, small).values()] == pytest.approx([1, 1, 1], abs=1e-5)


def test_ssim_is_that_of_uniform_windows() -> None:
    """Wang et al. 2004, eq. 13, window by window, over the reflected edge."""
    a, b = torch.rand(1, 1, 11, 11, dtype=torch.float64), torch.rand(1, 1, 11, 11, dtype=torch.float64)
    x, y = a[0, 0] / a.max(), b[0, 0] / b.max()
    values = []
    padded = [nn.functional.pad(v[None, None], (5, 5, 5, 5), mode="reflect")[0, 0] for v in (x, y)]
    for i in range(11):
        for j in range(11):
            p, q = (v[i : i + 11, j : j + 11] for v in padded)
            covariance = ((p - p.mean()) * (q - q.mean())).mean()
            top = (2 * p.mean() * q.mean() + 0.01**2) * (2 * covariance + 0.03**2)
            low = (p.mean() ** 2 + q.mean() ** 2 + 0.01**2) * (p.var(correction=0) + q.var(correction=0) + 0.03**2)
            values.append(float(top / low))
    assert float(similarities(a, b)[SSIM]) == pytest.approx(sum(values) / 121, abs=1e-9)


def test_a_converted_networks_own_explanation_notices(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    converted = bcosify(network.double(), example_inputs=IMAGES, mean=(0.5,) * 3, std=(0.25,) * 3, recipe="equivalent")
    state = copy.deepcopy(converted.state_dict())
    found = weight_randomisation(dynamic_linear, converted, IMAGES, TARGETS)
    assert len(found.layers) >= 2
    assert found.measured[RANK].mean < 0.6
    assert all(torch.equal(value, state[key]) for key, value in converted.state_dict().items())
    found.plot().savefig(tmp_path / "sanity.png", dpi=120)
    assert (tmp_path / "sanity.png").stat().st_size > 5000


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="mode is 'cascade'"):
        weight_randomisation(edges, residual(), IMAGES, TARGETS, mode="cascade")
    with pytest.raises(UsageError, match="calls no module that has parameters"):
        weight_randomisation(edges, nn.Flatten(), IMAGES, TARGETS)
