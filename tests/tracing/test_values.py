"""The graph computes what the module computes, bit for bit, on the example and on other batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bcos_fx.tracing import set_item, trace


def check(module: nn.Module, example: Tensor, *others: Tensor, **options: object) -> torch.fx.GraphModule:
    """Trace, compare on the example and on other inputs, and see that the caller's module is untouched."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    attributes = {path: set(vars(part)) for path, part in module.named_modules()}
    modes = [part.training for part in module.modules()]
    given, chance = example.clone(), torch.get_rng_state()
    graph_module = trace(module, example, **options).graph_module  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(given, example)
    assert [part.training for part in module.modules()] == modes
    assert {path: set(vars(part)) for path, part in module.named_modules()} == attributes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.eval()
    for x in (example, *others):
        with torch.no_grad():
            assert torch.equal(module(x.clone()), graph_module(x.clone()))
    return graph_module


def names(graph_module: torch.fx.GraphModule) -> list[str]:
    return [str(getattr(node.target, "__name__", node.target)) for node in graph_module.graph.nodes]


def image(batch: int = 2, channels: int = 4, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, dtype=torch.float64)


class Apply(nn.Module):
    """A module around one function, with a parameter and a buffer to use."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.float64))
        self.register_buffer("shift", torch.randn(4, 1, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)  # type: ignore[no-any-return, operator]


def _preactivation(m: Apply, x: Tensor) -> Tensor:
    shortcut = x
    x = F.relu(x, inplace=True)
    return F.conv2d(x, m.weight, padding=1) + shortcut


def _augmented(m: Apply, x: Tensor) -> Tensor:
    y = x * 2
    z = y
    y += m.shift
    return y * z


def _base_of_view(m: Apply, x: Tensor) -> Tensor:
    y = x + 0
    y[:, 1].mul_(3)
    y.flatten(2).relu_()
    y.transpose(1, 3).add_(1)
    return y


def _view_of_base(m: Apply, x: Tensor) -> Tensor:
    y = x + 0
    view = y.flatten(1)[:, :7]
    y.sigmoid_()
    return view


def _sibling_views(m: Apply, x: Tensor) -> Tensor:
    y = x + 0
    left, right, both = y[:, :2], y[:, 2:], y[:, 1:3]
    left.mul_(5)
    return left + right + both


def _slices(m: Apply, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :2, 1:] = x[:, 2:, :-1]
    y[..., 0] = 2.5
    return y


def _slice_added_to(m: Apply, x: Tensor) -> Tensor:
    y = x * 2
    y[:, :2, 1:] += x[:, 2:, :-1]
    y[..., 0] *= 3
    y[:, 0] = y[:, 1]
    return y


def _constant_receives_data(m: Apply, x: Tensor) -> Tensor:
    y = torch.zeros(2, 4, dtype=x.dtype)
    y[0] = x.mean((0, 2, 3))
    return y


def _dropout_alias(m: Apply, x: Tensor) -> Tensor:
    y = F.dropout(x, 0.5, training=m.training)
    return x * 2 + y


def _whole(m: Apply, x: Tensor) -> Tensor:
    y, z, w = x.clone(), x.clone(), x.clone()
    y.copy_(x[:1] * 3)
    z.fill_(2.0)
    w.zero_()
    return y + z + w


def _chain(m: Apply, x: Tensor) -> Tensor:
    y = x.clone().mul_(2).clamp_(min=0).add_(1, alpha=3).unsqueeze_(0)
    y **= 2
    y //= 3
    return y


def _sizes(m: Apply, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    half = math.ceil(h / 2)
    grid = torch.arange(h, dtype=x.dtype, device=x.device).view(1, 1, -1, 1)
    y = x.reshape(b, c, h * w).mean(-1).view(b, c, 1, 1).expand(-1, -1, h, w) + grid
    return F.interpolate(y[:, :, :half], size=(h, w)) * (c**-0.5) + x.new_zeros(b, 1, h, w) + max(h, w)


def _attention(m: Apply, x: Tensor) -> Tensor:
    q, k, v = torch.cat([x, x + 1, x * 2], 1).flatten(2).transpose(1, 2).chunk(3, dim=-1)
    return F.scaled_dot_product_attention(q, k, v)


def _reflected(m: Apply, x: Tensor) -> Tensor:
    return (1 - x) * (2 / (x * x + 1)) + 2 ** (-x.abs()) + (x > 0) * x.amax((2, 3), keepdim=True)


def _every_operator(m: Apply, x: Tensor) -> Tensor:
    y = (x**2 + 1) ** 0.5 / 2 - x // 3 + x % 2 + (-x) + (+x) + abs(x) + x @ x.mT + 1 // (x + 9) + 3 % (x + 9)
    mask = ((x == 1) | (x != 2)) & ~(x < 0) ^ (x >= 1) & (x <= 2) | (1 > x)
    whole = x.long()
    return y * mask + (whole << 1) + (whole >> 1) + (1 & whole) + (1 | whole) + (1 ^ whole) + x.mT.mT


def _local_module(m: Apply, x: Tensor) -> Tensor:
    return nn.ReLU()(nn.MaxPool2d(2)(x)) + torch.tensor([[[[1.5]]]], dtype=x.dtype)


def _permuted(m: Apply, x: Tensor) -> Tensor:
    y = x.clone()
    y.permute(0, 2, 3, 1).mul_(m.shift.flatten())
    return y


FUNCTIONS = [
    _preactivation,
    _augmented,
    _base_of_view,
    _view_of_base,
    _sibling_views,
    _slices,
    _slice_added_to,
    _constant_receives_data,
    _dropout_alias,
    _whole,
    _chain,
    _sizes,
    _attention,
    _reflected,
    _every_operator,
    _local_module,
    _permuted,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_repeat_bit_for_bit(function: object) -> None:
    torch.manual_seed(1)
    graph_module = check(Apply(function), image(), image(3) if function is not _constant_receives_data else image())
    methods = [str(node.target) for node in graph_module.graph.nodes if node.op == "call_method"]
    assert [name for name in methods if name.endswith("_")] == []


def test_sizes_follow_the_input() -> None:
    check(Apply(_sizes), image(), image(3, 4, 11))


def test_dropout_keeps_two_names_for_one_object() -> None:
    graph_module = check(Apply(_dropout_alias), image())
    dropped = next(n for n in graph_module.graph.nodes if n.op == "call_function" and n.target is F.dropout)
    assert len(dropped.users) == 1


def test_option_a_shortcut_in_a_lambda() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, dtype=torch.float64)
            self.skip = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x) + self.skip(x))

    graph_module = check(Shortcut(), image(), image(3, 4, 12))
    assert names(graph_module) == ["x", "conv", "getitem", "pad", "add", "relu", "output"]


def test_a_module_called_twice_is_one_target() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, dtype=torch.float64)
            self.again = self.conv
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.again(self.act(self.conv(x))))

    graph_module = check(Twice(), image(), image(5))
    assert names(graph_module) == ["x", "conv", "act", "conv", "act", "output"]
    assert graph_module.act.inplace is False
    assert len(list(graph_module.parameters())) == 2


def test_a_subclass_of_a_layer_is_traced_into() -> None:
    class Conv2dSame(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            pad = max((math.ceil(x.shape[-1] / self.stride[0]) - 1) * self.stride[0] + 3 - x.shape[-1], 0)
            return F.conv2d(F.pad(x, (pad // 2, pad - pad // 2) * 2), self.weight, self.bias, self.stride)

    traced = trace(Conv2dSame(4, 6, 3, stride=2, dtype=torch.float64), image())
    conv = next(n for n in traced.graph_module.graph.nodes if n.target is torch.conv2d)
    assert (conv.args[1].op, conv.args[1].target) == ("get_attr", "weight")
    assert [guard.kind for guard in traced.guards] == ["bool"]
    assert traced.guards[0].value is False
    check(Conv2dSame(4, 6, 3, stride=2, dtype=torch.float64), image())


def test_a_slice_that_is_added_to_is_written_once() -> None:
    nodes = trace(Apply(_slice_added_to), image()).graph_module.graph.nodes
    assert sum(node.target is set_item for node in nodes) == 3


@pytest.mark.parametrize("kind", ["parametrized", "hooked"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_norm_stays_a_function_of_its_parameters(kind: str) -> None:
    normed = nn.utils.parametrizations.weight_norm if kind == "parametrized" else nn.utils.weight_norm
    module = nn.Sequential(normed(nn.Conv2d(4, 4, 3, dtype=torch.float64)), nn.ReLU())
    graph_module = check(module, image(), image(3))
    assert {name for name, _ in graph_module.named_parameters()} == {name for name, _ in module.named_parameters()}
    assert torch.conv2d in [node.target for node in graph_module.graph.nodes]


def test_a_hook_that_changes_values_is_in_the_graph() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 1, dtype=torch.float64))
    module[0].register_forward_hook(lambda m, args, result: result * 3 + args[0])
    assert check(module, image(), image(3)).graph.find_nodes(op="call_module", target="0") == []


def test_code_outside_of_dispatch_is_recorded_by_kernel() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    check(Apply(lambda m, x: Square.apply(x) + 1), image(), image(3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_script_function_is_seen() -> None:
    @torch.jit.script
    def swish(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    graph_module = check(Apply(lambda m, x: swish(x) + 1), image(), image(3))
    assert not any(name.startswith("constant") for name, _ in graph_module.named_buffers())


def test_shared_parameters_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Linear(8, 8, dtype=torch.float64) for _ in range(2))
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) @ self.first.weight

    graph_module = check(Tied(), image())
    assert graph_module.first.weight is graph_module.second.weight


def test_transformer_encoder_is_traced_through() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module = layer.eval()
        x = torch.randn(2, 5, 16, dtype=torch.float64)
        graph_module = trace(module, x).graph_module
        assert not any("transformer_encoder" in name or "multi_head" in name for name in names(graph_module))
        assert torch.allclose(module(x), graph_module(x), rtol=1e-12)


def test_einops_sees_through_sizes() -> None:
    einops = pytest.importorskip("einops")
    graph_module = check(
        Apply(lambda m, x: einops.rearrange(x, "b c (h k) w -> b (h w) (c k)", k=2)), image(), image(3)
    )
    assert graph_module(image(2, 4, 12)).shape == (2, 72, 8)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x.flatten(1).view(x.data.size(0), -1),  # ShuffleNet as it was first written
        lambda m, x: x.relu() - x.data,
        lambda m, x: x * (x.data > 0),
    ],
)
def test_data_is_what_detach_gives(forward: Any) -> None:
    graph_module = check(Apply(forward), image(), image(3))
    leaf = image().requires_grad_()
    graph_module(leaf).sum().backward()
    other = leaf.detach().clone().requires_grad_()
    forward(None, other).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, other.grad)


def test_half_precision_and_other_layouts() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).bfloat16()
    check(module, image().bfloat16().to(memory_format=torch.channels_last))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "convnext_tiny", "vit_b_16"])
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    options = {"image_size": 64} if name == "vit_b_16" else {}
    x = torch.randn(2, 3, 64, 64)
    check(models.get_model(name, weights=None, **options), x, torch.randn(3, 3, 64, 64))
