"""What cannot be saved is refused by name; a file that is damaged, altered or no file of ours gives one clear error."""

from __future__ import annotations

import dataclasses
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from bcos_fx.artifact import from_bytes, load, read_header, save, to_bytes
from bcos_fx.artifact.document import FORMAT
from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.network import BcosNetwork
from tests.artifact.making import Document, closed, everything, network, opened, tampered, wrapped


@pytest.fixture(scope="module")
def data() -> bytes:
    torch.manual_seed(0)
    return to_bytes(everything())


def small() -> BcosNetwork:
    return network(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.rand(2, 4))


# ---------------------------------------------------------------- saving


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 9)


class MyLinear(nn.Linear):
    pass


def test_an_unknown_operation_is_named_with_its_line() -> None:
    model = network(nn.Sequential(Strange()), torch.rand(2, 4))
    with pytest.raises(ArtifactError, match="fake_quantize") as caught:
        to_bytes(model)
    assert "return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 9)" in str(caught.value.where)
    assert "node " in str(caught.value.where)
    assert "vocabulary" in str(caught.value.hint)


def test_an_unknown_method_is_named() -> None:
    graph_module = fx.symbolic_trace(nn.ReLU())
    output = next(iter(reversed(graph_module.graph.nodes)))
    with graph_module.graph.inserting_before(output):
        output.args = (graph_module.graph.call_method("geqrf", (output.args[0],)),)
    graph_module.recompile()
    with pytest.raises(ArtifactError, match="geqrf"):
        to_bytes(wrapped(graph_module))


def test_an_unknown_layer_is_named() -> None:
    class Leaf(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    module = nn.Sequential(MyLinear(4, 4))
    graph_module = fx.GraphModule(module, Leaf().trace(module))
    with pytest.raises(ArtifactError, match="MyLinear") as caught:
        to_bytes(wrapped(graph_module))
    assert "node '_0'" in str(caught.value.where)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda m: m.add_module("extra", MyLinear(2, 2)), "MyLinear"),
        (lambda m: m.to("meta"), "meta device"),
        (lambda m: m.register_buffer("c", torch.zeros(2, dtype=torch.complex64)), "complex64"),
        (lambda m: m.register_buffer("s", torch.eye(3).to_sparse()), "sparse"),
        (lambda m: setattr(m.get_submodule("0"), "out_features", 7), "shape"),
        (lambda m: m.get_submodule("0").register_parameter("more", nn.Parameter(torch.ones(1))), "more"),
        (lambda m: setattr(m.get_submodule("0"), "forward", lambda x: x), "forward of its own"),
        (lambda m: m._modules.update({"none": None}), "none"),
        (lambda m: m.add_module('a"b', nn.ReLU()), "quote"),
        (lambda m: m.register_buffer("a\nb", torch.ones(1)), "tensor named"),
        (lambda m: m.register_buffer("__metadata__", torch.ones(1)), "__metadata__"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(break_it: Callable[[BcosNetwork], Any], message: str) -> None:
    model = small()
    break_it(model)
    with pytest.raises(ArtifactError, match=message):
        to_bytes(model)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, 2**70, b"bytes", torch.ones(1), Path("x"), math.sqrt, [[[0]] * 2, [{"a": {1}}]]]
)
def test_an_argument_that_a_file_cannot_hold_is_named(value: Any) -> None:
    model = small()
    node = list(model.graph.nodes)[1]
    node._update_args_kwargs((*node.args, value), {})
    with pytest.raises(ArtifactError) as caught:
        to_bytes(model)
    assert repr(node.name) in str(caught.value.where)
    assert "argument 1" in str(caught.value.where)


def test_a_value_in_the_report_that_a_file_cannot_hold_is_refused() -> None:
    model = small()
    model.with_report(dataclasses.replace(model.report, options={"b": object()}))
    with pytest.raises(ArtifactError, match="object"):
        to_bytes(model)


def test_an_attribute_that_leads_to_code_is_refused() -> None:
    model = small()
    node = list(model.graph.nodes)[1]
    with model.graph.inserting_after(node):
        model.graph.call_function(getattr, (node, "__class__"))
    with pytest.raises(ArtifactError, match="__class__"):
        to_bytes(model)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), {"a": 1}, None])
def test_only_converted_networks_are_saved(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a converted network"):
        save(model, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_wrapped_network_is_pointed_to() -> None:
    with pytest.raises(UsageError, match=r"\.module"):
        to_bytes(nn.DataParallel(small()))  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    model = small()
    for name in ("missing/x.safetensors", "", "nul\0.safetensors", "n" * 300):
        with pytest.raises(ArtifactError, match="cannot be written") as caught:
            save(model, f"{tmp_path}/{name}")
        assert str(tmp_path) in str(caught.value.where)
        assert "folder" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- files that are not there or not ours


@pytest.mark.parametrize("function", [load, read_header])
def test_missing_files_and_directories(function: Callable[[Path], Any], tmp_path: Path, data: bytes) -> None:
    (tmp_path / "resnet18.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="no such file") as caught:
        function(tmp_path / "resnet8.safetensors")
    assert "resnet18.safetensors" in str(caught.value.hint)
    with pytest.raises(ArtifactError, match="no such file"):
        function(tmp_path / "nowhere" / "x")
    with pytest.raises(ArtifactError, match="no such file"):
        function(tmp_path / "nul\0")
    with pytest.raises(ArtifactError, match="too long"):
        function(tmp_path / ("n" * 300))
    with pytest.raises(ArtifactError, match="directory"):
        function(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(100), "not a safetensors"),
        (pickle.dumps({"a": 1}), "not a safetensors"),
        (b"hello", "not a safetensors"),
        (struct.pack("<Q", 2**63) + b"{}", "not a safetensors"),
        (struct.pack("<Q", 100) + b"{}", "cut off"),
        (struct.pack("<Q", 2) + b"{}", "none that bcos_fx wrote"),
        (struct.pack("<Q", 2) + b"{]", "damaged"),
        (struct.pack("<Q", 8) + b'{"a":NaN', "damaged"),
        (struct.pack("<Q", 9) + b'{"a":NaN}', "damaged"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "damaged"),
        (struct.pack("<Q", 600_000) + b'{"a":' + b"[" * 599_995, "damaged"),
        (struct.pack("<Q", 10_006) + b'{"a":' + b"9" * 10_000 + b"}", "damaged"),
        (struct.pack("<Q", 7) + b'{"\xff":1}'[:7], "damaged"),
    ],
)
def test_files_of_another_kind(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for function in (load, read_header):
        with pytest.raises(ArtifactError, match=message) as caught:
            function(path)
        assert str(path) in str(caught.value.where)


def test_a_safetensors_file_of_somebody_else(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match="none that bcos_fx wrote"):
        load(tmp_path / "a.safetensors")


def test_an_unknown_device_is_a_usage_error(data: bytes) -> None:
    for device in ("nonsense", "cpu:x", 1.5):
        with pytest.raises(UsageError, match="device"):
            from_bytes(data, device=device)  # type: ignore[arg-type]


# ---------------------------------------------------------------- damage


def test_a_truncated_file_is_refused_wherever_it_ends(data: bytes) -> None:
    for end in [*range(0, 60), *range(60, len(data), 97), len(data) - 1]:
        with pytest.raises(ArtifactError):
            from_bytes(data[:end])


def test_bytes_too_many_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="too many"):
        from_bytes(data + b"x")


def test_any_altered_byte_is_noticed(data: bytes, tmp_path: Path) -> None:
    (length,) = struct.unpack("<Q", data[:8])
    places = [*range(0, 8 + length, 41), *range(8 + length, len(data), 13), len(data) - 1]
    for place in places:
        if data[place] == 0x20:
            continue  # the padding behind the header means nothing
        altered = bytearray(data)
        altered[place] ^= 1
        with pytest.raises(ArtifactError):
            from_bytes(bytes(altered))


def test_an_altered_file_is_reported_by_its_header(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not read_header(path).intact
    with pytest.raises(ArtifactError, match="checksum"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["modules"][1]["options"].append(["bias", False]),
        lambda d: d["nodes"][1]["meta"].update(source="another.py:1"),
        lambda d: d["record"]["Record"]["report"]["Report"].update(recipe="another"),
        lambda d: d["versions"].update(torch="9.9"),
        lambda d: d.update(sha256="0" * 64),
    ],
)
def test_altered_metadata_is_noticed(change: Callable[[Document], Any], data: bytes) -> None:
    with pytest.raises(ArtifactError, match="checksum"):
        from_bytes(tampered(data, change, sealed=False))


def test_a_newer_format_asks_for_a_newer_version(data: bytes) -> None:
    def newer(document: Document) -> None:
        document.update(format=FORMAT + 1, versions={"bcos_fx": "9.1"}, unheard_of=[1])

    for sealed in (True, False):
        with pytest.raises(ArtifactError, match=r"9\.1") as caught:
            from_bytes(tampered(data, newer, sealed=sealed))
        assert "a newer one" in str(caught.value.hint)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["mask"].update(shape=[5]),
        lambda h: h["mask"].update(shape=[-4]),
        lambda h: h["mask"].update(shape=[True, 4]),
        lambda h: h["mask"].update(shape=[0, 2**62, 2**62]),
        lambda h: h["mask"].update(dtype="F3"),
        lambda h: h["mask"].update(dtype=["U8"]),
        lambda h: h["mask"].pop("dtype"),
        lambda h: h["mask"].update(data_offsets=[0, 4]),
        lambda h: h["mask"].update(data_offsets=[4]),
        lambda h: h["mask"].update(data_offsets=[2**70, 2**70 + 4]),
        lambda h: h["mask"].update(shape="ab"),
        lambda h: h["mask"].update(shape=[2, 2]),
        lambda h: h["bound.weight"].update(shape=[2, 8]),
        lambda h: h.update(more=h.pop("mask")),
        lambda h: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        lambda h: h.update({"__metadata__": []}),
        lambda h: h.update({"__metadata__": {"bcos_fx": 3}}),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], Any], data: bytes) -> None:
    header, _, content = opened(data)
    change(header)
    with pytest.raises(ArtifactError):
        from_bytes(closed(header, content))


def test_a_tensor_under_another_name_is_refused_though_the_checksum_is_right(data: bytes) -> None:
    def renamed(name: str) -> bytes:
        header, _, content = opened(data)
        header[name] = header.pop("mask")
        return tampered(closed(header, content), lambda document: None)

    assert from_bytes(renamed("mask")).mask.tolist() == [True, False, True, True]
    with pytest.raises(ArtifactError, match="'mask'"):
        from_bytes(renamed("mask2"))


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [([0, 1], [1], "overlap"), ([0, 0], [0], "no module of the network holds the tensor 'more'")],
)
def test_a_tensor_too_many_is_refused_though_the_checksum_is_right(
    place: list[int], shape: list[int], message: str, data: bytes
) -> None:
    header, _, content = opened(data)
    header["more"] = {"dtype": "U8", "shape": shape, "data_offsets": place}
    with pytest.raises(ArtifactError, match=message):
        from_bytes(tampered(closed(header, content), lambda document: None))


def test_a_tensor_that_leaves_a_gap_is_refused_though_the_checksum_is_right(data: bytes) -> None:
    header, _, content = opened(data)
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [place + 8 for place in entry["data_offsets"]]
    with pytest.raises(ArtifactError, match="gaps"):
        from_bytes(tampered(closed(header, bytes(8) + content), lambda document: None))
