"""export(): a network, or its explanation, as a file that other programs run; checked before it is called done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bcos_fx.errors import TraceError, UsageError
from bcos_fx.escaping import amount
from bcos_fx.explanation.view import in_order
from bcos_fx.exporting.formats import format_of
from bcos_fx.exporting.graphs import ANY, program
from bcos_fx.exporting.subjects import ExplanationOfOutputs, Exportable, ExportableNetwork, FileCheck
from bcos_fx.files import check_target, replacing
from bcos_fx.network import BcosNetwork
from bcos_fx.tracing.exported import as_module
from bcos_fx.tracing.inputs import ExampleInputs, bind
from bcos_fx.validation import check_module
from bcos_fx.verification.samples import synthetic_images
from bcos_fx.version import __version__

_SAMPLES, _TRACED = 4, 2


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written, and how it was checked.

    Attributes:
        path: of the file.
        kind: ``network`` or ``explanation``.
        inputs: name -> shape in words, in order.
        outputs: names, in order.
        constants: what the columns of the output ``constants`` are; empty for a network.
        why_one: why a call takes one sample only; None where it takes any number.
        check: what it was found to compute.
        size: in bytes.
    """

    path: str
    kind: str
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    constants: tuple[str, ...]
    why_one: str | None
    check: FileCheck
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """Say in a few lines what the file takes and gives, and what it was checked for."""
        taken = ", ".join(f"{name} {shape}" for name, shape in self.inputs.items())
        lines = [
            f"Wrote {self.path} ({self.size / 1e6:,.1f} MB): {taken} -> {', '.join(self.outputs)}",
            f"run from the file: this package's own numbers, but for {self.check.difference:.1e} of the largest",
        ]
        if self.check.completeness is not None:
            sums = f"contributions + {amount(len(self.constants), 'constant')} = output"
            lines.append(f"{sums}: {self.check.completeness}, largest gap {self.check.gap:.1e} of the terms")
        return "\n".join([*lines, *([f"one sample at a time: {self.why_one}"] if self.why_one else [])])

    def __repr__(self) -> str:
        return self.to_text()


def export(
    model: nn.Module,
    path: str | Path,
    inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    *,
    explanation: bool = False,
    output: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
) -> ExportedFile:
    """Write a network, or its explanation, as a graph that runs without this package.

    The explanation is the gradient of the explanation view, recorded as a graph of ordinary operations:
    (inputs, target) to (logits, contributions, constants, weights), for the index of any output at run time. The file
    is run before it is put in its place: its numbers are those of the network and of :func:`bcos_fx.explain`, and its
    contributions and constants add up to the network's output.

    Args:
        model: a converted network in eval mode; or, with inputs, any other module: for an explanation a dynamic linear
            one.
        path: of the file: ``.onnx`` for ONNX runtimes, ``.pt2`` for ``torch.export.load``.
        inputs: samples to check the file on, (N, ...): a tensor, several in order, or all by name; None: made-up
            images. Their sizes but for N are those that the file takes.
        explanation: export the explanation, and not the network.
        output: what is explained, as for :func:`bcos_fx.explain`.
        source: what it is explained by, as there; the name of one input or layer.
        overwrite: whether an existing file may be replaced.

    Raises:
        MissingExtraError: ONNX's libraries are not installed.
        UsageError: the path, inputs or names make no sense, or the file would be too large.
        TraceError: an operation cannot be exported.
        VerificationError: the network is not dynamic linear, or the file computes something else; nothing is written.
    """
    path = Path(path)
    form = format_of(path.suffix)
    check_target(path, overwrite=overwrite)
    form.check_installed()
    if not explanation and (output, source) != (None, None):
        raise UsageError("an output or source was named, and the network is exported", hint="set explanation=True")
    if not isinstance(model, BcosNetwork):
        check_module(model := as_module(model))
    if model.training:
        raise UsageError("the network is in train mode, and what is exported is eval mode", hint="call network.eval()")
    names, given = _inputs(model, inputs)
    subject: Exportable = (
        ExplanationOfOutputs(model, given, output, source) if explanation else ExportableNetwork(model, given)
    )
    recorded, why_one = _recorded(subject)
    taken = [*names, "target_index" if "target" in names else "target"] if explanation else names
    shapes = {name: _shape(value, why_one) for name, value in zip(taken, subject.arguments(slice(1)), strict=True)}
    facts: dict[str, Any] = {"version": __version__, "kind": subject.kind, "inputs": shapes}
    facts |= {"outputs": subject.outputs, "constants": subject.constants}
    facts["classes"] = model.record.classes if isinstance(model, BcosNetwork) else ()
    content = form.write(recorded, taken, subject.outputs, json.dumps(facts))
    check = subject.check(form.reader(content), 1 if why_one else len(given[0]))
    with replacing(path, "the exported file", overwrite=overwrite) as stream:
        stream.write(content)
    return ExportedFile(
        str(path), subject.kind, shapes, subject.outputs, subject.constants, why_one, check, len(content)
    )


def _inputs(model: nn.Module, inputs: ExampleInputs | None) -> tuple[list[str], list[Tensor]]:
    """Return names and values of what the network takes, with enough samples to show that their number is free."""
    if isinstance(model, BcosNetwork):
        names = [spec.name for spec in model.record.inputs]
        given = made_up(model) if inputs is None else in_order(names, inputs)
        model.check_inputs(tuple(given))
    elif inputs is None:
        raise UsageError("what the module takes is not known", hint="give inputs=, a batch of samples")
    else:
        bound = bind(model, inputs).named
        names, given = list(bound), list(bound.values())
    if not all(isinstance(value, Tensor) and value.dim() and len(value) == len(given[0]) > 0 for value in given):
        raise UsageError(
            "the inputs do not all hold the same samples, in their first dimension",
            hint="give (N, ...) for each; a network whose samples lie elsewhere is explained from Python",
        )
    short = len(given[0]) < _TRACED
    return names, [value.detach().repeat(_TRACED, *[1] * (value.dim() - 1)) if short else value for value in given]


def made_up(model: BcosNetwork) -> list[Tensor]:
    """Return images that differ strongly, as the only input of a network that takes images.

    Raises:
        UsageError: it takes something else.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    spec, *more = model.record.inputs
    if more or spec.samples != 0 or not spec.encoded:
        raise UsageError("only images are made up, and the network takes something else", hint="give inputs=")
    return [synthetic_images(spec.sizes(spec.shape), _SAMPLES, seed=0).tensors[0].to(like)]


def _recorded(subject: Exportable) -> tuple[ExportedProgram, str | None]:
    """Return the program, and why it takes one sample at a time where it does."""
    if subject.why_one is None:
        try:
            return program(subject.graph, subject.arguments(slice(_TRACED)), any_batch=True), None
        except TraceError as error:
            why = error.what
    else:
        why = subject.why_one
    return program(subject.graph, subject.arguments(slice(1)), any_batch=False), why


def _shape(value: Tensor, why_one: str | None) -> str:
    sizes = ", ".join([ANY if why_one is None else "1", *map(str, value.shape[1:])])
    return f"({sizes}) {str(value.dtype).removeprefix('torch.')}"
