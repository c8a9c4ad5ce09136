"""Ill-conditioned networks: no false alarm, no rule named for rounding, and errors of rules found all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import VerificationError
from bcos_fx.nn import BcosLinear
from bcos_fx.verification import blame, verify
from bcos_fx.verification.conditioning import prove_well_conditioned, reduce_contrast
from bcos_fx.verification.sensitivity import nudge_weights_


class Chaotic(nn.Module):
    """A random projection, then steps of a map that doubles every error, then a classifier."""

    def __init__(self, steps: int = 30) -> None:
        super().__init__()
        self.first, self.last, self.steps = nn.Linear(6, 8), nn.Linear(8, 3), steps

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.first(x))
        for _ in range(self.steps):
            y = 3.99 * y * (1 - y)
        return self.last(y)


class Saturated(nn.Module):
    """Attention whose scores are so large that a rounding moves its shares."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(-1) * torch.linspace(-1, 1, 6, dtype=x.dtype, device=x.device)
        scores = self.q(tokens) @ self.k(tokens).transpose(1, 2) * 1e9
        return (torch.softmax(scores.sin() * 1e5, -1) @ self.v(tokens)).mean(1)


class Cancelling(nn.Module):
    """Large numbers whose difference is what counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last((y + 1e9) - (y * 0 + 1e9))


class SmallVariance(nn.Module):
    """A batch norm whose stored variance is tiny, as shaken statistics are, several times over."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(6):
            norm = nn.BatchNorm1d(6, eps=0.0)
            norm.running_var.fill_(1e-5)
            blocks += [nn.Linear(6, 6), norm, nn.Tanh()]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Angles(nn.Module):
    """The sine of huge numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(self.first(x) * 1e8))


CLASSES: tuple[type[nn.Module], ...] = (Chaotic, Saturated, Cancelling, SmallVariance, Angles)


def vectors(count: int = 6) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Rounded(nn.Module):
    """The same network after another rounding of its weights, as a rule that folds a factor rounds them."""

    def __init__(self, module: nn.Module, seed: int, error: float = 0.0) -> None:
        super().__init__()
        self.module, self.seed, self.error = module, seed, error

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) * (1 + self.error)


def rounded(module: nn.Module, seed: int, error: float = 0.0) -> Rounded:
    twin = bcos_fx.tracing.modules.deep_copy(module)
    nudge_weights_(twin, seed=seed)
    return Rounded(twin, seed, error)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_another_rounding_of_the_weights_is_no_difference(kind: type[nn.Module], seed: int) -> None:
    module = kind().double().eval()
    result = verify(module, rounded(module, seed), vectors())
    assert not any(row.verdict == "different" for row in result.comparisons), result.detail


@pytest.mark.parametrize("kind", CLASSES)
def test_it_converts(kind: type[nn.Module]) -> None:
    network = bcos_fx.bcosify(kind().double().eval(), example_inputs=vectors(), recipe="equivalent")
    found = network.report.figures.verification
    assert found is not None
    assert not any(row["verdict"] == "different" for row in found["comparisons"])


# The smallest relative error of an output that is found on each of these networks, to a factor of 10: below it the
# network's own movement by rounding is as large.
SMALLEST = {Chaotic: 1e-6, Saturated: 1e-9, Cancelling: 1e-9, SmallVariance: 1e-9, Angles: 1e-7}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_smallest_error_that_is_found(kind: type[nn.Module]) -> None:
    module = kind().double().eval()

    def found(error: float) -> bool:
        rows = verify(module, rounded(module, 11, error), vectors(), gradients=False).comparisons
        return any(row.verdict == "different" for row in rows)

    errors = [10.0**-power for power in range(15)]
    smallest = min(error for error in errors if found(error))
    assert SMALLEST[kind] / 20 <= smallest <= SMALLEST[kind] * 2


def test_an_error_of_a_rule_is_found_and_named_on_a_chaotic_network(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = BcosLinear.forward
    monkeypatch.setattr(BcosLinear, "forward", lambda self, x: plain(self, x) * 1.01)
    with pytest.raises(VerificationError, match="layer-to-bcos"):
        bcos_fx.bcosify(Chaotic().eval(), example_inputs=vectors().float(), recipe="equivalent")


def test_no_rule_is_named_for_what_the_original_does_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run is a rule that moves nothing but roundings; the search is asked for a culprit all the same."""
    module = Chaotic(34).double().eval()
    x = vectors(2)
    traced = bcos_fx.tracing.trace(module, x).graph_module
    check = blame._BlameCheck(traced, (x,), (x,), 1e-9)
    assert check.bound > 1e-9
    moved = bcos_fx.tracing.trace(rounded(module, 21), x).graph_module
    assert blame._distance(check.expected, moved, (x,)) <= check.bound


def test_a_calm_network_is_held_to_the_given_bound() -> None:
    module, x = nn.Sequential(nn.Linear(6, 3), nn.Tanh()).double().eval(), vectors(2)
    assert blame._BlameCheck(bcos_fx.tracing.trace(module, x).graph_module, (x,), (x,), 1e-9).bound == 1e-9


def test_integers_among_the_weights_stay() -> None:
    module = nn.BatchNorm1d(3)
    module.register_buffer("places", torch.arange(3.0))
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.5, 1.5, 2.0]))
    nudge_weights_(module, seed=0)
    assert torch.equal(module.places, torch.arange(3.0))
    assert (module.weight != torch.tensor([0.5, 1.5, 2.0])).tolist() == [True, True, False]


class OnContrast(nn.Module):
    """Chaotic for inputs of strong contrast, calm for others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        spread = (x.amax(1, keepdim=True) - x.amin(1, keepdim=True)).gt(0.5)
        y = self.first(x)
        return torch.where(spread, torch.sin(y * 1e9), y)


def test_better_conditioned_inputs_are_preferred() -> None:
    module, x = OnContrast().double().eval(), vectors(3)
    other = rounded(module, 5)

    def prove(inputs: tuple[Tensor, ...]) -> Any:
        return verify(module, other, inputs, batch_sizes=(1, 2), gradients=False)

    assert not prove((x,)).ok
    result = prove_well_conditioned(prove, (x,))
    assert result.ok
    assert "contrast" in result.detail
    wrong = rounded(module, 5, 1e-6)
    found = prove_well_conditioned(lambda i: verify(module, wrong, i, batch_sizes=(1, 2), gradients=False), (x,))
    assert any(row.verdict == "different" for row in found.comparisons)


def test_calm_inputs_keep_their_mean_and_integers() -> None:
    x = torch.rand(100)
    torch.testing.assert_close(reduce_contrast(x).mean(), x.mean())
    torch.testing.assert_close(reduce_contrast(x).std(), x.std() / 4)
    assert torch.equal(reduce_contrast(torch.arange(3)), torch.arange(3))


class Faint(nn.Module):
    """A large constant, and what the input adds to it: random deep networks with shaken statistics are so."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.first, self.last, self.share = nn.Linear(6, 8), nn.Linear(8, 3), share

    def forward(self, x: Tensor) -> Tensor:
        return 1.0 + self.share * self.last(self.first(x).relu())


@pytest.mark.parametrize(("share", "verdict"), [(1e-3, "equal"), (2e-5, "equal"), (1e-8, "not tested")])
def test_what_hardly_varies_is_tested_where_its_variation_is_resolved(share: float, verdict: str) -> None:
    module = Faint(share).double().eval()
    result = verify(module, rounded(module, 11), vectors(), gradients=False)
    assert {row.verdict for row in result.comparisons} == {verdict}
    assert result.ok == (verdict == "equal")


@pytest.mark.parametrize("error", [1e-2, 1e-5, 1e-7])
def test_an_error_in_what_hardly_varies_is_never_called_equal(error: float) -> None:
    module = Faint(2e-5).double().eval()
    wrong = bcos_fx.tracing.modules.deep_copy(module)
    wrong.share *= 1 + error
    result = verify(module, wrong, vectors(), gradients=False)
    assert "equal" not in {row.verdict for row in result.comparisons}


@pytest.mark.parametrize("share", [0.0, 1e-18])
def test_a_constant_is_never_called_equal(share: float) -> None:
    module = Faint(share).double().eval()
    result = verify(module, bcos_fx.tracing.modules.deep_copy(module), vectors(), gradients=False)
    assert {row.verdict for row in result.comparisons} == {"not tested"}
