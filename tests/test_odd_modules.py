"""Modules that no graph can hold are refused with place and reason; odd ones that it can hold are done right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import bcos_fx
from bcos_fx.errors import BcosFxError
from bcos_fx.nn import BcosConv2d

Middle = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A convolution, something odd, a head."""

    def __init__(self, middle: Middle = lambda net, y: y) -> None:
        super().__init__()
        self.conv, self.fc, self.middle = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), middle
        self.register_buffer("count", torch.ones(1))
        self.calls, self.last = 0, None

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self, self.conv(x))
        return self.fc(y.mean((2, 3)) if y.dim() == 4 else y)


class Alone(nn.Module):
    """Calls its part the way that ``Net`` calls its middle."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, net: nn.Module, y: Tensor) -> Tensor:
        return self.part(y)


class Rows(nn.Module):
    """Something odd on rows of six numbers, and a head."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], part: Any, width: int = 6) -> None:
        super().__init__()
        self.function, self.fc = forward, nn.Linear(width, 2)
        if isinstance(part, nn.Module | nn.Parameter):
            self.part = part
        else:
            self.register_buffer("part", part)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self.part, x))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Reversed(torch.autograd.Function):
    """Of domain-adversarial training (Ganin et al., JMLR 2016): the identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.share * gradient, None


def scripted(x: Tensor) -> Tensor:
    return torch.relu(x) * 2


def sloped(net: Net, y: Tensor) -> Tensor:
    with torch.enable_grad():
        place = y.detach().requires_grad_()
        return y + torch.autograd.grad(place.square().sum(), place)[0]


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def rows() -> Tensor:
    return torch.rand(3, 6, generator=torch.Generator().manual_seed(0))


def convert(module: nn.Module, inputs: Any, **options: Any) -> Any:
    with warnings.catch_warnings():  # PyTorch's own, of what is in prototype stage or going to be removed
        warnings.simplefilter("ignore")
        return bcos_fx.bcosify(module.eval(), example_inputs=inputs, recipe="equivalent", **options)


# ---------------------------------------------------------------- refused


def branching(net: Net, y: Tensor) -> Tensor:
    if y.sum() > 0:
        return y
    return -y


def counting(net: Net, y: Tensor) -> Tensor:
    net.calls += 1
    return y * net.calls


def counting_in_place(net: Net, y: Tensor) -> Tensor:
    net.count += 1
    return y * net.count


def counting_anew(net: Net, y: Tensor) -> Tensor:
    net.count = net.count + 1
    return y * net.count


def remembering(net: Net, y: Tensor) -> Tensor:
    before, net.last = net.last, y.detach()
    return y if before is None else y + before


def nested(net: Net, y: Tensor) -> Tensor:
    ragged = torch.nested.nested_tensor([row.flatten(1).mT for row in y])
    return torch.nested.to_padded_tensor(ragged, 0.0).mean(1)


def with_parts(change: Callable[[Net], Any]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        net = Net()
        change(net)
        return net

    return made


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)


def half(net: Net, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return y * 2


def scripted_part(net: Net) -> None:
    net.conv = torch.jit.script(net.conv)


class Numbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, number: int) -> Tensor:
        return self.weight * number


# name -> module, inputs, words of the reason, words of the place
REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str, str]] = {
    "a branch on values": (
        lambda: Net(branching),
        images(),
        "reads the values of a tensor that depends on the input (__bool__)",
        "if y.sum() > 0:",
    ),
    "a number read from values": (
        lambda: Net(lambda net, y: y * float(y.max())),
        images(),
        "depends on the input (__float__)",
        "y * float(y.max())",
    ),
    "a length that follows the values": (
        lambda: Net(lambda net, y: y * sum(1 for _ in torch.nonzero(y > 0))),
        images(),
        "holds for inputs like the example only",
        "sum(1 for _ in torch.nonzero(y > 0))",
    ),
    "a quantised layer": (quantised, rows(), "a quantized module cannot be traced", "module '0' (Linear)"),
    "a quantised tensor": (
        lambda: Net(lambda net, y: torch.quantize_per_tensor(y, 0.1, 0, torch.quint8).dequantize()),
        images(),
        "a quantized tensor is made",
        "torch.quantize_per_tensor",
    ),
    "a sparse buffer": (
        lambda: Rows(lambda part, x: (part @ x.mT).mT, torch.eye(6).to_sparse_csr()),
        rows(),
        "the buffer 'part' is sparse",
        "module '' (Rows)",
    ),
    "a sparse tensor": (
        lambda: Rows(lambda part, x: torch.sparse.mm(part.weight.to_sparse(), x.mT).mT, nn.Linear(6, 6)),
        rows(),
        "a sparse tensor is made",
        "part.weight.to_sparse()",
    ),
    "a nested tensor": (lambda: Net(nested), images(), "a nested tensor is made", "torch.nested.nested_tensor"),
    "a complex parameter": (
        lambda: Rows(
            lambda part, x: (x.to(part.dtype) @ part).real, nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))
        ),
        rows(),
        "the parameter 'part' is complex",
        "module '' (Rows)",
    ),
    "a complex input": (lambda: nn.Linear(6, 2), rows().to(torch.complex64), "the input 'input' is complex", ""),
    "a count in an attribute": (
        lambda: Net(counting),
        images(),
        "run again on the same inputs, the module gives another output",
        "attribute 'calls' of module '' (Net)",
    ),
    "a count in a buffer": (
        lambda: Net(counting_in_place),
        images(),
        "changes 'count' in eval mode and uses it",
        "net.count += 1",
    ),
    "a count in a new buffer": (
        lambda: Net(counting_anew),
        images(),
        "changes 'count' in eval mode and uses it",
        "an assignment in forward",
    ),
    "a memory of the last input": (
        lambda: Net(remembering),
        images(),
        "run again on the same inputs, the module gives another output",
        "attribute 'last' of module '' (Net)",
    ),
    "no tensor among the inputs": (Numbers, (3,), "no input of the module is a tensor", ""),
    "a gradient in the forward": (
        lambda: Net(sloped),
        images(),
        "a gradient is computed in the forward",
        "torch.autograd.grad(",
    ),
    "a transform of torch.func": (
        lambda: Net(lambda net, y: torch.vmap(torch.relu)(y)),
        images(),
        "a transform of torch.func (vmap, grad, jvp) runs",
        "torch.vmap(torch.relu)(y)",
    ),
    "inference mode": (
        lambda: Net(lambda net, y: torch.inference_mode()(lambda: y * 2)()),
        images(),
        "a tensor is made in inference mode",
        "torch.inference_mode()",
    ),
    "autocast": (lambda: Net(half), images(), "autocast is on inside the forward", "return y * 2"),
    "a TorchScript part": (
        with_parts(scripted_part),
        images(),
        "a TorchScript module cannot be traced",
        "module 'conv' (RecursiveScriptModule)",
    ),
    "a TorchScript trace": (
        lambda: torch.jit.trace(nn.Linear(6, 2).eval(), rows()),
        rows(),
        "a TorchScript module cannot be traced",
        "module ''",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_place_and_reason(name: str) -> None:
    make, inputs, reason, place = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make()
    with pytest.raises(BcosFxError) as caught:
        convert(module, inputs)
    assert reason in caught.value.what
    assert place in (caught.value.where or "")
    assert caught.value.hint


# name -> module, inputs, words of the place where the certificate breaks
UNCERTIFIED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "a function of a Fourier transform": (
        lambda: Net(lambda net, y: torch.fft.fft2(y).tanh().real),
        images(),
        "tanh of complex numbers is not a dynamic linear function of their real and imaginary parts [test_odd_module",
    ),
    "rounding for quantisation": (
        lambda: Net(lambda net, y: torch.fake_quantize_per_tensor_affine(y, 0.1, 0, -128, 127)),
        images(),
        "instead: the network in floating point, before it was quantized [test_odd_modules.py",
    ),
    "a mask that picks": (
        lambda: Net(lambda net, y: y[y > 0].mean() + y),
        images(),
        "samples are mixed",
    ),
}


@pytest.mark.parametrize("name", UNCERTIFIED)
def test_it_converts_and_is_not_certified(name: str) -> None:
    make, inputs, reason = UNCERTIFIED[name]
    network = convert(make(), inputs)
    certificate = bcos_fx.certify(network)
    assert not certificate.ok
    assert any(reason in str(found) for found in certificate.breaks), certificate.to_text()
    with pytest.raises(bcos_fx.errors.VerificationError):
        bcos_fx.explain(network, inputs)


# ---------------------------------------------------------------- done right


def frozen(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        return (y * 2).relu()


def hooked(net: Net) -> None:
    net.conv.register_forward_hook(lambda part, given, result: result * 2)
    net.fc.register_forward_pre_hook(lambda part, given: (given[0] + 1,))


def scripted_middle() -> Middle:
    function = torch.jit.script(scripted)
    return lambda net, y: function(y)


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": with_parts(lambda net: parametrizations.weight_norm(net.conv)),
    "weight_norm as it was": with_parts(lambda net: nn.utils.weight_norm(net.conv)),
    "spectral_norm": with_parts(lambda net: parametrizations.spectral_norm(net.conv)),
    "spectral_norm as it was": with_parts(lambda net: nn.utils.spectral_norm(net.conv)),
    "an orthogonal layer": with_parts(lambda net: parametrizations.orthogonal(net.fc)),
    "hooks that change values": with_parts(hooked),
    "an autograd function": lambda: Net(lambda net, y: Doubled.apply(y)),
    "a stopped gradient": lambda: Net(lambda net, y: y.detach() * 2),
    "features without gradients": lambda: Net(frozen),
    "a parameter of a layer as a number": lambda: Net(lambda net, y: y * net.conv.weight.mean().abs()),
    "a result of another tensor class": lambda: Net(lambda net, y: y.as_subclass(type("Named", (Tensor,), {}))),
    "a TorchScript function": with_parts(lambda net: setattr(net, "middle", scripted_middle())),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RIGHT[name]().eval()


@pytest.mark.parametrize("name", RIGHT)
def test_it_is_done_right(name: str) -> None:
    module = built(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    network = convert(module, images())
    assert not network.report.unknown
    assert network.report.coverage.share == 1
    assert any(isinstance(part, BcosConv2d) for part in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(network(images(3)), module(images(3)))
    certification = bcos_fx.certify(network.double(), images().double())
    assert certification.ok, certification.to_text()
    assert certification.completeness is not None
    assert certification.completeness.worst <= 1e-9
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


OWN_BACKWARD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "straight through": (lambda: Net(lambda net, y: StraightThrough.apply(y - 0.1)), "return x.clamp(0)"),
    "reversed": (lambda: Net(lambda net, y: Reversed.apply(y.relu(), 0.5)), "return x.view_as(x)"),
    "a hook that changes gradients": (
        with_parts(lambda net: net.fc.register_full_backward_hook(lambda part, given, got: (given[0] * 0,))),
        "module 'fc' (Linear), which has a backward hook",
    ),
}


@pytest.mark.parametrize("name", OWN_BACKWARD)
def test_a_backward_pass_of_its_own_is_no_matter_until_it_is_trained(name: str) -> None:
    make, place = OWN_BACKWARD[name]
    torch.manual_seed(0)
    module = make().double().eval()
    x = images().double()
    network = convert(module, x)
    torch.testing.assert_close(network(x), module(x))
    assert {row["verdict"] for row in network.report.figures.verification["comparisons"]} == {"equal"}
    found = bcos_fx.explain(network, x, 0)
    assert found.complete
    torch.testing.assert_close(found.contributions.sum((1, 2)) + found.constants.total(), module(x)[:, 0])
    with pytest.raises(BcosFxError, match="is not the gradient of what it computes") as caught:
        network.train()
    assert place in (caught.value.where or "")
    assert 'train="eval-graph"' in (caught.value.hint or "")
    bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent", train="eval-graph").train()


class Decorated(Net):
    """Nothing of it keeps gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_forward_without_any_gradients_is_explained_all_the_same() -> None:
    torch.manual_seed(0)
    network = convert(Decorated(), images())
    assert any(note.startswith("no gradients pass the module itself: ") for note in network.report.notes)
    assert not network(images().requires_grad_()).requires_grad
    certification = bcos_fx.certify(network.double(), images().double())
    assert certification.ok, certification.to_text()
    assert bcos_fx.explain(network, images().double()).contributions.abs().sum() > 0


def test_tensors_without_data_are_no_fault_of_autocast() -> None:
    network = convert(Net(lambda net, y: y * torch.empty(2, 3, device="meta").dim()), images())
    assert bcos_fx.certify(network).ok


def test_where_gradients_stop_is_said_and_they_stop_there_still() -> None:
    network = convert(Net(frozen), images())
    (note,) = (note for note in network.report.notes if note.startswith("no gradients pass"))
    assert "not trained" in note
    network(images()).sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert {name.partition(".")[0] for name in trained} == {"fc"}


def test_a_weight_that_is_read_elsewhere_stays_one_parameter(tmp_path: Path) -> None:
    network = convert(built("a parameter of a layer as a number"), images())
    bcos_fx.save(network, tmp_path / "network.safetensors")
    for each in (network, bcos_fx.load(tmp_path / "network.safetensors")):
        weight = each.get_parameter("conv.weight")
        assert isinstance(each.get_submodule("conv_layer"), BcosConv2d)
        assert any(parameter is weight for parameter in each.get_submodule("conv_layer").parameters())


@pytest.mark.parametrize("recipe", ["equivalent", "bcosification"])
def test_the_callers_autocast_does_not_touch_the_proof(recipe: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network = bcos_fx.bcosify(Net().eval(), example_inputs=images(), recipe=recipe)
    assert network.report.figures.verification["error"] < 1e-12
    assert network(images()).dtype is torch.float32


class Mapped(nn.Module):
    """A layer that no tracing can follow, but that can be called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.layer)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("pattern", ["middle.part", "*.part"])
def test_what_cannot_be_traced_can_be_left_whole(pattern: str) -> None:
    net = Net()
    net.middle = Alone(Mapped())
    with pytest.raises(BcosFxError, match=r"a transform of torch\.func") as caught:
        convert(net, images())
    assert "in module 'middle.part' (Mapped)" in str(caught.value.where)
    assert "leaf_modules" in str(caught.value.hint)
    network = convert(net, images(), leaf_modules=(pattern,))
    torch.testing.assert_close(network(images(3)), net(images(3)))
    (unknown,) = network.report.unknown
    assert unknown.module == "middle.part"
    assert network.report.coverage.share < 1
    certificate = bcos_fx.certify(network)
    assert not certificate.ok
    assert "middle" in str(certificate.breaks[0])


def test_a_module_that_is_to_be_left_whole_has_to_be_there() -> None:
    with pytest.raises(BcosFxError, match="leaf_modules names 'midle', and no module has such a name") as caught:
        convert(Net(), images(), leaf_modules=("conv", "midle"))
    assert caught.value.hint
    with pytest.raises(BcosFxError, match="leaf_modules is 'conv'"):
        convert(Net(), images(), leaf_modules="conv")


def test_pruned_weights_stay_pruned() -> None:
    net = Net()
    prune.l1_unstructured(net.conv, "weight", 0.5)
    network = convert(net, images())
    torch.testing.assert_close(network(images(3)), net(images(3)))
    assert bcos_fx.certify(network).ok
