"""Small files that hang a reader or fill its memory: refused by what they exceed, by every command and `load`."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bcos_fx.checkpoint import read_state_dict
from bcos_fx.errors import UsageError, nearest
from benchmarks.zoo.selection import select
from tests.attack.small_files import HARMLESS, MAKERS, Maker, deflated, many_steps, tuple_as_key
from tests.cli.conftest import SHAPE, TINY
from tests.forks import run_code

_SECONDS = 240
# Memory is limited after the libraries are loaded: to what they take, and 1 GiB.
_CHILD = """
import json, resource, sys
import bcos_fx, torch
import bcos_fx.artifact, bcos_fx.checkpoint, bcos_fx.cli.network, bcos_fx.convert, bcos_fx.explanation.explain
from typer.testing import CliRunner
from bcos_fx.cli import app
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, taken + 2**30))
for words in json.loads(sys.argv[1]):
    if words[0] == "load":
        try:
            bcos_fx.load(words[1])
            print(json.dumps(["load", 0, ""]))
        except bcos_fx.BcosFxError as error:
            print(json.dumps(["load", 2, str(error)]))
    else:
        done = CliRunner().invoke(app, words, prog_name="bcos-fx")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        print(json.dumps([words[0], done.exit_code, done.output]))
"""


def outcomes(folder: Path, *commands: list[str]) -> dict[str, tuple[int, str]]:
    """Run commands in a process of limited memory: command -> exit code and output."""
    done = run_code(_CHILD, folder, json.dumps(commands), timeout=_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (code, said) for name, code, said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_a_small_file_is_refused_by_every_command(maker: Maker, tmp_path: Path) -> None:
    file = tmp_path / "small.pt"
    maker(file)
    name = str(file)
    found = outcomes(
        tmp_path,
        ["inspect", name],
        ["convert", name, "--arch", TINY, *SHAPE, "-o", str(tmp_path / "out.safetensors")],
        ["check", name],
        ["load", name],
    )
    assert list(found) == ["inspect", "convert", "check", "load"]
    for command, (code, said) in found.items():
        # A pickle that torch.save did not write is inspected with success, and nothing in it is read.
        assert code == 2 or (command == "inspect" and "kind" in said), (command, said)
        assert "bug" not in said, (command, said)
        # Not "damaged", which is what running out of memory looks like from inside torch.
        assert "are read" in said or command in ("check", "load") or maker in HARMLESS, (command, said)
        assert len(said) < 5000, command
    assert not (tmp_path / "out.safetensors").exists()


# What other readers are given: content of a file, and what reads it: a module and an expression of the file's path `p`.
_DOTS = ".".join("a" * 100_000)
READERS = {
    "toml of dotted keys": (f"{_DOTS} = 1".encode(), "rewriting.core.toml:read_toml(p)"),
    "toml of a dotted header": (f"[{_DOTS}]".encode(), "rewriting.core.toml:read_toml(p)"),
    "toml of inline dots": (f"x = {{y = {{{_DOTS} = 1}}}}".encode(), "rewriting.core.toml:read_toml(p)"),
    "toml of quoted dots": (".".join(['"a"'] * 100_000).encode() + b" = 1", "rewriting.core.toml:read_toml(p)"),
    "toml of nested lists": (b"x = " + b"[" * 100_000, "rewriting.core.toml:read_toml(p)"),
    "toml of many lines": (b"".join(b"a.k%d = 1\n" % n for n in range(100_000)), "rewriting.core.toml:read_toml(p)"),
    "classes of nested lists": (b"[" * 1_000_000, "data.classes:read_classes(p)"),
    "classes of empty lists": (b"[" + b"[]," * 4_000_000 + b"[]]", "data.classes:read_classes(p)"),
    "classes of a long text": (b'["' + b"a" * 20_000_000 + b'"]', "data.classes:read_classes(p)"),
    "templates of a long text": (b"a" * 20_000_000, "text.templates:read_templates(p)"),
    "embeddings with a long header": (
        (99_000_000).to_bytes(8, "little") + b"{" + b" " * 98_999_999,
        "text.embedding:TextEmbeddings.load(p)",
    ),
}
_READER_CHILD = """
import importlib, pathlib, resource, sys
import bcos_fx
module, _, call = sys.argv[1].partition(":")
found = importlib.import_module(f"bcos_fx.{module}")
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, taken + 2**30))
try:
    eval(call, vars(found), {"p": pathlib.Path(sys.argv[2])})
except bcos_fx.BcosFxError as error:
    print(error)
else:
    print("it was read")
"""


def _refusal(expression: str, path: Path) -> str:
    done = run_code(_READER_CHILD, path.parent, expression, str(path), timeout=_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("name", READERS)
def test_readers_of_other_files_refuse_them_too(name: str, tmp_path: Path) -> None:
    content, expression = READERS[name]
    path = tmp_path / "file"
    path.write_bytes(content)
    said = _refusal(expression, path)
    assert str(path) in said
    assert len(said) < 2000


def _npz(path: Path, **arrays: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("jpeg.npy"), _array(np.zeros(4, np.uint8)))
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)


def _array(values: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def npz_of_zeros(path: Path) -> None:
    _npz(path, offsets=_array(np.zeros(60_000_000)), labels=_array(np.zeros(1, int)))


def npz_of_a_claim(path: Path) -> None:
    small = _array(np.zeros(10_000_000))[:128]
    _npz(path, offsets=small.replace(b"(10000000,)", b"(99999999,)"), labels=_array(np.zeros(1, int)))


def tar_of_a_sparse_label(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    image = path.read_bytes()[:512]
    label = tarfile.TarInfo("0.json")
    label.size = 5 * 2**30
    with path.open("wb") as stream:
        stream.write(image + label.tobuf())
        stream.truncate(1024 + label.size + 1024)


@pytest.mark.parametrize("maker", [npz_of_zeros, npz_of_a_claim, tar_of_a_sparse_label], ids=lambda made: made.__name__)
def test_stores_of_images_refuse_them_too(maker: Maker, tmp_path: Path) -> None:
    path = tmp_path / ("images.tar" if "tar" in maker.__name__ else "images.npz")
    maker(path)
    said = _refusal("data.stores:open_source(p)", path)
    assert "are read" in said
    assert "bytes" in said


def test_a_checkpoint_beyond_no_budget_is_read(tmp_path: Path) -> None:
    """Tied and expanded weights, tuples as keys, many parameters: all of it honest."""
    tied = torch.rand(100, 100)
    weights = {f"layer{n}.weight": tied for n in range(1000)} | {"row.weight": torch.zeros(1).expand(1, 512)}
    torch.save({"state_dict": weights, "shapes": {(3, (4, 5)): 1}, "history": list(range(100_000))}, tmp_path / "a.pt")
    assert len(read_state_dict(tmp_path / "a.pt").tensors) == 1001


@pytest.mark.parametrize("text", ["a" * 20_000_000, "relu" * 10_000])
def test_a_long_name_is_compared_with_none(text: str) -> None:
    assert nearest(text, ["relu", "gelu", "a" * 30_000]).startswith("known: ")


def test_a_list_of_networks_that_contains_itself(tmp_path: Path) -> None:
    path = tmp_path / "networks.txt"
    path.write_text(str(path))
    with pytest.raises(UsageError, match="contains itself"):
        select([str(path)])


_CHECKPOINT = """
import sys
from pathlib import Path
from bcos_fx.errors import UsageError
from bcos_fx.training.checkpoints import read_checkpoint
try:
    read_checkpoint(Path(sys.argv[1]))
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize("maker", [tuple_as_key, many_steps, deflated], ids=lambda maker: maker.__name__)
def test_a_run_s_checkpoint_is_read_within_budgets_too(maker: Maker, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    path = tmp_path / "last.ckpt"
    maker(path)
    content = path.read_bytes()
    from bcos_fx.training.checkpoints import _SEAL

    path.write_bytes(content + _SEAL % hashlib.sha256(content).hexdigest().encode())
    done = run_code(_CHECKPOINT, tmp_path, str(path), timeout=_SECONDS)
    assert "are read" in done.stdout, done.stderr[-2000:]
