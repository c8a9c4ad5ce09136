"""Where an op's options take it out of its linearity class.

The vocabulary gives a class to an op as such. A clamp that does not pass through 0, a norm that reads the other
samples of its batch or a call whose constant cannot be singled out is not what its class says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, fx

from bcos_fx.rewriting.core.class_check import find_contradiction
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.stored import follows_from_stored, stored_value

_SHIFTED = frozenset({"sigmoid", "hardsigmoid", "softplus", "exp", "cos"})


def linearity_violation(call: Call) -> str | None:
    """Return why this call is not what its op's linearity class says, or None where it is."""
    # A modulus grows as its number does, so its gradient times that is its value. Activations have no such thing.
    is_modulus = call.op.magnitude or call.op.name == "abs"
    if call.op.linearity in ("ratio", "selection") and not is_modulus and _reads_complex_numbers(call):
        return f"{call.name} of complex numbers is not a dynamic linear function of their real and imaginary parts"
    wrong = find_contradiction(call)
    if wrong is not None:
        return wrong
    if call.op.linearity == "ratio":
        return _ratio(call)
    takes_statistics = call.op.batch_statistics and "running_mean" in call.op.parameters
    check = _running_statistics if takes_statistics else _CHECKS.get(call.op.name)
    return None if check is None else check(call)


def _reads_complex_numbers(call: Call) -> bool:
    dtypes = (node.meta.get("dtype") for name in call.op.value for node in call.nodes(name))
    return any(dtype is not None and dtype.is_complex for dtype in dtypes)


def _ratio(call: Call) -> str | None:
    """Try whether phi(0) = 0, for only then is phi(x) the weight phi(x)/x times x."""
    at_zero = _value_at_zero(call)
    if isinstance(at_zero, str):
        return at_zero
    if at_zero is not None and torch.count_nonzero(at_zero):
        worst = float(at_zero.abs().max())
        return f"{call.name} is {worst:.3g} at 0, so it is not a weight times its input"
    return None


def is_square(call: Call) -> bool:
    """Return whether a number is multiplied with itself."""
    return call.op.name == "mul" and call.nodes("input") == call.nodes("other") != []


def is_never_linear(call: Call) -> bool:
    """Return whether no call of its kind is linear by itself: a rule must hold its factor fixed."""
    return call.op.linearity in ("normalise", "ratio", "gate") or call.op.name == "pairwise_distance" or is_square(call)


def is_shifted_ratio(call: Call) -> bool:
    """Return whether a gate is an elementwise function that is defined at 0, so that it is phi(0) and a ratio."""
    if call.op.name not in _SHIFTED or _options(call):
        return False
    at_zero = _value_at_zero(call)
    return isinstance(at_zero, Tensor) and bool(at_zero.isfinite().all())


def _value_at_zero(call: Call) -> Tensor | str | None:
    """Return phi(0) of an elementwise call, (1,), or of a declared op in the shape of the example if that is known.

    Tried and not looked up, because it can depend on the options: a threshold, a learned slope. Where it cannot be
    tried, the result is the reason.
    """
    for name in call.arguments:
        if name not in call.op.value and not all(follows_from_stored(node) for node in call.nodes(name)):
            return f"its {name} is neither a plain number nor a stored one, so nothing is known of it at 0"
    zeros = _zeros(call)
    if zeros is None:
        return None
    try:
        with torch.no_grad():
            return as_elementwise(call)(zeros, *(stored_value(node, call.root) for node in _options(call)))
    except Exception as error:
        if call.op.declared is None:
            raise
        return f"{call.name} cannot be tried at 0: it raises {type(error).__name__}: {error}"


def _zeros(call: Call) -> Tensor | None:
    """Return a zero input for an elementwise call; for a declared op, in the shape of the example if that is known."""
    if call.op.declared is None:
        return torch.zeros(1)
    state = {} if call.module is None else call.module.state_dict(keep_vars=True)
    like = next((tensor for tensor in state.values() if tensor.is_floating_point()), torch.zeros(1))
    shape = next((node.meta.get("shape") for node in call.nodes(call.op.value[0])), None)
    return None if shape is None else torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)


def _options(call: Call) -> list[fx.Node]:
    """Return the nodes that an elementwise call reads besides its value: a learned power, a slope for each channel."""
    value = call.nodes(call.op.value[0])
    return [node for node in call.node.all_input_nodes if node not in value]


def as_elementwise(call: Call) -> Callable[..., Tensor]:
    """Return an elementwise call as a function of its value and of its options; it outlives a change of the node."""
    places = dict.fromkeys(call.nodes(call.op.value[0]), 0)
    return call.as_function(places | {node: place for place, node in enumerate(_options(call), start=1)})


def _running_statistics(call: Call) -> str | None:
    training = call.arguments.get("training")
    if call.module is None and training is True and "training_argument" not in call.node.meta:
        return "it takes its statistics from the batch, so its output depends on the other samples"
    if call.arguments.get("running_mean") is None or call.arguments.get("running_var") is None:
        return "without running statistics its output depends on the other samples of the batch"
    return None


def _own_statistics(call: Call) -> str | None:
    if getattr(call.module, "running_mean", None) is not None or call.arguments.get("use_input_stats") is False:
        return "an instance norm with running statistics is one function in train and another in eval"
    return None


def _random(call: Call) -> str | None:
    if call.module is None and call.arguments.get("training") is True and "training_argument" not in call.node.meta:
        return "it drops values at random in eval mode too, so no two runs are the same function"
    return None


def _random_attention(call: Call) -> str | None:
    dropped = call.arguments.get("dropout_p", 0)
    if call.module is None and (isinstance(dropped, fx.Node) or dropped):
        return "it drops weights at random in eval mode too, so no two runs are the same function"
    return None


def _counted(call: Call) -> str | None:
    p = call.arguments.get("p")
    if isinstance(p, fx.Node):
        return f"its order is computed by {p.name}"
    return "a norm of order 0 counts numbers, whatever they are" if p == 0 and not isinstance(p, bool) else None


def _rounded(call: Call) -> str | None:
    rounds = call.arguments.get("rounding_mode") is not None
    return "it rounds, and a rounded number is not a weighted sum" if rounds else None


def _picked_by(call: Call, parameter: str = "index") -> str | None:
    masks = [node for node in call.nodes(parameter) if node.meta.get("dtype") is torch.bool]
    if not all(follows_from_stored(mask) for mask in masks):  # a stored mask picks the same places for every input
        return "what is picked by truth values loses its place, and samples are mixed"
    return None


def _reduced(call: Call) -> str | None:
    """Return why a scatter is not dynamic linear: products are not; sums, means, maxima and minima are."""
    reduce = call.arguments.get("reduce")
    if reduce in (None, "add", "sum", "mean", "amax", "amin"):
        return None
    return f"what meets in one place is multiplied with each other (reduce={reduce!r})"


def _reinterpreted(call: Call) -> str | None:
    shape = call.arguments.get("shape")
    kind = shape[0] if isinstance(shape, tuple) and len(shape) == 1 else call.node.kwargs.get("dtype")
    return f"it reads the bits of its input as {kind}" if isinstance(kind, torch.dtype) else None


def _attribute(call: Call) -> str | None:
    name = call.arguments.get("name")
    return None if name in ("T", "mT", "H", "mH", "real", "imag") else f"nothing is known of a tensor's {name!r}"


def _unweighted(call: Call) -> str | None:
    if call.nodes("per_sample_weights"):
        return None
    return f"{call.name} is not dynamic linear in its input; instead: {call.op.instead}"


_CHECKS: dict[str, Callable[[Call], str | None]] = {
    "embedding_bag": _unweighted,
    "instance_norm": _own_statistics,
    "dropout": _random,
    "feature_dropout": _random,
    "alpha_dropout": _random,
    "rrelu": _random,
    "scaled_dot_product_attention": _random_attention,
    **dict.fromkeys(("norm", "distance", "pairwise_distance"), _counted),
    "div": _rounded,
    "getattr": _attribute,
    "getitem": _picked_by,
    "index": functools.partial(_picked_by, parameter="indices"),
    "masked_select": functools.partial(_picked_by, parameter="mask"),
    **dict.fromkeys(("scatter", "scatter_reduce", "index_reduce"), _reduced),
    "reshape": _reinterpreted,
}
