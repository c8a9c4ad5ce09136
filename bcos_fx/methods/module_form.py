"""A traced network in which every activation is a module of its own, as captum's hooks need it.

captum's Guided Backpropagation and DeepLIFT change gradients by hooks on modules. That is silently wrong where an
activation is a function (no hook sees it), where one module serves several places (torchvision's ``self.relu``), where
its type is not in captum's list (ReLU6), where one activation follows another directly (hooks on one tensor run in the
wrong order), and where the windows of a max pooling overlap (the way back keeps only one window's share).

So the network is traced, and its graph is run with a module of its own for each such node. What cannot be brought into
that form is refused, with the node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bcos_fx.errors import UsageError, VerificationError
from bcos_fx.methods.checks import class_outputs
from bcos_fx.rewriting.core.ops import Call, vocabulary
from bcos_fx.rewriting.core.spelling import resolve
from bcos_fx.tracing import trace

_TOLERANCE = 1e-4


class Clipped(nn.Module):
    """Clipping by two ReLUs, low + relu(x - low) - relu(x - high): under the Rescale rule the two are the same."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.rise, self.stop = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return x (any shape), clipped."""
        clipped: Tensor = self.low + self.rise(x - self.low) - self.stop(x - self.high)
        return clipped


class Bounded(nn.Module):
    """ReLU6 as a ReLU and an upper bound: the rule for ReLUs meets the one, ordinary backpropagation the other."""

    def __init__(self) -> None:
        super().__init__()
        self.rise = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return x (any shape), within [0, 6]."""
        bounded: Tensor = self.rise(x).clamp(max=6.0)
        return bounded


class SideBySideMaxPool2d(nn.Module):
    """Max pooling whose windows are laid side by side first, so that none overlap when the maximum is taken.

    Args: as of :class:`torch.nn.MaxPool2d`; each a number or a pair.
    """

    def __init__(self, kernel_size: object, stride: object, padding: object, dilation: object, ceil_mode: bool) -> None:
        super().__init__()
        self.kernel, self.padding, self.dilation = _pair(kernel_size), _pair(padding), _pair(dilation)
        self.stride = _pair(stride or kernel_size)
        self.ceil_mode = ceil_mode
        self.largest = nn.MaxPool1d(self.kernel[0] * self.kernel[1])

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W)."""
        (rows, below), (columns, right) = (self._windows(axis, x.shape[2 + axis]) for axis in (0, 1))
        # Not -inf: DeepLIFT subtracts the values of two images, and inf - inf is NaN. Half, so that nothing overflows.
        padded = F.pad(x, (self.padding[1], right, self.padding[0], below), value=torch.finfo(x.dtype).min / 2)
        windows = F.unfold(padded, self.kernel, dilation=self.dilation, stride=self.stride)
        laid = windows.reshape(*x.shape[:2], -1, windows.shape[2]).transpose(2, 3).flatten(2)
        pooled: Tensor = self.largest(laid)
        return pooled.reshape(*x.shape[:2], rows, columns)

    def _windows(self, axis: int, size: int) -> tuple[int, int]:
        """Return how many windows there are, and how much is added behind the image so that exactly these fit."""
        stride, span = self.stride[axis], self.dilation[axis] * (self.kernel[axis] - 1) + 1
        free = size + 2 * self.padding[axis] - span
        count = (-(-free // stride) if self.ceil_mode else free // stride) + 1
        # A last window that would begin beyond the image and its left padding is left out.
        if self.ceil_mode and (count - 1) * stride >= size + self.padding[axis]:
            count -= 1
        return count, (count - 1) * stride + span - size - self.padding[axis]


def _pair(value: object) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _op_module(call: Call) -> nn.Module:
    """Build the op's own module with the call's options."""
    options = {name: value for name, value in call.arguments.items() if name not in call.op.inputs}
    module: nn.Module = resolve(call.op.modules[0])(**options)
    return module


def _clipped(call: Call) -> nn.Module:
    names = {"hardtanh": ("min_val", "max_val"), "clamp": ("min", "max")}.get(call.op.name)
    # Of relu6, which has no arguments.
    limits = (0.0, 6.0) if names is None else tuple(call.arguments.get(name) for name in names)
    if not all(isinstance(limit, int | float) for limit in limits):
        raise UsageError("its limits are not two numbers")
    return Clipped(*limits)


def _pool(call: Call) -> nn.Module:
    options = {name: call.arguments[name] for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}
    if call.arguments.get("return_indices"):
        raise UsageError("it returns indices")
    return SideBySideMaxPool2d(**options)


StandIn = Callable[[Call], nn.Module]
_GUIDED: dict[str, StandIn] = {"relu": _op_module, "relu6": lambda call: Bounded()}
_RESCALED: dict[str, StandIn] = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "sigmoid", "tanh", "softplus"), _op_module),
    **dict.fromkeys(("relu6", "hardtanh", "clamp"), _clipped),
    "max_pool2d": _pool,
}
# Ordinary backpropagation is part of Guided Backpropagation: through everything that is not an activation.
_PASSED_BY_GUIDED = ("linear", "normalise", "product", "quotient", "gate", "constant")
_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool")
_FORMS: dict[str, tuple[dict[str, StandIn], tuple[str, ...], tuple[str, ...]]] = {
    "Guided Backpropagation": (_GUIDED, _PASSED_BY_GUIDED, _POOLS),
    "DeepLIFT": (_RESCALED, ("linear", "constant"), ()),
}


class ModuleForm(nn.Module):
    """A graph that is run with modules of its own at some nodes."""

    def __init__(self, graph_module: fx.GraphModule, stand_ins: dict[str, nn.Module]) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.stand_ins = nn.ModuleDict(stand_ins)

    def forward(self, images: Tensor) -> Tensor:
        """Return the graph's output for its input (N, C, H, W)."""
        outputs: Tensor = _ModuleRun(self).run(images)
        return outputs


class _ModuleRun(fx.Interpreter):
    def __init__(self, form: ModuleForm) -> None:
        super().__init__(form.graph_module)
        self.form = form

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.form.stand_ins:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        # A tensor of its own: where one hooked module reads the very tensor that another gave, captum's hooks run in
        # the wrong order, and the first takes the gradient that the second is about to change.
        return self.form.stand_ins[n.name](args[0].view_as(args[0]))


def traced(network: nn.Module, images: Tensor) -> fx.GraphModule:
    """Return a network's graph for images (N, C, H, W) of one size, over copies of its parameters, without gradients.

    Raises:
        TraceError: the network cannot be traced.
    """
    # Two samples: a size of 1 could be taken for a constant.
    example = images.detach()[:1].expand(2, -1, -1, -1).contiguous()
    return trace(network, example, leaf_modules=vocabulary().leaves).graph_module.requires_grad_(False)


class ModuleForms:
    """The module form of one network for images of each size, made when it is first needed."""

    def __init__(self, network: nn.Module, method: str) -> None:
        self.network, self.method = network, method
        self._forms: dict[torch.Size, ModuleForm] = {}

    def of(self, images: Tensor) -> ModuleForm:
        """Return the form for images (N, C, H, W) of one size.

        Raises:
            TraceError: the network cannot be traced.
            UsageError: it holds an operation that the method is not defined for, or captum has no rule for.
        """
        if images.shape[1:] not in self._forms:
            graph_module = traced(self.network, images)
            form = ModuleForm(graph_module, self._stand_ins(graph_module)).eval()
            # A stand-in with a wrong option would explain another network without a word.
            _check_same(self.network, form, images.detach()[:1].expand(2, -1, -1, -1))
            self._forms[images.shape[1:]] = form
        return self._forms[images.shape[1:]]

    def _stand_ins(self, graph_module: fx.GraphModule) -> dict[str, nn.Module]:
        builders, passed, also = _FORMS[self.method]
        stand_ins: dict[str, nn.Module] = {}
        for node in depends_on_input(graph_module):
            call = vocabulary().call(node, graph_module)
            if call is None:
                raise self._refused(node, "its operation is not known")
            try:
                if call.op.name in builders:
                    stand_ins[node.name] = builders[call.op.name](call)
                elif not (call.op.linearity in passed or call.op.name in also or _is_linear(call)):
                    raise UsageError(_reason(call))
            except (UsageError, TypeError) as error:
                raise self._refused(node, str(error)) from error
        return stand_ins

    def _refused(self, node: fx.Node, reason: str) -> UsageError:
        return UsageError(
            f"{self.method} is not right for this network: {reason}",
            where=f"node {node.name}, {node.meta.get('source') or 'no line known'}",
            hint="leave it out of names=; methods that need no module form are right for any network",
        )


def _reason(call: Call) -> str:
    name = call.op.name
    if call.op.linearity in ("product", "quotient"):
        return f"{name} combines two values that both depend on the image, and there is no rule for that"
    return f"there is no rule for {name}"


def _is_linear(call: Call) -> bool:
    """Return whether a call is a product or quotient by what is stored."""
    if call.op.linearity not in ("product", "quotient"):
        return False
    moving = [node for node in call.inputs if node.meta.get(_MOVES)]
    return len(moving) == 1 and (call.op.linearity == "product" or moving[0] is call.inputs[0])


_MOVES = "depends on the input"


def depends_on_input(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes, inputs and output left out, whose tensors depend on the input; the nodes' meta notes it."""
    moving: list[fx.Node] = []
    for node in graph_module.graph.nodes:
        call = vocabulary().call(node, graph_module)
        read = node.all_input_nodes if call is None else call.read
        moves = node.op == "placeholder" or (
            node.meta.get("type") in ("tensor", "tuple", None) and any(n.meta.get(_MOVES) for n in read)
        )
        node.meta[_MOVES] = moves
        if moves and node.op not in ("placeholder", "output"):
            moving.append(node)
    return moving


def _check_same(network: nn.Module, form: ModuleForm, example: Tensor) -> None:
    with torch.no_grad():
        expected, outputs = class_outputs(network, example), class_outputs(form, example)
    error = float((outputs - expected).abs().max())
    if not error <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise VerificationError(
            f"the network with modules of its own for activations is not the network: outputs differ by {error:.3g}"
        )
