"""Where in a converted network B and constants may change: exactly where the rules would change them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.errors import VerificationError
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosLayer
from bcos_fx.report import Report
from bcos_fx.report.collect import read_rows, removed_nodes
from bcos_fx.report.model import NodeRow, RuleUse
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.match import Predicate
from bcos_fx.rewriting.core.ops import Call, vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.passes import Engine, PassLog
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import Recipe
from bcos_fx.rewriting.core.registry import PREDICATES
from bcos_fx.rewriting.core.rulefile import load_rules
from bcos_fx.verification.equivalence import verify
from bcos_fx.verification.judging import differs


def layers_of_phase(network: BcosNetwork, phase: str) -> list[str]:
    """Return the paths of the modules that the rules of the phase ``align`` or ``bias`` would rewrite, in graph order.

    So a layer that came with a B of its own, or one that feeds gates alone, is left as it is here too.
    """
    graph_module = network.graph_module()
    targets = {node.name: str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}
    # A higher B than any layer has, so that no layer already is as the rules would make it.
    highest = max((layer.b for layer in network.modules() if isinstance(layer, BcosLayer)), default=1.0)
    changes: dict[str, dict[str, Any]] = {"align": {"b": highest + 1}, "bias": {"bias": "strip"}}
    log = _engine(network, phase, changes[phase]).run(graph_module, (phase,))
    return list(dict.fromkeys(targets[step.node] for step in log.steps))


def without_zero_constants(network: BcosNetwork, images: Tensor) -> BcosNetwork:
    """Take biases and shifts that are exactly 0 out of the graph, and prove that nothing changed.

    Args:
        network: in any mode; it is not changed, and shares its parameters with the result.
        images: (N, ...) its input, to compare both on.

    Returns:
        The network without them, in the same mode; ``network`` itself where there are none.

    Raises:
        VerificationError: the rules of the bias phase changed the function.
    """
    predicates: Mapping[str, Predicate] = {**PREDICATES, "has-bias": _has_zero_bias}
    graph_module = network.graph_module()
    before = read_rows(_reader(graph_module))
    with torch.no_grad():
        log = _engine(network, "bias", {"bias": "strip"}, predicates).run(graph_module, ("bias",))
    if not log.steps:
        return network
    stripped = BcosNetwork(graph_module, network.record)
    result = verify(network, stripped, images, batch_sizes=(1, 2), sizes=(), transform=lambda x: x)
    if differs(result.comparisons):
        raise VerificationError(
            f"taking out biases that are 0 changed the network: {result.detail}",
            hint="report it as a bug; the last checkpoint holds the network with them",
        )
    return stripped.with_report(_reported(stripped, before, log))


def _engine(
    network: BcosNetwork, phase: str, changes: Mapping[str, Any], predicates: Mapping[str, Predicate] = PREDICATES
) -> Engine:
    recipe = Recipe(
        name=f"fine-tuning, phase {phase}",
        description="",
        source="",
        rules=tuple(load_rules([rules_directory() / f"{phase}.toml"])),
        options=Options().with_changes(changes),
        fixed={},
        hashes={},
    )
    return Engine(recipe, predicates=predicates)


def _reader(graph_module: fx.GraphModule) -> GraphReader:
    return GraphReader(graph_module, vocabulary(), Options())


def constants_of(module: nn.Module) -> list[Tensor]:
    """Return what makes up the constant that a layer adds: its bias and, of a norm, the mean folded into its shift."""
    tensors = [getattr(module, name, None) for name in ("bias", "running_mean")]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def _has_zero_bias(reader: GraphReader, call: Call) -> bool:
    if PREDICATES["has-bias"](reader, call) is not True or call.module is None:
        return False
    return all(not bool(tensor.any()) for tensor in constants_of(call.module))


def _reported(network: BcosNetwork, before: tuple[NodeRow, ...], log: PassLog) -> Report:
    report = network.report
    rows = read_rows(_reader(network.graph_module()))
    used = {step.rule: RuleUse("bias", "never") for step in log.steps}
    return dataclasses.replace(
        report,
        rules={**report.rules, **used},
        nodes=rows,
        removed={**report.removed, **removed_nodes(log.steps, before, rows)},
        options={**report.options, "bias": "strip"},
    )


def synthetic_batch(network: BcosNetwork) -> Tensor:
    """Return four images of noise in [0, 1], of the shape, type and device that the network takes."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, *network.input_shape, generator=generator).to(next(network.parameters()))
