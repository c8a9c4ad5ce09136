"""Every file in examples/ runs and does what it says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import bcos_fx
from tests.forks import run_script

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    """Run an example as its text says, somewhere else, and return what it printed."""
    done = run_script(EXAMPLES / name, folder, *arguments, strict=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_rule(tmp_path: Path) -> None:
    printed = run("own_rule.py", tmp_path)
    assert re.search(r"gelu-to-relu +1 +align ", printed), "the rule is to be listed with its node and phase"
    assert re.search(r"gelu-to-relu +1 +[\d.]+( times|%)", printed), "how far it moved the output is to be said"
    assert not list(tmp_path.iterdir())


def test_first_steps(tmp_path: Path) -> None:
    printed = run("first_steps.py", tmp_path, str(tmp_path))
    assert printed.startswith("equal: worst relative error")
    assert printed.endswith("loaded: equal outputs True\n")
    assert {path.name for path in tmp_path.iterdir()} == {"small.safetensors", "small.png"}


def test_cifar_resnet() -> None:
    resnet20 = imported("cifar_resnet.py").resnet20
    network = resnet20().eval()
    assert sum(p.numel() for p in network.parameters()) == 269_722
    assert sum(p.numel() for p in resnet20(num_classes=100).parameters()) == 269_722 + 90 * 65
    converted = bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 32, 32), verified=False)
    assert converted.report.coverage.share == 1
    assert not converted.report.unknown
    assert converted(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_every_example_has_a_test_of_its_name() -> None:
    files = {f"test_{path.stem}" for path in EXAMPLES.rglob("*.py")}
    assert files
    assert files <= set(globals()), f"no test runs {files - set(globals())}"


def test_unpooled_clip() -> None:
    """On a map that is the same everywhere, attention has nothing to choose: pooled is unpooled, without positions."""
    open_clip = pytest.importorskip("open_clip.modified_resnet")
    visual = open_clip.ModifiedResNet((1, 1, 1, 1), output_dim=6, heads=2, image_size=64, width=8).eval()
    visual.attnpool.positional_embedding.data.zero_()
    unpooled = imported("unpooled_clip.py").Unpooled(visual)
    images = torch.rand(2, 3, 64, 64)
    places = unpooled(images)
    assert places.shape == (2, 6, 2, 2)
    features = torch.rand(2, 256, 1, 1).expand(-1, -1, 2, 2)
    each = visual.attnpool.c_proj(visual.attnpool.v_proj(features[:, :, 0, 0]))
    torch.testing.assert_close(visual.attnpool(features), each)
    network = bcos_fx.bcosify(unpooled.eval(), example_inputs=images, recipe="clip", verified=False).double()
    text = torch.ones(6)
    e = bcos_fx.explain(network, images.double(), bcos_fx.explanation.cosine(text, location="max"))
    assert float(e.residual.abs().max()) <= 1e-9
