"""certify(): is a network dynamic linear, and do its contributions add up?"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from bcos_fx import example
from bcos_fx.errors import UsageError, nearest
from bcos_fx.explanation.certificate import Certificate
from bcos_fx.explanation.completeness import Completeness, check_completeness
from bcos_fx.explanation.preparation import Source
from bcos_fx.explanation.view import ExplanationView
from bcos_fx.network import BcosNetwork
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.tracing import trace
from bcos_fx.tracing.exported import as_module
from bcos_fx.validation import check_module

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Certification(Certificate):
    """A certificate, with what was measured.

    Attributes:
        completeness: how well contributions add up on the given inputs; None where none were given.
    """

    completeness: Completeness | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain data."""
        measured = None if self.completeness is None else self.completeness.to_dict()
        return dataclasses.asdict(dataclasses.replace(self, completeness=None)) | {"completeness": measured}

    def to_text(self) -> str:
        """Return the certificate as text for people."""
        said = super().to_text()
        return said if self.completeness is None else f"{said}\ncontributions {self.completeness}"


def certify(
    module: nn.Module, inputs: Inputs | None = None, *, output: str | None = None, source: Source = None
) -> Certification:
    """Say whether a network is dynamic linear: f(x) = W(x)·x + constants.

    The answer is read off the graph, by the linearity classes of ``rules/ops.toml``. An ordinary ReLU network is
    dynamic linear as well as a B-cos network is.

    Args:
        module: a converted network or any other module; it is not changed.
        inputs: what the module takes, as in ``bcosify``; completeness is then measured on it. A module that is not
            converted needs them where its first layer does not tell.
        output: what is explained: None for the output, ``logits`` for the value before a final softmax or sigmoid, or
            the name of a layer.
        source: what it is explained by: None for the main input, which is the first that a layer with weights reads by
            itself; or the name of an input or a layer, or several names. The certificate is for this source alone:
            what does not depend on it is a constant or a weight.

    Returns:
        The certificate: ``ok``, ``breaks``, ``constants``, ``choices``, and ``completeness`` with inputs.

    Raises:
        UsageError: no layer has such a name, or the inputs do not fit.
        TraceError: the module cannot be turned into a graph.
    """
    view = view_of(module, inputs, output=output, source=source)
    measured = None
    if inputs is not None:
        given = in_order([str(node.target) for node in view.inputs], inputs)
        view.check_values(given)
        measured = check_completeness(view, given)
    return Certification(**vars(view.certificate), completeness=measured)


def view_of(
    module: nn.Module, inputs: Inputs | None = None, *, output: str | None = None, source: Source = None
) -> ExplanationView:
    """Build the explanation view of a network; see :func:`certify` for the arguments.

    The view of a converted network follows its training, and is kept for the next call; that of another module is one
    of a copy.
    """
    check_module(module := as_module(module))
    if module.training:
        raise UsageError(
            "the network is in train mode, and an explanation is one of eval mode", hint="call network.eval() first"
        )
    with torch.no_grad():
        if isinstance(module, BcosNetwork) and inputs is not None:
            names = [spec.name for spec in module.record.inputs]
            given = [inputs] if isinstance(inputs, Tensor) else inputs
            module = module.of_size(in_order(names, given) if isinstance(given, Mapping) else given)
        if not isinstance(module, BcosNetwork):
            return ExplanationView(_traced(module, inputs), output=output, source=source)
        kept, made_of = _VIEWS.setdefault(module, {}), _made_of(module)
        source = source if source is None or isinstance(source, str) else tuple(source)
        view, parts = kept.get((output, source), (None, None))
        if view is None or parts != made_of:
            view = ExplanationView(module, output=output, source=source)
            kept[output, source] = view, made_of
        return view


def in_order(names: Sequence[str], inputs: Inputs) -> list[Tensor]:
    """Return a network's inputs in its own order.

    Args:
        names: of the inputs, in that order.
        inputs: one tensor, several in order (what is no tensor is passed over), or all by name.

    Raises:
        UsageError: a name is unknown, or one is missing; or there are more or less.
    """
    if isinstance(inputs, Mapping):
        for name in inputs:
            if name not in names:
                raise UsageError(f"the network has no input {name!r}", hint=nearest(name, names))
        missing = [name for name in names if name not in inputs]
        if missing:
            raise UsageError(f"the input {missing[0]!r} is missing", hint=f"the network takes {', '.join(names)}")
        return [inputs[name] for name in names]
    given = [inputs] if isinstance(inputs, Tensor) else [value for value in inputs if isinstance(value, Tensor)]
    if len(given) != len(names):
        raise UsageError(f"{len(given)} inputs were given, the network takes {len(names)} ({', '.join(names)})")
    return given


_VIEWS: WeakKeyDictionary[BcosNetwork, dict[Any, tuple[ExplanationView | None, Any]]] = WeakKeyDictionary()


def _made_of(network: BcosNetwork) -> list[Any]:
    """What a view depends on: which layers there are, which of them add something, and tensors that the graph reads.

    The rest is read anew from the layers. Moving or casting a network puts new buffers in the old ones' place; the
    tensors themselves are kept here, so that no new one can have an old one's identity.
    """
    layers: list[Any] = [(id(layer), getattr(layer, "bias", None) is None) for layer in network.modules()]
    read = [str(node.target) for node in network.graph.nodes if node.op == "get_attr"]
    return layers + [_Same(operator.attrgetter(name)(network)) for name in read]


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """Equal where it holds the same object."""

    held: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)


def _traced(module: nn.Module, inputs: Inputs | None) -> fx.GraphModule:
    def traced(example_inputs: Inputs) -> fx.GraphModule:
        return trace(module, example_inputs, leaf_modules=vocabulary().peers).graph_module

    return example.first_that_runs(module, traced)[1] if inputs is None else traced(_two_samples(inputs))


def _two_samples(inputs: Inputs) -> Inputs:
    """At least two samples: a single one could be taken for a size that is always 1."""
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs]) if len(inputs) == 1 else inputs[:2]
    if isinstance(inputs, Mapping):
        return {name: _sample_pair(value) for name, value in inputs.items()}
    return [_sample_pair(value) for value in inputs]


def _sample_pair(value: Any) -> Any:
    return _two_samples(value) if isinstance(value, Tensor) and value.dim() else value
