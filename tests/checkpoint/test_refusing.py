"""A file that cannot or must not be opened: one clear error, and nothing in it has run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from bcos_fx.checkpoint import identify, inspect, read_model, read_state_dict
from bcos_fx.errors import BcosFxError, CheckpointError
from tests.checkpoint.files import Net, Trap, save

READERS = [read_state_dict, read_model]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_trap_is_seen_and_never_sprung(tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "sprung"
    path = save({"state_dict": Net().state_dict(), "x": Trap(mark)}, tmp_path / "a.pt", legacy=legacy)
    assert any(name.endswith("getattr") for name in identify(path).details["names"])
    inspect(path)
    for read in READERS:
        with pytest.raises(CheckpointError):
            read(path)
    assert not mark.exists()
    read_state_dict(path, trust_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickled_module_is_refused_by_name_and_read_when_trusted(tmp_path: Path, legacy: bool, nested: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    path = save({"epoch": 1, "model": net} if nested else net, tmp_path / "a.pt", legacy=legacy)
    assert identify(path).kind == "pickled-module"
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\..*runs code that the file carries") as caught:
        read_model(path)
    assert "--trust-pickle" in str(caught.value)
    assert "--arch" in str(caught.value)
    opened = read_model(path, trust_pickle=True)
    assert torch.equal(opened.get_parameter("0.weight"), net[0].weight)
    assert list(read_state_dict(path, trust_pickle=True).tensors) == list(net.state_dict())


def test_a_module_of_a_class_that_is_gone_names_it(tmp_path: Path) -> None:
    path = save(Net(), tmp_path / "a.pt", legacy=True)
    text = path.read_bytes().replace(b"tests.checkpoint.files", b"tests.checkpoint.gone_")
    path.write_bytes(text)
    assert "tests.checkpoint.gone_.Net" in inspect(path).summary
    with pytest.raises(CheckpointError, match=r"code that is not here: .*tests\.checkpoint\.gone_"):
        read_model(path, trust_pickle=True)


def test_an_exported_program_is_opened_only_when_trusted(tmp_path: Path) -> None:
    net, x = Net().eval(), torch.randn(1, 3, 5, 5)
    path = tmp_path / "a.pt2"
    torch.export.save(torch.export.export(net, (x,)), path)
    with pytest.raises(CheckpointError, match="shell commands"):
        read_model(path)
    seen = inspect(path)
    assert seen.kind == "exported-program"
    assert "shell commands" in (seen.problem or "")
    assert torch.allclose(read_model(path, trust_pickle=True)(x), net(x))


def test_weights_alone_ask_for_an_architecture(tmp_path: Path) -> None:
    path = save(Net().state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds weights .*not a network") as caught:
        read_model(path)
    assert "--arch" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 2, 2)), path)
    assert inspect(path).kind == "torchscript"
    for read in READERS:
        with pytest.raises(CheckpointError, match="TorchScript"):
            read(path, trust_pickle=True)


def tar_file() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    return stream.getvalue()


def zip_file() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return stream.getvalue()


def numpy_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"epoch,loss\n1,0.5\n", "text"),
        ("größe: 1\n".encode(), "text"),
        (b"<!DOCTYPE html><html></html>", "text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "text"),
        (b"\x08\x08\x12\x07pytorch\x1a\x03\x32.1", "onnx"),
        (b"\x89HDF\r\n\x1a\n\x00", "hdf5"),
        (b"GGUF\x03\x00", "gguf"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x00\x01\x02\x03\xff", "unknown"),
        (b"\x80", "damaged"),
        (b"PK", "damaged"),
        (pickle.dumps({"a": 1}), "pickle"),
        (pickle.dumps([1, 2], protocol=5), "pickle"),
        (tar_file(), "torch-tar"),
        (zip_file(), "zip"),
        (numpy_file(), "numpy"),
        ((7).to_bytes(8, "little") + b"{broken", "damaged"),
    ],
)
def test_other_files_are_named_and_refused(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert identify(path).kind == kind
    assert kind in inspect(path).to_text()
    for read in READERS:
        with pytest.raises(CheckpointError) as caught:
            read(path, trust_pickle=True)
        assert caught.value.where == str(path)
        assert caught.value.hint


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_file_that_is_cut_off_says_so(tmp_path: Path, form: str, share: float) -> None:
    path = tmp_path / "a.pt"
    if form == "safetensors":
        save_file(Net().state_dict(), path)
    else:
        save(Net().state_dict(), path, legacy=form == "legacy")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"cut off|damaged") as caught:
        read_state_dict(path)
    assert "again" in (caught.value.hint or "")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_off_at_any_byte_is_one_error(tmp_path: Path, form: str) -> None:
    path, weights = tmp_path / "a.pt", {"weight": torch.ones(3, 2)}
    if form == "safetensors":
        save_file(weights, path)
    else:
        save(weights, path, legacy=form == "legacy")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_state_dict(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(["zip", "legacy", "safetensors", "nested"]))
def test_damage_anywhere_is_one_error_or_none(tmp_path: Path, data: st.DataObject, form: str) -> None:
    path = tmp_path / "a.pt"
    net = nn.Linear(2, 2)
    if form == "safetensors":
        save_file(net.state_dict(), path)
    else:
        content = {"state_dict": net.state_dict(), "epoch": 1} if form == "nested" else net.state_dict()
        save(content, path, legacy=form == "legacy")
    body = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(body))
    inspect(path)
    with contextlib.suppress(BcosFxError):
        read_state_dict(path)


def test_a_text_longer_than_its_file_is_damage(tmp_path: Path) -> None:
    """However long it claims to be, also beyond what is read of any pickle."""
    path = tmp_path / "a.pt"
    for length in (10, 2**28 + 7, 2**32 - 1):
        path.write_bytes(b"\x80\x02X" + length.to_bytes(4, "little") + b"abc")
        assert inspect(path).kind == "damaged"


def test_a_zip_with_a_member_before_its_beginning_is_damaged(tmp_path: Path) -> None:
    path = save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    body = bytearray(path.read_bytes())
    end = body.rindex(b"PK\x06\x06")
    body[end + 50] = 1  # where the central directory begins: beyond the file, so that all members seem to lie before it
    path.write_bytes(bytes(body))
    assert identify(path).kind == "damaged"
    with pytest.raises(CheckpointError, match="damaged"):
        read_state_dict(path)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    save(Net().state_dict(), tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match=r"did you mean 'resnet\.pt'"):
        identify(tmp_path / "resnt.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        identify(tmp_path / "nowhere" / "resnet.pt")


def test_a_directory_names_a_file_in_it(tmp_path: Path) -> None:
    save_file(Net().state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"directory.*\n.*\n.*net\.safetensors"):
        read_state_dict(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Net().state_dict(), tmp_path / "a.pt")
    opened = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return opened(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        read_state_dict(path)


def test_a_part_of_a_pickled_module_is_taken_by_its_key(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
    path = save(net, tmp_path / "a.pt", legacy=False)
    part = read_model(path, key="1", trust_pickle=True)
    assert [type(layer) for layer in part.children()] == [nn.BatchNorm2d, nn.ReLU]
    with pytest.raises(CheckpointError, match="has no part 'ema'"):
        read_model(path, key="ema", trust_pickle=True)
