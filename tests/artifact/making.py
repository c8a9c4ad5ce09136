"""Networks to save, and files to tamper with."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from bcos_fx.network import BcosNetwork, Guard, InputSpec, Record
from bcos_fx.report import Report
from bcos_fx.report.collect import mark_origins, read_rows
from bcos_fx.report.model import Coverage, Drift, Figures
from bcos_fx.rewriting.core.match import NearMiss
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.tracing import trace

VERIFICATION = {
    "ok": True,
    "error": 0.0,
    "tolerance": float("inf"),
    "dtype": "float64",
    "detail": "",
    "comparisons": [{"name": "eval", "relative": None, "spread": 1.0, "verdict": "equal", "sizes": (1, 2)}],
}


def network(module: nn.Module, *inputs: Tensor, **changes: Any) -> BcosNetwork:
    """The module as a network, nothing rewritten; ``changes`` are of the record."""
    return wrapped(trace(module, inputs).graph_module, **changes)


def wrapped(graph_module: fx.GraphModule, **changes: Any) -> BcosNetwork:
    reader = GraphReader(graph_module, vocabulary(), Options())
    mark_origins(reader)
    rows = read_rows(reader)
    report = Report(
        recipe="equivalent",
        options=Options().to_dict() | {"b": {"layer*": 1.5}, "mean": (0.5, 0.25), "std": [1.0, 2], "eps": None},
        rule_hashes={"norm.toml": "0" * 64},
        rules={},
        before=rows,
        nodes=rows,
        removed={"gone": "a-rule"},
        near_misses=(NearMiss("a-rule", "pool", "it has 2 users"),),
        unknown=(),
        unused=("aux.weight",),
        guards=("x.py:1: if x",),
        train_difference=None,
        inputs={"x": "anything"},
        coverage=Coverage(3, 4),
        notes=('a "note"\nof two lines, ‖w‖',),
        figures=Figures(VERIFICATION, (Drift("r", 1, 0.5, None),), None),
    )
    specs = tuple(
        InputSpec(str(node.target), tuple(node.meta.get("shape") or ()), False, ((1.0, 0.0),), (0.5,))
        for node in graph_module.graph.nodes
        if node.op == "placeholder"
    )
    fields: dict[str, Any] = {"report": report, "inputs": specs, "guards": (Guard("int", "8", "x.py:1"),)} | changes
    return BcosNetwork(graph_module, Record(**fields))


class Everything(nn.Module):
    """Uses every kind of node, argument and tensor that a file can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU6())
        self.again = self.block
        self.bound = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.bound.weight
        self.offset = nn.Parameter(torch.randn(4, 1, 1), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False, True, True]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(F.relu(self.norm(self.first(x)), inplace=False)) + self.offset
        y = self.block(y)[:, :, ::2, 1:]
        y = y.clamp(min=0.0, max=float("inf")).mean(dim=(2, 3)) * self.mask.to(torch.float32)
        y = torch.cat([self.bound(y), self.tied(y)], dim=1)
        return y.view(x.shape[0], -1).to(device=x.device, memory_format=torch.contiguous_format)


def everything() -> BcosNetwork:
    return network(Everything().eval(), torch.rand(2, 3, 6, 6), guards=())


Document = dict[str, Any]


def opened(data: bytes) -> tuple[dict[str, Any], Document, bytes]:
    """The safetensors header, our document in it, and the bytes of the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["bcos_fx"]), data[8 + length :]


def closed(header: dict[str, Any], content: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content


def tampered(data: bytes, change: Callable[[Document], Any], *, sealed: bool = True) -> bytes:
    """The file with its document changed in place; ``sealed``: by somebody who also mended the checksum."""
    header, document, content = opened(data)
    change(document)
    if sealed:
        document.pop("sha256", None)
        digest = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
        tensors = [(name, value) for name, value in header.items() if name != "__metadata__"]
        for name, value in sorted(tensors, key=lambda item: (item[1]["data_offsets"], item[0])):
            begin, end = value["data_offsets"]
            digest.update(json.dumps([name, value["dtype"], value["shape"], end - begin]).encode())
            digest.update(content[begin:end])
        document["sha256"] = digest.hexdigest()
    header["__metadata__"]["bcos_fx"] = json.dumps(document)
    return closed(header, content)
