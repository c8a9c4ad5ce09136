"""The two forms of a file: ONNX, and a program of ``torch.export``; each as bytes, and run as a reader would run it."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from bcos_fx.errors import TraceError, UsageError, nearest
from bcos_fx.exporting.graphs import ANY
from bcos_fx.lazy import library
from bcos_fx.version import __version__

RunFile = Callable[[Sequence[Tensor]], list[Tensor]]
KEY = "bcos_fx"
"""Under this name a file holds what is known about it, as JSON."""
_LARGEST = 2**31 - 1
_OPERATION = re.compile(r"op='([^']+)'")


class Onnx:
    """ONNX, run by onnxruntime on the processor."""

    suffix = ".onnx"

    @staticmethod
    def check_installed() -> None:
        """Return: PyTorch is always there.

        Raises:
            MissingExtraError: one is not.
        """
        for name in ("onnx", "onnxscript", "onnxruntime"):
            library(name, "onnx", "an export to ONNX")

    @staticmethod
    def write(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], facts: str) -> bytes:
        """Return the file.

        Raises:
            TraceError: ONNX has no operation for one of the program's.
            UsageError: the file would be larger than 2 GiB.
        """
        try:
            exported = torch.onnx.export(
                program, (), input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise _missing_operation(error) from error
        assert exported is not None
        model = exported.model_proto
        if model.ByteSize() > _LARGEST:
            raise UsageError("an ONNX file holds at most 2 GiB", hint="export to .pt2, or convert to half precision")
        _tidy(model, facts)
        written: bytes = model.SerializeToString(deterministic=True)
        return written

    @staticmethod
    def reader(content: bytes) -> RunFile:
        """Return a function that runs a file.

        Raises:
            UsageError: onnxruntime has no kernel for an operation in this precision.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise UsageError(
                f"onnxruntime cannot run the file: {str(error).partition(chr(10))[0]}",
                hint="export the network in float32: network.float()",
            ) from error
        names = [value.name for value in session.get_inputs()]

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            given = {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True)}
            return [torch.from_numpy(value) for value in session.run(None, given)]

        return run


class Pt2:
    """A program of ``torch.export``, run by PyTorch without this package."""

    suffix = ".pt2"

    @staticmethod
    def check_installed() -> None:
        """Return: PyTorch is always there."""

    @staticmethod
    def write(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], facts: str) -> bytes:
        """Return the file; the names are in ``facts``, for a program's inputs and outputs are known by their order."""
        stream = io.BytesIO()
        torch.export.save(program, stream, extra_files={KEY: facts})
        return stream.getvalue()

    @staticmethod
    def reader(content: bytes) -> RunFile:
        """Return a function that runs a file, which must come from this process: reading one can run code."""
        logger = logging.getLogger("torch._export.serde.serialize")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns of sizes that were fixed while the program was recorded
        try:
            module = torch.export.load(io.BytesIO(content)).module()
        finally:
            logger.setLevel(level)

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                outputs = module(*inputs)
            return [outputs] if isinstance(outputs, Tensor) else list(outputs)

        return run


Format = type[Onnx] | type[Pt2]
_FORMATS: Mapping[str, Format] = {kind.suffix: kind for kind in (Onnx, Pt2)}


def format_of(suffix: str) -> Format:
    """Return the format that a file's ending names.

    Raises:
        UsageError: it names none.
    """
    if suffix.lower() not in _FORMATS:
        raise UsageError(f"no format is named {suffix!r}", hint=nearest(suffix, _FORMATS))
    return _FORMATS[suffix.lower()]


def _missing_operation(error: Exception) -> TraceError:
    """Find the operation that ONNX lacks in the exporter's long report, and name it."""
    named = _OPERATION.search(str(error))
    reason = f"ONNX has no operation for {named[1]}" if named else f"no ONNX: {str(error).partition(chr(10))[0]}"
    hint = "export to .pt2, or replace the layer that computes it before the conversion"
    return TraceError(reason, where="torch.onnx", hint=hint)


def _tidy(model: Any, facts: str) -> None:
    """Name the free size of batches, and leave out what refers to the code and the machine that made the file."""
    model.producer_name, model.producer_version, model.doc_string = KEY, __version__, ""
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=facts)
    graph = model.graph
    graph.name = KEY
    del graph.metadata_props[:], graph.value_info[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
    free = next((size.dim_param for size in graph.input[0].type.tensor_type.shape.dim if size.dim_param), None)
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if free is not None and size.dim_param == free:
                size.dim_param = ANY
