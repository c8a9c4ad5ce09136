"""A converted network goes where ordinary modules go: compilers, exporters, other runtimes, other processes."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import bcos_fx
from bcos_fx.testing import norm_statistics_from_data_

models = pytest.importorskip("torchvision.models")
pytestmark = [pytest.mark.vision, pytest.mark.slow]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network(images: Tensor) -> bcos_fx.convert.BcosNetwork:
    torch.manual_seed(0)
    original = norm_statistics_from_data_(models.resnet50(num_classes=10), images).eval()
    return bcos_fx.bcosify(original, example_inputs=images, verified=False)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def test_it_compiles_without_a_graph_break(network: nn.Module, images: Tensor) -> None:
    torch._dynamo.reset()
    explained = torch._dynamo.explain(network)(images)
    assert explained.graph_break_count == 0, explained.break_reasons
    with torch.no_grad():
        assert near(torch.compile(network, fullgraph=True, backend="aot_eager")(images), network(images))


def test_it_exports(network: nn.Module, images: Tensor) -> None:
    batch = torch.export.Dim("batch", min=2, max=16)
    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=(({0: batch},),))
        assert near(program.module()(images), network(images))
        three = torch.cat([images, images[:1]])
        assert near(program.module()(three), network(three))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_another_runtime_computes_the_same(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "network.onnx"
    torch.onnx.export(network, (images,), str(path), dynamo=True, input_names=["image"], verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = network(images).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_half_precisions_stay_near(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = network(images)
        half = copy.deepcopy(network).bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert bool(torch.isfinite(half).all())
    assert near(half.float(), expected, 0.2)


def test_it_trains_in_several_processes(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    """In one process of a group: gradients arrive at every parameter that is trained."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        twin: Any = nn.parallel.DistributedDataParallel(copy.deepcopy(network).train())
        twin(images).square().sum().backward()
        missing = [name for name, parameter in twin.named_parameters() if parameter.grad is None]
    finally:
        dist.destroy_process_group()
    assert not missing
    assert os.path.exists(tmp_path / "group")
