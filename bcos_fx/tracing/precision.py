"""Dtypes and constants that follow a network's precision.

``x.to(weight.dtype)`` reads float32 from a float32 network, and so it would be written into the graph; the network
in float64 would go on in float32 there. A dtype is one object for all who read it, so nothing tells such a literal
from one that the author wrote; but recorded in another precision too, the one has changed and the other has not. So it
is with tensors that are made in forward: computed in float64, they are more than the float32 ones with zeros behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bcos_fx.tracing.arguments import exchange, leaves_of

_LARGE = 2**20
"""Of parameters this large no copy is made in another precision."""

_CLOSE = 1e-3  # of a constant's scale: the same constant in another precision, and no random one


def reads_precision(graph_module: GraphModule, constants: Mapping[str, Tensor]) -> bool:
    """Return whether a graph has a precision of its own: a dtype, a constant, or a call that makes numbers."""
    nodes = graph_module.graph.nodes
    literals = any(_is_floating(leaf) for node in nodes for leaf in leaves_of(node))
    return literals or any(constant.is_floating_point() for constant in constants.values()) or any(map(_makes, nodes))


def _makes(node: Node) -> bool:
    """Return whether a call gives floating-point numbers and reads none."""
    if node.op not in ("call_function", "call_method") or not _is_floating(node.meta.get("dtype")):
        return False
    return node.target in ("float", "type") or not any(_is_floating(n.meta.get("dtype")) for n in node.all_input_nodes)


def other_precision(inputs: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> torch.dtype | None:
    """Return the precision to record in besides that of the inputs or parameters; None if there are several."""
    dtypes = {tensor.dtype for tensor in inputs.values() if tensor.is_floating_point()}
    dtypes = dtypes or {tensor.dtype for tensor in parameters if tensor.is_floating_point()}
    if len(dtypes) != 1:
        return None
    return torch.float32 if dtypes == {torch.float64} else torch.float64


def without_numbers(root: nn.Module, dtype: torch.dtype) -> dict[int, Tensor]:
    """Return for each large parameter one of zeros that takes no memory: of the twin only the calls are of interest."""
    return {
        id(p): nn.Parameter(torch.zeros((), dtype=dtype, device=p.device).expand(p.shape), requires_grad=False)
        for p in root.parameters()
        if not nn.parameter.is_lazy(p) and p.is_floating_point() and p.numel() >= _LARGE
    }


def follow_precision(
    graph_module: GraphModule,
    other: GraphModule,
    constants: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    recorded: torch.dtype,
) -> None:
    """Let dtypes and constants of a graph follow the precision of its input, or of a tensor of its own, in place.

    Args:
        graph_module: the graph.
        other: the same recorded in another precision. If it is another graph, nothing is changed.
        constants: the tensors made in forward, of either graph.
        recorded: precision of the graph.
    """
    literals = _changed_literals(graph_module, other)
    if literals is None:
        return
    stored = [node for node in graph_module.graph.nodes if str(node.target) in constants[0] and node.op == "get_attr"]
    finer = [node for node in stored if _is_rounded(*_both(node, constants))]
    for node in stored:
        if _is_fixed(*_both(node, constants)):
            cast(node, constants[0][str(node.target)].dtype)  # .double() moves what is stored, not what is made
    if literals or finer:
        dtype = _input_precision(graph_module) or precision_node(graph_module, recorded)
        for node, index in literals:
            exchange(node, index, dtype)
        for node in finer:
            _keep_finer(graph_module, node, constants[1][str(node.target)])
            cast(node, dtype)
    graph_module.graph.lint()
    graph_module.recompile()


def _input_precision(graph_module: GraphModule) -> Node | None:
    """Add a node that reads the dtype of the first floating-point input, if there is one, and return it."""
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    reference = next((node for node in placeholders if _is_floating(node.meta["dtype"])), None)
    return None if reference is None else _dtype_of(reference, placeholders[-1])


def precision_node(graph_module: GraphModule, recorded: torch.dtype) -> Node:
    """Add a tensor that moves with the network, and return the node that reads its dtype."""
    name = next(n for i in range(10**9) if not hasattr(graph_module, n := f"precision_{i}" if i else "precision"))
    graph_module.register_buffer(name, torch.zeros((), dtype=recorded))
    last = [node for node in graph_module.graph.nodes if node.op == "placeholder"][-1]
    with graph_module.graph.inserting_after(last):
        stored = graph_module.graph.get_attr(name)
    stored.meta = dict(last.meta) | {
        "shape": (),
        "dtype": recorded,
        "value": None,
        "type": "tensor",
        "origin": stored.name,
    }
    return _dtype_of(stored, stored)


def _dtype_of(node: Node, after: Node) -> Node:
    with node.graph.inserting_after(after):
        dtype = node.graph.call_function(getattr, (node, "dtype"))
    unknown = {"shape": None, "dtype": None, "value": None, "type": "other"}
    dtype.meta = dict(node.meta) | unknown | {"origin": dtype.name}
    return dtype


def _both(node: Node, constants: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
    return constants[0][str(node.target)], constants[1].get(str(node.target))


def _changed_literals(first: GraphModule, second: GraphModule) -> list[tuple[Node, int]] | None:
    """List the places of dtypes that changed with the precision; None where the graphs differ in anything else."""
    nodes, others = list(first.graph.nodes), list(second.graph.nodes)
    if len(nodes) != len(others):
        return None
    same: dict[Node, Node] = {}
    changed = []
    for node, other in zip(nodes, others, strict=True):
        leaves, their = leaves_of(node), leaves_of(other)
        if (node.op, node.target, len(leaves)) != (other.op, other.target, len(their)):
            return None
        for index, (leaf, its) in enumerate(zip(leaves, their, strict=True)):
            if _is_floating(leaf) and _is_floating(its) and leaf != its:
                changed.append((node, index))
            # A node equals the one that stands at its place in the other graph, anything else is compared by value.
            elif same.get(leaf) is not its if isinstance(leaf, Node) else not _is_equal(leaf, its):
                return None
        same[node] = other
    return changed


def _is_equal(leaf: object, other: object) -> bool:
    if isinstance(leaf, float) and isinstance(other, float):
        return True  # a number such as torch.finfo(x.dtype).min stays as it was read
    return type(leaf) is type(other) and bool(leaf == other)


def _is_floating(leaf: object) -> bool:
    return isinstance(leaf, torch.dtype) and leaf.is_floating_point


def _is_rounded(constant: Tensor, other: Tensor | None) -> bool:
    """Return whether a constant is another number, if not by much, in the other precision."""
    if other is None or constant.dtype == other.dtype or constant.shape != other.shape:
        return False
    difference = (constant.double() - other.double()).abs()
    difference = difference[constant.double() != other.double()]  # equal infinities differ by NaN
    scale = constant.double()[torch.isfinite(constant)].abs()
    return bool(difference.numel()) and bool((difference <= _CLOSE * scale.max()).all())


def _is_fixed(constant: Tensor, other: Tensor | None) -> bool:
    """Return whether a constant has one precision whatever the network's is."""
    return (
        constant.is_floating_point()
        and other is not None
        and constant.dtype == other.dtype
        and torch.equal(constant, other)
    )


def _keep_finer(graph_module: GraphModule, node: Node, other: Tensor) -> None:
    name = str(node.target)
    # The float64 recording holds digits that were lost in float32. They are kept, and cast where they are read.
    if other.dtype.itemsize > getattr(graph_module, name).dtype.itemsize:
        setattr(graph_module, name, other)
        node.meta["dtype"] = other.dtype


def cast(node: Node, dtype: Node | torch.dtype) -> None:
    """Cast the value of a node for all its users, in place."""
    users = list(node.users)
    with node.graph.inserting_after(node):
        converted = node.graph.call_method("to", (node, dtype))
    converted.meta = dict(node.meta) | {"origin": converted.name}
    for user in users:
        user.replace_input_with(node, converted)
