"""Whether a declared op is of the linearity class that it was declared with: tried with numbers.

The classes of the shipped ops are shown by tests. One that a program declares is a claim, and a certificate that rested
on a wrong claim would be wrong in silence. So every call of such an op is tried, on random values of the shapes that it
had in the example run: sums and multiples of values, parts that must not depend on other parts. A trial can refute a
class, and cannot prove one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.nn.dynamic import DynamicLayer
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.stored import follows_from_stored, stored_value
from bcos_fx.tracing.modules import keep_modes

_TensorFunction = Callable[[list[Tensor]], Tensor]
_VERDICTS: weakref.WeakKeyDictionary[Any, dict[Any, str | None]] = weakref.WeakKeyDictionary()
_VERDICT = "declared_class"
"""Key of a node's meta: which callable and op were tried, and what came of it."""
# Factors without a relation that a function could respect by chance, as it might 1, -1 or a power of 2.
_A, _B = 0.7, 1.9
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


def find_contradiction(call: Call) -> str | None:
    """Return what shows that a call is not of its op's declared class; None where nothing does, or for shipped ops."""
    check = _CHECKS.get(call.op.linearity)
    if call.op.declared is None or check is None:
        return None
    operands = [node for name in call.op.value for node in call.nodes(name)]
    computed = [node for node in call.node.all_input_nodes if node.op != "get_attr"]
    called = call.function
    if not operands or any(node.meta.get("shape") is None for node in computed):
        # In a view not every shape is known: there the verdict on the same call before holds.
        of, verdict = call.node.meta.get(_VERDICT, (None, None))
        return verdict if of == (id(called), call.op.name) else None
    # Kept by the callable, weakly. A method is made into a new object at each call, which nothing could look up.
    known = _VERDICTS.setdefault(called, {}) if call.node.op != "call_method" else {}
    asked = (call.op.name, call.op.linearity, repr(call.node.args), repr(call.node.kwargs))
    key = (*asked, tuple(node.meta.get("shape") for node in call.node.all_input_nodes), _dtype_of(call, operands))
    if key not in known:
        known[key] = _try_check(call, operands, check)
    call.node.meta[_VERDICT] = ((id(called), call.op.name), known[key])
    return known[key]


def _try_check(call: Call, operands: list[fx.Node], check: Callable[[_Trial], str | None]) -> str | None:
    try:
        with _unnoticed(call):
            wrong = check(_Trial(call, operands))
    except Exception as error:  # code that is not ours may raise anything
        wrong = f"its class cannot be tried, because it raises {type(error).__name__}: {error}"
    if wrong is None:
        return None
    return f"{call.op.name} is declared {call.op.linearity!r} in {call.op.declared}, but {wrong}"


@contextmanager
def _unnoticed(call: Call) -> Iterator[None]:
    """Run a layer in eval mode and with the random generators as they were; leave nothing changed."""
    layer = nn.Module() if call.module is None else call.module
    with keep_modes(layer), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        layer.eval()
        yield


def _dtype_of(call: Call, operands: list[fx.Node]) -> torch.dtype:
    stored = [] if call.module is None else list(call.module.state_dict().values())
    stored += [stored_value(n, call.root) for n in call.node.all_input_nodes if n.op == "get_attr"]
    dtypes = [t.dtype for t in stored if isinstance(t, Tensor) and t.is_floating_point()]
    dtype = dtypes[0] if dtypes else operands[0].meta.get("dtype") or torch.float32
    return dtype if dtype in _TOLERANCE else torch.float32


class _Trial:
    """A call as a function of its value operands, all else as stored, or drawn once."""

    def __init__(self, call: Call, operands: list[fx.Node]) -> None:
        self.call, self.operands = call, operands
        self.dtype = _dtype_of(call, operands)
        stored = [] if call.module is None else list(call.module.state_dict(keep_vars=True).values())
        self.device = stored[0].device if stored else torch.device("cpu")
        self._generator = torch.Generator().manual_seed(0)
        others = [node for node in call.node.all_input_nodes if node not in operands]
        self._fixed = {node: self._other_operand(node) for node in others}

    def _other_operand(self, node: fx.Node) -> Any:
        if follows_from_stored(node):
            return stored_value(node, self.call.root)
        return node.meta["value"] if node.meta.get("type") == "size" else self._random(node)

    def _random(self, node: fx.Node) -> Tensor:
        drawn = torch.randn(tuple(node.meta["shape"]), generator=self._generator, dtype=torch.float64)
        return drawn.to(self.device, self.dtype)

    def draw(self) -> list[Tensor]:
        """Return random values of the operands' shapes."""
        return [self._random(node) for node in dict.fromkeys(self.operands)]

    def __call__(self, values: list[Tensor]) -> Tensor:
        given = self._fixed | dict(zip(dict.fromkeys(self.operands), values, strict=True))
        args, kwargs = fx.node.map_arg((self.call.node.args, dict(self.call.node.kwargs)), given.__getitem__)
        result = self.call.function(*args, **kwargs)
        if not isinstance(result, Tensor):
            raise TypeError(f"it gives a {type(result).__name__}, and an op gives one tensor")
        return result

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Return whether two results are equal but for rounding."""
        if a.shape != b.shape:
            return False
        size = max(float(a.detach().abs().max()), float(b.detach().abs().max()), 1e-30) if a.numel() else 1.0
        return bool(((a - b).abs() <= _TOLERANCE[self.dtype] * size).all())


def _linear(trial: _Trial) -> str | None:
    if isinstance(trial.call.module, DynamicLayer):
        return _dynamic(trial, trial.call.module)
    x, y = trial.draw(), trial.draw()
    # A constant that is not declared would be counted nowhere, and contributions would not add up.
    zero = trial([torch.zeros_like(v) for v in x])
    if not trial.call.op.constants and bool(zero.detach().count_nonzero()):
        return f"it is {float(zero.abs().max()):.3g} where its input is 0: name what it adds in 'constants'"
    return None if _is_linear(trial, trial, x, y) else "a sum of two inputs does not give the sum of their results"


def _is_linear(trial: _Trial, function: _TensorFunction, x: list[Tensor], y: list[Tensor]) -> bool:
    """Return whether f(ax + by) = a f(x) + b f(y), for what f gives beyond f(0)."""
    zero = function([torch.zeros_like(v) for v in x])
    mixed = function([_A * v + _B * w for v, w in zip(x, y, strict=True)]) - zero
    return trial.same(mixed, _A * (function(x) - zero) + _B * (function(y) - zero))


def _dynamic(trial: _Trial, layer: DynamicLayer) -> str | None:
    """Check the two halves of a dynamic layer: they give its value, and both are linear once the factor is held."""
    (x,), (y,) = trial.draw(), trial.draw()
    linear, factor = layer.decompose(x)
    if not trial.same(layer.recompose(linear, factor), layer(x)):
        return "recompose(*decompose(x)) is not what forward gives"
    if not trial.same(layer.frozen(x), layer(x)):
        return "frozen(x) is not what forward gives"
    if not _is_linear(trial, lambda v: layer.decompose(v[0])[0], [x], [y]):
        return "the first part that decompose gives is not linear in the input"
    other = layer.decompose(y)[0]
    if not _is_linear(trial, lambda v: layer.recompose(v[0], factor), [linear], [other]):
        return "recompose is not linear in its first argument"
    constant = layer.recompose(torch.zeros_like(linear), factor)
    if not trial.call.op.constants:
        added = bool(constant.detach().count_nonzero())
        return "it adds a constant: name it in 'constants', and define constant_like" if added else None
    if type(layer).constant_like is DynamicLayer.constant_like:
        return "it has constants, and no method constant_like that gives them"
    # A layer may have been built without its bias; then constant_like has nothing to give.
    present = any(trial.call.arguments.get(name) is not None for name in trial.call.op.constants)
    stated = layer.constant_like(constant) if present else 0
    return None if trial.same(constant, constant * 0 + stated) else "constant_like is not what it adds"


def _selection(trial: _Trial) -> str | None:
    x = [v.requires_grad_() for v in trial.draw()]
    y = trial(x)
    if trial.call.op.constants:
        return None
    # What is picked does not depend on a positive factor, so the result has the same factor.
    if not trial.same(trial([3 * v for v in x]), 3 * y):
        return "three times its input does not give three times its result"
    gradients = torch.autograd.grad(y.sum(), x, allow_unused=True)
    total = sum(((g * v).sum() for g, v in zip(gradients, x, strict=True) if g is not None), start=y.new_zeros(()))
    return None if trial.same(total, y.sum()) else "its gradient times its input is not its result"


def _ratio(trial: _Trial) -> str | None:
    x = trial.draw()
    y = trial(x)
    if len(x) != 1 or y.shape != x[0].shape:
        return "its result has not the shape of its input, and a ratio is taken number by number"
    other = x[0].clone()
    changed = torch.zeros_like(other, dtype=torch.bool).flatten()
    # Every second number is changed. The others must come out as before.
    changed[::2] = True
    changed = changed.view_as(other)
    again = trial([torch.where(changed, 2 * other + 1, other)])
    same = trial.same(torch.where(changed, 0, again), torch.where(changed, 0, y))
    return None if same else "a number of its result depends on other numbers of its input than the one at its place"


def _product(trial: _Trial) -> str | None:
    x, y = trial.draw(), trial.draw()
    for place in range(len(x)):

        def alone(values: list[Tensor], at: int = place) -> Tensor:
            return trial([*x[:at], *values, *x[at + 1 :]])

        if not _is_linear(trial, alone, x[place : place + 1], y[place : place + 1]):
            return f"it is not linear in its factor {trial.operands[place].name}"
    return None


def _normalize(trial: _Trial) -> str | None:
    return _dynamic(trial, trial.call.module) if isinstance(trial.call.module, DynamicLayer) else None


def _constant(trial: _Trial) -> str | None:
    same = trial.same(trial(trial.draw()), trial(trial.draw()))
    return None if same else "its result depends on the values of its input"


_CHECKS: dict[str, Callable[[_Trial], str | None]] = {
    "linear": _linear,
    "selection": _selection,
    "ratio": _ratio,
    "product": _product,
    "quotient": _linear,
    "attention": _linear,
    "normalise": _normalize,
    "constant": _constant,
}
