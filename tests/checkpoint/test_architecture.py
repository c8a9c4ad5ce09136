"""Networks by name: every way of naming one, and every way of getting it wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from bcos_fx.checkpoint import (
    architecture_names,
    build_architecture,
    guess_architecture,
    has_random_weights,
    inspect,
    read_model,
)
from bcos_fx.errors import CheckpointError, MissingExtraError
from tests.checkpoint.files import save

FACTORIES = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Options:
    width: int = 3

class Tiny(nn.Linear):
    def __init__(self):
        super().__init__(Options().width, 2)

def tiny(): return Tiny()
def broken(): raise KeyError("nothing here")
def number(): return 3
def needs(width): return Tiny()
CONSTANT = 1
"""


NETWORKS = """
    resnet18 resnet50 wide_resnet50_2 densenet121 vgg11_bn alexnet mobilenet_v2 mobilenet_v3_small efficientnet_b0
    convnext_tiny vit_b_16 swin_t shufflenet_v2_x0_5 googlenet inception_v3 squeezenet1_1 mnasnet0_5
""".split()


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "factories.py"
    path.write_text(FACTORIES)
    return path


def test_a_factory_in_a_file(factories: Path) -> None:
    assert isinstance(build_architecture(f"{factories}:tiny"), nn.Linear)
    assert isinstance(build_architecture(f"{factories}:Tiny"), nn.Linear)


def test_a_factory_in_a_package() -> None:
    assert isinstance(build_architecture("torch.nn:Identity"), nn.Identity)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", "did you mean 'tiny'"),
        ("CONSTANT", "has no factory"),
        ("broken", "raised KeyError: 'nothing here'"),
        ("number", "returned int, not an nn.Module"),
        ("needs", "raised TypeError"),
    ],
)
def test_a_factory_that_fails(factories: Path, name: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        build_architecture(f"{factories}:{name}")
    assert caught.value.hint


@pytest.mark.parametrize("arch", ["resnet18", ":tiny", "torchvision:", ""])
def test_what_names_nothing_shows_the_forms(arch: str) -> None:
    with pytest.raises(CheckpointError, match=r"torchvision:resnet50.*file\.py:factory"):
        build_architecture(arch)


def test_a_module_that_is_not_there(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"there is no package 'no_such_package\.models'"):
        build_architecture("no_such_package.models:net")
    with pytest.raises(CheckpointError, match=r"did you mean .*factories\.py"):
        build_architecture(f"{factories.with_name('factory.py')}:net")
    monkeypatch.chdir(factories.parent)
    monkeypatch.delitem(sys.modules, "factories", raising=False)  # of a test before this one
    with pytest.raises(CheckpointError, match=r"write factories\.py:tiny"):
        build_architecture("factories:tiny")


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def f(:")
    with pytest.raises(CheckpointError, match="raised SyntaxError"):
        build_architecture(f"{path}:f")


def test_a_module_whose_own_import_is_missing_is_not_called_missing_itself(tmp_path: Path) -> None:
    path = tmp_path / "lacking.py"
    path.write_text("import no_such_library")
    with pytest.raises(CheckpointError, match="No module named 'no_such_library'"):
        build_architecture(f"{path}:net")


def test_timm_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tiny"]  # type: ignore[attr-defined]
    timm.create_model = lambda name, pretrained: nn.Identity()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert isinstance(build_architecture("timm:tiny"), nn.Identity)
    with pytest.raises(CheckpointError, match="did you mean 'tiny'"):
        build_architecture("timm:tinny")


@pytest.fixture
def built_of_timm(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What timm is asked to build; the library's own lists of models and weights are real."""
    timm, asked = pytest.importorskip("timm"), list[tuple[str, bool]]()

    def create(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", create)
    return asked


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("resnet18", ("resnet18", False)),
        ("resnet18.a1_in1k", ("resnet18.a1_in1k", True)),
        ("resnet18@tv_in1k", ("resnet18.tv_in1k", True)),
        ("resnet18@pretrained", ("resnet18", True)),
        ("resnet18.tv_in1k@pretrained", ("resnet18.tv_in1k", True)),
        ("inception_v3@gluon_in1k", ("inception_v3.gluon_in1k", True)),
    ],
)
def test_a_name_of_timm_that_includes_weights_loads_them(
    name: str, built: tuple[str, bool], built_of_timm: list[tuple[str, bool]]
) -> None:
    build_architecture(f"timm:{name}")
    assert built_of_timm == [built]
    assert has_random_weights(f"timm:{name}") is not built[1]


def test_weights_of_a_file_take_the_place_of_named_ones(tmp_path: Path, built_of_timm: list[tuple[str, bool]]) -> None:
    read_model(save(nn.Linear(1, 1).state_dict(), tmp_path / "a.pt"), arch="timm:resnet18.a1_in1k")
    assert built_of_timm == [("resnet18.a1_in1k", False)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18.a1_in2k", "did you mean 'a1_in1k'"),
        ("resnet18@", "known: a1_in1k, a2_in1k"),
        ("test_vit@nothing", "timm has no weights 'nothing' of test_vit"),
        ("resnet18x.a1_in1k", "did you mean 'resnet18"),
    ],
)
def test_weights_that_timm_does_not_have(name: str, words: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(CheckpointError, match=words):
        build_architecture(f"timm:{name}")


def _offline(*names: object, **options: object) -> nn.Module:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("arch", "function", "file"),
    [
        (
            "timm:resnet18.a1_in1k",
            "timm.create_model",
            r"model\.safetensors of huggingface\.co/timm/resnet18\.a1_in1k, in the cache",
        ),
        (
            "torchvision:resnet18@pretrained",
            "torchvision.models.get_model",
            r"cache as /.*/checkpoints/resnet18-\w+\.pth",
        ),
        ("open_clip:RN50@openai", "open_clip.create_model", r"huggingface\.co/timm/resnet50_clip\.openai"),
        ("open_clip:RN50@yfcc15m", "open_clip.create_model", r"huggingface\.co/timm/resnet50_clip\.yfcc15m"),
    ],
)
def test_weights_that_cannot_be_had_name_the_file_and_the_cache(
    arch: str, function: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(function.partition(".")[0])
    monkeypatch.setattr(function, _offline)
    with pytest.raises(CheckpointError, match=rf"(?s)could not be downloaded: OSError: no network.*{file}"):
        build_architecture(arch)


@pytest.mark.parametrize(
    ("library", "extra"), [("timm", "timm"), ("transformers", "transformers"), ("open_clip", "clip")]
)
def test_a_library_that_is_missing_names_the_extra(library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"bcos-fx\[{extra}\]"):
        build_architecture(f"{library}:tiny")


class Configuration:
    def __init__(self, attn_implementation: str = "sdpa") -> None:
        self.attention = attn_implementation


class TinyModel(nn.Identity):
    config_class = Configuration

    def __init__(self, configuration: Configuration) -> None:
        super().__init__()
        self.config = configuration


def test_transformers_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = ModuleType("transformers")
    transformers.TinyModel, transformers.logging = TinyModel, object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    assert build_architecture("transformers:TinyModel").config.attention == "sdpa"
    assert build_architecture("transformers:TinyModel@eager").config.attention == "eager"
    for wrong, words in (
        ("TinnyModel", "did you mean 'TinyModel'"),
        ("logging", "has no model 'logging'"),
        ("TinyModel@eagr", "did you mean 'eager'"),
    ):
        with pytest.raises(CheckpointError, match=words):
            build_architecture(f"transformers:{wrong}")


@pytest.mark.parametrize(
    ("arch", "random"),
    [
        ("timm:resnet18", True),
        ("timm:resnet18.a1_in1k", False),
        ("torchvision:resnet18", True),
        ("torchvision:resnet18@IMAGENET1K_V1", False),
        ("transformers:ViTModel@eager", True),
        ("open_clip:RN50@openai", False),
        ("net.py:build", False),
    ],
)
def test_random_weights_are_known(arch: str, random: bool) -> None:
    assert has_random_weights(arch) is random


def test_open_clip_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip, whole = ModuleType("open_clip"), nn.Module()
    whole.visual = nn.Identity()
    tags: list[str | None] = []
    open_clip.list_models = lambda: ["RN50"]  # type: ignore[attr-defined]
    open_clip.list_pretrained_tags_by_model = lambda name: ["openai"]  # type: ignore[attr-defined]
    open_clip.create_model = lambda name, pretrained: tags.append(pretrained) or whole  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "open_clip", open_clip)
    assert build_architecture("open_clip:RN50") is whole.visual
    with pytest.raises(CheckpointError, match="did you mean 'RN50'"):
        build_architecture("open_clip:RN5O")
    whole.visual.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert build_architecture("open_clip:RN50@openai").preprocess_cfg["mean"] == (0.5,) * 3
    assert not hasattr(build_architecture("open_clip:RN50"), "preprocess_cfg")  # a default, and no record
    assert tags == [None, "openai", None]
    with pytest.raises(CheckpointError, match="did you mean 'openai'"):
        build_architecture("open_clip:RN50@openapi")
    assert architecture_names("open_clip") == ["RN50"]


def test_names_of_a_library_without_a_list() -> None:
    with pytest.raises(CheckpointError, match="no list of the networks of 'transformers'"):
        architecture_names("transformers")


@pytest.mark.vision
def test_torchvision_by_name() -> None:
    assert build_architecture("torchvision:resnet18").get_parameter("fc.weight").shape == (1000, 512)
    with pytest.raises(CheckpointError, match="did you mean 'resnet18'"):
        build_architecture("torchvision:resnet81")
    with pytest.raises(CheckpointError, match="IMAGENET1K_V1"):
        build_architecture("torchvision:resnet18@IMAGENET")


@pytest.mark.vision
def test_named_weights_bring_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    build = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights: build(name, weights=None))
    module = build_architecture("torchvision:squeezenet1_1@IMAGENET1K_V1")
    recorded = dict(module.pretrained_cfg)
    names = recorded.pop("label_names")
    assert (names[0], len(names)) == ("tench", 1000)
    assert recorded.pop("origin_url").startswith("https://github.com/pytorch/vision")
    assert recorded == {
        "name": "torchvision:squeezenet1_1@IMAGENET1K_V1",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "input_size": (3, 224, 224),
        "interpolation": "bilinear",
        "crop_pct": 224 / 256,
    }


@pytest.mark.vision
def test_backbones_are_not_downloaded() -> None:
    module = build_architecture("torchvision:lraspp_mobilenet_v3_large")
    assert sum(p.numel() for p in module.parameters()) > 0


@pytest.mark.vision
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_torchvisions_networks_are_recognised(name: str) -> None:
    with torch.device("meta"):
        tensors = build_architecture(f"torchvision:{name}").state_dict()
    assert guess_architecture(tensors) == f"torchvision:{name}"


@pytest.mark.vision
def test_a_guess_ignores_the_class_count_and_nothing_else(tmp_path: Path) -> None:
    module = build_architecture("torchvision:squeezenet1_1")
    tensors = module.state_dict()
    tensors["classifier.1.weight"], tensors["classifier.1.bias"] = torch.zeros(7, 512, 1, 1), torch.zeros(7)
    path = save(tensors, tmp_path / "a.pt")
    assert inspect(path).arch == "torchvision:squeezenet1_1"
    with pytest.raises(CheckpointError, match="the weights fit --arch torchvision:squeezenet1_1"):
        read_model(path)
    with pytest.raises(CheckpointError, match="class count"):
        read_model(path, arch="torchvision:squeezenet1_1")
    tensors["features.0.weight"] = torch.zeros(64, 6, 3, 3)
    assert guess_architecture(tensors) is None
