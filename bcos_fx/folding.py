"""optimize(): a network that is not trained any more, with what is constant in eval mode computed once."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

from torch import Tensor, fx

from bcos_fx.errors import UsageError, VerificationError
from bcos_fx.network import BcosNetwork
from bcos_fx.report.collect import coverage, read_rows, removed_nodes
from bcos_fx.report.model import RuleUse
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.passes import Engine
from bcos_fx.rewriting.core.precision import Precision
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import Recipe
from bcos_fx.rewriting.core.rulefile import load_rules
from bcos_fx.tracing import own_modes
from bcos_fx.verification.equivalence import verify
from bcos_fx.verification.judging import differs

_WHY = "batch norms are folded into the layers before them (bcos_fx.optimize), as they are in eval mode"


@functools.cache
def _recipe() -> Recipe:
    return Recipe(
        name="optimize",
        description="What is constant in eval mode is computed once.",
        source="Jacob et al. 2018, sec. 3.2",
        rules=tuple(load_rules([rules_directory() / "optimize.toml"])),
        options=Options(input="none"),
        fixed={},
        hashes={},
    )


def optimize(network: BcosNetwork, inputs: object = None) -> BcosNetwork:
    """Return a copy of a converted network that computes the same in eval mode, with less work.

    Batch norms become part of the B-cos layers before them: their scale part of the weights, at every B, and their
    shift part of the bias. Explanations and certificates work as before, with the same W(x) and the same sums; the
    shift of a norm is counted as the constant of the layer that it is part of.

    Args:
        network: in eval mode; it is not changed.
        inputs: what it takes, to prove on that nothing changed: a tensor, or several in order. None: made-up ones in
            [0, 1), for a network with one input of numbers.

    Returns:
        A network in eval mode that refuses to be trained, and whose report names the rules. It can be saved, exported
        and explained; statistics are gone, so fine-tune and calibrate before.

    Raises:
        UsageError: it is not a converted network, or in train mode; or ``inputs`` are needed.
        VerificationError: a rule changed what it computes, in float64, by more than 1e-9.
    """
    if not isinstance(network, BcosNetwork):
        raise UsageError(f"cannot optimize a {type(network).__name__}", hint="give a network that bcosify returned")
    if any(module.training for module in network.modules()):
        raise UsageError("the network is in train mode", hint="call network.eval() first: nothing is constant before")
    with own_modes():
        graph_module = copy.deepcopy(network).graph_module().eval()
        precision = Precision(graph_module)
        precision.raise_()
        log = Engine(_recipe()).run(graph_module, ("fold",))
        _check_equal(network, graph_module, inputs)
        precision.restore_()
        reader = GraphReader(graph_module, vocabulary(), Options(input="none"))
        rows, report = read_rows(reader), network.report
        known = {rule.name: RuleUse(rule.phase, rule.preserves) for rule in _recipe().rules}
        report = dataclasses.replace(
            report,
            nodes=rows,
            rules={**report.rules, **{step.rule: known[step.rule] for step in log.steps}},
            removed={**report.removed, **removed_nodes(log.steps, report.nodes, rows)},
            near_misses=tuple(dict.fromkeys((*report.near_misses, *log.near_misses))),
            coverage=coverage(reader),
            train_difference=_WHY,
        )
        record = dataclasses.replace(network.record, report=report, train_difference=_WHY, train="refuse")
        return BcosNetwork(graph_module, record)


def _check_equal(network: BcosNetwork, folded: fx.GraphModule, inputs: Any) -> None:
    """Check that both compute the same, in float64.

    Raises:
        UsageError: they need inputs, and none were given.
        VerificationError: they do not.
    """
    specs = network.record.inputs
    whole = any(spec.samples != 0 for spec in specs)
    if inputs is None and (len(specs) > 1 or whole):
        raise UsageError("the network takes more than one batch of images", hint="give inputs=, to prove equality on")
    sizes = () if whole or network.record.guards else None
    first = inputs if isinstance(inputs, Tensor) else inputs[0] if inputs is not None else None
    batches = (len(first),) if whole and first is not None else (1, 2)
    verification = verify(network, folded, inputs, batch_sizes=batches, sizes=sizes, transform=lambda x: x)
    if differs(verification.comparisons):
        raise VerificationError(
            f"the optimized network computes something else: {verification.detail}",
            where=", ".join(rule.name for rule in _recipe().rules),
            hint="report it as a bug",
        )
