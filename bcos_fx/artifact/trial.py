"""One run of a network that was read from a file, before anyone else runs it.

The first run computes shapes and dtypes alone, on torch's meta device, so that it costs no memory however large the
values are; it refuses values out of all proportion. The second one is an ordinary forward: kernels check more of their
arguments than shapes depend on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.budgets import EXAMPLE_NUMBERS, VALUE_GROWTH, VALUE_NUMBERS, Budget
from bcos_fx.errors import ArtifactError, TraceError
from bcos_fx.network import BcosNetwork, InputSpec
from bcos_fx.tracing.arguments import tensors
from bcos_fx.tracing.functional import require
from bcos_fx.tracing.program import run_node

_NO_KERNEL = "not implemented for"
"""What torch says of a dtype that this device does not compute in: half precision on a CPU, mostly."""

_META = torch.device("meta")


def check_runs(network: BcosNetwork) -> None:
    """Run a network, which is in eval mode, on inputs of its recorded shapes; its tensors are away meanwhile.

    Raises:
        ArtifactError: it does not run, or a value is out of all proportion or of another shape than recorded.
    """
    inputs = network.record.inputs
    for spec in inputs:
        _check_shape(spec)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    largest = max(parameters, *(math.prod(spec.shape) for spec in inputs))
    budget = replace(VALUE_NUMBERS, limit=max(VALUE_NUMBERS.limit, VALUE_GROWTH * largest))
    with torch.no_grad():
        # Shapes first: what would take all memory is refused before the ordinary run below allocates anything.
        with _on_meta(network), _META:  # tensors that the graph makes are made there too
            _TrialRun(network, budget).run()
        _run_once(network)


def _run_once(network: BcosNetwork) -> None:
    # Zeros and not random numbers: reading a file twice must come to the same end.
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    given = [node for node in network.graph.nodes if node.op == "placeholder"]
    inputs = [
        torch.zeros(spec.shape, dtype=_dtype(node, like.dtype), device=like.device)
        for node, spec in zip(given, network.record.inputs, strict=True)
    ]
    try:
        network(*inputs)
    except TraceError:
        return  # the graph holds for other values than zeros
    except Exception as error:
        if _NO_KERNEL not in str(error):
            raise ArtifactError(f"the network does not run: {str(error).partition(chr(10))[0]}") from error


def _dtype(node: fx.Node, like: torch.dtype) -> torch.dtype:
    dtype: torch.dtype = node.meta.get("dtype") or like
    return like if dtype.is_floating_point else dtype


def _check_shape(spec: InputSpec) -> None:
    if not spec.shape or any(side < 1 for side in spec.shape):
        raise ArtifactError(f"the input {spec.name!r} has the shape {spec.shape}, which no example has")
    if spec.samples is not None and not 0 <= spec.samples < len(spec.shape):
        raise ArtifactError(f"the input {spec.name!r} has no dimension {spec.samples}")
    if spec.encoded and not 0 <= spec.channel_axis < len(spec.shape):
        raise ArtifactError(f"the input {spec.name!r} has no dimension {spec.channel_axis}")
    EXAMPLE_NUMBERS.check(math.prod(spec.shape), f"the example of the input {spec.name!r}", ArtifactError)


@contextmanager
def _on_meta(network: nn.Module) -> Iterator[None]:
    """Put tensors without values in the place of a network's own."""
    stored = [(module, module._parameters, module._buffers) for module in network.modules()]
    try:
        for module, parameters, buffers in stored:
            module._parameters = {name: _formless(parameter) for name, parameter in parameters.items()}
            module._buffers = {name: _formless(buffer) for name, buffer in buffers.items()}
        yield
    finally:
        for module, parameters, buffers in stored:
            module._parameters, module._buffers = parameters, buffers


def _formless(tensor: Any) -> Any:
    if tensor is None:
        return None
    empty = torch.empty_like(tensor, device=_META)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


class _TrialRun:
    def __init__(self, network: BcosNetwork, budget: Budget) -> None:
        self._network, self._budget = network, budget
        self._like = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        self._values: dict[fx.Node, Any] = {}

    def run(self) -> None:
        nodes = list(self._network.graph.nodes)
        given = [node for node in nodes if node.op == "placeholder"]
        for node, spec in zip(given, self._network.record.inputs, strict=True):
            self._values[node] = self._input(node, spec)
        self._network.check_inputs(tuple(self._values.values()))
        for node in nodes:
            if node.op not in ("placeholder", "output") and node.target is not require:
                self._values[node] = self._value(node)

    def _input(self, node: fx.Node, spec: InputSpec) -> Tensor:
        if tuple(node.meta.get("shape") or ()) != spec.shape:
            raise ArtifactError(f"the graph's input {spec.name!r} has another shape than the record's")
        value = torch.empty(spec.shape, dtype=_dtype(node, self._like), device=_META)
        spec.original(value)
        return value

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._values.__getitem__)
        where = f"node {node.name!r}"
        try:
            value = run_node(node, self._network, _placed(args), _placed(kwargs))
        except NotImplementedError as error:  # how many entries a mask selects depends on its values
            if (value := self._as_recorded(node)) is None:
                raise ArtifactError("the shape of a value depends on other values", where=where) from error
        except Exception as error:  # whatever torch raises about arguments that make no sense
            reason = str(error).partition("\n")[0]
            raise ArtifactError(f"the network does not run: {reason}", where=where) from error
        largest = max((tensor.numel() for tensor in tensors(value)), default=0)
        self._budget.check(largest, "a value of the network", ArtifactError, where)
        shape = node.meta.get("shape")
        if isinstance(value, Tensor) and shape is not None and tuple(value.shape) != tuple(shape):
            raise ArtifactError(f"the value has the shape {tuple(value.shape)}, not {shape} as recorded", where=where)
        return value

    def _as_recorded(self, node: fx.Node) -> Any:
        """Return a value of the recorded shape, or of several what the graph reads, by number; None for others."""
        if node.meta.get("shape") is not None:
            return torch.empty(node.meta["shape"], dtype=node.meta.get("dtype") or self._like, device=_META)
        read = {user.args[1]: user for user in node.users if user.target is getitem and isinstance(user.args[1], int)}
        return {number: self._as_recorded(user) for number, user in read.items()} or None


def _placed(value: Any) -> Any:
    """Replace every device in an argument by the device on which the trial runs."""
    if isinstance(value, torch.device):
        return _META
    if isinstance(value, Mapping):
        return {key: _META if key == "device" else _placed(item) for key, item in value.items()}
    return type(value)(map(_placed, value)) if type(value) in (list, tuple) else value
