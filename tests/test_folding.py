"""bcos_fx.optimize: the same values, explanations and sums from fewer layers; a wrong fold is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError, VerificationError
from bcos_fx.nn.batchnorm import BatchNormUncentred2d
from bcos_fx.rewriting.core.build import Build
from bcos_fx.rewriting.core.registry import BUILDERS
from bcos_fx.testing import randomise_


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.depthwise, self.other = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.other(self.depthwise(self.relu(self.norm(self.conv(x))))) + x)  # type: ignore[no-any-return]


def made() -> nn.Module:
    """Convolutions before norms and rectifiers, one transposed, a sum, and a norm over vectors; some scales < 0."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Residual(),
        nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    randomise_(network, 0)
    with torch.no_grad():
        network.get_parameter("1.weight")[2:4].mul_(-1)
    return network.eval()


def images() -> Tensor:
    return torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(2))


def converted(recipe: str = "equivalent", **options: object) -> bcos_fx.BcosNetwork:
    return bcos_fx.bcosify(made(), example_inputs=images(), recipe=recipe, verified=False, **options)  # type: ignore[arg-type]


CASES = [
    *({"recipe": "equivalent", "scale": scale} for scale in ("raw", "cosine", "unit")),
    *({"recipe": "bcosification", "scale": scale, "bias": "keep"} for scale in ("raw", "cosine", "unit")),
    {"recipe": "bcosification"},
    {"recipe": "bcosification", "b": 1.4},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_values_explanations_and_sums_stay(case: dict[str, object]) -> None:
    network = converted(**case).double()  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded, x = bcos_fx.optimize(network), images().double()
    assert not [m for m in folded.modules() if isinstance(m, BatchNormUncentred2d)]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-12)
    assert bcos_fx.certify(folded, x).ok
    old, new = bcos_fx.explain(network, x), bcos_fx.explain(folded, x)
    torch.testing.assert_close(new.weights, old.weights, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(new.constants.total(), old.constants.total(), rtol=1e-8, atol=1e-10)
    assert float(new.residual.abs().max()) < 1e-9
    grown = x.clone().requires_grad_()
    folded(grown).sum().backward()  # nothing that the backward pass needs is overwritten
    assert "norm-folded-into-layer" in folded.report.rule_counts()


def test_it_is_a_network_in_eval_mode_that_can_be_saved(tmp_path: Path) -> None:
    network = converted()
    folded = bcos_fx.optimize(network)
    assert next(folded.parameters()).dtype == torch.float32
    with pytest.raises(UsageError, match="folded"):
        folded.train()
    loaded = bcos_fx.load(bcos_fx.save(folded, tmp_path / "folded.safetensors"))
    assert torch.equal(loaded(images()), folded(images()))
    assert len(list(bcos_fx.optimize(folded).modules())) == len(list(folded.modules()))


def test_what_cannot_be_optimized_is_refused() -> None:
    network = converted()
    with pytest.raises(UsageError, match="train mode"):
        bcos_fx.optimize(network.train())
    with pytest.raises(UsageError, match="cannot optimize a Linear"):
        bcos_fx.optimize(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_layer_that_is_read_elsewhere_keeps_its_norm() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return (self.norm(x) + x).mean((2, 3))

    network = bcos_fx.bcosify(
        randomise_(Read(), 0).eval(), example_inputs=images(), recipe="equivalent", verified=False
    )
    folded = bcos_fx.optimize(network)
    assert [m for m in folded.modules() if isinstance(m, BatchNormUncentred2d)]
    assert any(miss.rule == "norm-folded-into-layer" for miss in folded.report.near_misses)


def _wrong_root(layer: nn.Module) -> None:
    layer.get_parameter("weight").mul_(1.001)


def _no_shift(layer: nn.Module) -> None:
    if layer.bias is not None:
        layer.bias.mul_(0)  # type: ignore[operator]


def _wrong_sign(layer: nn.Module) -> None:
    layer.get_parameter("weight").abs_()


@pytest.mark.parametrize("spoil", [_wrong_root, _no_shift, _wrong_sign])
def test_a_mutant_is_caught(spoil: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch) -> None:
    right = BUILDERS["layer-with-norm"]

    def build(given: Build) -> nn.Module:
        layer = right(given)
        with torch.no_grad():
            spoil(layer)  # type: ignore[arg-type]
        return layer  # type: ignore[return-value]

    network = converted("bcosification", bias="keep")
    monkeypatch.setattr("bcos_fx.rewriting.core.passes.BUILDERS", {**BUILDERS, "layer-with-norm": build})
    with pytest.raises(VerificationError, match="computes something else"):
        bcos_fx.optimize(network)
