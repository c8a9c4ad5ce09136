"""B-cos layers where numbers are awkward: zeros, tiny values, 16 bits, layouts, large tensors, compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcos_fx import nn as bnn
from bcos_fx.nn import functional

BS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SCALES = ("cosine", "raw", "unit")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("b", BS)
def test_gradcheck(b: float, scale: str) -> None:
    torch.manual_seed(3)
    conv = bnn.BcosConv2d(4, 4, 2, groups=2, padding=1, b=b, scale=scale, dtype=torch.float64)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in conv.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(conv, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *conv.parameters()), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("b", BS)
def test_zero_patches_give_the_bias_and_finite_gradients(b: float, scale: str, dtype: torch.dtype) -> None:
    for layer, shape in (
        (bnn.BcosConv2d(2, 2, 3, padding=1, b=b, scale=scale, dtype=dtype), (2, 2, 6, 6)),
        (bnn.BcosConv2d(2, 2, 3, padding=1, groups=2, b=b, scale=scale, dtype=dtype), (2, 2, 6, 6)),
        (bnn.BcosLinear(6, 2, b=b, scale=scale, dtype=dtype), (2, 6)),
    ):
        x = torch.zeros(shape, dtype=dtype)
        x[0] = 1
        layer.weight.data[0] = 0  # a dead filter, too
        x.requires_grad_()
        y = layer(x)
        bias = layer.bias.view(-1, *[1] * (len(shape) - 2))
        assert torch.equal(y[1], bias.expand_as(y[1]))
        assert torch.equal(y[:, 0], layer.bias[0].expand_as(y[:, 0]))
        y.sum().backward()
        for tensor in (x, *layer.parameters()):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
        if b > 1:
            assert not x.grad[1].any()


@pytest.mark.parametrize("b", [1.25, 2.0, 3.0])
def test_tiny_activations_are_not_swallowed(b: float) -> None:
    layer = bnn.BcosConv2d(3, 4, 3, bias=False, b=b)
    x = torch.randn(1, 3, 6, 6)
    tiny = (1e-13 * x).requires_grad_()
    y = layer(tiny)
    torch.testing.assert_close(y, 1e-13 * layer(x), rtol=1e-4, atol=0)
    y.sum().backward()
    x.requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(tiny.grad, x.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", SCALES)
def test_sixteen_bits_and_autocast_stay_near_float32(scale: str, dtype: torch.dtype) -> None:
    layers: list[tuple[Any, Tensor]] = [
        (bnn.BcosConv2d(8, 8, 3, padding=1, groups=2, b=2.0, scale=scale), torch.randn(2, 8, 6, 6)),
        (bnn.BcosLinear(16, 8, b=1.5, scale=scale), torch.randn(3, 16)),
    ]
    for layer, x in layers:
        exact = layer(x)
        with torch.autocast("cpu", dtype=dtype):
            mixed_input = x.clone().requires_grad_()
            mixed = layer(mixed_input)
        assert mixed.dtype == dtype
        torch.testing.assert_close(mixed.float(), exact, rtol=0.05, atol=0.02)
        mixed.float().sum().backward()
        exact_input = x.clone().requires_grad_()
        layer(exact_input).sum().backward()
        torch.testing.assert_close(mixed_input.grad, exact_input.grad, rtol=0.1, atol=0.05)
        low = layer.to(dtype)(x.to(dtype))
        assert low.dtype == dtype
        torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.02)


def test_norms_of_half_inputs_do_not_overflow() -> None:
    layer = bnn.BcosLinear(64, 2, bias=False, dtype=torch.float16)
    x = torch.full((1, 64), 1000.0, dtype=torch.float16)  # sum of squares 6.4e7, beyond float16
    expected = bnn.BcosLinear.from_plain(nn.Linear(64, 2, bias=False), b=2.0)
    expected.load_state_dict({"weight": layer.weight.float()})
    torch.testing.assert_close(layer(x).float(), expected(x.float()), rtol=1e-2, atol=1e-2)


def test_autocast_does_not_reach_the_norms() -> None:
    layer = bnn.BcosConv2d(8, 4, 3, padding=1, bias=False)
    x = 300 * torch.randn(1, 8, 5, 5)  # sums of squares of 6e6, beyond float16
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.5)


def test_layouts_and_batches_do_not_matter() -> None:
    layer = bnn.BcosConv2d(6, 4, 3, groups=2, padding=1, dtype=torch.float64)
    x = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    y = layer(x)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), y, **close)
    strided = torch.randn(3, 6, 5, 10, dtype=torch.float64)[..., ::2].copy_(x)
    torch.testing.assert_close(layer(strided), y, **close)
    torch.testing.assert_close(layer(x[1]), y[1], **close)
    assert layer(x[:0]).shape == (0, 4, 5, 5)
    empty = x[:0].clone().requires_grad_()
    layer(empty).sum().backward()
    assert empty.grad.shape == (0, 6, 5, 5)
    assert bnn.BcosLinear(4, 3)(torch.zeros(0, 4)).shape == (0, 3)


@pytest.mark.parametrize("scale", SCALES)
def test_a_classifier_at_every_position_is_one_product_of_matrices(monkeypatch: pytest.MonkeyPatch, scale: str) -> None:
    layer = bnn.BcosConv2d(6, 5, 1, scale=scale, b=2.0, dtype=torch.float64)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)

    def everything(x: Tensor) -> list[Tensor]:
        """The value, its gradients for x and the parameters, and the gradients of these."""
        x.requires_grad_()
        y = layer(x)
        wanted = (x, *layer.parameters())
        first = torch.autograd.grad((y.square() * torch.arange(5.0).view(-1, 1, 1)).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        with torch.no_grad():
            assert torch.equal(layer(x), y)
        return [y, *first, *second]

    as_convolution = everything(x.clone())
    monkeypatch.setattr(layer, "_conv_forward", None)
    as_product = everything(x.to(memory_format=torch.channels_last))
    assert as_product[0].is_contiguous(memory_format=torch.channels_last)
    for one, two in zip(as_product, as_convolution, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-12)
    volume = torch.randn(6, 3, 2, 6, dtype=torch.float64).movedim(-1, 1)  # one, of six slices that lie innermost
    deep = bnn.BcosConv3d(6, 5, 1, dtype=torch.float64)
    torch.testing.assert_close(deep(volume), deep(volume.contiguous()), rtol=1e-12, atol=1e-14)
    for others in (x, torch.randn(2, 6, 9, 8, dtype=torch.float64).to(memory_format=torch.channels_last)):
        with pytest.raises(TypeError, match="NoneType"):  # not channels last; too many positions
            layer(others)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(TypeError, match="NoneType"):  # a comparison would tie a compiler to this size
        layer(x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("batch", "groups"), [(3, 1), (1, 1), (2, 4), (1, 8), (0, 1)])
def test_pieces_compute_what_the_whole_does(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, batch: int, groups: int
) -> None:
    layer = bnn.BcosConv2d(8, 8, 3, padding=1, groups=groups, b=2.0, dtype=torch.float64)
    results = []
    for piece in (1 << 20, 100, 7):
        monkeypatch.setattr(functional, "_PIECE", piece)
        torch.manual_seed(1)
        x = torch.randn(batch, 8, 9, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
        layer.zero_grad()
        y = layer(x)
        (y * torch.linspace(-1, 1, 5, dtype=torch.float64)).sum().backward()
        with torch.no_grad():
            assert torch.equal(layer(x), y)
        results.append((y.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)


def test_results_are_deterministic_and_inputs_untouched() -> None:
    layer = bnn.BcosConv2d(8, 8, 3)
    x = torch.randn(4, 8, 9, 9)
    kept, version = x.clone(), x._version
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(x, kept)
    assert x._version == version


def test_scaling_overwrites_its_argument_and_saves_one_activation() -> None:
    out = torch.randn(2, 4, 5, 5)
    norm = torch.rand(2, 1, 5, 5) + 1
    assert functional.bcos_scale(out, norm, None, 2.0) is out
    layer = bnn.BcosConv2d(8, 8, 3, padding=1, bias=False)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    activation = y.numel() * y.element_size()
    assert sum(saved.values()) < 2.6 * activation + layer.weight.numel() * 4 + 4096  # x, y, and maps of one channel


@pytest.mark.parametrize("training", [False, True])
def test_gradients_written_over_each_other_reach_nobody_else(training: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(
        bnn.BcosConv2d(4, 4, 1, stride=2, dtype=torch.float64), bnn.BatchNormUncentred2d(4, dtype=torch.float64)
    ).train(training)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    shared = 2 * x  # has other readers, before and after the layer
    loss = shared.sin().sum() + layer(shared).pow(3).sum() + shared.cos().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (again,) = torch.autograd.grad(loss, x, retain_graph=True)
    (out_of_place,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, out_of_place, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("b", [1.25, 1.5, 2.0, 3.0])
def test_second_derivatives(b: float, scale: str) -> None:
    torch.manual_seed(5)
    layer = bnn.BcosConv1d(4, 4, 2, groups=2, b=b, scale=scale, bias=False, dtype=torch.float64)
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,), eps=1e-7, atol=1e-4)
    silent = torch.zeros_like(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(silent).sum(), silent, create_graph=True)
    gradient.sum().backward()
    assert silent.grad.isfinite().all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(
        bnn.BcosConv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        bnn.BcosConv2d(8, 8, 3, groups=2, b=1.5), nn.Flatten(), bnn.BcosLinear(8 * 16, 2),
    )  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = model(one)
    expected.square().sum().backward()
    actual = compiled(two)
    torch.testing.assert_close(actual, expected)
    actual.square().sum().backward()
    torch.testing.assert_close(two.grad, one.grad)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_exports() -> None:
    model = nn.Sequential(bnn.BcosConv2d(3, 4, 3, groups=1), nn.Flatten(), bnn.BcosLinear(64, 2)).eval()
    x = torch.randn(2, 3, 6, 6)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


def test_an_export_keeps_the_batch_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a result is cut into pieces depends on its size, which an exported program must not take for fixed."""
    # Between the results for 2 images and for 16, however many threads there are.
    monkeypatch.setattr(functional, "_PIECE", 1000 // torch.get_num_threads())
    layer, images = bnn.BcosConv2d(3, 4, 3, b=2.0).eval(), torch.rand(2, 3, 8, 8)
    batch = torch.export.Dim("batch", min=2, max=16)
    with torch.no_grad():
        program = torch.export.export(layer, (images,), dynamic_shapes=({0: batch},))
        for given in (images, torch.rand(16, 3, 8, 8)):
            torch.testing.assert_close(program.module()(given), layer(given))
