"""What is asked of every network: is it traced, converted, equal, certified, complete, and what does it refuse?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bcos_fx.artifact import load, save
from bcos_fx.convert import bcosify
from bcos_fx.explanation.certify import certify
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosLayer
from bcos_fx.testing import norm_statistics_from_data_, randomise_
from bcos_fx.verification.original import NormalizedModel
from benchmarks.zoo.cases import ModelCase, build

Row = dict[str, Any]
Note = Callable[[Row], None]

_EXPLAINED = 2
_LEAST_VARIANCE = 0.01


class Examination:
    """One network's row of the table, filled stage by stage.

    Args:
        name: of the network.
        side: of the images, in pixels, where the network takes that.
        note: called with the row whenever there is more in it, so that nothing is lost if the process is.
    """

    def __init__(self, name: str, side: int | None, note: Note) -> None:
        self.row: Row = {"name": name, "seconds": {}}
        self._side = side
        self._note = note

    def run(self) -> Row:
        """Go through all stages; an error is left to the caller, and the row says in which stage it came."""
        with self._stage("build"):
            case = build(self.row["name"], side=self._side)
            prepare(case)
            self.row |= _size(case)
        with self._stage("convert"):
            network = self._converted(case)
            self.row |= _conversion(network)
        with self._stage("certify"):
            self.row |= _certification(network, case)
        with self._stage("save and load"):
            self.row["saved"] = _same_after_saving(network, list(_inputs(network, case)))
        self.row["stage"] = "done"
        self._note(self.row)
        return self.row

    def _converted(self, case: ModelCase) -> BcosNetwork:
        pair = {name: value[:2] for name, value in case.inputs.items()}
        return bcosify(
            case.module,
            example_inputs=pair,
            output_key=case.output,
            recipe="equivalent",
            progress=self._substage,
            **case.options,
        )

    def _substage(self, stage: str) -> None:
        self.row["stage"] = f"convert: {stage}"
        self._note(self.row)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.row["stage"] = name
        self._note(self.row)
        start = time.perf_counter()
        yield
        self.row["seconds"][name] = round(time.perf_counter() - start, 1)


def prepare(case: ModelCase) -> None:
    """Give the network weights that make it answer differently to different inputs, in place."""
    randomise_(case.module)
    names = list(case.inputs)
    by_name = NormalizedModel(case.module, call=lambda module, given: module(**dict(zip(names, given, strict=True))))
    norm_statistics_from_data_(by_name, tuple(_as_original(case)))
    for norm in case.module.modules():
        variance = getattr(norm, "running_var", None)
        if isinstance(variance, Tensor):
            # A channel that is dead on these inputs must not turn the rounding of others into a signal.
            variance.clamp_(min=_LEAST_VARIANCE * float(variance.mean()))


def _as_original(case: ModelCase) -> Iterator[Tensor]:
    """Yield the inputs of the original: normalized images, if the conversion takes over that step."""
    for value in case.inputs.values():
        mean, std = (case.options.get(key) for key in ("mean", "std"))
        yield value if mean is None else (value - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def _size(case: ModelCase) -> Row:
    return {
        "parameters": sum(parameter.numel() for parameter in case.module.parameters()),
        "inputs": {name: list(value.shape[1:]) for name, value in case.inputs.items()},
        "output": case.output,
    }


def _conversion(network: BcosNetwork) -> Row:
    report = network.report
    verification = dict(report.figures.verification or {})
    rows = {row["name"]: row for row in verification.get("comparisons", ())}
    return {
        "nodes": len(report.before),
        "layers": sum(isinstance(part, BcosLayer) for part in network.modules()),
        "coverage": report.coverage.share,
        "unknown": dict(Counter(row.op for row in report.unknown)),
        "opaque share": _opaque_share(network),
        "guards": list(report.guards),
        "train": report.train_difference or "as in eval",
        "equal": verification.get("ok", False),
        "error": verification.get("error"),
        "detail": verification.get("detail"),
        "spread": min((row["spread"] / row["scale"] for row in rows.values() if _varies(row)), default=None),
        "runs": {name: row["verdict"] for name, row in rows.items()},
    }


def _varies(row: Row) -> bool:
    return bool(row["scale"]) and row["spread"] is not None


def _opaque_share(network: BcosNetwork) -> float:
    """Share of the parameters that unknown operations hold as modules or read as functions."""
    stored = {row.name: row.module for row in network.report.nodes if row.op == "parameter"}
    hidden = {row.module for row in network.report.unknown} | {
        stored.get(name) for row in network.report.unknown for name in row.inputs
    }
    parts = [part for name, part in network.named_modules() if name in hidden]
    inside = {parameter: parameter.numel() for part in parts for parameter in part.parameters()}
    inside |= {parameter: parameter.numel() for name, parameter in network.named_parameters() if name in hidden}
    return float(sum(inside.values()) / max(sum(parameter.numel() for parameter in network.parameters()), 1))


def _inputs(network: BcosNetwork, case: ModelCase) -> Iterator[Tensor]:
    """Yield the converted network's own inputs: images in [0, 1], as they were generated."""
    for spec in network.record.inputs:
        value = case.inputs[spec.name][:_EXPLAINED]
        yield value.double() if value.is_floating_point() else value


def _certification(network: BcosNetwork, case: ModelCase) -> Row:
    inputs = list(_inputs(network, case))
    found = certify(network.double(), inputs)
    measured = found.completeness
    assert measured is not None
    return {
        "certified": found.ok,
        "breaks": [str(broken) for broken in found.breaks],
        "choices": len(found.choices),
        "completeness": measured.verdict,
        "gap": measured.worst,
        "tolerance": measured.tolerance,
        "constants' share": 1 - float(measured.share.mean()),
    }


def _same_after_saving(network: BcosNetwork, inputs: list[Tensor]) -> bool:
    with TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "network.safetensors"
        save(network, path)
        return torch.equal(load(path)(*inputs), network(*inputs))
