"""`make bench`: pages name a digest of the code that they measure, and those are made again whose code has changed."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import measuring
from benchmarks.measuring import MeasuredPage, digest_in, measured_pages


def bench(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "benchmarks" / "bench.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeasuredPage:
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "benchmarks" / "made.py").write_text("print(1)\n")
    (tmp_path / "code" / "a.py").write_text('"""A module."""\n\ndef f(x):\n    """Return x."""\n    return x\n')
    (tmp_path / "code" / "b.toml").write_text("x = 1\n")
    return MeasuredPage("made", ("code",))


@pytest.mark.parametrize(
    ("file", "content", "same"),
    [
        ("code/a.py", '"""Other words."""\n\n# why\ndef f(x):\n    """Give x."""\n    return x\n', True),
        ("code/a.py", '"""A module."""\n\ndef f(x):\n    """Return x."""\n    return x + 1\n', False),
        ("code/b.toml", "x = 2\n", False),
        ("code/c.py", "y = 1\n", False),
        ("code/notes.txt", "nothing", True),
        ("benchmarks/made.py", "print(2)\n", False),
    ],
)
def test_a_digest_is_of_code_and_not_of_words(
    page: MeasuredPage, tmp_path: Path, file: str, content: str, same: bool
) -> None:
    before = page.digest()
    (tmp_path / file).write_text(content)
    assert (page.digest() == before) is same


def test_every_page_has_a_script_and_code() -> None:
    for page in measured_pages():
        assert (measuring.ROOT / "benchmarks" / f"{page.name}.py").is_file()
        for place in page.measures:
            assert (measuring.ROOT / place).exists(), f"{page.name} measures {place}"


def test_every_page_of_results_can_be_made_again(root: Path) -> None:
    known = {page.name for page in measured_pages()}
    made = {path.stem for path in (root / "docs" / "results").glob("*.md")} - {"index"}
    assert made <= known, f"benchmarks/pages.toml does not say what makes {sorted(made - known)}"


def test_a_page_that_is_as_old_as_its_code_is_left_alone(root: Path, tmp_path: Path) -> None:
    """A run that was stopped continues with what is left; here one page is made, then none is due."""
    (page,) = (page for page in measured_pages() if page.name == "start_up")
    (tmp_path / "start_up.md").write_text(f"# Start\n\n- Code: {page.digest()} (a digest)\n")
    (tmp_path / "speed.md").write_text("# Speed\n\n- Code: 0123456789ab (a digest)\n")
    done = bench(root, "--list", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert states["start_up"] == "as old as its code"
    assert states["speed"] == "older than the code it measures"
    assert states["ablation"] == "not made yet"


@pytest.mark.parametrize(("only_written", "current"), [(False, True), (True, True), (False, False)])
def test_only_a_page_that_was_measured_names_a_digest(
    only_written: bool, current: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page of kept results, or of some that earlier code gave, is no page of the code as it is."""
    monkeypatch.setattr(sys, "argv", ["scale.py"])
    measuring.Page("Title", Namespace(out=None, quick=False, page=only_written), current=current)
    named = digest_in(capsys.readouterr().out)
    assert (named is not None) == (current and not only_written)


def test_wrong_words_are_refused(root: Path, tmp_path: Path) -> None:
    wrong = bench(root, "--only", "sped")
    assert wrong.returncode == 2
    assert "no page is named sped" in wrong.stderr
    missing = bench(root, "--data", str(tmp_path / "nothing"))
    assert missing.returncode == 2
    assert "there is no folder" in missing.stderr


def test_the_digest_is_read_off_a_page() -> None:
    assert digest_in("# A\n\n- Code: 0123456789ab (x)\n") == "0123456789ab"
    assert digest_in("# A\n\n- Machine: x\n") is None


def test_without_a_device_the_benchmark_for_gpus_says_so(root: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    pytest.importorskip("bcos")
    pytest.importorskip("timm")
    command = [sys.executable, str(root / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "gpu.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "There is no CUDA device here" in done.stdout
    assert not list(tmp_path.iterdir())
