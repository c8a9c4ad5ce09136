"""State dicts of B-cos v2, whose first layer reads [x, 1 - x], become networks that take images."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.checkpoint.published import origin_of
from bcos_fx.errors import UsageError
from tests.checkpoint import published_files as files
from tests.rewriting import test_against_published as reference

PLAIN = {"CNN": (), "ViT": ("to_qkv",)}
ROOT = Path(__file__).parents[2]
BUILDERS = """
from tests.rewriting.test_against_published import built
def cnn(): return built("CNN").float()
def vit(): return built("ViT").float()
"""


def hub_file(name: str, folder: Path) -> tuple[Path, str]:
    """A state dict without prefixes, and the ``--arch`` of its plain network."""
    (folder / "net.py").write_text(BUILDERS, encoding="utf-8")
    own = files.state(reference.built(name), plain=PLAIN[name], head="fc" if name == "CNN" else "", renumber=False)
    torch.save({key: tensor.float() for key, tensor in own.items()}, folder / "hub.pth")
    return folder / "hub.pth", f"{folder / 'net.py'}:{name.lower()}"


def of_six_channels(module: nn.Module, encoded: Tensor, recipe: str) -> bcos_fx.BcosNetwork:
    """The same file as a network that reads [x, 1 - x] itself: the architecture alone, converted and settled."""
    origin = origin_of(module)
    assert origin is not None
    options: dict[str, Any] = {name: value for name, value in origin.options.items() if name not in ("mean", "std")}
    alone = dataclasses.replace(origin, weights={k.removeprefix("network."): w for k, w in origin.weights.items()})
    plain = module.get_submodule("network")
    return alone.settled(
        bcos_fx.bcosify(plain, recipe=recipe, example_inputs=encoded, **{**options, "input": "none"}, b=2.0)
    )


@pytest.mark.parametrize("name", list(PLAIN))
def test_the_network_takes_images_and_is_that_of_six_channels(name: str, tmp_path: Path) -> None:
    path, arch = hub_file(name, tmp_path)
    module, x = read_model(path, arch=arch).double(), reference.images()
    network = bcos_fx.bcosify(module, recipe="bcosification", example_inputs=x)
    spec, encoded = network.record.inputs[0], torch.cat([x, 1 - x], 1)
    assert (spec.encoded, spec.shape[1]) == (True, 3)
    assert spec.matrix == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    assert [float(shift) for shift in spec.offset] == [0.0, 0.0, 0.0]
    assert not any("colors mean nothing" in note for note in network.report.notes)
    six = of_six_channels(module, encoded, "bcosification")
    assert six.record.inputs[0].shape[1] == 6
    with torch.no_grad():
        torch.testing.assert_close(network(x), six(encoded))
    found, expected = bcos_fx.explain(network, x), bcos_fx.explain(six, encoded)
    assert found.verdict == ("complete" if name == "CNN" else "not tested")  # the logit bias is most of the other's
    own = found.output - found.constants.total()
    torch.testing.assert_close(found.contributions.flatten(1).sum(1), own, rtol=1e-9, atol=0)
    assert float(own.abs().min()) > 1e-3
    assert torch.equal(found.encoded, encoded)
    torch.testing.assert_close(found.weights, expected.weights)
    assert float(found.weights[:, 3:].abs().max()) > 0  # a colour of its own
    bcos_fx.save(network, tmp_path / "network.safetensors")
    assert torch.equal(bcos_fx.load(tmp_path / "network.safetensors")(x), network(x))


def test_no_statistics_come_between_the_encoding_and_the_first_layer(tmp_path: Path) -> None:
    path, arch = hub_file("CNN", tmp_path)
    x = reference.images().float()
    with pytest.raises(UsageError, match="contradicts the file"):
        bcos_fx.bcosify(read_model(path, arch=arch), example_inputs=x, mean=(0.5,) * 3, std=(0.5,) * 3)
    outputs = [bcos_fx.bcosify(read_model(path, arch=arch), recipe=r, example_inputs=x)(x)
               for r in ("bcosification", "clip")]  # fmt: skip
    torch.testing.assert_close(*(output - output.mean() for output in outputs))  # but for the logit bias


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bcos_fx", *command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_inspect_convert_and_explain_take_it_as_any_other(tmp_path: Path) -> None:
    from PIL import Image

    path, arch = hub_file("CNN", tmp_path)
    Image.new("RGB", (300, 300), (200, 30, 90)).save(tmp_path / "photo.png")
    assert "a B-cos network, as B-cos v2 saves it" in run("inspect", str(path))
    out = tmp_path / "out.safetensors"
    report = json.loads(run("convert", str(path), "--arch", arch, "-o", str(out), "--json"))["report"]
    assert "encoded inside" in next(iter(report["inputs"].values()))
    photo = str(tmp_path / "photo.png")
    explained = [
        run("explain", str(path), photo, "--arch", arch, "-o", str(tmp_path / "one.png"), "--json"),
        run("explain", str(out), photo, "-o", str(tmp_path / "two.png"), "--json"),
    ]
    one, two = (json.loads(text)["images"][0] for text in explained)
    assert one["verdict"] == two["verdict"] == "complete"
    assert one["output"] == pytest.approx(two["output"])
    assert (tmp_path / "one.png").stat().st_size > 0
