"""What is saved comes back: the same values, names, order, sharing, modes, report and bytes."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from bcos_fx.artifact import from_bytes, load, read_header, save, to_bytes
from bcos_fx.convert import bcosify
from bcos_fx.errors import ArtifactError, BcosFxError
from bcos_fx.network import BcosNetwork
from bcos_fx.nn.construction import construct, constructor_options
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.spelling import resolve
from bcos_fx.testing import Network, networks
from bcos_fx.tracing.chance import DRAWS
from tests.artifact.making import everything, network


def assert_equal(one: BcosNetwork, other: BcosNetwork, *inputs: Tensor) -> None:
    """Everything about two networks is the same, to the bit and in order."""
    states = (one.state_dict(), other.state_dict())
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name])
    for kind in ("named_parameters", "named_buffers"):
        flags = [[(n, t.requires_grad) for n, t in getattr(m, kind)(remove_duplicate=False)] for m in (one, other)]
        assert flags[0] == flags[1]
    modules = [[(n, type(m), m.training) for n, m in model.named_modules()] for model in (one, other)]
    assert modules[0] == modules[1]
    assert one.record == other.record
    assert repr(one.record) == repr(other.record)
    assert one.report.to_json() == other.report.to_json()
    nodes = [[(n.name, n.op, n.target, str(n.args), str(n.kwargs)) for n in m.graph.nodes] for m in (one, other)]
    assert nodes[0] == nodes[1]
    assert [n.meta.get("rules") for n in one.graph.nodes] == [n.meta.get("rules") for n in other.graph.nodes]
    with torch.no_grad():
        assert torch.equal(one(*inputs), other(*inputs))


@settings(max_examples=8)
@given(networks(max_blocks=3))
def test_random_networks_come_back(module: Network) -> None:
    converted = bcosify(module, example_inputs=torch.rand(2, *module.input_shape), verified=False)
    data = to_bytes(converted)
    again = from_bytes(data)
    assert_equal(converted, again, torch.rand(3, *module.input_shape))
    assert to_bytes(again) == data


def test_every_kind_of_node_and_argument_comes_back() -> None:
    model = everything()
    again = from_bytes(to_bytes(model))
    assert_equal(model, again, torch.rand(2, 3, 6, 6))
    # Whether a node drew random numbers is seen while it is traced; a file may not claim it.
    metas = [[{k: v for k, v in n.meta.items() if k != DRAWS} for n in m.graph.nodes] for m in (model, again)]
    assert metas[0] == metas[1]


@pytest.mark.vision
@pytest.mark.parametrize("name", ["resnet18", "googlenet", "squeezenet1_1"])
def test_vision_networks_come_back(name: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    extra = {"init_weights": False} if name == "googlenet" else {}
    module = getattr(models, name)(**extra).eval()
    images = torch.rand(2, 3, 64, 64)
    model = bcosify(module, example_inputs=images, mean=(0.48, 0.46, 0.41), std=(0.23, 0.22, 0.22), verified=False)
    path = save(model, tmp_path / "model.safetensors")
    again = load(path)
    assert_equal(model, again, images)
    assert to_bytes(again) == path.read_bytes()
    header = read_header(path)
    assert header.intact
    assert header.recipe == "bcosification"
    assert header.options == model.report.options
    assert header.parameters == sum(p.numel() for p in model.parameters())
    assert header.size == path.stat().st_size
    assert sum(header.ops.values()) == len(model.graph.nodes)
    assert header.record == model.record


def test_other_tools_read_the_tensors(tmp_path: Path) -> None:
    model = everything()
    path = save(model, tmp_path / "model.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        assert list(file.metadata()) == ["bcos_fx"]
        assert set(file.keys()) == {*model.state_dict(), "mask"} - {"tied.weight"}
        for name in file.keys():
            assert torch.equal(
                file.get_tensor(name), model.get_buffer(name) if name == "mask" else model.state_dict()[name]
            )


class Odd(nn.Module):
    """Parameters and buffers of every dtype and form."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(4, 4)
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            self.register_parameter(f"p_{str(dtype)[6:]}", nn.Parameter(torch.randn(3).to(dtype)))
        for number, dtype in enumerate((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)):
            self.register_buffer(f"b{number}", torch.tensor([1, 2, 100]).to(dtype), persistent=bool(number % 2))
        self.register_buffer("scalar", torch.tensor(2.5))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("nothing", None)
        self.register_buffer("tilted", torch.arange(12.0).view(3, 4).t())
        self.register_buffer("last", torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last))
        self.register_buffer("special", torch.tensor([float("nan"), float("inf"), -0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x)


def odd() -> BcosNetwork:
    """A network whose parts its graph does not use: what the user hung on it afterwards is kept too."""
    model = network(nn.Sequential(nn.Linear(4, 4)), torch.rand(2, 4))
    part = Odd()
    part.__class__ = nn.Module
    model.add_module("odd", part)
    return model


def test_dtypes_and_forms_come_back() -> None:
    model = odd()
    again = from_bytes(to_bytes(model))
    for tensors in ("named_parameters", "named_buffers"):
        pairs = zip(getattr(model, tensors)(), getattr(again, tensors)(), strict=True)
        for (name, tensor), (other_name, other) in pairs:
            assert (name, tensor.dtype, tensor.shape) == (other_name, other.dtype, other.shape)
            assert torch.equal(tensor.isnan(), other.isnan())
            assert torch.equal(tensor.nan_to_num(7.5), other.nan_to_num(7.5))
            assert torch.equal(torch.signbit(tensor), torch.signbit(other))
            assert other.is_contiguous()
    assert list(model.state_dict()) == list(again.state_dict())
    assert again.odd.nothing is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_in_another_precision_comes_back(dtype: torch.dtype) -> None:
    model = network(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.rand(2, 4)).to(dtype)
    assert_equal(model, from_bytes(to_bytes(model)), torch.rand(2, 4).to(dtype))


def test_what_is_shared_stays_shared() -> None:
    model = everything()
    model.again = model.block
    model.register_buffer("mask2", model.mask)
    again = from_bytes(to_bytes(model))
    assert again.tied.weight is again.bound.weight
    assert again.again is again.block
    assert again.mask2 is again.mask
    assert list(again.state_dict()) == list(model.state_dict())
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_flags_come_back() -> None:
    model = everything()
    model.train()
    model.norm.eval()
    model.first.weight.requires_grad_(False)
    again = from_bytes(to_bytes(model))
    assert again.training
    assert again.first.training
    assert not again.norm.training
    assert not again.first.weight.requires_grad
    assert "mask" not in again.state_dict()
    assert again.mask.tolist() == [True, False, True, True]


def test_a_network_that_may_not_be_trained_comes_back() -> None:
    model = network(nn.Sequential(nn.Linear(4, 2)), torch.rand(2, 4), train_difference="x.py:1: other", train="refuse")
    again = from_bytes(to_bytes(model))
    assert_equal(model, again, torch.rand(2, 4))
    assert again.record.train_difference == "x.py:1: other"


def test_saving_changes_nothing_and_loading_shares_nothing() -> None:
    model = everything()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = from_bytes(to_bytes(model))
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.bound.weight.requires_grad


def test_a_trained_network_comes_back_and_can_be_trained_on() -> None:
    model = network(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.rand(8, 4), guards=()).train()
    for stage in (model, from_bytes(to_bytes(model))):
        stage(torch.rand(8, 4)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in stage.parameters())


def test_loading_under_inference_mode_gives_ordinary_parameters() -> None:
    data = to_bytes(everything())
    with torch.inference_mode():
        again = from_bytes(data)
    assert not any(tensor.is_inference() for tensor in (*again.parameters(), *again.buffers()))


def test_pickling_stores_the_file() -> None:
    model = everything()
    assert_equal(model, pickle.loads(pickle.dumps(model)), torch.rand(2, 3, 6, 6))
    stream = io.BytesIO()
    torch.save({"model": model}, stream)
    stream.seek(0)
    assert_equal(model, torch.load(stream, weights_only=False)["model"], torch.rand(2, 3, 6, 6))
    assert type(copy.deepcopy(model)) is BcosNetwork


_SCRIPT = """
import hashlib, sys, torch
from tests.artifact.making import everything
from bcos_fx.artifact import load, to_bytes
torch.manual_seed(3)
made = everything()
print(hashlib.sha256(to_bytes(made)).hexdigest(), hashlib.sha256(to_bytes(load(sys.argv[1]))).hexdigest())
"""


def in_another_process(root: Path, code: str, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_same_network_gives_the_same_bytes_in_any_process(tmp_path: Path, root: Path) -> None:
    torch.manual_seed(3)
    path = save(everything(), tmp_path / "model.safetensors")
    here = hashlib.sha256(path.read_bytes()).hexdigest()
    assert in_another_process(root, _SCRIPT, path).split() == [here, here]


def test_loading_needs_no_source_code(tmp_path: Path, root: Path) -> None:
    """Neither the module's class nor the package that holds it is imported."""
    path = save(everything(), tmp_path / "model.safetensors")
    code = "import sys, torch, bcos_fx; m = bcos_fx.load(sys.argv[1]); m(torch.rand(2, 3, 6, 6)); "
    code += "print([name for name in sys.modules if name.startswith('tests')])"
    assert in_another_process(root, code, path).strip() == "[]"


def test_a_file_names_no_path_of_this_machine() -> None:
    text = to_bytes(everything()).decode("latin-1")
    assert str(Path(__file__).parent) not in text
    assert str(Path.home()) + "/" not in text


def _layers() -> list[tuple[str, nn.Module]]:
    """Every layer of the vocabulary, once plainly made."""
    arguments: list[tuple[Any, ...]] = [
        (),
        (4,),
        (0.25,),
        (4, 4),
        (4, 4, 3),
        (4, 4, 4),
        (1, 0.5),
        (1, (2, 2)),
        ((2, 2),),
    ]
    found = []
    for name in sorted({name for op in vocabulary() if not op.view for name in op.modules}):
        for given_arguments in [*arguments, ((4, 4), 2), ([[1.0, 0.0]], [0.5])]:
            try:
                found.append((name, resolve(name)(*given_arguments)))
            except (TypeError, ValueError, BcosFxError):
                continue
            break
    return found


_CHANGED: list[tuple[str, nn.Module]] = [
    ("conv", nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), 2, 2, False, "reflect")),
    ("transposed", nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, False, 2)),
    ("attention", nn.MultiheadAttention(4, 2, 0.1, False, True, False, 3, 5, True)),
    ("norm", nn.BatchNorm2d(4, 1e-3, None, False, False)),
    ("layer norm", nn.LayerNorm((2, 3), 1e-3, True, False)),
    ("hardtanh", nn.Hardtanh(-0.5, 2.0)),
    ("upsample", nn.Upsample(scale_factor=(2.0, 3.0), mode="bilinear", align_corners=True)),
    ("constant pad", nn.ConstantPad2d((1, 2, 3, 4), float("inf"))),
    ("prelu", nn.PReLU(3, 0.1)),
    ("pool", nn.AvgPool2d(3, 2, 1, True, False, 5)),
    ("logit", resolve("bcos.LogitLayer")(-2.5, 3.0)),
    ("bcos", resolve("bcos.BcosConv2d")(4, 6, 3, b=1.5, scale="unit", eps=1e-3)),
    ("bcos norm", resolve("bcos.LayerNorm")((2, 3), centred=False)),
]


@pytest.mark.parametrize(
    "layer", [layer for _, layer in _layers() + _CHANGED], ids=[n for n, _ in _layers() + _CHANGED]
)
def test_every_layer_of_the_vocabulary_comes_back(layer: nn.Module) -> None:
    model = network(nn.Sequential(nn.Linear(4, 4)), torch.rand(2, 4))
    model.add_module("layer", layer)
    again = from_bytes(to_bytes(model)).layer
    assert type(again) is type(layer)
    assert repr(again) == repr(layer)
    assert constructor_options(again) == constructor_options(layer)
    assert list(again.state_dict()) == list(layer.state_dict())
    hidden = ("_parameters", "_buffers", "_modules", "training")
    for name, value in vars(layer).items():
        if name not in hidden and not name.startswith("_") and not callable(value):
            assert getattr(again, name) == value, name


def test_every_layer_was_tried() -> None:
    assert {name for name, _ in _layers()} == {name for op in vocabulary() if not op.view for name in op.modules}


def test_options_with_their_defaults_are_left_out_of_torchs_layers() -> None:
    """Torch adds options now and then; a file that does not name them can be read where they are not known."""
    layer = nn.BatchNorm2d(4, momentum=0.3)
    model = network(nn.Sequential(layer), torch.rand(2, 4, 3, 3))
    text = to_bytes(model).decode("latin-1")
    assert "momentum" in text
    assert "track_running_stats" not in text


def test_a_class_is_rebuilt_without_drawing_random_numbers() -> None:
    data = to_bytes(everything())
    state = torch.get_rng_state()
    from_bytes(data)
    assert torch.equal(state, torch.get_rng_state())
    assert construct(nn.Linear, {"in_features": 3, "out_features": 2}).weight.is_meta


_PEAK = """
import sys, torch
from bcos_fx.artifact import load
from bcos_fx.rewriting.core.ops import vocabulary

def memory(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind)) * 1024

vocabulary()
torch.ones(1, device="meta") + 1  # torch loads what it needs for shapes once
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
model = load(sys.argv[1])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_large_network_is_loaded_without_a_second_copy(tmp_path: Path, root: Path) -> None:
    layers = [nn.Linear(2000, 2000) for _ in range(6)]
    path = save(network(nn.Sequential(*layers), torch.rand(2, 2000)), tmp_path / "large.safetensors")
    size = path.stat().st_size
    assert 0.9 * size < int(in_another_process(root, _PEAK, path)) < 1.5 * size


def test_saving_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.any"
    path.write_bytes(b"old")
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert save(everything(), link, overwrite=True) == link
    assert link.is_symlink()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["link.safetensors", "model.any"]
    assert read_header(path).intact


def test_who_reads_the_old_file_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        save(everything(), path, overwrite=True)
        assert reader.read() == b"old"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        save(everything(), path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
