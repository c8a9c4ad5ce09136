"""A run goes on from what it was begun with and from nothing else: every file, setting and image that differs is named.

The baseline of each attack is a short run whose resumption works; the attack changes one thing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bcos_fx
from bcos_fx.errors import BcosFxError, UsageError
from bcos_fx.evaluation.localisation import gridpg
from bcos_fx.evaluation.predictions import fingerprint
from bcos_fx.evaluation.result_log import ResultLog
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import fair
from bcos_fx.locking import LOCK, holding
from bcos_fx.training.checkpoints import KEY, WholeCheckpoints
from bcos_fx.training.finetune import FineTuned, finetune
from bcos_fx.training.settings import RunSettings
from tests.training import small_runs

NAME = "last.ckpt"
ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- a run of a second, from files


def write_images(root: Path, count: int = 4, classes: tuple[str, ...] = ("cat", "dog", "owl")) -> Path:
    """Files of one size in bytes, whatever they show, with the same names in every class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8, 3), 10 * number, dtype=np.uint8)
            pixels[..., label % 3] = 200 - label // 3
            Image.fromarray(pixels).save(root / name / f"{number}.bmp")
    return root


@dataclasses.dataclass
class Run:
    """What a run is begun with; attacks change it in place."""

    folder: Path
    data: Any
    validation: Any
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    network: Callable[[], nn.Module] = small_runs.converted

    def go(self, *, resume: bool) -> FineTuned:
        options = {"recipe": small_runs.plain(), "original": small_runs.original()} | self.given
        settings = options.pop("settings", {})
        return finetune(
            self.network(),
            self.data,
            validation=self.validation,
            run=RunSettings(folder=self.folder, resume=resume, **settings),
            **options,
        )


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run of both its epochs, to be copied."""
    root = tmp_path_factory.mktemp("begun")
    run = Run(root / "run", write_images(root / "train"), write_images(root / "val", 2))
    run.go(resume=False)
    return root


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Run:
    shutil.copytree(begun, tmp_path / "copy")
    return Run(tmp_path / "copy" / "run", tmp_path / "copy" / "train", tmp_path / "copy" / "val")


def test_what_nothing_was_changed_of_goes_on_in_a_copy(run: Run) -> None:
    assert len(run.go(resume=True).history) == 3


# ---------------------------------------------------------------- the checkpoint's bytes


def places(size: int) -> list[int]:
    """Bits of the first and last bytes, and others all over the file, the same in every run."""
    drawn = np.random.default_rng(0).integers(0, 8 * size, 60).tolist()
    return [*range(0, 64, 7), *range(8 * (size - 90), 8 * size, 41), *drawn]


def test_a_flipped_bit_anywhere_is_refused(run: Run) -> None:
    checkpoint = run.folder / NAME
    content = checkpoint.read_bytes()
    for place in places(len(content)):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << (place % 8)
        checkpoint.write_bytes(altered)
        with pytest.raises(UsageError, match=r"the checkpoint cannot be read: it (was altered|does not end)"):
            run.go(resume=True)
    checkpoint.write_bytes(content)
    run.go(resume=True)


@pytest.mark.parametrize("keep", [0, 1, 21, 0.3, 0.9, -1, -30, -81, -82, -100])
def test_a_truncated_checkpoint_is_refused(keep: float, run: Run) -> None:
    checkpoint = run.folder / NAME
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(UsageError, match="the checkpoint cannot be read: it does not end in a checksum"):
        run.go(resume=True)


@pytest.mark.parametrize("more", [b"\0", b"more", b"\nbcos-fx sha256 " + b"0" * 64 + b"\n"], ids=len)
def test_a_checkpoint_with_more_at_its_end_is_refused(more: bytes, run: Run) -> None:
    with (run.folder / NAME).open("ab") as stream:
        stream.write(more)
    with pytest.raises(UsageError, match="the checkpoint cannot be read"):
        run.go(resume=True)


def resealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint, and give it the checksum of its new bytes."""
    found = torch.load(path, weights_only=True)
    change(found)
    WholeCheckpoints().save_checkpoint(found, path)


def keys(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value in nested dicts and lists."""
    parts = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if type(value) is list else []
    return [way for key, part in parts for way in [(*path, key), *keys(part, (*path, key))]]


def without(way: tuple[Any, ...]) -> Callable[[dict[str, Any]], object]:
    def remove(found: Any) -> None:
        for key in way[:-1]:
            found = found[key]
        del found[way[-1]]

    return remove


def test_a_checkpoint_that_lacks_anything_is_refused_by_its_name(run: Run) -> None:
    checkpoint = run.folder / NAME
    content = checkpoint.read_bytes()
    ways = [way for way in keys(torch.load(checkpoint, weights_only=True)) if way[:2] != (KEY, "outline")]
    # Once from each family: parameters, moments and rows of history are alike.
    families = {tuple(map(str, way[:3])): way for way in ways}
    assert len(families) > 40
    for way in families.values():
        checkpoint.write_bytes(content)
        resealed(checkpoint, without(way))
        with pytest.raises(UsageError, match="checkpoint") as caught:
            run.go(resume=True)
        if way[0] != KEY and not isinstance(way[-1], int):
            assert str(way[-1]) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("another shape", lambda c: c["state_dict"].update({"network.8.weight": torch.zeros(1)})),
        ("another type", lambda c: c["state_dict"].update({"network.8.weight": "text"})),
        ("no outline", lambda c: c[KEY].pop("outline")),
        ("an empty outline", lambda c: c[KEY].update(outline=[])),
        ("no identity", lambda c: c[KEY].pop("identity")),
        ("an identity of text", lambda c: c[KEY].update(identity="mine")),
        ("nothing of ours", lambda c: c.pop(KEY)),
        ("text of ours", lambda c: c.update({KEY: "mine"})),
    ],
)
def test_a_sealed_checkpoint_of_another_form_is_refused(name: str, change: Any, run: Run) -> None:
    resealed(run.folder / NAME, change)
    with pytest.raises(UsageError, match="checkpoint"):
        run.go(resume=True)


class Runs:
    """Unpickling it would run a command."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def test_nothing_in_a_sealed_checkpoint_is_executed(run: Run, tmp_path: Path) -> None:
    checkpoint = run.folder / NAME
    found = torch.load(checkpoint, weights_only=True)
    WholeCheckpoints().save_checkpoint({**found, "more": Runs(tmp_path / "executed")}, checkpoint)
    with pytest.raises(UsageError, match="the checkpoint cannot be read"):
        run.go(resume=True)
    assert not (tmp_path / "executed").exists()


# ---------------------------------------------------------------- other files of the folder


@pytest.mark.parametrize("content", [b"", b"epoch,images\n0,7\n", b"\xff\xfe\0"])
def test_the_history_is_that_of_the_checkpoint_whatever_its_file_holds(content: bytes, run: Run) -> None:
    history = run.folder / "history.csv"
    before = history.read_bytes()
    history.write_bytes(content)
    run.go(resume=True)
    assert history.read_bytes() == before


# ---------------------------------------------------------------- images, weights, settings


def swap(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def altered_image(path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 77, dtype=np.uint8)).save(path)


DATA: dict[str, tuple[str, Callable[[Path], object]]] = {
    "swapped contents of two classes": ("contents", lambda d: swap(d / "cat", d / "dog")),
    "a renamed class": ("classes.dog", lambda d: (d / "dog").rename(d / "elk")),
    "an added image": ("images", lambda d: shutil.copy(d / "cat/0.bmp", d / "cat/9.bmp")),
    "a removed image": ("images", lambda d: (d / "owl/1.bmp").unlink()),
    "an altered image of the same size": ("contents", lambda d: altered_image(d / "owl/1.bmp")),
    "an image moved to another class": ("labels", lambda d: (d / "owl/1.bmp").rename(d / "cat/8.bmp")),
    "a renamed image": ("names", lambda d: (d / "owl/1.bmp").rename(d / "owl/2x.bmp")),
    "images of another size": ("sizes", lambda d: Image.new("RGB", (9, 9)).save(d / "cat/0.bmp")),
}


@pytest.mark.parametrize("which", ["training images", "test images"])
@pytest.mark.parametrize("attack", DATA)
def test_other_images_are_refused(attack: str, which: str, run: Run) -> None:
    aspect, change = DATA[attack]
    folders = [run.data if which == "training images" else run.validation]
    if attack == "a renamed class":  # in both, for training and test images have the same classes
        folders = [run.data, run.validation]
    for folder in folders:
        change(folder)
    with pytest.raises(UsageError, match="the checkpoint is of another run") as caught:
        run.go(resume=True)
    assert f"{which}.{aspect}" in str(caught.value)
    assert " was " in str(caught.value)
    assert " and is " in str(caught.value)


def test_no_test_images_any_more_is_refused(run: Run) -> None:
    run.validation = None
    with pytest.raises(UsageError, match=r"test images was .* and is null"):
        run.go(resume=True)


def other_weights() -> nn.Module:
    network = small_runs.converted()
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] += 1e-3
    return network


def other_buffer() -> nn.Module:
    network = small_runs.converted()
    network.get_submodule("1").running_var[0] += 1
    return network


def partly_frozen() -> nn.Module:
    network = small_runs.converted()
    network.get_submodule("0").requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("network", "aspect"),
    [
        (other_weights, "start weights was"),
        (other_buffer, "start weights was"),
        (partly_frozen, r"frozen parameters was \[\] and is"),
        (lambda: small_runs.converted(scale="unit"), "network was"),
        (lambda: small_runs.converted(b=1.5), "network was"),
    ],
)
def test_other_start_weights_are_refused(network: Any, aspect: str, run: Run) -> None:
    run.network = network
    with pytest.raises(UsageError, match=aspect):
        run.go(resume=True)


def other_original() -> nn.Module:
    original = small_runs.original()
    with torch.no_grad():
        original[8].bias[1] -= 0.5
    return original


def other_dropout() -> nn.Module:
    original = small_runs.original()
    original[3] = nn.Dropout(0.9)
    return original


@pytest.mark.parametrize(
    ("given", "aspect"),
    [
        ({"original": other_original()}, r"original\.values was"),
        ({"original": other_dropout()}, r"original\.structure was"),
        ({"original": None}, r"original was .* and is null"),
        ({"recipe": small_runs.plain(lr=0.02)}, r"recipe\.optimizer\.lr was 0.01 and is 0.02"),
        ({"recipe": small_runs.plain(seed=5)}, r"recipe\.seed was 0 and is 5"),
        ({"recipe": small_runs.plain(epochs=3)}, r"recipe\.epochs was 2 and is 3"),
        ({"from_scratch": True}, "start weights was"),
        ({"settings": {"devices": 2}}, r"settings\.processes was 1 and is 2"),
        ({"settings": {"gallery": torch.zeros(2, 3, 8, 8)}}, r"settings\.gallery was null and is"),
    ],
    ids=str,
)
def test_other_settings_are_refused(given: dict[str, Any], aspect: str, run: Run) -> None:
    run.given = given
    with pytest.raises(UsageError, match=aspect):
        run.go(resume=True)


def test_a_checkpoint_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other", run.data, run.validation, network=other_weights)
    other.go(resume=False)
    shutil.copy(other.folder / NAME, run.folder / NAME)
    with pytest.raises(UsageError, match="the checkpoint is of another run: start weights was"):
        run.go(resume=True)


def test_a_new_head_is_the_same_one_when_a_run_goes_on(tmp_path: Path) -> None:
    data = write_images(tmp_path / "four", classes=("a", "b", "c", "d"))
    run = Run(tmp_path / "run", data, None, given={"head": "new"})
    first = run.go(resume=False)
    torch.rand(7)
    again = run.go(resume=True)
    for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- images that are no files


class Drawn(Dataset[Any]):
    """A data set whose items are drawn from a generator of its own, others at every reading."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self._generator.random((3, 8, 8), dtype=np.float32)), index % 3


class Augmented(Dataset[Any]):
    """A data set that draws from the global generators."""

    def __init__(self, added: float = 0.0) -> None:
        self._images, self._labels = small_runs.images(12)
        self._images = self._images + added

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return self._images[index] + torch.rand(1) / 100, int(self._labels[index])


def pair(shift: int = 0, added: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = small_runs.images(12)
    return pixels + added, (labels + shift) % 3


@pytest.mark.parametrize(
    ("first", "second", "aspect"),
    [
        (pair(), pair(added=1e-3), r"training images\.contents"),
        (pair(), pair(shift=1), r"training images\.labels"),
        (Augmented(), Augmented(0.1), r"training images\.contents"),
        (TensorDataset(*pair()), TensorDataset(*pair(shift=1)), r"training images\.contents"),
        (DataLoader(Augmented(), batch_size=4), DataLoader(Augmented(), batch_size=3), r"training images\.batch"),
        (DataLoader(Augmented(), batch_size=4), DataLoader(Augmented(0.1), batch_size=4), "images.contents"),
        (Augmented(), TensorDataset(*pair()), r"training images\.kind"),
    ],
)
def test_other_data_in_memory_is_refused(first: Any, second: Any, aspect: str, tmp_path: Path) -> None:
    Run(tmp_path / "run", first, None).go(resume=False)
    Run(tmp_path / "run", first, None).go(resume=True)
    with pytest.raises(UsageError, match=aspect):
        Run(tmp_path / "run", second, None).go(resume=True)


def test_data_that_is_another_at_every_reading_does_not_block_a_run(tmp_path: Path) -> None:
    Run(tmp_path / "run", Drawn(), None).go(resume=False)
    assert len(Run(tmp_path / "run", Drawn(), None).go(resume=True).history) == 3


# ---------------------------------------------------------------- one run per folder

HOLD = """
import sys, time
from pathlib import Path
from bcos_fx.locking import holding
from bcos_fx.training.settings import RunSettings
from bcos_fx.training.settings import RunSettings
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that holds the folder ``held``."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "held")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_in_a_folder_is_refused_and_names_the_first(holder: Any, tmp_path: Path) -> None:
    second = Run(tmp_path / "held", small_runs.images(), None)
    for resume in (False, True):
        with pytest.raises(UsageError, match=f"the folder is in use by process {holder.pid} on .*, since 2"):
            second.go(resume=resume)
    with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
        Runner(folder=tmp_path / "held").run("work", {}, [1], lambda number: number, "working")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "held" / LOCK).exists()  # what a killed process leaves
    assert len(second.go(resume=True).history) == 3
    assert not (tmp_path / "held" / LOCK).exists()


@pytest.mark.parametrize("content", ["", "[" * 10_000, "{}", '{"process": 1, "host": "\x1b[2J", "since": 3}', "\0"])
def test_whatever_a_lock_holds_the_second_run_is_refused(content: str, holder: Any, tmp_path: Path) -> None:
    (tmp_path / "held" / LOCK).write_text(content)
    with pytest.raises(UsageError, match="the folder is in use by") as caught:
        Run(tmp_path / "held", small_runs.images(), None).go(resume=True)
    assert "\x1b" not in str(caught.value)


def test_two_threads_exclude_each_other_and_one_does_not_itself(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def second() -> None:
        try:
            with holding(tmp_path / "run"):
                raise AssertionError("both hold it")
        except BaseException as error:
            refused.append(error)

    with holding(tmp_path / "run"):
        with holding(tmp_path / "run"):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        assert (tmp_path / "run" / LOCK).exists()
    assert [type(error) for error in refused] == [UsageError]
    assert f"another thread of this process, {os.getpid()}" in str(refused[0])
    assert not (tmp_path / "run").exists()  # nothing was written
    second()
    assert str(refused[1]) == "both hold it"


@pytest.mark.parametrize("kind", ["file", "folder at the lock", "link at the lock"])
def test_a_folder_that_cannot_be_held_is_named(kind: str, tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "target"
    target.write_text("kept")
    if kind == "file":
        folder.write_text("a file")
    else:
        folder.mkdir()
        (folder / LOCK).mkdir() if kind == "folder at the lock" else (folder / LOCK).symlink_to(target)
    with pytest.raises(UsageError, match="the folder cannot be used"):
        Run(folder, small_runs.images(), None).go(resume=True)
    assert target.read_text() == "kept"


@pytest.mark.slow
def test_two_commands_in_one_folder(tmp_path: Path) -> None:
    bcos_fx.save(small_runs.converted(), tmp_path / "start.safetensors")
    write_images(tmp_path / "train")
    words = [sys.executable, "-m", "bcos_fx", "finetune", "start.safetensors", "--data", "train", "--run", "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([*words, "--epochs", "500", "-o", "a.st"], cwd=tmp_path, env=environment)
    try:
        while not (tmp_path / "run" / NAME).exists():
            assert first.poll() is None
            time.sleep(0.1)
        done = subprocess.run([*words, "--resume", "-o", "b.st"], cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 2
        assert f"in use by process {first.pid}" in done.stderr.decode()
    finally:
        first.kill()
        first.wait()


# ---------------------------------------------------------------- results of an evaluation


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("played")
    write_images(root / "data")
    play(root)
    return root


def brightest() -> nn.Module:
    """A linear classifier that is sure of which colour an image has most of."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        network[2].weight.copy_(20 * torch.eye(3))
    return network.eval()


def play(root: Path) -> list[Any]:
    protocol = fair(side=1, grids=6, smooth=1)
    options: dict[str, Any] = {"protocol": protocol, "batch_size": 4, "shape": (3, 8, 8), "folder": root / "results"}
    return [list(row) for row in gridpg(brightest(), root / "data", **options).per_grid]


@pytest.fixture
def copied(played: Path, tmp_path: Path) -> Path:
    return shutil.copytree(played, tmp_path / "copy")


def test_results_of_a_copy_are_gone_on_with(copied: Path) -> None:
    before = {path: path.read_bytes() for path in (copied / "results").iterdir()}
    assert len(before) == 2
    play(copied)
    assert {path: path.read_bytes() for path in (copied / "results").iterdir()} == before


def test_a_flipped_bit_in_results_is_refused_or_computed_again(copied: Path) -> None:
    """A line that has lost its end is one that was being written; what is left out is computed again."""
    whole = play(copied)
    for journal in (copied / "results").iterdir():
        content = journal.read_bytes()
        refused = 0
        for place in np.random.default_rng(1).integers(0, 8 * len(content), 40).tolist():
            altered = bytearray(content)
            altered[place // 8] ^= 1 << (place % 8)
            journal.write_bytes(altered)
            try:
                assert play(copied) == whole
            except BcosFxError:
                refused += 1
            journal.write_bytes(content)
        assert refused > 30


def changed_row(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    head, row, *more = path.read_text().splitlines()
    parsed = json.loads(row)
    change(parsed)
    path.write_text("\n".join([head, json.dumps(parsed), *more]) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(n=1),
        lambda row: row.update(n=True),
        lambda row: row.update(row=[]),
        lambda row: row.update(row=None),
        lambda row: row.pop("sum"),
        lambda row: row.update(sum=None),
        lambda row: row.update(sum="0" * 64),
        lambda row: row.update(more=1),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_an_altered_result_is_refused_by_file_and_line(number: int, change: Any, copied: Path) -> None:
    journal = sorted((copied / "results").iterdir())[number]
    changed_row(journal, change)
    with pytest.raises(UsageError, match="the line") as caught:
        play(copied)
    assert caught.value.where == f"{journal}:2"


def test_a_result_that_was_written_for_something_else_is_refused(tmp_path: Path) -> None:
    for name, header in (("a", {"model": "a"}), ("b", {"model": "b"})):
        ResultLog(tmp_path / name, header).append(0, name)
    head = (tmp_path / "a").read_text().splitlines()[0]
    row = (tmp_path / "b").read_text().splitlines()[1]
    (tmp_path / "a").write_text(f"{head}\n{row}\n")
    with pytest.raises(UsageError, match="its checksum is another"):
        ResultLog(tmp_path / "a", {"model": "a"})


@pytest.mark.parametrize("content", [b"notes of mine", b'{"other": 1}\nhalf', b'{"other": 1}'])
def test_a_file_of_something_else_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"something else"):
        ResultLog(path, {"model": "a"})
    assert path.read_bytes() == content


@pytest.mark.parametrize("attack", [name for name in DATA if name != "images of another size"])
def test_results_of_other_images_are_refused(attack: str, copied: Path) -> None:
    aspect, change = DATA[attack]
    change(copied / "data")
    with pytest.raises(UsageError, match="results of something else") as caught:
        play(copied)
    assert f"data.{aspect}" in str(caught.value)


class Labelled(Dataset[Any]):
    """Images in memory."""

    def __init__(self, added: float = 0.0) -> None:
        self.images, self.labels = small_runs.images(12)
        self.images = self.images + added

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return self.images[index], int(self.labels[index])


@pytest.mark.parametrize("loader", [False, True])
def test_results_of_another_data_set_are_refused(loader: bool, tmp_path: Path) -> None:
    given = [DataLoader(part, batch_size=4) if loader else part for part in (Labelled(), Labelled(0.01))]
    options: dict[str, Any] = {"folder": tmp_path, "protocol": fair(side=1, grids=3, smooth=1)}
    gridpg(brightest(), given[0], **options)
    with pytest.raises(UsageError, match=r"data\.contents was"):
        gridpg(brightest(), given[1], **options)


def test_a_network_is_told_apart_by_its_values_and_not_by_addresses() -> None:
    class Held(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.kept = object()
            self.register_buffer("value", torch.tensor(value), persistent=False)

        def extra_repr(self) -> str:
            return repr(self.kept)

    first, same, other = Held(1.0), Held(1.0), Held(2.0)
    assert fingerprint(first) == fingerprint(same)
    assert fingerprint(first) != fingerprint(other)
