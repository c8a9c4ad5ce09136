from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import nn

from bcos_fx.testing import Block, Network, Specification, Window, images, networks, specifications, variation
from bcos_fx.testing.blocks import ACTIVATION_CALLS, ACTIVATION_MODULES, FLATTENINGS, GLOBAL_POOLS
from bcos_fx.testing.networks import BLOCK_KINDS, LEAST_VARIATION, NORMS, PADDING_MODES
from bcos_fx.verification import verify
from bcos_fx.verification.samples import synthetic_images

ROOT = Path(__file__).resolve().parents[2]


@cache
def drawn() -> list[Network]:
    """Three hundred networks, the same in every run."""
    found: list[Network] = []

    @seed(0)
    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(networks())
    def collect(network: Network) -> None:
        found.append(network)

    collect()
    return found


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_networks_run_vary_and_copy(data: st.DataObject) -> None:
    network = data.draw(networks())
    x = data.draw(images(network))
    y = network(x)
    assert x.shape == (4, *network.input_shape)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert y.shape == (4, network.specification.classes)
    assert bool(torch.isfinite(y).all())
    assert not network.training
    assert torch.equal(network(x), y)
    assert torch.equal(copy.deepcopy(network)(x), y)
    assert variation(network) > LEAST_VARIATION


@settings(max_examples=40, deadline=None)
@given(networks())
def test_networks_can_be_verified_in_every_mode(network: Network) -> None:
    """So they train, have gradients, and their output varies enough to compare."""
    assert verify(network, copy.deepcopy(network), preserves="always", sizes=())


@settings(max_examples=20, deadline=None)
@given(networks())
def test_any_changed_weight_is_noticed(network: Network) -> None:
    wrong = copy.deepcopy(network)
    wrong.classifier.get_parameter("weight").data.mul_(1.01)
    assert not verify(network, wrong, sizes=())


@settings(max_examples=40, deadline=None)
@given(specifications())
def test_printed_specification_builds_the_same_network(specification: Specification) -> None:
    again = eval(repr(specification), {"Specification": Specification, "Block": Block, "Window": Window})
    assert again == specification
    state, same = specification.build().state_dict(), again.build().state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert repr(specification) in repr(specification.build())


def test_building_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    drawn()[0].specification.build()
    assert torch.equal(torch.get_rng_state(), before)


def test_outputs_of_all_vary_and_of_most_vary_strongly() -> None:
    found = sorted(variation(network) for network in drawn())
    assert found[0] > LEAST_VARIATION
    assert found[len(found) // 20] > 0.5


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(networks(dims=[1], kinds=["twice"], norms=["none"], activations=["relu"]))
def test_dead_networks_are_not_drawn(network: Network) -> None:
    """Narrow chains of rectifiers without norms often die, and then answer the same to everything."""
    assert variation(network) > LEAST_VARIATION


def test_activations_are_of_order_one() -> None:
    sizes = []
    for network in drawn():
        x = synthetic_images(network.input_shape, 8, seed=0).tensors[0].float()
        sizes.append(float(network.body(x).detach().abs().mean()))
    ordinary = sum(0.03 < size < 30 for size in sizes)
    assert ordinary > 0.97 * len(sizes)


def blocks() -> list[Block]:
    return [block for network in drawn() for block in network.specification.blocks]


def test_every_feature_is_drawn() -> None:
    specs = [network.specification for network in drawn()]
    convs = [block for block in blocks() if block.window.kernel and "pool" not in block.kind]
    assert {len(spec.input_shape) - 1 for spec in specs} == {0, 1, 2, 3}
    assert {block.kind for block in blocks()} == set(BLOCK_KINDS)
    assert {block.norm for block in blocks()} == set(NORMS)
    assert {block.activation for block in blocks()} == set(ACTIVATION_MODULES)
    assert {block.wiring for block in blocks()} == {"", "+", "+=", "torch.add", "sigmoid", "hardsigmoid"}
    assert {spec.head for spec in specs} == {"linear", "pool, linear", "flatten, linear", "conv, pool"}
    assert {spec.pool for spec in specs} == set(GLOBAL_POOLS)
    assert {spec.flatten for spec in specs} == set(FLATTENINGS)
    assert {block.window.padding_mode for block in convs} == set(PADDING_MODES)
    traits = Counter(
        trait
        for block in convs
        for trait, there in {
            "same": block.window.padding == "same",
            "valid": block.window.padding == "valid",
            "stride": max(block.window.stride) > 1,
            "even kernel": any(k % 2 == 0 for k in block.window.kernel),
            "oblong kernel": len(set(block.window.kernel)) > 1,
            "dilation": max(block.window.dilation) > 1,
            "grouped": 1 < block.groups < block.inputs,
            "depthwise": 1 < block.groups == block.inputs == block.outputs,
            "no bias": not block.bias,
            "dropout": block.dropout > 0,
            "output padding": any(block.window.output_padding),
        }.items()
        if there
    )
    assert len(traits) == 11
    assert min(traits.values()) >= 3, traits
    assert any(block.window.ceil_mode for block in blocks())


def test_every_spelling_is_drawn() -> None:
    called = {
        (module.spelling, module.kind)
        for network in drawn()
        for module in network.modules()
        if type(module).__name__ == "Activation"
    }
    assert {spelling for spelling, _ in called} == set(ACTIVATION_CALLS)
    plain = {type(module) for network in drawn() for module in network.modules()}
    assert {nn.ReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.ReLU6, nn.Tanh, nn.ELU, nn.Mish} <= plain
    assert {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear, nn.Dropout, nn.Flatten} <= plain
    assert {nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.RMSNorm} <= plain
    assert {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d} <= plain


@settings(max_examples=30, deadline=None)
@given(networks(dims=[2], kinds=["plain", "residual"], norms=["batch"], activations=["relu"], max_blocks=2))
def test_arguments_restrict_what_is_drawn(network: Network) -> None:
    spec = network.specification
    assert len(spec.input_shape) == 3
    assert len(spec.blocks) <= 2
    assert {block.kind for block in spec.blocks} <= {"plain", "residual"}
    assert {(block.norm, block.activation) for block in spec.blocks} == {("batch", "relu")}


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("side", range(4, 12))
def test_predicted_sizes_are_those_of_pytorch(side: int, ceil_mode: bool) -> None:
    for kernel in (2, 3):
        for stride in (1, 2, 3):
            window = Window((kernel,), (stride,), (1,), (1,), (0,), ceil_mode=ceil_mode)
            pool = nn.MaxPool1d(kernel, stride, 1, ceil_mode=ceil_mode)
            assert window.output_size((side,)) == pool(torch.rand(1, 1, side)).shape[2:]
            up = nn.ConvTranspose1d(1, 1, kernel, stride, 1)
            assert window.transposed_size((side,)) == up(torch.rand(1, 1, side)).shape[2:]


def test_without_hypothesis_it_says_what_to_install() -> None:
    code = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'hypothesis' else real(name, *rest)\n"
        "from bcos_fx.errors import MissingExtraError\n"
        "try:\n    import bcos_fx.testing\n"
        "except MissingExtraError as error:\n    assert 'bcos-fx[testing]' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
