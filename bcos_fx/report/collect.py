"""Read off a graph what its report contains: a row per node, what is unknown or gone, how much was converted."""

from __future__ import annotations

from torch import fx, nn

from bcos_fx.nn import BcosLayer
from bcos_fx.report.model import Coverage, NodeRow
from bcos_fx.rewriting.core.reader import GraphReader, is_boundary
from bcos_fx.rewriting.core.rewrite import RuleApplication
from bcos_fx.tracing.program import attribute, everything_read


def mark_origins(reader: GraphReader) -> None:
    """Note on every node of a freshly traced graph what it is, so that the report can say what it was."""
    for node in reader.graph_module.graph.nodes:
        node.meta["was"] = reader.op(node) or describe_target(node)


def describe_target(node: fx.Node) -> str:
    """Name the target of a node that the vocabulary does not know."""
    target = node.target
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"


def read_rows(reader: GraphReader) -> tuple[NodeRow, ...]:
    """Return a row per node of the graph, in order."""
    kinds = reader.flow.kinds
    return tuple(
        NodeRow(
            name=node.name,
            op=op_name(reader, node),
            inputs=tuple(source.name for source in node.all_input_nodes),
            was=node.meta.get("was"),
            rules=tuple(node.meta.get("rules", ())),
            module=str(node.target) if node.op in ("call_module", "get_attr") else None,
            source=node.meta.get("source"),
            kind=kinds[node.name],
            b=_pressure(reader, node),
        )
        for node in reader.graph_module.graph.nodes
    )


def _pressure(reader: GraphReader, node: fx.Node) -> float | None:
    call = reader.call(node)
    return call.module.b if call is not None and isinstance(call.module, BcosLayer) else None


def op_name(reader: GraphReader, node: fx.Node) -> str:
    """Return the canonical name of a node's op; of one that no entry knows its class or function."""
    known = reader.op(node)
    if known is not None:
        return known
    if node.op == "call_module":
        return type(reader.graph_module.get_submodule(str(node.target))).__name__
    return describe_target(node)


def unknown_rows(reader: GraphReader, rows: tuple[NodeRow, ...]) -> tuple[NodeRow, ...]:
    """Return the rows whose op no entry of the vocabulary knows."""
    known = {op.name for op in reader.vocabulary}
    return tuple(row for row in rows if row.op not in known and not is_boundary(row.op))


def removed_nodes(
    steps: list[RuleApplication], before: tuple[NodeRow, ...], after: tuple[NodeRow, ...]
) -> dict[str, str]:
    """Return the traced nodes that are gone, each with the rule that rewrote it or its surroundings last."""
    present = {row.name for row in after}
    last = {step.node: step.rule for step in steps}
    return {row.name: last.get(row.name, "unused afterwards") for row in before if row.name not in present}


def coverage(reader: GraphReader) -> Coverage:
    """Count the linear and convolution parameters on value paths, and those in B-cos layers.

    A functional layer counts with the stored tensors that it reads, however indirectly, and an unknown module
    with all its parameters: what no B-cos layer holds must not go missing from the total.
    """
    counted: dict[int, tuple[int, bool]] = {}
    for node in reader.graph_module.graph.nodes:
        op = reader.vocabulary.of(node, reader.graph_module)
        weighted = op.weighted if op is not None else node.op.startswith("call_")
        if not weighted or not reader.flow.on_value_path(node):
            continue
        for parameter, converted in _weights(reader, node):
            counted[id(parameter)] = (parameter.numel(), converted or counted.get(id(parameter), (0, False))[1])
    return Coverage(
        converted=sum(size for size, converted in counted.values() if converted),
        total=sum(size for size, _ in counted.values()),
    )


def _weights(reader: GraphReader, node: fx.Node) -> list[tuple[nn.Parameter, bool]]:
    root = reader.graph_module
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return [(parameter, isinstance(module, BcosLayer)) for parameter in module.parameters()]
    call = reader.call(node)
    stored = [source for source in node.all_input_nodes if source.op == "get_attr"]
    starts = call.nodes("weight") + call.nodes("bias") if call else stored
    read = [source for source in everything_read(starts) if source.op == "get_attr"]
    tensors = [attribute(root, str(source.target)) for source in read]
    return [(tensor, False) for tensor in tensors if isinstance(tensor, nn.Parameter)]
