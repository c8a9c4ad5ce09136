"""calibrate(): statistics and gains that fit a network again after its B was raised; no labels, no gradients."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.calibration.batches import Batch, read_batches
from bcos_fx.calibration.layers import Gain, Layer, Norm, layers_of
from bcos_fx.calibration.moments import Moments
from bcos_fx.calibration.original import Original, Targets, evaluating, is_classes, own_record
from bcos_fx.calibration.walk import Frontier, Program
from bcos_fx.deprecation import formerly
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.network import BcosNetwork
from bcos_fx.report.model import Agreement, Calibration, LayerChange
from bcos_fx.validation import check_same_classes


@formerly(output="output_key", reference="original")
def calibrate(
    model: BcosNetwork,
    images: object,
    original: nn.Module | None = None,
    *,
    output_key: int | str | None = None,
    batch_size: int = 64,
    memory: int = 2 << 30,
    progress: Callable[[str], None] | None = None,
) -> BcosNetwork:
    """Return a copy of a converted network whose statistics and gains fit its raised B; ``model`` stays as it is.

    Raising B shrinks activations, and the statistics that the original was trained with no longer fit. Here every batch
    norm measures mean and variance of its input again, and every layer whose output no batch norm takes up is scaled to
    the deviation (and shifted to the mean, where it has a bias) that the original's has, per channel, in the order of
    the graph: each layer sees what the calibrated ones before it give. No labels, no gradients, no randomness.

    Args:
        model: from :func:`bcos_fx.bcosify`, in float32 or float64.
        images: a few hundred samples like those that the network is for: a tensor (N, ...), a Dataset, or an iterable
            of batches (a DataLoader), as the network takes them ([0, 1] for images). Where labels come behind the
            inputs, accuracy is reported; they are used for nothing else. Read once, in order.
        original: the module that was converted, or a conversion of it at B = 1. Needed for agreement, and
            for gains where the network at B = 1 is not the original any more (biases removed, calibrated before).
        output_key: which part of the original's output to take, as for :func:`bcos_fx.bcosify`.
        batch_size: for a tensor or a Dataset.
        memory: bytes of activations that are kept in memory; what is beyond is kept in temporary files meanwhile.
        progress: called with a short text as the work goes on.

    Returns:
        A copy in eval mode whose ``report.figures.calibration`` says what changed, and accuracy and agreement before
        and after on these images.

    Raises:
        UsageError: no converted network, none that can be calibrated, 16-bit floats, images of another form, range or
            with NaN, none at all, or an ``original`` that is not the one.
        TraceError: the original cannot be traced.
    """
    _check_network(model)
    twin = copy.deepcopy(model).eval()
    calibrate_(
        twin,
        images,
        original,
        output_key=output_key,
        batch_size=batch_size,
        memory=memory,
        measured=True,
        progress=progress,
    )
    return twin


@formerly(output="output_key", reference="original")
def calibrate_(
    network: BcosNetwork,
    images: object,
    original: nn.Module | Targets | None = None,
    *,
    output_key: int | str | None = None,
    batch_size: int = 64,
    memory: int = 2 << 30,
    measured: bool = False,
    constants: Mapping[str, float] = MappingProxyType({}),
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Calibrate a network in place: as :func:`calibrate`, but parameters, buffers and the report of ``network`` change.

    Parameters stay the same objects, so an optimizer goes on with them; modes are left as they were. Nothing changes
    where an error is raised before the first batch norm or layer was.

    Args:
        network: from :func:`bcos_fx.bcosify`, in float32 or float64.
        images: as for :func:`calibrate`.
        original: as there; or what :func:`measure_original` measured on the same images in the same batches, which
            saves running the original again.
        output_key: which part of the original's output to take, as for :func:`bcos_fx.bcosify`.
        batch_size: for a tensor or a Dataset.
        memory: bytes of activations that are kept in memory.
        measured: measure accuracy and agreement, which costs one more run.
        constants: path of a layer -> the share in [0, 1] of the constant that would fit which it is given, where
            constants fade while a network is trained; all of it where none is given.
        progress: called with a short text as the work goes on.

    Returns:
        What changed, as in the report.

    Raises:
        UsageError, TraceError: as for :func:`calibrate`.
    """
    _check_network(network)
    with torch.inference_mode(False), torch.no_grad(), evaluating(network), Frontier(memory) as frontier:
        run = _CalibrationRun(network, frontier, output_key, measured, constants, progress or (lambda stage: None))
        run.read(read_batches(images, network, batch_size), original)
        calibration = run.calibrate()
    report = network.report
    figures = dataclasses.replace(report.figures, calibration=calibration)
    network.with_report(dataclasses.replace(report, figures=figures))
    return calibration


def measure_original(
    network: BcosNetwork,
    images: object,
    reference: nn.Module,
    *,
    output: int | str | None = None,
    batch_size: int = 64,
) -> Targets:
    """Measure what the original's layers give for the images, for many calls of :func:`calibrate_` with the same ones.

    Raises:
        UsageError, TraceError: as for :func:`calibrate`.
    """
    _check_network(network)
    layers, _ = layers_of(network)
    batches = read_batches(images, network, batch_size)
    with torch.inference_mode(False), torch.no_grad():
        first = next(batches)
        original = Original(network, reference, first, output)
        for batch in itertools.chain([first], batches):
            original.measure(batch.inputs, layers)
    return original.targets


def _check_network(network: object) -> None:
    if not isinstance(network, BcosNetwork):
        raise UsageError(
            f"a {type(network).__name__} is not a converted network",
            hint="convert it first: bcos_fx.bcosify(module), then calibrate what that returns",
        )
    for name, tensor in network.named_parameters():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise UsageError(
                f"the network holds {str(tensor.dtype).removeprefix('torch.')}, too coarse for statistics to be set",
                where=name,
                hint="calibrate model.float(), then go back to 16 bits",
            )


class _CalibrationRun:
    """One calibration of a network, in place."""

    def __init__(
        self,
        network: BcosNetwork,
        frontier: Frontier,
        output: int | str | None,
        measured: bool,
        constants: Mapping[str, float],
        progress: Callable[[str], None],
    ) -> None:
        self.network, self.frontier, self.measured, self.progress = network, frontier, measured, progress
        self.output = output
        self.layers, self.kept = layers_of(network, constants)
        self.program = Program(network.graph, network)
        self.targets: Targets | None = None
        self.labels: list[Tensor | None] = []
        self.images = 0
        self.predictions_before: list[Tensor] = []

    def read(self, batches: Iterable[Batch], reference: nn.Module | Targets | None) -> None:
        """Read all batches once: run the original on them, and put them where the calibration begins."""
        original: Original | None = None
        # The original is built with the first batch, which it is traced with; what was measured before needs none.
        given = reference if isinstance(reference, Targets) else None
        for batch in batches:
            if original is None and given is None:
                original = self._original(reference, batch)
            self.progress(f"calibrating: reading image {self.images + 1} and on")
            if original is not None:
                original.measure(batch.inputs, self.layers)
            if self.measured:
                self.predictions_before += self._predicted(self._output(batch))
            self.labels.append(batch.labels)
            self.images += len(batch.inputs[0])
            self.frontier.add(self.program.start(batch.inputs))
        self.targets = given if original is None else original.targets
        self._check_targets()

    def _original(self, reference: Any, batch: Batch) -> Original | None:
        """Return what gains are matched to, or None if there is no reference and no layer has a gain."""
        self._check_layers(reference is None)
        if reference is not None:
            return Original(self.network, reference, batch, self.output)
        return Original(self.network, None, batch) if any(isinstance(layer, Gain) for layer in self.layers) else None

    def _check_layers(self, alone: bool) -> None:
        """Leave out what cannot be calibrated without the original, and check that something is left."""
        reason = own_record(self.network) if alone else None
        if reason is not None:
            for layer in self.layers:
                if isinstance(layer, Gain):
                    self.kept[layer.node.name] = (
                        f"its output must be matched to the original's, which is not given: {reason}"
                    )
            self.layers = [layer for layer in self.layers if not isinstance(layer, Gain)]
        if not self.layers:
            why = "; ".join(f"{node}: {reason}" for node, reason in list(self.kept.items())[:3])
            raise UsageError(
                "there is nothing to calibrate in this network",
                where=why or "it has neither a batch norm nor a B-cos layer",
                hint="give the original with original=" if reason else "calibrate a network that has one",
            )

    def _check_targets(self) -> None:
        """Leave out gains that the original does not determine, and check that the rest has its channels.

        Raises:
            UsageError: the original's layers have other widths, or it was measured on other images.
        """
        targets = self.targets.moments if self.targets is not None else {}
        for layer in list(self.layers):
            target = targets.get(layer.node.name)
            if target is None and isinstance(layer, Gain):
                self.kept[layer.node.name] = "the original has no such layer to match its output to"
                self.layers.remove(layer)
            elif target is not None and len(target.mean) != layer.channels:
                raise UsageError(
                    f"the original given is not the network that was converted: {len(target.mean)} channels where "
                    f"the converted network has {layer.channels}",
                    where=f"node {layer.node.name}",
                    hint="give the very module that was converted",
                )
        if self.targets is not None and self.targets.images != self.images:
            raise UsageError(
                f"the original was measured on {amount(self.targets.images, 'image')}, and {self.images} were given",
                hint="give the images on which measure_original ran, in the same batches",
            )

    def calibrate(self) -> Calibration:
        """Go through the layers in the order of the graph, every batch as far as one layer before any goes further."""
        changes, position = [], 0
        for number, layer in enumerate(self.layers, 1):
            self.progress(f"calibrating: layer {number} of {len(self.layers)}")
            # A layer is set before any batch passes it, so that the next one measures what the calibrated ones give.
            place = self.program.places[layer.node.name]
            for values in self.frontier.batches():
                self.program.run(values, position, place)
            position = place
            changes.append(self._calibrated(layer))
        before, after = self._agreements(position)
        reference = None if self.targets is None else self.targets.kind
        return Calibration(self.images, reference, tuple(changes), dict(self.kept), before, after)

    def _calibrated(self, layer: Layer) -> LayerChange:
        target = None if self.targets is None else self.targets.moments.get(layer.node.name)
        measured = self._moments(layer, of_input=isinstance(layer, Norm))
        # Channels that vary by rounding alone keep their scale: dividing by their deviation would blow the rounding up.
        precision = next((p.dtype for p in layer.module.parameters()), torch.float32)
        live = ~measured.dead(precision)
        if target is not None and isinstance(layer, Gain):
            live = live & ~target.dead(precision)
        factors, shift = layer.standardize(measured, target, live)
        # Deviations fit now. The mean may not, where a constant was taken out, so the power is matched last and in
        # the layer's new state.
        if target is not None and layer.can_scale:
            factors = factors * layer.match_power(self._moments(layer), target, live)
        return _change(layer, live, factors, shift)

    def _moments(self, layer: Layer, *, of_input: bool = False) -> Moments:
        """Return the moments of a layer's input or output over all batches, in the layer's present state."""
        moments = Moments(layer.channel_dim)
        dims = None if self.targets is None else self.targets.dims.get(layer.node.name)
        for values in self.frontier.batches():
            node = layer.node
            value = self.program.input_of(node, values) if of_input else self.program.value(node, values)
            moments.add(_averaged(value, dims) if isinstance(layer, Gain) else value)
        return moments

    def _output(self, batch: Batch) -> Any:
        values = self.program.start(batch.inputs)
        self.program.run(values, 0, self.program.end)
        return self.program.result(values)

    def _predicted(self, output: Any) -> list[Tensor]:
        if not is_classes(output):
            return []
        if self.targets is not None and self.targets.classes is not None:
            check_same_classes(output.shape[1], self.targets.classes)
        return [output.argmax(1).cpu()]

    def _agreements(self, position: int) -> tuple[Agreement | None, Agreement | None]:
        if not self.measured:
            return None, None
        after: list[Tensor] = []
        for values in self.frontier.batches():
            self.program.run(values, position, self.program.end)
            after += self._predicted(self.program.result(values))
        return self._agreement(self.predictions_before), self._agreement(after)

    def _agreement(self, predictions: Sequence[Tensor]) -> Agreement | None:
        original = [] if self.targets is None else self.targets.predictions
        labels = [label for label in self.labels if label is not None]
        return Agreement(_share(predictions, labels), _share(predictions, original))


def _share(predictions: Sequence[Tensor], wanted: Sequence[Tensor]) -> float | None:
    """Share of equal entries, or None where one side is missing for some batches."""
    # Some batches without labels, or outputs that are not classes: a share of the rest would look like one of all.
    if not predictions or len(wanted) != len(predictions):
        return None
    return float((torch.cat(list(predictions)) == torch.cat(list(wanted))).double().mean())


def _averaged(value: Tensor, dims: int | None) -> Tensor:
    """Average a map over its positions where the original's layer came after the pooling that averages it."""
    return value.flatten(2).mean(2) if dims == 2 and value.dim() > 3 else value


def _change(layer: Layer, live: Tensor, factors: Tensor, shift: Tensor) -> LayerChange:
    known = factors[live] if bool(live.any()) else torch.ones(1)
    return LayerChange(
        node=layer.node.name,
        kind=layer.kind,
        channels=len(live),
        dead=int((~live).sum()),
        scale=float(known.median()),
        lowest=float(known.min()),
        highest=float(known.max()),
        shift=float(shift.square().mean().sqrt()),
    )
