"""Attention in every form that PyTorch has: one form after tracing, B-cos where values pass, and exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import TraceError, UsageError
from bcos_fx.nn import Attention, BcosLinear
from bcos_fx.testing import randomise_
from bcos_fx.tracing import trace
from tests.rewriting.catalogue import Net

Form = Callable[[Any, Tensor], Tensor]

CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
FLOAT_CAUSAL = torch.zeros(5, 5, dtype=torch.float64).masked_fill(CAUSAL, float("-inf"))
PER_HEAD = torch.stack([CAUSAL, torch.zeros(5, 5, dtype=torch.bool)])
PADDING = torch.tensor([[0, 0, 0, 1, 1]], dtype=torch.bool)
FLOAT_PADDING = torch.zeros(1, 5, dtype=torch.float64).masked_fill(PADDING, float("-inf"))


def module(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.MultiheadAttention(8, 2, **{"batch_first": True, **options})


def layer(cls: type[nn.Module], **options: Any) -> Callable[[], nn.Module]:
    return lambda: cls(8, 2, 16, **{"batch_first": True, **options})


def called(*, padding: Tensor | None = None, per_head: Tensor | None = None, **options: Any) -> Form:
    """Self-attention with these arguments; the weights that come back are not used."""

    def form(net: Any, x: Tensor) -> Tensor:
        given = {} if padding is None else {"key_padding_mask": padding.expand(x.shape[0], -1)}
        given |= {} if per_head is None else {"attn_mask": per_head.repeat(x.shape[0], 1, 1)}
        y: Tensor = net.attention(x, x, x, **options, **given)[0]
        return y

    return form


def positions_first(form: Form) -> Form:
    return lambda net, x: form(net, x.transpose(0, 1)).transpose(0, 1)


def weighed(net: Any, x: Tensor) -> Tensor:
    """The weights that come back weigh the values once more."""
    y, weights = net.attention(x, x, x)
    return y + weights @ x


def weighed_by_head(net: Any, x: Tensor) -> Tensor:
    y, weights = net.attention(x, x, x, average_attn_weights=False)
    return y + weights[:, 1] @ x


def pooled(net: Any, x: Tensor, **masks: Tensor) -> Tensor:
    """As the attention pooling of open_clip's ResNets: one query, weights in layers of their own, one bias of three."""
    tokens = torch.cat([x.mean(1, keepdim=True), x], 1).transpose(0, 1)
    y, _ = F.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=2,
        in_proj_weight=None,
        in_proj_bias=torch.cat([net.q.bias, net.k.bias, net.v.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=net.c.weight,
        out_proj_bias=net.c.bias,
        use_separate_proj_weight=True,
        q_proj_weight=net.q.weight,
        k_proj_weight=net.k.weight,
        v_proj_weight=net.v.weight,
        training=net.training,
        need_weights=False,
        **masks,
    )
    return y.transpose(0, 1)


def pooled_in_part(net: Any, x: Tensor) -> Tensor:
    """Masks of truth values given to the function itself: a module makes numbers of its own before."""
    padding = F.pad(PADDING, (1, 0)).expand(x.shape[0], -1)
    return pooled(net, x, key_padding_mask=padding, attn_mask=torch.tensor([[False, True, *[False] * 4]]))


def projected(net: Any, x: Tensor) -> Tensor:
    """Scaled dot product attention as most libraries write it."""
    heads = [part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (net.q, net.k, net.v)]
    y = F.scaled_dot_product_attention(*heads, dropout_p=0.1 if net.training else 0.0, is_causal=True)
    return net.c(y.transpose(1, 2).flatten(2))


def written_out(net: Any, x: Tensor) -> Tensor:
    queries, keys, values = (part(x) for part in (net.q, net.k, net.v))
    return net.c(F.dropout((queries @ keys.mT * 8**-0.5).softmax(-1), 0.1, net.training) @ values)


LINEARS = {name: lambda: nn.Linear(8, 8) for name in "qkvc"}
FORMS: dict[str, tuple[Form, dict[str, Callable[[], nn.Module]]]] = {
    name: (form, parts if isinstance(parts, dict) else {"attention": parts})
    for name, (form, parts) in {
        "self-attention": (called(), module()),
        "one head": (called(), lambda: nn.MultiheadAttention(8, 1, batch_first=True)),
        "positions first": (positions_first(called()), module(batch_first=False)),
        "without biases": (called(), module(bias=False)),
        "with dropout": (called(), module(dropout=0.2)),
        "with dropout, weights not asked for": (called(need_weights=False), module(dropout=0.2)),
        "mask of truth values": (called(attn_mask=CAUSAL), module()),
        "mask of numbers": (called(attn_mask=FLOAT_CAUSAL, need_weights=False), module()),
        "mask for each head": (called(per_head=PER_HEAD), module()),
        "causal mask": (called(attn_mask=CAUSAL, is_causal=True, need_weights=False), module()),
        "causal mask, weights asked for": (called(attn_mask=CAUSAL, is_causal=True), module()),
        "padding": (called(padding=PADDING), module()),
        "padding of numbers": (called(padding=FLOAT_PADDING), module(batch_first=True)),
        "padding and a mask": (called(padding=PADDING, attn_mask=CAUSAL), module()),
        "padding, causal": (called(padding=PADDING, attn_mask=CAUSAL, is_causal=True), module()),
        "key and value of its own": (called(), module(add_bias_kv=True)),
        "key of zeros": (called(), module(add_zero_attn=True)),
        "both, masked": (
            called(padding=PADDING, attn_mask=CAUSAL),
            module(add_bias_kv=True, add_zero_attn=True),
        ),
        "weights used": (weighed, module()),
        "weights used, with dropout": (weighed, module(dropout=0.2)),
        "weights of one head used": (weighed_by_head, module()),
        "cross-attention": (lambda net, x: net.attention(x, x[:, :3] * 2, x[:, 1:4])[0], module()),
        "cross-attention to one memory": (
            lambda net, x: net.attention(x, *[net.m(x)] * 2)[0],
            {"attention": module(), "m": lambda: nn.Linear(8, 8)},
        ),
        "other widths": (
            lambda net, x: net.attention(x, x[..., :5], x[..., :6])[0],
            module(kdim=5, vdim=6),
        ),
        "other widths, no biases": (
            lambda net, x: net.attention(x, x[..., :5], x[..., :6], need_weights=False)[0],
            module(kdim=5, vdim=6, bias=False),
        ),
        "called twice": (lambda net, x: net.attention(*[net.attention(x, x, x)[0]] * 3)[0], module()),
        "encoder layer": (lambda net, x: net.attention(x), layer(nn.TransformerEncoderLayer)),
        "encoder layer, positions first": (
            positions_first(lambda net, x: net.attention(x)),
            layer(nn.TransformerEncoderLayer, batch_first=False),
        ),
        "encoder, padding": (
            lambda net, x: net.attention(x, src_key_padding_mask=PADDING.expand(x.shape[0], -1)),
            lambda: nn.TransformerEncoder(layer(nn.TransformerEncoderLayer)(), 2, enable_nested_tensor=False),
        ),
        "decoder layer": (
            lambda net, x: net.attention(x, net.m(x), tgt_mask=CAUSAL, tgt_is_causal=True),
            {"attention": layer(nn.TransformerDecoderLayer), "m": lambda: nn.Linear(8, 8)},
        ),
        "attention pooling": (pooled, LINEARS),
        "attention pooling, masked": (pooled_in_part, LINEARS),
        "scaled dot product": (projected, LINEARS),
        "written out": (written_out, LINEARS),
    }.items()
}


def network(name: str) -> nn.Module:
    form, parts = FORMS[name]
    torch.manual_seed(0)
    built = Net(lambda net, x: net.head(form(net, x)), head=nn.Linear(8, 3), **{n: p() for n, p in parts.items()})
    return randomise_(built).double().eval()


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FORMS)
def test_it_becomes_layers_and_stays_exact(name: str) -> None:
    original, x = network(name), tokens()
    converted = bcos_fx.bcosify(original, example_inputs=x, recipe="equivalent")
    other = tokens(1)
    torch.testing.assert_close(converted(other), original(other), rtol=1e-9, atol=1e-9)
    kinds = {type(part).__name__ for part in converted.modules()}
    assert not kinds & {"MultiheadAttention", "NonDynamicallyQuantizableLinear"}
    assert not converted.report.unknown
    assert converted.report.coverage.share == 1
    gates = ("q_proj", "k_proj", "q", "k")
    for path, part in converted.named_modules():
        if isinstance(part, nn.Linear):
            assert isinstance(part, BcosLinear) == (path.rpartition(".")[2] not in gates), path
    certification = bcos_fx.certify(converted, x)
    assert certification.ok, certification.to_text()
    assert certification.completeness is not None
    assert certification.completeness.worst <= 1e-9, certification.to_text()


@pytest.mark.parametrize("name", [name for name in FORMS if "mask" not in name and "padding" not in name])
def test_other_numbers_of_samples_and_positions(name: str) -> None:
    original = network(name)
    converted = bcos_fx.bcosify(original, example_inputs=tokens(), recipe="equivalent")
    x = torch.cat([tokens(1), tokens(2)]).repeat(1, 2, 1)
    if converted.record.guards:
        with pytest.raises(UsageError, match="traced for inputs of shape"):
            converted(x)
    else:
        torch.testing.assert_close(converted(x), original(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masks", [{}, {"key_padding_mask": PADDING[0], "attn_mask": PER_HEAD}], ids=["", "masked"])
def test_a_single_sample_without_a_batch(masks: dict[str, Tensor]) -> None:
    def form(net: Any, x: Tensor) -> Tensor:
        y, weights = net.attention(x, x, x, **masks)
        return y + weights @ x

    original = network("self-attention")
    original.forward_function = form
    x, other = tokens()[:2]
    graph_module = trace(original, x).graph_module
    assert all(node.op != "call_module" for node in graph_module.graph.nodes)
    torch.testing.assert_close(graph_module(other), original(other), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_leaves_padded_positions_out() -> None:
    """Run alone in eval mode it packs what is not padded into a nested tensor, and gives 0 elsewhere."""
    padding = PADDING.expand(3, -1)
    original = network("encoder layer")
    original.attention = nn.TransformerEncoder(original.attention, 2)
    original.forward_function = lambda net, x: net.head(net.attention(x, src_key_padding_mask=padding)[:, :3])
    graph_module = trace(original, tokens()).graph_module
    with torch.no_grad():
        torch.testing.assert_close(graph_module(tokens(1)), original(tokens(1)), rtol=1e-9, atol=1e-9)


def test_what_is_dropped_follows_the_mode() -> None:
    """In train mode the module drops the share that the original was made with, in eval mode none."""
    original, x = network("with dropout, weights not asked for"), tokens()
    converted = bcos_fx.bcosify(original, example_inputs=x, recipe="equivalent")
    attention = next(part for part in converted.modules() if isinstance(part, Attention))
    assert attention.dropout == 0.2
    torch.manual_seed(0)
    expected = original.train()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(converted.train()(x), expected, rtol=1e-9, atol=1e-9)
    assert not torch.equal(converted(x), expected)


def test_a_mask_may_be_an_input() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = module()(), nn.Linear(8, 3)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x, key_padding_mask=padding)[0])

    original = randomise_(Masked()).double().eval()
    given = {"x": tokens(), "padding": PADDING.repeat(3, 1)}
    converted = bcos_fx.bcosify(original, example_inputs=given, recipe="equivalent")
    other = torch.tensor([[False] * 5, [False, True, False, True, False], [True] * 4 + [False]])
    torch.testing.assert_close(converted(given["x"], other), original(given["x"], other), rtol=1e-9, atol=1e-9)


def test_projected_keys_are_refused() -> None:
    def form(net: Any, x: Tensor) -> Tensor:
        weights = (net.attention.in_proj_weight, net.attention.in_proj_bias, None, None, False, 0.0)
        out = (net.attention.out_proj.weight, net.attention.out_proj.bias)
        keys = x.unflatten(2, (2, 4)).permute(1, 2, 0, 3).flatten(0, 1)
        y: Tensor = F.multi_head_attention_forward(x, x, x, 8, 2, *weights, *out, static_k=keys)[0]
        return y

    original = network("self-attention")
    original.forward_function = form
    with pytest.raises(TraceError, match="projected already") as caught:
        trace(original, tokens())
    assert "test_attention.py" in str(caught.value)


def channel_attention(net: Any, x: Tensor) -> Tensor:
    """Channels attend to channels (DaViT): only q carries a value, so the joined projection stays for k and v."""
    x = net.embed(x)
    q, k, v = net.qkv(x).reshape(*x.shape[:2], 3, 8).permute(2, 0, 1, 3).unbind(0)
    mixed = (k.transpose(-1, -2) @ v).softmax(-1) @ q.transpose(-1, -2)
    return net.head(mixed.mean(-1))


@pytest.mark.parametrize("recipe", ["equivalent", "gradual"])
def test_a_part_stands_beside_a_projection_that_stays(recipe: str, tmp_path: Path) -> None:
    """Inside it, the projection would be a layer with a layer of its own, which no file can hold."""
    net = Net(channel_attention, embed=nn.Linear(6, 8), qkv=nn.Linear(8, 24), head=nn.Linear(8, 3))
    network = bcos_fx.bcosify(randomise_(net).eval(), recipe=recipe, example_inputs=torch.rand(2, 5, 6))
    assert isinstance(network.get_submodule("qkv"), nn.Linear)
    assert isinstance(network.get_submodule("qkv_q"), BcosLinear)
    bcos_fx.save(network, tmp_path / "network.safetensors")
    x = torch.rand(3, 5, 6)
    torch.testing.assert_close(bcos_fx.load(tmp_path / "network.safetensors")(x), network(x), rtol=0, atol=0)
