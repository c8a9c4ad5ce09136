"""Baselines by gradients, against gradients and rules written out by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcos_fx.errors import UsageError, VerificationError
from bcos_fx.methods.baselines import baselines
from bcos_fx.methods.explained_network import ExplainedNetwork
from bcos_fx.methods.method import Method
from bcos_fx.methods.module_form import Clipped, SideBySideMaxPool2d
from tests.methods.small_classifiers import MEAN, STD, Residual, logits, normalised, residual, some_images

pytest.importorskip("captum")

TARGETS = torch.tensor([[0, 3], [2, 2]])


def method(name: str, network: nn.Module, **options: object) -> Method:
    shared = {key: options.pop(key) for key in ("reference", "batch_size") if key in options}
    (made,) = baselines(name, network=network, mean=MEAN, std=STD, options={name: options}, **shared)  # type: ignore[arg-type]
    return made


def each_pair(images: Tensor, targets: Tensor, one: object) -> Tensor:
    """Maps by a function of one image (1, C, H, W) and one class, in plain loops."""
    rows = [torch.stack([one(x[None], int(t)) for t in row]) for x, row in zip(images, targets, strict=True)]  # type: ignore[operator]
    return torch.stack(rows)


def plain_gradient(network: nn.Module, x: Tensor, target: int) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(logits(network, x)[0, target], x)[0][0]


def test_the_gradient_is_autograds() -> None:
    network, images = residual(), some_images()
    expected = each_pair(images, TARGETS, lambda x, t: plain_gradient(network, x, t).sum(0))
    for size in (1, 3):
        found = method("gradient", network, batch_size=size).maps(images, TARGETS)
        torch.testing.assert_close(found, expected)


def test_input_x_gradient_counts_from_the_reference() -> None:
    network, images = residual(), some_images()
    for reference, colour in (("mean", MEAN), ("black", (0.0, 0.0, 0.0)), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3))):
        zero = torch.tensor(colour, dtype=torch.float64).reshape(3, 1, 1)
        expected = each_pair(images, TARGETS, lambda x, t, z=zero: ((x[0] - z) * plain_gradient(network, x, t)).sum(0))
        found = method("input-x-gradient", network, reference=reference).maps(images, TARGETS)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_from_the_mean_it_is_what_normalised_images_give() -> None:
    network, images = residual(), some_images()
    given = normalised(images).requires_grad_()
    gradient = torch.autograd.grad(network(given)[:, 1].sum(), given)[0]
    found = method("input-x-gradient", network).maps(images, torch.tensor([1, 1]))
    torch.testing.assert_close(found[:, 0], (given * gradient).sum(1).detach(), rtol=1e-5, atol=1e-6)


def test_integrated_gradients_are_the_mean_gradient_and_add_up() -> None:
    network, images = residual(), some_images()
    zero = torch.tensor(MEAN, dtype=torch.float64).reshape(1, 3, 1, 1)
    places, weights = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(50))

    def one(x: Tensor, t: int) -> Tensor:
        steps = zip((places + 1) / 2, weights / 2, strict=True)
        mean = sum(w * plain_gradient(network, zero + a * (x - zero), t) for a, w in steps)
        return ((x - zero)[0] * mean).sum(0)

    found = method("integrated-gradients", network, batch_size=16).maps(images, TARGETS)
    torch.testing.assert_close(found, each_pair(images, TARGETS, one), rtol=1e-5, atol=1e-6)
    difference = (logits(network, images) - logits(network, zero.expand(1, -1, 12, 12))).gather(1, TARGETS)
    rough, fine = (
        (method("integrated-gradients", network, steps=n).maps(images, TARGETS).sum((2, 3)) - difference).abs().max()
        for n in (3, 200)
    )
    assert fine < 2e-3 * difference.abs().max()
    assert fine < rough


# ---------------------------------------------------------------- guided backpropagation


class Guided(torch.autograd.Function):
    """Springenberg et al. 2015, fig. 1: a gradient passes where both the input and the gradient are positive."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0) * (gradient > 0)


def guided_by_hand(network: Residual, x: Tensor, t: int) -> Tensor:
    x = x.clone().requires_grad_()
    y = network.pool(Guided.apply(network.first(normalised(x))))
    y = Guided.apply(network.norm(network.second(y))) + y
    y = Guided.apply(y - 0.2)
    return torch.autograd.grad(network.classifier(y.mean((2, 3)))[0, t], x)[0][0].sum(0)


def test_guided_backprop_sees_every_relu() -> None:
    network, images = residual(), some_images()
    found = method("guided-backprop", network).maps(images, TARGETS)
    torch.testing.assert_close(found, each_pair(images, TARGETS, lambda x, t: guided_by_hand(network, x, t)))


def test_captum_alone_would_miss_the_functional_relu() -> None:
    """The trap that the module form is there for: without it the map is another, and nothing says so."""
    from captum.attr import GuidedBackprop

    network, images = residual(), some_images(1)
    explained = ExplainedNetwork(network, mean=MEAN, std=STD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = GuidedBackprop(explained).attribute(explained.differences(images).requires_grad_(), target=0).sum(1)
    ours = method("guided-backprop", network).maps(images, torch.tensor([[0]]))[:, 0]
    assert float((bare - ours).abs().max()) > 0.01 * float(ours.abs().max())


def test_guided_backprop_bounds_relu6() -> None:
    """No gradient passes where the value is at its bound; elsewhere it is a ReLU's."""

    class Scaled(nn.Module):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.activation = nn.Conv2d(3, 4, 3).double(), activation
            self.classifier = nn.Conv2d(4, 4, 10).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.activation(20 * self.first(x))).flatten(1)

    class GuidedBounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x < 6, Guided.apply(x), 6.0)

    images = some_images()
    by_hand = Scaled(GuidedBounded())
    bounded = 20 * by_hand.first(normalised(images)) > 6
    assert 0 < bounded.double().mean() < 1
    found = method("guided-backprop", Scaled(nn.ReLU6())).maps(images, TARGETS)
    expected = each_pair(images, TARGETS, lambda x, t: plain_gradient(by_hand, x, t).sum(0))
    torch.testing.assert_close(found, expected)


def test_a_tensor_that_only_takes_the_images_form_does_not_depend_on_them() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = residual("relu")

        def forward(self, x: Tensor) -> Tensor:
            return self.network(torch.einsum("dc,nc...->nd...", torch.eye(3).to(x), x))

    images = some_images()
    found, expected = (method("deeplift", network).maps(images, TARGETS) for network in (Mixed(), residual("relu")))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("activation", ["gelu", "silu", "leaky_relu"])
def test_guided_backprop_refuses_other_activations(activation: str) -> None:
    with pytest.raises(UsageError, match=f"no rule for {activation}") as caught:
        method("guided-backprop", residual(activation)).maps(some_images(), TARGETS)
    assert "small_classifiers.py" in str(caught.value.where)


# ---------------------------------------------------------------- DeepLIFT


def rescale(function: Callable[[Tensor], Tensor], x: Tensor, r: Tensor) -> Tensor:
    """Shrikumar et al. 2017, sec. 3.5.1: differences divided; the derivative where there is none."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    apart = (x - r).abs() >= 1e-10
    return torch.where(apart, (function(x) - function(r)) / torch.where(apart, x - r, 1), slope).detach()


def pool_multipliers(x: Tensor, r: Tensor, gradient: Tensor) -> Tensor:
    """DeepLIFT's cross maximum of a 3x3 pooling of stride 2, padding 1, window by window."""
    result = torch.zeros_like(x)
    for channel in range(x.shape[0]):
        for i in range(gradient.shape[1]):
            for j in range(gradient.shape[2]):
                rows = range(max(0, 2 * i - 1), min(x.shape[1], 2 * i + 2))
                columns = range(max(0, 2 * j - 1), min(x.shape[2], 2 * j + 2))
                places = [(a, b) for a in rows for b in columns]
                mine, other = (max(places, key=lambda p, v=v: float(v[channel][p])) for v in (x, r))
                top, low = x[channel][mine], r[channel][other]
                cross = torch.maximum(top, low)
                for place, share in ((mine, cross - low), (other, top - cross)):
                    step = x[channel][place] - r[channel][place]
                    if step.abs() > 1e-10:
                        result[channel][place] += gradient[channel, i, j] * share / step
    return result


def deeplift_by_hand(network: Residual, x: Tensor, t: int) -> Tensor:
    """The Rescale rule through Residual, forwards and backwards, with nothing of captum or of hooks."""
    r = torch.tensor(MEAN, dtype=x.dtype).reshape(1, 3, 1, 1).expand_as(x)
    last = getattr(F, network.activation)

    def run(images: Tensor) -> list[Tensor]:
        a = network.first(normalised(images))
        b = a.relu()
        c = network.pool(b)
        d = network.norm(network.second(c))
        e = d.relu()
        return [a, b, c, d, e, e + c - 0.2]

    def back(layer: object, like: Tensor, gradient: Tensor) -> Tensor:
        like = like.detach().requires_grad_()
        return torch.autograd.grad(layer(like), like, gradient)[0]  # type: ignore[operator]

    with torch.no_grad():
        mine, other = run(x), run(r)
    m = network.classifier.weight.detach()[t].reshape(1, -1, 1, 1).expand_as(mine[5]) / mine[5][0, 0].numel()
    m = m * rescale(last, mine[5], other[5])
    through = m * rescale(torch.relu, mine[3], other[3])
    m = m + back(lambda v: network.norm(network.second(v)), mine[2], through)
    m = pool_multipliers(mine[1][0], other[1][0], m[0])[None]
    m = m * rescale(torch.relu, mine[0], other[0])
    m = back(lambda v: network.first(normalised(v)), x, m)
    return ((x - r) * m)[0].sum(0).detach()


@pytest.mark.parametrize("activation", ["relu", "relu6", "elu", "leaky_relu"])
def test_deeplift_is_the_rescale_rule_and_adds_up(activation: str) -> None:
    network, images = residual(activation), some_images()
    found = method("deeplift", network).maps(images, TARGETS)
    expected = each_pair(images, TARGETS, lambda x, t: deeplift_by_hand(network, x, t))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    zero = torch.tensor(MEAN, dtype=torch.float64).reshape(1, 3, 1, 1).expand_as(images)
    difference = (logits(network, images) - logits(network, zero)).gather(1, TARGETS)
    torch.testing.assert_close(found.sum((2, 3)), difference, rtol=1e-5, atol=1e-6)


def test_captum_alone_would_lose_what_overlapping_windows_share() -> None:
    from captum.attr import DeepLift

    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(96, 4))
    images = some_images(1).float()
    explained = ExplainedNetwork(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, gap = DeepLift(explained).attribute(images.requires_grad_(), target=1, return_convergence_delta=True)
    assert float(gap.detach().abs()) > 1e-3
    (ours,) = baselines("deeplift", network=network)
    found = ours.maps(images, torch.tensor([[1]])).sum()
    with torch.no_grad():
        difference = network(images)[0, 1] - network(torch.zeros_like(images))[0, 1]
    torch.testing.assert_close(found, difference, rtol=1e-4, atol=1e-5)


def test_deeplift_of_one_activation_after_another() -> None:
    """Under the Rescale rule two in a row are one; captum's hooks, left alone, take the wrong gradient between them."""
    layers = (nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.ELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network, images = nn.Sequential(*layers).double(), some_images()
    zero = torch.tensor(MEAN, dtype=torch.float64).reshape(1, 3, 1, 1).expand_as(images)

    def one(x: Tensor, t: int) -> Tensor:
        x = x.clone().requires_grad_()
        convolved = network[0](normalised(x))
        multipliers = rescale(lambda v: F.elu(v.sigmoid()), convolved, network[0](normalised(zero[:1])).detach())
        only = torch.zeros_like(multipliers)
        only[:, t] = multipliers[:, t] / 100
        return ((x - zero[:1]) * torch.autograd.grad(convolved, x, only)[0])[0].sum(0).detach()

    found = method("deeplift", network).maps(images, TARGETS)
    torch.testing.assert_close(found, each_pair(images, TARGETS, one), rtol=1e-5, atol=1e-7)


def test_deeplift_does_not_mix_images() -> None:
    network, images = residual(), some_images(3)
    images[1, :, :6] = torch.tensor(MEAN, dtype=torch.float64).reshape(3, 1, 1)  # as the reference is: no difference
    targets = torch.tensor([[0], [1], [2]])
    together = method("deeplift", network, batch_size=3).maps(images, targets)
    alone = torch.cat([method("deeplift", network).maps(images[n : n + 1], targets[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (residual("gelu"), "no rule for gelu"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)),
            "no rule for softmax",
        ),
    ],
)
def test_deeplift_refuses_what_captum_has_no_rule_for(network: nn.Module, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        method("deeplift", network.double()).maps(some_images(), TARGETS)


def test_deeplift_refuses_a_product_of_two_values() -> None:
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return (x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3))

    with pytest.raises(UsageError, match="mul combines two values"):
        method("deeplift", Squeeze().double()).maps(some_images(), TARGETS)


def test_deeplift_that_does_not_add_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant: the pooling as it is, which captum hooks with its own lossy rule."""
    from bcos_fx.methods import module_form

    lossy = {**module_form._RESCALED, "max_pool2d": module_form._op_module}
    monkeypatch.setitem(module_form._FORMS, "DeepLIFT", (lossy, ("linear", "constant"), ()))
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(VerificationError, match="miss f"):
        method("deeplift", network).maps(some_images(), TARGETS)


# ---------------------------------------------------------------- the module form's own modules


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (2, None, 0, 1), ((3, 2), (1, 2), (1, 0), (2, 1)), (3, 2, 0, 1), (2, 3, 1, 1)],
)
def test_pooling_side_by_side_is_max_pooling(kernel, stride, padding, dilation, ceil_mode) -> None:
    for size in ((7, 8), (8, 9), (10, 10)):
        x = torch.randn(2, 3, *size)
        plain = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
        ours = SideBySideMaxPool2d(kernel, stride, padding, dilation, ceil_mode)
        assert torch.equal(ours(x), plain(x))


def test_two_relus_clip() -> None:
    x = torch.linspace(-5, 9, 57, dtype=torch.float64)
    for low, high in ((0.0, 6.0), (-1.0, 1.0), (2.0, 3.0)):
        torch.testing.assert_close(Clipped(low, high)(x), x.clamp(low, high))


@pytest.mark.parametrize("name", ["gradient", "guided-backprop", "deeplift", "integrated-gradients"])
def test_callers_modes_and_network_do_not_matter(name: str) -> None:
    network, images = residual(), some_images()
    network.train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    expected = method(name, network).maps(images, TARGETS)
    with torch.inference_mode():
        found = method(name, network).maps(images.clone(), TARGETS)
    torch.testing.assert_close(found, expected)
    assert network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(part._forward_hooks or part._backward_hooks for part in network.modules())
