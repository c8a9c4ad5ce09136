"""certify(): is a network dynamic linear, and do its contributions add up?"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from bcos_fx.errors import BcosFxError
from bcos_fx.explanation.arranged import arranged_view_of
from bcos_fx.explanation.certificate import Certificate
from bcos_fx.explanation.completeness import Completeness, check_completeness
from bcos_fx.explanation.preparation import SourceNames
from bcos_fx.explanation.view import in_order
from bcos_fx.report.model import Explainable
from bcos_fx.tracing.inputs import BatchAxis, ExampleInputs


@dataclasses.dataclass(frozen=True, repr=False)
class Certification(Certificate):
    """A certificate, with what was measured.

    Attributes:
        completeness: how well contributions add up on the given inputs; None where none were given.
    """

    completeness: Completeness | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain data."""
        measured = None if self.completeness is None else self.completeness.to_dict()
        # asdict() would copy every tensor of the completeness.
        return dataclasses.asdict(dataclasses.replace(self, completeness=None)) | {"completeness": measured}

    def brief(self) -> list[str]:
        """Return the certificate's lines and, where it was measured, whether contributions add up."""
        measured = [] if self.completeness is None else [f"  contributions {self.completeness}"]
        return [*super().brief(), *measured]

    def to_text(self) -> str:
        """Return the certificate as text for people."""
        text = super().to_text()
        return text if self.completeness is None else f"{text}\ncontributions {self.completeness}"


def explainable(network: nn.Module, *, batch_axis: BatchAxis = 0) -> Explainable:
    """Return whether a network's output can be explained, or the value before its last gates, and why not.

    Args:
        network: a converted network; nothing is run.
        batch_axis: as for :func:`certify`.
    """
    reasons: tuple[str, ...] = ()
    for output in (None, "logits"):
        try:
            certification = certify(network, output=output, batch_axis=batch_axis)
        except BcosFxError as error:
            reasons = reasons or (error.what,)
            continue
        if certification.ok:
            return Explainable(output or "output", reasons)
        reasons = reasons or tuple(map(str, certification.breaks))
    return Explainable(None, reasons)


def certify(
    module: nn.Module,
    inputs: ExampleInputs | None = None,
    *,
    output: str | None = None,
    source: SourceNames = None,
    batch_axis: BatchAxis = 0,
) -> Certification:
    """Return whether a network is dynamic linear: f(x) = W(x)·x + constants.

    The answer is read off the graph, by the linearity classes of ``rules/ops.toml``. An ordinary ReLU network is
    dynamic linear as well as a B-cos network is.

    Args:
        module: a converted network or any other module; it is not changed.
        inputs: what the module takes, as in ``bcosify``; completeness is then measured on it. A module that is not
            converted needs them where its first layer does not determine them.
        output: what is explained: None for the output, ``logits`` for the value before a final softmax or sigmoid, or
            the name of a layer.
        source: what it is explained by: None for the main input, which is the first that a layer with weights reads by
            itself; or the name of an input or a layer, or several names. The certificate is for this source alone:
            what does not depend on it is a constant or a weight.
        batch_axis: the dimension of the first input that holds its samples; None: it is one sample as a whole; or
            either for each input by name, as for :func:`bcos_fx.explain`.

    Returns:
        The certificate: ``ok``, ``breaks``, ``constants``, ``choices``, and ``completeness`` with inputs.

    Raises:
        UsageError: no layer has such a name, or the inputs do not fit.
        TraceError: the module cannot be turned into a graph.
    """
    view = arranged_view_of(module, inputs, batch_axis, output=output, source=source)
    measured = None
    if inputs is not None:
        given = view.arrange(in_order([str(node.target) for node in view.inputs], inputs))
        view.check_values(given)
        measured = check_completeness(view, given)
    return Certification(**vars(view.certificate), completeness=measured)
