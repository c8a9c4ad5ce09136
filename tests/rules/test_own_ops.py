"""Ops of a user's own, in one Python file and one TOML file, through everything that a network goes through."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.network import BcosNetwork
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.tracing import trace
from tests.rules import own_ops

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RULES = HERE / "own_ops.toml"
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
# The op as rules name it, and how often it stands in the network after conversion.
OPS = {
    "Snake": ("own_snake", 2),
    "ScaleNorm": ("own_scale_norm", 2),
    "SoftPool2d": ("own_soft_pool", 2),
    "StandardisedConv2d": ("own_standardised_conv", 0),
    "ECA": ("own_eca", 2),
    "swish2": ("own_swish2", 2),
    "gated": ("own_gated", 2),
    "method": ("own_dense", 2),
    "quantised": ("own_fake_quantisation", 2),
}


def converted(name: str, recipe: str = "equivalent") -> BcosNetwork:
    return bcos_fx.bcosify(own_ops.network(name), example_inputs=X, rules=[RULES], recipe=recipe)


def test_every_kind_is_tried() -> None:
    assert set(OPS) == set(own_ops.LAYERS)


@pytest.mark.parametrize("name", OPS)
def test_a_layer_of_ones_own_is_converted_certified_explained_and_stored(name: str) -> None:
    network = converted(name)
    verification = network.report.figures.verification
    assert verification is not None
    assert verification["ok"], verification
    op, count = OPS[name]
    assert [row.op for row in network.report.nodes].count(op) == count
    assert not network.report.unknown
    assert network.report.coverage.converted == network.report.coverage.total > 1000
    found = bcos_fx.certify(network, X)
    assert found.ok, found.to_text()
    assert found.completeness is not None
    assert found.completeness.verdict in ("complete", "not tested"), str(found.completeness)
    again = from_bytes(to_bytes(network))
    assert torch.equal(again(X), network(X))
    explained = bcos_fx.explain(again, X)
    total = explained.contributions.flatten(1).sum(1) + explained.constants.total()
    torch.testing.assert_close(total, explained.output, rtol=1e-4, atol=1e-5)


def _ratio(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x * (function(x) / x).detach().nan_to_num(1.0)


def _held(layer: nn.Module, x: Tensor) -> Tensor:
    """A slow reference: each layer with its own dynamic factor held fixed, written out by hand."""
    kind = getattr(layer, "name", type(layer).__name__)
    if kind == "ScaleNorm":
        factor = layer.gain / x.pow(2).sum(1, keepdim=True).sqrt()
        return x * factor.detach() + layer.bias.view(-1, 1, 1)
    if kind == "SoftPool2d":
        weight = x.exp().detach()
        return functional.avg_pool2d(x * weight, 2) / functional.avg_pool2d(weight, 2)
    if kind == "ECA":
        gate = torch.sigmoid(functional.conv1d(x.mean((2, 3)).unsqueeze(1), layer.conv.weight, padding=1))
        return x * gate[:, 0, :, None, None].detach()
    if kind == "gated":
        return x * x.flip(1).tanh().detach()
    if kind in ("StandardisedConv2d", "method"):
        return layer(x)
    return _ratio(layer, x)


class Held(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return _held(self.layer, x)


@pytest.mark.parametrize("name", OPS)
def test_its_dynamic_weights_are_those_of_a_slow_reference(name: str) -> None:
    network, x = converted(name), X[:2].clone().requires_grad_()
    reference = nn.Sequential(*(Held(m) if i in (2, 5) else m for i, m in enumerate(own_ops.network(name))))
    (wanted,) = torch.autograd.grad(reference(x)[:, 1].sum(), x)
    found = bcos_fx.explain(network, X[:2], target=1).weights
    torch.testing.assert_close(found[:, :3], wanted, rtol=1e-3, atol=1e-6)
    assert not found[:, 3:].any()
    assert wanted.abs().max() > 1e-5


def test_the_weight_at_zero_is_the_slope_of_each_channel() -> None:
    """At x = 0 there is no ratio; the slope of a layer with a parameter per channel is not the sum over channels."""
    network = bcos_fx.bcosify(nn.Sequential(own_ops.Snake(3, 0.5)), example_inputs=X, recipe="equivalent", input="none")
    found = bcos_fx.explain(network, torch.zeros(1, 3, 2, 2), target=lambda y: y[:, 1, 0, 0]).weights
    wanted = torch.zeros(1, 3, 2, 2)
    wanted[0, 1, 0, 0] = 1
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["Snake", "StandardisedConv2d", "swish2"])
def test_a_changing_recipe_raises_the_layers_beside_it(name: str) -> None:
    network = converted(name, recipe="bcosification")
    layers = [layer for layer in network.modules() if isinstance(layer, bcos_fx.nn.BcosLayer)]
    assert len(layers) == (5 if name == "StandardisedConv2d" else 3)
    assert all(layer.b == 2 and layer.bias is None for layer in layers)


def test_a_step_of_training_moves_its_parameters(tmp_path: Path) -> None:
    network = converted("Snake", recipe="bcosification")
    labels = torch.arange(4) % 4
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    tuned = bcos_fx.finetune(network, (X, labels), epochs=1).network
    moved = [name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.endswith("alpha") for name in moved), moved


def test_a_patched_method_and_a_table_of_functions_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """However a network comes to a registered function, the call is one node."""
    monkeypatch.setattr(torch.Tensor, "swish2", own_ops.swish2, raising=False)
    table = {"swish2": own_ops.swish2}

    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return table["swish2"](x.swish2()) + torch.stack([own_ops.swish2(x, beta=0.5)]).sum(0)

    graph_module = trace(Calls(), X, leaf_modules=vocabulary().leaves).graph_module
    found = [vocabulary().of(node, graph_module) for node in graph_module.graph.nodes if node.op == "call_function"]
    assert [op.name for op in found if op is not None].count("own_swish2") == 3
    assert "own_swish2" in {op.name for op in found if op is not None}


def test_a_subclass_is_another_layer() -> None:
    class Louder(own_ops.Snake):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    graph_module = trace(nn.Sequential(Louder(3)), X, leaf_modules=vocabulary().leaves).graph_module
    assert "own_snake" not in {
        op.name for n in graph_module.graph.nodes if (op := vocabulary().of(n, graph_module)) is not None
    }


# ---------------------------------------------------------------- the command line, in fresh processes

_COMMANDS = """
import shlex, sys
from bcos_fx.cli import main
for line in sys.stdin.read().splitlines():
    wanted, _, command = line.partition(" ")
    sys.argv = shlex.split(command)
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print(f"$ {command}: {code}", file=sys.stderr, flush=True)
    if code != int(wanted):
        sys.exit(f"exit code {code}, not {wanted}: {command}")
"""


def run_all(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS],
        input="\n".join(lines),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


NETWORK = """
import torch
from torch import nn
import own_ops

def build():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)]
    for make in own_ops.LAYERS.values():
        parts += [make(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
"""


def test_two_files_take_a_layer_through_every_command(tmp_path: Path) -> None:
    for name in ("own_ops.py", "own_ops.toml"):
        shutil.copy(HERE / name, tmp_path / name)
    own = sorted(tmp_path.iterdir())
    assert len(own) == 2
    (tmp_path / "net.py").write_text(NETWORK, encoding="utf-8")
    for number in range(6):
        place = tmp_path / "images" / f"class_{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((torch.rand(20, 20, 3) * 255).byte().numpy()).save(place / f"{number}.png")
    imported = "--import own_ops.py"
    given = f"--arch net.py:build --input-shape 3,16,16 {imported} --rules own_ops.toml"
    first = run_all(
        tmp_path,
        f"0 bcos-fx plan {given}",
        f"0 bcos-fx convert {given} --recipe equivalent -o same.safetensors",
        f"0 bcos-fx convert {given} -o start.safetensors",
        f"0 bcos-fx rules own-standardised-convolution-to-bcos --explain net.py:build --input-shape 3,16,16 {imported} "
        "--rules own_ops.toml",
    )
    assert "own-standardised-convolution-to-bcos" in first.stdout
    assert "matches 1 of" in first.stdout
    # A process that has not seen the file: once without it, then with it.
    second = run_all(
        tmp_path,
        "2 bcos-fx check start.safetensors",
        "0 bcos-fx inspect start.safetensors",
        f"0 bcos-fx check same.safetensors {imported}",
        f"0 bcos-fx explain same.safetensors images/class_0/0.png -o picture.npz {imported}",
        f"0 bcos-fx calibrate start.safetensors --data images -o calibrated.safetensors {imported}",
        f"0 bcos-fx finetune calibrated.safetensors --data images --epochs 1 --batch-size 3 --augment none "
        f"-o tuned.safetensors {imported}",
        f"0 bcos-fx check tuned.safetensors {imported}",
    )
    assert "@bcos_fx.rules.op('own." in second.stderr
    assert "--import FILE.py" in second.stderr
    assert "own_snake" in second.stdout


def test_a_layer_inside_the_package_takes_three_files(tmp_path: Path) -> None:
    """A class, its export and its entry in the vocabulary; with its test and its line in the CHANGELOG that is five."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bcos_fx", tmp_path / "bcos_fx", ignore=skipped)
    shutil.copytree(ROOT / "rules", tmp_path / "rules", ignore=skipped)
    before = _digests(tmp_path)
    layer = (HERE / "own_ops.py").read_text(encoding="utf-8")
    body = layer[layer.index("class ScaleNorm") : layer.index('@rules.op("own.SoftPool2d")')]
    head = "import torch\nfrom torch import Tensor, nn\nfrom bcos_fx.nn.dynamic import DynamicLayer\n\n\n"
    place = tmp_path / "bcos_fx" / "nn"
    (place / "scale_norm.py").write_text(head + body.replace("rules.DynamicLayer", "DynamicLayer"), encoding="utf-8")
    with (place / "__init__.py").open("a", encoding="utf-8") as exports:
        exports.write("\nfrom bcos_fx.nn.scale_norm import ScaleNorm\n")
    with (tmp_path / "rules" / "ops.toml").open("a", encoding="utf-8") as ops:
        ops.write(
            '\n[scale_norm]\nclass = "normalise"\nmodules = ["bcos.ScaleNorm"]\n'
            'parameters = ["input", "channels", "eps", "bias"]\nconstants = ["bias"]\n'
        )
    after = _digests(tmp_path)
    touched = [path for path, digest in after.items() if before.get(path) != digest]
    assert len(touched) == 3
    assert len(touched) + len(["its test", "CHANGELOG.md"]) <= 5
    code = (
        "import torch, bcos_fx; from bcos_fx.nn import ScaleNorm; from torch import nn; torch.manual_seed(0)\n"
        "x = torch.rand(2, 3, 8, 8)\n"
        "layers = nn.Conv2d(3, 8, 3), ScaleNorm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)\n"
        "n = bcos_fx.bcosify(nn.Sequential(*layers).eval(), example_inputs=x, recipe='equivalent')\n"
        "assert n.report.figures.verification['ok'] and bcos_fx.certify(n, x).ok\n"
        "assert '1.bias' in bcos_fx.explain(n, x).constants\n"
        "assert torch.equal(bcos_fx.load(bcos_fx.save(n, 'n.safetensors'))(x), n(x))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
