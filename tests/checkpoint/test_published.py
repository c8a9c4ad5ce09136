"""Published checkpoints go into the plain architecture and come out as the network that they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.checkpoint import inspect, read_model
from bcos_fx.checkpoint.published import origin_of
from bcos_fx.errors import CheckpointError, UsageError
from bcos_fx.nn import BcosLayer
from tests.checkpoint import published_files as files
from tests.rewriting import test_against_published as reference

PLAIN = {"CNN": (), "ViT": ("to_qkv",), "ViT-C": ("to_qkv",), "CLIP's pool": ("q_proj", "k_proj", "v_proj")}
BUILDERS = """
from tests.rewriting.test_against_published import built
def cnn(): return built("CNN").float()
"""


def saved(name: str, folder: Path, **options: Any) -> tuple[dict[str, Tensor], Path]:
    own = files.state(reference.built(name), plain=PLAIN[name], head="fc" if name == "CNN" else "", renumber=False)
    own.pop("positional_embedding", None)
    return own, files.training_checkpoint(own, folder / "published.ckpt", **options)


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Name of a factory of the architecture with other weights."""
    import tests.rewriting.test_against_published as module

    def factory() -> nn.Module:
        network = reference.built(request.param)
        for parameter in network.parameters():
            nn.init.normal_(parameter, 1.0, 0.5)
        return network.double()

    monkeypatch.setattr(module, "factory", factory, raising=False)
    return "tests.rewriting.test_against_published:factory"


@pytest.mark.parametrize("architecture", list(PLAIN), indirect=True)
def test_a_training_checkpoint_is_its_network(
    architecture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Outputs and W(x) of the slow implementation; every weight of the file is in the network; nothing raised twice."""
    name = request.node.callspec.params["architecture"]
    own, path = saved(name, tmp_path, averaged=True)
    recipe = reference.NETWORKS[name][2]
    network = bcos_fx.bcosify(read_model(path, arch=architecture), recipe=recipe, example_inputs=reference.images())
    outputs, weights = reference.published(name)
    with torch.no_grad():
        assert reference.distance(network(reference.images()), outputs) <= 1e-12
    assert reference.distance(bcos_fx.explain(network, reference.images()).weights, weights) <= 1e-12
    for key, tensor in own.items():
        if key.endswith(".linear.weight") and "c_proj" not in key:
            layer: Any = network.get_submodule(key.removesuffix(".linear.weight"))
            assert torch.equal(layer.weight.flatten(), tensor.flatten())
            assert (layer.b, layer.scale) == (2.0, "raw")
    raised = {f"{path}.linear.weight" for path, part in network.named_modules() if isinstance(part, BcosLayer)}
    assert raised == {key for key in own if key.endswith(".linear.weight") and "c_proj" not in key}
    assert any("were not raised again" in note for note in network.report.notes)
    assert any("averaged weights lie beside" in note for note in network.report.notes)
    assert network.report.figures.total_drift is None

    bcos_fx.save(network, tmp_path / "network.safetensors")
    assert torch.equal(bcos_fx.load(tmp_path / "network.safetensors")(reference.images()), network(reference.images()))


@pytest.mark.parametrize("architecture", ["CNN"], indirect=True)
def test_averaged_weights_are_taken_when_they_are_named(architecture: str, tmp_path: Path) -> None:
    own, path = saved("CNN", tmp_path, averaged=True)
    module = read_model(path, arch=architecture, key="state_dict.ema.module")
    origin = origin_of(module)
    assert origin is not None
    assert origin.origin == "B-cosification"
    assert torch.equal(origin.weights["first"], 2 * own["first.linear.weight"])


class Named(nn.Module):
    """Named parts in a sequence, which B-cosification numbers, one of them where another's number would be."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential()
        for name, part in (("-1", nn.Conv2d(6, 6, 3)), ("0", nn.Conv2d(6, 6, 1)), ("1", nn.BatchNorm2d(6))):
            inner.add_module(name, part)
        self.features = nn.Sequential()
        for name, part in (("conv0", nn.Conv2d(3, 6, 3)), ("relu0", nn.ReLU()), ("block", inner)):
            self.features.add_module(name, part)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.features(x).mean((2, 3)))
        return y


def named() -> nn.Module:
    torch.manual_seed(0)
    return Named().double().eval()


@pytest.mark.parametrize("renumber", [True, False])
def test_numbered_sequences_are_told_from_named_ones(renumber: bool, tmp_path: Path) -> None:
    source = Named().double()
    own = files.state(source, head="fc", renumber=renumber)
    assert ("features.2.1.linear.weight" in own) == renumber
    path = files.training_checkpoint(own, tmp_path / "numbered.ckpt")
    module = read_model(path, arch="tests.checkpoint.test_published:named")
    for key in ("features.block.0.weight", "features.block.-1.weight", "features.block.1.weight", "fc.weight"):
        torch.testing.assert_close(module.state_dict()[key], source.state_dict()[key], rtol=1e-12, atol=1e-12)
    assert float(module.state_dict()["features.block.1.running_mean"].abs().max()) == 0  # never read


@pytest.mark.parametrize("architecture", ["CNN"], indirect=True)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"b": 1.5}, "b asks for B = 1.5, and the layers of the file have B = 2"),
        ({"recipe": "equivalent"}, "the recipe 'equivalent' asks for B = 1.0, and the layers of the file have B = 2"),
        ({"scale": "cosine"}, "scale='cosine' contradicts the file, which has scale='raw'"),
        ({"bias": "keep"}, "bias='keep' contradicts"),
    ],
)
def test_what_contradicts_the_file_is_refused_with_both(
    options: dict[str, Any], words: str, architecture: str, tmp_path: Path
) -> None:
    _, path = saved("CNN", tmp_path)
    with pytest.raises(UsageError, match=words):
        bcos_fx.bcosify(read_model(path, arch=architecture), example_inputs=reference.images(), **options)


def changed(own: dict[str, Tensor], change: str) -> dict[str, Tensor]:
    weight = own["first.linear.weight"]
    return {
        "width": own | {"first.linear.weight": torch.cat([weight, weight])},
        "missing": {key: tensor for key, tensor in own.items() if key != "second.linear.weight"},
        "unknown": own | {"third.linear.weight": weight},
        "bias": own | {"first.linear.bias": weight[:, 0, 0, 0]},
        "learned": own | {"first.b": torch.tensor(1.7)},
    }[change]


@pytest.mark.parametrize("architecture", ["CNN"], indirect=True)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("width", r"first.linear.weight: \(16, 8, 3, 3\) in the file, \(8, 8, 3, 3\) in the architecture"),
        ("missing", r"second.weight \(missing in the file\)"),
        ("unknown", r"third.linear.weight \(no such part\)"),
        ("bias", r"first.linear.bias \("),
        ("learned", "the file's layers have B = 1.7"),
    ],
)
def test_keys_that_do_not_fit_are_named(change: str, words: str, architecture: str, tmp_path: Path) -> None:
    own, _ = saved("CNN", tmp_path)
    path = files.training_checkpoint(changed(own, change), tmp_path / "wrong.ckpt")
    with pytest.raises(CheckpointError, match=words):
        read_model(path, arch=architecture)


@pytest.mark.parametrize("architecture", ["CNN"], indirect=True)
def test_another_b_in_the_settings_is_refused(architecture: str, tmp_path: Path) -> None:
    _, path = saved("CNN", tmp_path, b=1.5)
    with pytest.raises(CheckpointError, match=r"B = 1.5; only B = 2 is computed alike"):
        read_model(path, arch=architecture)


def test_a_network_of_another_family_names_the_nearest_layouts(tmp_path: Path) -> None:
    _, path = saved("CNN", tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_model(path, arch="tests.checkpoint.test_published:named")
    assert "B-cosification" in str(caught.value)
    assert "stem.linear.weight (no such part)" in str(caught.value)


def test_an_unknown_layout_names_the_nearest_and_the_first_keys(tmp_path: Path) -> None:
    state = {f"backbone.{key}": tensor for key, tensor in named().state_dict().items()} | {"decoder.w": torch.ones(3)}
    torch.save(state, tmp_path / "unknown.pt")
    with pytest.raises(CheckpointError) as caught:
        read_model(tmp_path / "unknown.pt", arch="tests.checkpoint.test_published:named")
    assert "backbone.features.conv0.weight" in str(caught.value)
    assert "its keys look most like" in str(caught.value)


def test_plain_weights_of_layers_called_linear_stay_plain(tmp_path: Path) -> None:
    """A plain network whose layers are called ``linear`` is none of B-cos."""
    torch.save(reference.built("ViT").state_dict(), tmp_path / "plain.pt")
    module = nn.Sequential()
    module.add_module("linear", nn.Linear(3, 2))
    torch.save({f"{key}": tensor for key, tensor in module.state_dict().items()}, tmp_path / "linear.pt")
    read = read_model(tmp_path / "linear.pt", arch="tests.checkpoint.test_published:called_linear")
    assert origin_of(read) is None


def called_linear() -> nn.Module:
    module = nn.Sequential()
    module.add_module("linear", nn.Linear(3, 2))
    return module


def test_the_ordinary_command_converts_it(tmp_path: Path) -> None:
    _, path = saved("CNN", tmp_path)
    (tmp_path / "net.py").write_text(BUILDERS, encoding="utf-8")
    command = [sys.executable, "-m", "bcos_fx", "convert", str(path), "--arch", f"{tmp_path / 'net.py'}:cnn"]
    command += [
        "--recipe",
        "bcosification",
        "--input-shape",
        "3,16,16",
        "-o",
        str(tmp_path / "out.safetensors"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["options"]["mean"] == [0.485, 0.456, 0.406]
    assert report["options"]["scale"] == "raw"
    network = bcos_fx.load(tmp_path / "out.safetensors")
    outputs, _ = reference.published("CNN")
    with torch.no_grad():
        assert reference.distance(network(reference.images().float()), outputs.float()) <= 1e-5


@pytest.mark.vision
@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_inspect_names_layout_and_architecture(name: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    own = files.state(models.get_model(name), head="fc" if name == "resnet18" else "classifier")
    path = files.training_checkpoint(own, tmp_path / "published.ckpt", averaged=True)
    found = inspect(path)
    assert found.arch == f"torchvision:{name}"
    assert ("layout", "a B-cos network, as B-cosification saves it: converted as it is, at B = 2") in found.facts
    torch.save({key: torch.cat([t, t]) if t.dim() else t for key, t in own.items()}, tmp_path / "wide.pt")
    assert inspect(tmp_path / "wide.pt").arch is None


def test_explain_takes_a_published_checkpoint(tmp_path: Path) -> None:
    from PIL import Image

    _, path = saved("CNN", tmp_path)
    (tmp_path / "net.py").write_text(BUILDERS, encoding="utf-8")
    Image.new("RGB", (300, 300), (200, 30, 90)).save(tmp_path / "photo.png")
    command = [sys.executable, "-m", "bcos_fx", "explain", str(path), str(tmp_path / "photo.png")]
    arch = ["--arch", f"{tmp_path / 'net.py'}:cnn", "-o", str(tmp_path / "out.png"), "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, *arch], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["images"]) == 1
    torch.save(reference.built("CNN").state_dict(), tmp_path / "plain.pt")
    command[4] = str(tmp_path / "plain.pt")
    done = subprocess.run([*command, *arch], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 2
    assert "holds no B-cos network" in done.stderr


def clip_tower() -> nn.Module:
    tower = pytest.importorskip("open_clip").modified_resnet.ModifiedResNet
    torch.manual_seed(0)
    network: nn.Module = tower([1, 1, 1, 1], 32, 4, image_size=64, width=8).double().eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return network


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tower_of_clip_lies_beside_its_teacher_with_numbered_shortcuts(tmp_path: Path) -> None:
    """Its shortcuts are named -1, 0 and 1 in the architecture, and 0, 1 and 2 in the file."""
    tower = clip_tower()
    own = files.state(tower, plain=("q_proj", "k_proj", "v_proj"))
    assert "layer1.0.downsample.1.linear.weight" in own
    tensors = {f"model.model.{key}": tensor for key, tensor in own.items()}
    tensors |= {f"clip_model.{key}": 3 * tensor for key, tensor in tower.state_dict().items()}
    torch.save({"epoch": 3, "pytorch-lightning_version": "2", "state_dict": tensors}, tmp_path / "clip.ckpt")
    module = read_model(tmp_path / "clip.ckpt", arch="tests.checkpoint.test_published:clip_tower")
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    network, expected = (bcos_fx.bcosify(m, recipe="clip", example_inputs=x) for m in (module, tower))
    with torch.no_grad():
        assert reference.distance(network(x), expected(x)) <= 1e-12
    assert network.report.options["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert "attnpool.c_proj" not in {path for path, part in network.named_modules() if isinstance(part, BcosLayer)}
