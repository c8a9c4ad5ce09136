"""The JSON text beside the tensors: a network's modules, graph and record, the versions and the checksum."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bcos_fx.artifact.container import Container, Digest, content_of, lay_out_tensors, parse
from bcos_fx.artifact.fields import Fields
from bcos_fx.artifact.graph import GraphBuilder, write_graph
from bcos_fx.artifact.modules import ModuleReader, ModuleWriter
from bcos_fx.artifact.own_ops import check_ops, check_same_results, write_ops
from bcos_fx.artifact.record import read_record
from bcos_fx.artifact.trial import check_runs
from bcos_fx.artifact.values import encode
from bcos_fx.errors import FORWARD_ERRORS, ArtifactError, BcosFxError
from bcos_fx.network import BcosNetwork, Record
from bcos_fx.network.facts import check_facts
from bcos_fx.rewriting.core.op import Op
from bcos_fx.rewriting.core.ops import Vocabulary, vocabulary
from bcos_fx.tracing.graph_module import GraphModule
from bcos_fx.version import __version__

FORMAT = 4
"""Number of the newest format; files of it and of lower ones are read. It is written where a file holds names of
classes, runs of training, an origin or weights in half precision; else 3 where it holds ops that a program declared;
else 2."""

HALF_NOTE = "weights were rounded to half precision when the file was written"

# What torch's constructors, fx and Python's compiler raise about descriptions that make no sense.
_BUILD_ERRORS = (*FORWARD_ERRORS, BcosFxError, MemoryError, SyntaxError)


def describe(model: BcosNetwork, *, half: bool = False) -> tuple[str, dict[str, Tensor]]:
    """Return a network as text and tensors, contiguous and on the CPU.

    Args:
        model: the network; it is not changed.
        half: give float32 tensors in half precision; they are float32 again in the network that is read.

    Raises:
        ArtifactError: something in it cannot be stored, or could not be read back.
    """
    ops = vocabulary()
    writer = ModuleWriter(ops)
    nodes = write_graph(model.graph, model, ops)
    writer.add(model)
    declared, record = write_ops(_ops(model, ops)), model.record
    tensors = _halved(writer.tensors) if half else writer.tensors
    is_new = half or record.classes or record.training or record.origin
    document = {
        # The lowest format that can hold it, so that older versions read all that they understand.
        "format": FORMAT if is_new else 3 if declared else 2,
        "versions": {"bcos_fx": __version__, "torch": torch.__version__.partition("+")[0]},
        "modules": writer.entries,
        "nodes": nodes,
        "record": encode(record, "record"),
    }
    document |= {"ops": declared} if declared else {}
    document |= {"half": True} if half else {}
    read_back = restore_network(Fields(parse(_dumped(document)), "the network"), writer.tensors)
    # Written, read and compared before anything reaches the disk: a file that cannot be read is never made.
    check_same_results(model, read_back, model.graph)
    digest = Digest(_dumped(document))
    for entry in lay_out_tensors(tensors):
        digest.add(entry, content_of(tensors[entry.name]))
    return _dumped(document | {"sha256": digest.hex()}), tensors


def _halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    halved = {}
    for name, tensor in tensors.items():
        # A file has one flag for all of its tensors, and reading widens every float16 tensor in it.
        if tensor.dtype == torch.float16:
            raise ArtifactError(
                "a float16 tensor would come back as float32", where=name, hint="save without half=True"
            )
        halved[name] = tensor.half() if tensor.dtype == torch.float32 else tensor
        if not bool((halved[name].isfinite() == tensor.isfinite()).all()):
            raise ArtifactError(
                f"values up to {float(tensor.abs().max()):.3g} do not fit into half precision, which ends at 65504",
                where=name,
                hint="save without half=True",
            )
    return halved


def _ops(model: BcosNetwork, vocabulary: Vocabulary) -> list[Op]:
    """Return the ops of a network's nodes and of the layers inside its layers."""
    called = [vocabulary.of(node, model) for node in model.graph.nodes]
    return [op for op in (*called, *(vocabulary.of_class(type(part)) for part in model.modules())) if op is not None]


def _dumped(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sealed(content: dict[str, Any]) -> str:
    """Return the text that the checksum covers."""
    try:
        return _dumped({key: value for key, value in content.items() if key != "sha256"})
    except (RecursionError, ValueError) as error:
        raise ArtifactError(f"the file's description of the network is damaged: {error}") from error


class Document:
    """The text of a file, parsed; its format is known, its contents are not checked yet.

    Raises:
        ArtifactError: it is not a JSON object, or of a newer format.
    """

    def __init__(self, text: str) -> None:
        content = parse(text)
        self.fields = Fields(content, "the file's description of the network")
        self.format = self.fields.integer("format")
        self.versions = _versions(self.fields.value("versions"))
        self.is_half = "half" in self.fields and self.fields.truth("half")
        self._sha256 = self.fields.text("sha256")
        self._sealed = _sealed(content)
        if not 1 <= self.format <= FORMAT:
            raise ArtifactError(
                f"the file has the format {self.format} of bcos_fx {self.versions.get('bcos_fx', '?')}; "
                f"this is bcos_fx {__version__}, which reads formats up to {FORMAT}",
                hint="read it with the version that wrote it, or a newer one",
            )

    def digest(self) -> Digest:
        """Return the beginning of the checksum; the tensors are still to be added."""
        return Digest(self._sealed)

    def matches(self, digest: Digest) -> bool:
        """Return whether the file holds what was written."""
        return digest.hex() == self._sha256

    def record(self) -> Record:
        """Return the record of the network."""
        return read_record(self.fields.value("record"))


def _versions(versions: object) -> Mapping[str, str]:
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise ArtifactError("the file does not say by which versions it was written")
    return versions


def read(container: Container, device: torch.device) -> BcosNetwork:
    """Return the network that a file holds, on a device.

    Raises:
        ArtifactError: the file was altered, or holds no network.
    """
    document = Document(container.text)
    digest = document.digest()
    with torch.inference_mode(False):
        tensors = {entry.name: tensor.to(device) for entry, tensor in container.tensors(digest)}
        # Before anything is built: what is not what bcos_fx wrote reaches no constructor.
        if not document.matches(digest):
            raise ArtifactError(
                "the file was damaged or altered: its contents do not fit its checksum", hint="copy or save it again"
            )
        document.fields.finish("format", "versions", "sha256", "modules", "nodes", "record", "ops", "half")
        if document.is_half:
            tensors = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
        network = restore_network(document.fields, tensors)
    return _with_notes(network) if document.is_half else network


def _with_notes(network: BcosNetwork) -> BcosNetwork:
    report = network.report
    notes = tuple(dict.fromkeys((*report.notes, HALF_NOTE)))
    return network.with_report(dataclasses.replace(report, notes=notes))


def restore_network(fields: Fields, tensors: Mapping[str, Tensor]) -> BcosNetwork:
    """Build the network from its description and tensors; nothing but the op vocabulary is asked for code.

    Raises:
        ArtifactError: the description makes no sense.
    """
    try:
        return _built(fields, tensors)
    except ArtifactError:
        raise
    except _BUILD_ERRORS as error:
        raise ArtifactError(f"the file describes a network that cannot be built: {error}") from error


def _built(fields: Fields, tensors: Mapping[str, Tensor]) -> BcosNetwork:
    ops = vocabulary()
    if "ops" in fields:
        check_ops(fields.items("ops"), ops)
    record = read_record(fields.value("record"))
    modules = ModuleReader(ops, tensors)
    root = modules.read(fields.items("modules"))
    graph = GraphBuilder(root, ops).read(fields.items("nodes"), [spec.name for spec in record.inputs])
    graph_module = GraphModule(root, graph)
    graph.lint()
    # fx takes the parts in the order in which the graph uses them, and drops the unused ones.
    for parts in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        setattr(graph_module, parts, getattr(root, parts))
    # check_runs() tries it in eval mode; the modes that the file holds are set once it has run.
    graph_module.train(False)
    network = BcosNetwork(graph_module, record)
    check_facts(record.classes, record.training, record.origin, network.outputs, ArtifactError)
    check_runs(network)
    for module, training in modules.training:
        module.training = training
    network.training = root.training
    return network
