"""Whatever happens to other inputs alone is a counted constant, or a weight, of the explanation by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError


class Both(nn.Module):
    """An image, and something else that is added to its features; `other` is opaque, a gate, or recurrent."""

    def __init__(self, other: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc, self.other = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), other
        for name, part in parts.items():
            self.add_module(name, part)
        self.double().eval()

    def features(self, image: Tensor) -> Tensor:
        return self.conv(image).relu().mean((2, 3))

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.fc(self.features(image) + self.other(self, other))


IDS = torch.tensor([[1, 4, 0, 2], [3, 3, 1, 0]])
TABLE = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)).double() + 0.5
CASES: dict[str, tuple[Callable[[], Both], Tensor]] = {
    "embedding": (lambda: Both(lambda n, ids: n.words(ids).mean(1), words=nn.Embedding(5, 8)), IDS),
    "embedding bag": (lambda: Both(lambda n, ids: n.words(ids), words=nn.EmbeddingBag(5, 8)), IDS),
    "log": (lambda: Both(lambda n, t: t.log()), TABLE),
    "sin": (lambda: Both(lambda n, t: torch.sin(t)), TABLE),
    "sigmoid": (lambda: Both(lambda n, t: n.gate(t), gate=nn.Sigmoid()), TABLE),
    "softmax of a layer": (lambda: Both(lambda n, t: n.table(t).softmax(1), table=nn.Linear(8, 8)), TABLE),
    "one-hot": (lambda: Both(lambda n, ids: F.one_hot(ids[:, 0], 8).double()), IDS),
    "square root": (lambda: Both(lambda n, t: t.sqrt()), TABLE),
    "recurrent": (
        lambda: Both(
            lambda n, ids: n.lstm(n.words(ids))[0][:, -1],
            words=nn.Embedding(5, 4),
            lstm=nn.LSTM(4, 8, batch_first=True),
        ),
        IDS,
    ),
    "rounded": (lambda: Both(lambda n, t: t.round()), TABLE),
    "unknown": (lambda: Both(lambda n, t: torch.erfinv(t.tanh())), TABLE),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_constant_of_the_image(name: str) -> None:
    torch.manual_seed(0)
    make, other = CASES[name]
    network, image = make(), torch.rand(2, 3, 6, 6).double()
    found = bcos_fx.explain(network, image, 1, others=[other])
    leaf = image.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(leaf, other)[:, 1].sum(), leaf)
    torch.testing.assert_close(found.weights, expected, rtol=1e-9, atol=1e-12)
    share = (network.other(network, other) @ network.fc.weight[1]).detach()
    torch.testing.assert_close(found.constants["the input other"], share, rtol=1e-9, atol=1e-12)
    assert found.residual.abs().max() < 1e-12
    certificate = bcos_fx.certify(network, [image, other])
    assert certificate.ok, certificate.to_text()
    assert certificate.source == "image"


@pytest.mark.parametrize("name", ["log", "softmax of a layer", "sigmoid", "rounded", "embedding bag"])
def test_the_certificate_is_for_one_source(name: str) -> None:
    make, other = CASES[name]
    network, image = make(), torch.rand(2, 3, 6, 6).double()
    assert bcos_fx.certify(network, [image, other], source="image").ok
    if name == "sigmoid":  # of the table itself a hidden activation, and so a ratio and a constant
        assert bcos_fx.certify(network, [image, other], source="other").ok
    elif other.is_floating_point():
        assert not bcos_fx.certify(network, [image, other], source="other").ok
    else:
        with pytest.raises(UsageError, match="holds integers"):
            bcos_fx.certify(network, [image, other], source="other")


@pytest.mark.parametrize("name", ["embedding", "log", "sigmoid"])
def test_a_converted_network_agrees(name: str) -> None:
    make, other = CASES[name]
    network, image = make(), torch.rand(2, 3, 6, 6).double()
    model = bcos_fx.bcosify(network, example_inputs=[image, other], recipe="equivalent")
    one = bcos_fx.explain(network, image, 1, others=[other])
    two = bcos_fx.explain(model, image, 1, others=[other])
    torch.testing.assert_close(two.input_weights, one.weights, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(two.constants["the input other"], one.constants["the input other"])


class SmallBert(nn.Module):
    """What BERT does to its tokens: words, places and segments, a norm, masked attention, a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.segments = nn.Embedding(9, 8), nn.Embedding(5, 8), nn.Embedding(2, 8)
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.pooler, self.fc = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1])) + self.segments(segments)
        x = self.norm(x)
        x = x + self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]
        return self.fc(self.pooler(x[:, 0]).tanh())


def test_text_is_explained_by_word_embeddings_alone() -> None:
    torch.manual_seed(0)
    network = SmallBert().double().eval()
    ids, segments = torch.randint(0, 9, (2, 5)), torch.tensor([[0, 0, 0, 1, 1]] * 2)
    mask = torch.tensor([[False] * 5, [False] * 4 + [True]])
    found = bcos_fx.explain(network, ids, 1, others=[segments, mask], source="words")
    assert found.encoded.shape == (2, 5, 8)
    assert {"the input segments"} <= found.constants.keys()
    assert found.residual.abs().max() < 1e-12
    assert found.complete
    joint = bcos_fx.explain(network, ids, 1, others=[segments, mask], source=["words", "segments"])
    assert "the input segments" not in joint.constants
    torch.testing.assert_close(joint["segments"].weights, joint["words"].weights)  # both are added to the same sum


def test_bert_with_random_weights() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=20,
        max_position_embeddings=8,
    )
    network = transformers.BertForSequenceClassification(config).double().eval()
    inputs = {"input_ids": torch.randint(0, 20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    model = bcos_fx.bcosify(network, example_inputs=inputs, output_key="logits", recipe="equivalent")
    found = bcos_fx.explain(model, inputs, 1, source="bert.embeddings.word_embeddings")
    assert found.encoded.shape == (2, 6, 16)
    assert found.complete
    assert found.residual.abs().max() < 1e-12
    torch.testing.assert_close(found.output, network(**inputs).logits[:, 1].detach(), rtol=1e-9, atol=1e-12)
