"""The op vocabulary against PyTorch: every public name has a place, and every linearity class is what numbers say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bcos_fx.rewriting.core.op import Op
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.refused import refusals
from bcos_fx.tracing import composites, modules, operations
from tests.rewriting.example_calls import EXAMPLES, OWN
from tests.rewriting.spelled import CARRIERS, Call, Spelled, cases

SPACES = {"": torch, "F.": functional, "linalg.": torch.linalg, "fft.": torch.fft, "special.": torch.special}
REFUSED = {name for refusal in refusals().values() for name in refusal.names}

# ---------------------------------------------------------------- every name of PyTorch has a place


def _functions(space: Any) -> list[str]:
    names = [name for name in dir(space) if not name.startswith("_") and callable(getattr(space, name))]
    return [name for name in names if not inspect.isclass(getattr(space, name))]


def _has_a_place(prefix: str, name: str, home: Any) -> bool:
    function = getattr(home, name, None)
    known = function in vocabulary()._functions or (home is torch.Tensor and name in vocabulary()._methods)
    if known or prefix + name in REFUSED or composites.find(function, None, bool) is not None:  # type: ignore[arg-type]
        return True
    if home is torch.Tensor and name in operations.SIZE_READS | operations.FORM_READS:
        return True
    if not name.endswith("_"):
        return False
    homes = (home, torch, torch.Tensor)
    return any(_has_a_place(p, name[:-1], h) for h in homes for p in (prefix, "") if hasattr(h, name[:-1]))


@pytest.mark.parametrize("prefix", SPACES)
def test_every_function_is_an_op_or_several_or_refused(prefix: str) -> None:
    space = SPACES[prefix]
    missing = [name for name in _functions(space) if not _has_a_place(prefix, name, space)]
    assert not missing, f"in neither rules/ops.toml, tracing/composites.py nor rules/refused.toml: {missing}"


def test_every_method_is_an_op_or_several_or_refused() -> None:
    names = [name for name in dir(Tensor) if not name.startswith("_") and callable(getattr(Tensor, name))]
    assert not [name for name in names if not _has_a_place("", name, Tensor)]


def test_every_module_class_is_an_op_or_taken_apart_or_refused() -> None:
    kinds = {name: kind for name, kind in vars(nn).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    known = {*vocabulary()._modules, *modules._COMPOSITES}
    assert not [name for name, kind in kinds.items() if kind not in known and f"nn.{name}" not in REFUSED]


def test_a_new_name_of_pytorch_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "brand_new", lambda x: x, raising=False)
    assert not _has_a_place("", "brand_new", torch)


# ---------------------------------------------------------------- every class is right


def test_every_op_that_carries_a_value_has_an_example() -> None:
    carriers = {op.name for op in vocabulary() if op.linearity in CARRIERS and (op.functions or op.methods)}
    assert carriers - {op for op in EXAMPLES} == set()
    assert set(EXAMPLES) | set(OWN) <= {op.name for op in vocabulary()}


def _is_linear(f: Callable[[list[Tensor]], Tensor], x: list[Tensor], y: list[Tensor]) -> bool:
    """Whether f(ax + by) = a f(x) + b f(y) for what f does beyond f(0)."""
    a, b = 0.7, 1.9
    zero = f([torch.zeros_like(v) for v in x])
    mixed = f([a * v + b * w for v, w in zip(x, y, strict=True)]) - zero
    return torch.allclose(mixed, a * (f(x) - zero) + b * (f(y) - zero), rtol=1e-9, atol=1e-9)


def _is_homogeneous(f: Callable[[list[Tensor]], Tensor], x: list[Tensor]) -> bool:
    """Whether f(tx) = t f(x) for t > 0, and its gradient times x adds up to f(x) - f of constants alone."""
    leaves = [v.clone().requires_grad_() for v in x]
    out = f(leaves)
    grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    total = sum((g * v).sum() for g, v in zip(grads, x, strict=True) if g is not None)
    return torch.allclose(f([3 * v for v in x]), 3 * out) and torch.allclose(out.sum(), torch.as_tensor(total))


@pytest.mark.parametrize(("op", "function", "example"), list(cases()))
def test_the_class_is_whatnumbers_say(op: Op, function: Call, example: dict[str, Any]) -> None:
    f = Spelled(op, function, example)
    x, y = f.draw(1), f.draw(2)
    if op.linearity == "linear":
        assert _is_linear(f, x, y)
        if not op.constants and not f.has_constants:
            assert not f([torch.zeros_like(v) for v in x]).any()
    elif op.linearity == "selection" and op.name != "prelu" and not f.has_constants:
        assert _is_homogeneous(f, x)
        assert not _is_linear(f, x, y) or op.name in ("nan_to_num", "copysign", "scatter_reduce", "index_reduce")
    elif op.linearity == "ratio":
        assert not f([torch.zeros_like(v) for v in x]).any()
    elif op.linearity == "product":
        for place in range(len(x)):
            alone = [lambda part, p=place: f([*x[:p], *part, *x[p + 1 :]])]
            assert _is_linear(alone[0], x[place : place + 1], y[place : place + 1])
            assert not alone[0]([torch.zeros_like(x[place])]).any()
    elif op.linearity in ("quotient", "attention"):
        assert _is_linear(f, x, y)


def test_a_wrong_class_would_be_found() -> None:
    """The check itself: functions that are of no such class."""
    x, y = [torch.randn(4).double()], [torch.randn(4).double()]
    assert not _is_linear(lambda v: v[0].abs(), x, y)
    assert not _is_homogeneous(lambda v: v[0].square(), x)
    assert not _is_homogeneous(lambda v: v[0].norm(dim=0, keepdim=True) + 1, x)
