"""Writing to what is not a regular file, over files, through links, beside the leftovers of killed processes."""

from __future__ import annotations

import ast
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.errors import ArtifactError, BcosFxError, UsageError
from bcos_fx.evaluation.result_log import ResultLog
from bcos_fx.files import appending, check_target, replacing
from bcos_fx.text.embedding import TextEmbeddings
from bcos_fx.training.checkpoints import WholeCheckpoints
from bcos_fx.training.recording import write_history
from benchmarks.zoo.running import examine_all
from tests.cli.conftest import SHAPE, TINY


@pytest.fixture(scope="module")
def network() -> bcos_fx.BcosNetwork:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return bcos_fx.bcosify(layers.eval(), recipe="equivalent", example_inputs=torch.rand(4, 3, 8, 8))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    bound = socket.socket(socket.AF_UNIX)
    # A socket's path may have 107 bytes, and a test's folder more.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        bound.bind(path.name)
    finally:
        os.chdir(here)
        bound.close()


def device(path: Path) -> None:
    """A node of its own for the null device: a writer that is wrong must not harm the machine's."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def link_to_fifo(path: Path) -> None:
    fifo(path.with_name("the_fifo"))
    path.symlink_to("the_fifo")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def directory(path: Path) -> None:
    path.mkdir()


SPECIAL = (fifo, unix_socket, device, link_to_fifo, link_to_itself, directory)


def _whole(path: Path) -> None:
    with replacing(path) as stream:
        stream.write(b"x")


def _appended(path: Path) -> None:
    with appending(path) as stream:
        stream.write(b"x")


WRITERS: dict[str, tuple[str, Callable[[Any, Path], Any]]] = {
    "replacing": ("x", lambda _, path: _whole(path)),
    "appending": ("x", lambda _, path: _appended(path)),
    "save": ("x.safetensors", lambda made, path: bcos_fx.save(made, path, overwrite=True)),
    "picture of the graph": ("x.png", lambda made, path: made.report.draw(path)),
    **{
        f"explanation{suffix}": (
            f"x{suffix}",
            lambda made, path: bcos_fx.explain(made, torch.rand(1, 3, 8, 8), 0).save(path),
        )
        for suffix in (".png", ".html", ".npz", ".safetensors")
    },
    "text embeddings": ("x", lambda _, path: TextEmbeddings(("a",), torch.ones(1, 2), "made-up").save(path)),
    "journal": ("x.jsonl", lambda _, path: ResultLog(path, {"bcos-fx": "0"}).append(0, 1)),
    "rows of the zoo": ("x.jsonl", lambda _, path: examine_all(["timm:resnet18"], path)),
    "checkpoint": ("last.ckpt", lambda _, path: WholeCheckpoints().save_checkpoint({"a": 1}, path)),
    "history": ("history.csv", lambda _, path: write_history([], path)),
}


@pytest.mark.parametrize("special", SPECIAL, ids=lambda made: made.__name__)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_not_a_regular_file_is_refused_and_stays(
    writer: str, special: Callable[[Path], None], network: bcos_fx.BcosNetwork, tmp_path: Path
) -> None:
    name, write = WRITERS[writer]
    path = tmp_path / name
    special(path)
    before = {item.name: (item.lstat().st_mode, item.lstat().st_ino) for item in tmp_path.iterdir()}
    with pytest.raises(BcosFxError) as caught:
        write(network, path)
    assert str(path) in str(caught.value)
    assert {item.name: (item.lstat().st_mode, item.lstat().st_ino) for item in tmp_path.iterdir()} == before


@pytest.mark.parametrize("special", [fifo, device, link_to_fifo], ids=lambda made: made.__name__)
def test_commands_refuse_it_before_the_work(
    special: Callable[[Path], None], run: Any, artifact: Path, weights: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.safetensors"
    special(target)
    before = target.lstat()
    photo = tmp_path / "photo.png"
    _photograph(photo)
    for words in (
        ("convert", weights, "--arch", TINY, *SHAPE, "-o", target, "--force"),
        ("calibrate", artifact, "--data", tmp_path, "-o", target, "--force"),
        ("finetune", artifact, "--data", tmp_path, "-o", target, "--force"),
        ("explain", artifact, photo, "-o", target),
        ("embed", "--text", "a", "--text-tower", "minilm", "-o", target),
    ):
        done = run(*words)
        assert done.exit_code == 2, done.output
        assert "not a file" in done.stderr
        assert (target.lstat().st_mode, target.lstat().st_ino) == (before.st_mode, before.st_ino)


def _photograph(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (200, 30, 60)).save(path)


def test_save_replaces_a_file_only_when_that_is_asked_for(network: bcos_fx.BcosNetwork, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="there already") as caught:
        bcos_fx.save(network, path)
    assert "overwrite=True" in str(caught.value.hint)
    assert path.read_bytes() == b"mine"
    bcos_fx.save(network, path, overwrite=True)
    bcos_fx.load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_during_the_work_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(UsageError, match="there already"), replacing(path, overwrite=False):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_fifo_that_appears_during_the_work_stays(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(UsageError, match="FIFO"), replacing(path):
        os.mkfifo(path)
    assert [stat.S_ISFIFO(item.lstat().st_mode) for item in tmp_path.iterdir()] == [True]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to("disk/model")
    for content in (b"new", b"newer"):  # at first the link leads to nothing yet
        with replacing(link) as stream:
            stream.write(content)
        assert link.is_symlink()
        assert (tmp_path / "disk" / "model").read_bytes() == content
    with pytest.raises(UsageError, match="there already"):
        check_target(link, overwrite=False)
    assert [item.name for item in (tmp_path / "disk").iterdir()] == ["model"]


def test_a_link_into_a_missing_folder_is_refused_by_that_folder(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("missing/model")
    with pytest.raises(UsageError, match="there is no folder") as caught, replacing(link):
        pass
    assert "missing" in str(caught.value)
    assert link.is_symlink()


def test_permissions_of_a_replaced_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.touch(mode=0o600)
    _whole(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


_KILLED = """
import os, sys
from pathlib import Path
from bcos_fx.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), 9)
"""


def _kill_a_writer(path: Path) -> list[str]:
    subprocess.run([sys.executable, "-c", _KILLED, path], check=False)
    return sorted(item.name for item in path.parent.iterdir() if item != path)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path, other = tmp_path / "model", tmp_path / "other"
    assert len(_kill_a_writer(path)) == 1
    _whole(other)
    assert len(list(tmp_path.glob(".*.tmp"))) == 1, "another path's leftover is not ours to remove"
    _whole(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model", "other"]


def test_a_live_writer_keeps_its_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with replacing(path) as slow:
        slow.write(b"slow")
        _whole(path)
        assert path.read_bytes() == b"x"
    assert path.read_bytes() == b"slow"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_of_one_path_all_come_through(tmp_path: Path) -> None:
    path, failed = tmp_path / "model", []

    def write(number: int) -> None:
        for _ in range(20):
            try:
                with replacing(path) as stream:
                    stream.write(bytes([number]) * 1000)
            except BcosFxError as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(set(path.read_bytes())) == 1
    assert len(path.read_bytes()) == 1000
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- one place

# What writes to a path by its name; a stream is what `replacing` gives.
_WRITING_METHODS = {"write_text", "write_bytes", "touch", "replace", "rename", "symlink_to", "hardlink_to", "to_csv"}
_ELSEWHERE = {
    "files.py": "the one place",
    "exporting/page.py": "writes to a temporary folder of its own, which is renamed once the page is whole",
}


def _writes(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    texts = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
    if name == "open":
        return any(isinstance(t, str) and len(t) <= 3 and set(t) & set("wax+") for t in texts)
    if name in ("replace", "rename"):
        return isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") in ("os", "shutil")
    return name in _WRITING_METHODS - {"replace", "rename"} or name in ("copyfile", "copy2", "move", "save_file")


def test_no_other_file_of_the_package_opens_a_path_for_writing(root: Path) -> None:
    package = root / "bcos_fx"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _writes(node)
    }
    assert found == set(_ELSEWHERE)
