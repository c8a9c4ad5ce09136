"""Why a rule does not match: a conversion is run up to the rule's turn, and the rule is tried at every node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bcos_fx.convert import bcosify
from bcos_fx.errors import RuleError, nearest
from bcos_fx.escaping import amount
from bcos_fx.explanation.certify import certify
from bcos_fx.explanation.preparation import recipe as view_recipe
from bcos_fx.network import BcosNetwork
from bcos_fx.rewriting.core.diagnosis import Attempt, watching
from bcos_fx.rewriting.core.recipe import DEFAULT_RECIPE, load_recipe
from bcos_fx.rewriting.core.rule import Rule


@dataclass(frozen=True)
class Diagnosis:
    """What becomes of a rule in a network.

    Attributes:
        rule: its name.
        phase: its phase.
        origin: ``file:line``.
        attempts: one for each node of the graph as the rule found it when its turn first came, in order.
        inactive: why the rule was not tried at all; None if it was.
    """

    rule: str
    phase: str
    origin: str
    attempts: tuple[Attempt, ...]
    inactive: str | None

    @property
    def fits(self) -> tuple[str, ...]:
        """The nodes that the rule rewrites."""
        return tuple(attempt.node for attempt in self.attempts if attempt.fits)

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain data; where a rule file lies is left out."""
        return asdict(self) | {"origin": Path(self.origin).name}

    def to_json(self) -> str:
        """Return the diagnosis as JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def to_text(self) -> str:
        """Return the diagnosis as text: the nodes that fit, then the others with the first condition that failed."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"rule {self.rule} (phase {self.phase}, {Path(self.origin).name})"
        if self.inactive is not None:
            yield f"  was not tried: {self.inactive}"
            return
        yield f"  matches {len(self.fits)} of {amount(len(self.attempts), 'node')} as it finds them"
        for attempt in self.attempts:
            if attempt.fits:
                yield f"  {attempt.node} ({attempt.op}): matches"
            elif attempt.tried:
                place = f" [{attempt.source}]" if attempt.source else ""
                yield f"  {attempt.node} ({attempt.op}): {attempt.condition}{place}"
        others = [f"{attempt.node} ({attempt.op})" for attempt in self.attempts if not attempt.tried]
        if others:
            yield f"  of another op than the rule's last pattern node: {', '.join(others)}"

    def __str__(self) -> str:
        return self.to_text()


def why_not(rule: str, module: nn.Module, **arguments: Any) -> Diagnosis:
    """Say at every node of a network why a rule does not match there: the first condition that failed.

    Args:
        rule: its name. A rule of the phase ``freeze`` is tried in the network's explanation view.
        module: the network before its conversion; or a converted one, for a rule of the phase ``freeze``.
        arguments: as for :func:`bcos_fx.bcosify`: ``rules`` names the file of a rule of your own.

    Raises:
        RuleError: neither the recipe nor ``rules`` has a rule of that name.
        BcosFxError: as :func:`bcos_fx.bcosify` raises before the rule's turn comes.
    """
    recipe = load_recipe(arguments.get("recipe") or DEFAULT_RECIPE, extra_rules=arguments.get("rules", ()))
    known = {known_rule.name: known_rule for known_rule in (*recipe.rules, *view_recipe().rules)}
    if rule not in known:
        raise RuleError(f"{recipe.name} has no rule named {rule!r}", hint=nearest(rule, known))
    with watching(rule) as attempts:
        network = module
        if not isinstance(module, BcosNetwork):
            network = bcosify(module, **{**arguments, "verified": False, "calibration_images": None})
        if known[rule].phase == "freeze":
            attempts.clear()
            certify(network.eval())
    inactive = None if attempts else _inactive(known[rule], network)
    return Diagnosis(rule, known[rule].phase, known[rule].origin, tuple(attempts), inactive)


def _inactive(rule: Rule, network: nn.Module) -> str:
    options = network.report.options if isinstance(network, BcosNetwork) else {}
    for name, wanted in rule.when.items():
        accepted = wanted if isinstance(wanted, list) else [wanted]
        if options.get(name) not in accepted:
            return f"it is for {name} = {' or '.join(map(str, accepted))}, and {name} is {options.get(name)}"
    return "no phase that ran has it: a converted network is rewritten no more, so give the network before it"
