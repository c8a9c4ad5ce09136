"""In a deep network the one wrong rewrite is named, without a check after each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from bcos_fx.rewriting.core.build import Build
from bcos_fx.rewriting.core.passes import Engine
from bcos_fx.rewriting.core.recipe import load_recipe
from bcos_fx.rewriting.core.registry import BUILDERS
from bcos_fx.rewriting.core.rule import PRESERVING_PHASES
from bcos_fx.tracing import trace
from bcos_fx.verification import blame
from bcos_fx.verification.blame import Blame, find_culprit

LAYERS = 40


class Louder(nn.Module):
    def __init__(self, right: nn.Module) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        return 1.01 * self.right(x)  # type: ignore[no-any-return]


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    layers = [nn.utils.skip_init(nn.Linear, 6, 6) for _ in range(LAYERS)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)  # what is wrong in the first still shows behind the last
        nn.init.normal_(layer.bias, std=0.1)
    return trace(nn.Sequential(*layers).eval(), torch.rand(2, 6)).graph_module


def breaking(*nodes: str) -> Callable[[Build], nn.Module]:
    def build(given: Build) -> nn.Module:
        right = BUILDERS["bcos-layer"](given)
        return Louder(right) if given.call.node.name in nodes else right

    return build


def culprit(*nodes: str) -> Blame | None:
    recipe = load_recipe("equivalent").with_options({"input": "none"})
    engine = Engine(recipe, builders={**BUILDERS, "bcos-layer": breaking(*nodes)})
    return find_culprit(traced, engine, (torch.rand(3, 6),), lambda inputs: inputs)


def steps() -> list[str]:
    recipe = load_recipe("equivalent").with_options({"input": "none"})
    return [step.node for step in Engine(recipe).run(traced().double(), PRESERVING_PHASES).steps]


@pytest.mark.parametrize("place", [0, 30, 31, 32, 33, LAYERS - 1])
def test_the_first_wrong_rewrite_is_named(place: int) -> None:
    order = steps()
    assert len(order) == LAYERS
    found = culprit(order[place], order[-1])
    assert found is not None
    assert (found.rule, found.node) == ("layer-to-bcos", order[place])


def test_a_right_rewrite_is_not_blamed() -> None:
    assert culprit() is None


def test_it_does_not_check_after_each(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[None] = []
    plain = blame._BlameCheck._compare

    def counted(self: blame._BlameCheck, *given: object) -> None:
        checks.append(None)
        plain(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(blame._BlameCheck, "_compare", counted)
    monkeypatch.setattr(blame, "_STRIDE", 8)
    assert culprit(steps()[-2]) is not None
    assert len(checks) <= LAYERS // 8 + 8
