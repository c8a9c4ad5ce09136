"""Calls that are short for several others, in every form; and whole networks of what public reports used."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.errors import BcosFxError
from bcos_fx.explanation.certify import certify
from bcos_fx.tracing.composites import _ARITHMETIC
from bcos_fx.tracing.joining import JOINING

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A layer, calls on its result (1, 4, 4), and a layer on all numbers that come out."""

    def __init__(self, function: Forward, **parts: Any) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16, bias=False)
        self.register_buffer("c", torch.rand(4, 4) + 0.5)
        self.register_buffer("at", torch.tensor([[0, 3, 1, 1], [2, 0, 0, 3]]))
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function
        with torch.no_grad():
            count = self._numbers(torch.randn(4, 4)).numel()
        self.last = nn.Linear(count, 2, bias=False)

    def _numbers(self, hidden: Tensor) -> Tensor:
        result: Any = self.function(self, hidden)
        parts = result if isinstance(result, tuple | list) else [result]
        return torch.cat([part.reshape(-1) for part in parts])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._numbers(self.first(x).reshape(4, 4)).reshape(1, -1))


CALLS: dict[str, list[Forward]] = {
    "addcmul": [
        lambda n, y: torch.addcmul(y, y, n.c, value=0.5),
        lambda n, y: y.addcmul(n.c, y),
        lambda n, y: (y * 1).addcmul_(y, n.c),
    ],
    "addcdiv": [lambda n, y: y.addcdiv(y, n.c), lambda n, y: (y * 1).addcdiv_(y, n.c, value=0.3)],
    "addmm": [
        lambda n, y: torch.addmm(y, mat1=y, mat2=n.c, beta=0.5),
        lambda n, y: (y * 1).addmm_(y, n.c),
        lambda n, y: y.addmm(n.c, y, alpha=2),
    ],
    "addmv": [lambda n, y: torch.addmv(y[0], n.c, y[1]), lambda n, y: y[0].addmv(mat=y, vec=n.c[0])],
    "addr": [lambda n, y: torch.addr(y, y[0], n.c[0]), lambda n, y: y.addr(n.c[0], y[1], beta=2)],
    "baddbmm": [lambda n, y: torch.baddbmm(y[None], y[None], n.c[None])],
    "addbmm": [lambda n, y: y.addbmm(batch1=y[None], batch2=n.c[None])],
    "fill_diagonal_": [lambda n, y: (y * 1).fill_diagonal_(0.5)],
    "lerp": [lambda n, y: torch.lerp(y, n.c, 0.3), lambda n, y: (y * 1).lerp_(y.relu(), n.c)],
    "ldexp": [lambda n, y: torch.ldexp(y, n.c), lambda n, y: (y * 1).ldexp_(n.c)],
    "chain_matmul": [lambda n, y: torch.chain_matmul(y, n.c, n.c)],
    "multi_dot": [lambda n, y: torch.linalg.multi_dot([n.c, y, n.c])],
    "cosine_similarity": [
        lambda n, y: torch.cosine_similarity(y, n.c),
        lambda n, y: F.cosine_similarity(y, n.c, dim=0),
        lambda n, y: n.part(y, n.c),
    ],
    "glu": [lambda n, y: F.glu(y), lambda n, y: F.glu(y, dim=0)],
    "clamp": [
        lambda n, y: y.clamp(min=1e-6),
        lambda n, y: torch.clamp(y, 0.1, 0.5),
        lambda n, y: y.clamp(max=-0.1),
        lambda n, y: torch.clamp(y, max=n.c),
        lambda n, y: (y * 1).clamp_(0.05, 0.2),
        lambda n, y: y.clamp(-0.1, 0.1),
    ],
    "clip": [lambda n, y: y.clip(min=0.1), lambda n, y: (y * 1).clip_(0.05, 0.2)],
    "clamp_min": [
        lambda n, y: torch.clamp_min(y, 0),
        lambda n, y: y.clamp_min(min=0.1),
        lambda n, y: (y * 1).clamp_min_(0.2),
        lambda n, y: y.clamp_min(n.c - 1),
    ],
    "clamp_max": [lambda n, y: torch.clamp_max(y, 0.1), lambda n, y: (y * 1).clamp_max_(0)],
    "threshold": [
        lambda n, y: F.threshold(y, 0.1, 0.0),
        lambda n, y: torch.threshold(y, 0.1, 0.3),
        lambda n, y: F.threshold_(y * 1, 0.0, -0.2),
        lambda n, y: F.threshold(y * 1, 0.1, 0.2, inplace=True),
    ],
    "var_mean": [lambda n, y: torch.var_mean(y, 1)[1], lambda n, y: y / torch.var_mean(y, 1, keepdim=True)[0]],
    "std_mean": [lambda n, y: torch.std_mean(y, dim=1, keepdim=True)[1], lambda n, y: torch.std_mean(y)[1]],
    "lp_pool1d": [lambda n, y: F.lp_pool1d(y[None], 2, 2)],
    "lp_pool2d": [lambda n, y: F.lp_pool2d(y[None].abs(), 3.0, 2, stride=1), lambda n, y: n.part(y[None])],
    "lp_pool3d": [lambda n, y: F.lp_pool3d(y[None, None], 2, (1, 2, 2))],
    "upsample_nearest": [lambda n, y: F.upsample_nearest(y[None, None], scale_factor=2)],
    "upsample_bilinear": [lambda n, y: F.upsample_bilinear(y[None, None], size=(6, 6))],
    "atleast_1d": [lambda n, y: torch.atleast_1d(y[0, 0])],
    "atleast_2d": [lambda n, y: torch.atleast_2d(y[0], y[0, 0])],
    "atleast_3d": [lambda n, y: torch.atleast_3d([y, y[0], y[0, 0]])],
    "hstack": [lambda n, y: torch.hstack([y, n.c]), lambda n, y: torch.hstack((y[0], y[1]))],
    "vstack": [lambda n, y: torch.vstack([y, n.c]), lambda n, y: torch.vstack([y[0], y[1]])],
    "row_stack": [],  # the older name of vstack, deprecated
    "dstack": [lambda n, y: torch.dstack([y, n.c])],
    "column_stack": [lambda n, y: torch.column_stack([y[0], y])],
    "hsplit": [lambda n, y: torch.hsplit(y, 2)[1], lambda n, y: y.hsplit([1, 3])],
    "vsplit": [lambda n, y: torch.vsplit(y, 2)[0], lambda n, y: y.vsplit((1, 2))[1]],
    "dsplit": [lambda n, y: y[None].dsplit(2)[1]],
    "fliplr": [lambda n, y: torch.fliplr(y), lambda n, y: y.fliplr()],
    "flipud": [lambda n, y: torch.flipud(y), lambda n, y: y.flipud()],
    "broadcast_tensors": [lambda n, y: torch.broadcast_tensors(y[0], y)[0]],
    "scatter": [
        lambda n, y: y.scatter(0, n.at, 0.5),
        lambda n, y: torch.scatter(y, 1, n.at, value=-0.5),
        lambda n, y: (y * 1).scatter_(0, n.at, 0.5),
        lambda n, y: y.scatter(0, n.at, y[:2], reduce="add"),
        lambda n, y: y.scatter(0, n.at, n.c[:2]),
    ],
    "diff": [
        lambda n, y: torch.diff(y),
        lambda n, y: y.diff(2, 0),
        lambda n, y: y.diff(dim=1, prepend=n.c[:, :1], append=y[:, :1]),
    ],
}


def _checked(network: nn.Module, x: Tensor) -> bcos_fx.convert.BcosNetwork:
    """The network, converted: equal, certified, complete, and read back from its file."""
    with warnings.catch_warnings(action="ignore"):
        converted = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", verified=False)
        out = network(x)
    torch.testing.assert_close(converted(x), out, rtol=1e-9, atol=1e-9)
    found = certify(converted, x)
    assert found.ok, found.to_text()
    assert found.completeness is not None
    assert found.completeness.verdict == "complete", found.to_text()
    torch.testing.assert_close(from_bytes(to_bytes(converted))(x), out, rtol=1e-9, atol=1e-9)
    return converted


def test_every_such_call_is_tried() -> None:
    assert set(CALLS) == {name for name in (*_ARITHMETIC, *JOINING) if not name.startswith("_")}


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, calls in CALLS.items() for n in range(len(calls))])
@pytest.mark.filterwarnings("ignore")
def test_it_is_explained_however_it_is_written(name: str, number: int) -> None:
    part = nn.LPPool2d(2, 2) if name == "lp_pool2d" else nn.CosineSimilarity()
    network = Net(CALLS[name][number], part=part).double().eval()
    _checked(network, 3 * torch.randn(1, 6, dtype=torch.float64))


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, dtype=torch.float64)


class Whole(nn.Module):
    """A network on images whose middle is a function."""

    def __init__(self, function: Forward, features: int = 4, **parts: Any) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 2, 2), nn.Linear(features, 5)
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self, self.conv(x)))


def _generalised_mean(net: Any, y: Tensor) -> Tensor:
    y = y.clamp(min=1e-6).pow(net.p)
    return F.avg_pool2d(y, (y.size(-2), y.size(-1))).pow(1.0 / net.p).flatten(1)


def _learnt_filter(net: Any, y: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(y, dim=(2, 3), norm="ortho") * torch.view_as_complex(net.filter)
    back: Tensor = torch.fft.irfft2(spectrum, s=y.shape[2:], dim=(2, 3), norm="ortho").mean((2, 3))
    return back


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "a generalised mean of a learned power": lambda: Whole(_generalised_mean, p=nn.Parameter(torch.tensor(3.0))),
    "a power for each channel": lambda: Whole(
        lambda n, y: y.relu().pow(n.p).mean((2, 3)), p=nn.Parameter(torch.rand(4, 1, 1) + 0.5)
    ),
    "a learnt filter of frequencies": lambda: Whole(_learnt_filter, filter=nn.Parameter(torch.randn(4, 8, 5, 2))),
    "mixing by a Fourier transform": lambda: Whole(lambda n, y: torch.fft.fft2(y).real.relu().mean((2, 3))),
    "an instance norm with running statistics": lambda: Whole(
        lambda n, y: n.norm(y).relu().mean((2, 3)), norm=nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    ),
    "the largest of all": lambda: Whole(lambda n, y: y.flatten(2).topk(3).values.mean(2)),
    "sorted": lambda: Whole(lambda n, y: y.flatten(2).sort(2, descending=True)[0][:, :, 3]),
    "max unpooling": lambda: Whole(
        lambda n, y: n.unpool(*n.pool(y)).relu().mean((2, 3)),
        pool=nn.MaxPool2d(2, return_indices=True),
        unpool=nn.MaxUnpool2d(2),
    ),
    "thresholds": lambda: Whole(lambda n, y: n.act(y).mean((2, 3)), act=nn.Threshold(0.1, 0.05)),
    "messages of a graph": lambda: Whole(
        lambda n, y: torch.zeros_like(y.mean((2, 3))).index_add(1, n.to, y.mean((2, 3)) * 2),
        to=torch.tensor([1, 0, 3, 3]),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks(name: str) -> None:
    _checked(WHOLE[name]().double().eval(), images())


@pytest.mark.parametrize("name", ["a learnt filter of frequencies", "mixing by a Fourier transform", "sorted"])
def test_of_linear_steps_and_selections_the_weights_are_the_gradient(name: str) -> None:
    network, x = WHOLE[name]().double().eval(), images()
    view = bcos_fx.explain(network, x, target=lambda y: y.sum(1))
    gradient = torch.autograd.functional.jacobian(lambda given: network(given).sum(), x)
    torch.testing.assert_close(view.weights, gradient.reshape(view.weights.shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_prepared_for_quantisation_in_floating_point(name: str) -> None:
    quantization = pytest.importorskip("torchvision.models.quantization")
    network = getattr(quantization, name)(weights=None, quantize=False).eval()
    converted = bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 64, 64), recipe="equivalent")
    assert converted.report.figures.verification is not None
    assert "different" not in {row["verdict"] for row in converted.report.figures.verification["comparisons"]}
    assert certify(converted).ok


REFUSED: dict[str, tuple[Forward, str]] = {
    "a logarithm": (lambda n, y: y.abs().add(1).log().mean((2, 3)), "log is not dynamic linear in its input; instead"),
    "a product of all": (lambda n, y: y.flatten(2).prod(2), "prod is not dynamic linear in its input; instead"),
    "complex signs": (lambda n, y: torch.fft.fft2(y).sgn().real.mean((2, 3)), "sgn"),
    "products in one place": (
        lambda n, y: y.mean((2, 3)).scatter_reduce(1, torch.zeros(2, 4, dtype=torch.long), y.amax((2, 3)), "prod"),
        "multiplied with each other",
    ),
    "fake quantisation": (
        lambda n, y: torch.fake_quantize_per_tensor_affine(y, 0.1, 0, -128, 127).mean((2, 3)),
        "instead: the network in floating point",
    ),
    "bits": (lambda n, y: y.view(torch.int64).double().mean((2, 3)), "reads the bits of its input as torch.int64"),
    "a filled tensor": (
        lambda n, y: y.mean((2, 3)) + torch.full_like(y.mean((2, 3)), 1.0).new_tensor(y.mean((2, 3))),
        "which depends on the input",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_refusal_names_the_op_the_node_the_line_and_what_to_use(name: str) -> None:
    function, reason = REFUSED[name]
    try:
        found = certify(Whole(function).double().eval(), images())
    except BcosFxError as error:
        assert reason in str(error) or "in-place" in str(error)  # noqa: PT017
        return
    assert not found.ok
    assert any(reason in str(b) and "test_several_calls.py" in str(b) for b in found.breaks), found.to_text()


def test_a_mesh_of_values_is_no_constant() -> None:
    """torch.meshgrid only repeats what it is given: of values it is a value."""
    network = Whole(
        lambda n, y: torch.meshgrid(y.mean((0, 2, 3)), n.c, indexing="ij")[0].T[:1], c=torch.rand(2).double()
    )
    found = certify(network.double().eval(), images()[:1])
    assert found.ok, found.to_text()
    explained = bcos_fx.explain(network, images()[:1])
    assert explained.weights.abs().sum() > 0
