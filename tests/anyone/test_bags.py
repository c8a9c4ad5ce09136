"""Bags of embeddings: words in a row with offsets, weights and padding; a bag is a row of the output."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes

WORDS, OFFSETS = torch.tensor([1, 2, 3, 4, 5, 2, 7]), torch.tensor([0, 3, 5])
SHARES = torch.tensor([0.5, 1.0, 2.0, 0.1, 0.7, 0.3, 1.5], dtype=torch.float64)


class Bags(nn.Module):
    """Bags of words, and two layers."""

    def __init__(self, mode: str, padding: int | None, *, weighted: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag, self.fc = nn.EmbeddingBag(10, 6, mode=mode, padding_idx=padding), nn.Linear(6, 3)
        self.weighted = weighted
        self.double().eval()

    def forward(self, words: Tensor, offsets: Tensor, shares: Tensor | None = None) -> Tensor:
        return self.fc(self.bag(words, offsets, shares if self.weighted else None).relu())


def by_hand(network: Bags, mode: str, padding: int | None) -> Tensor:
    """The bags, word by word."""
    bounds = [*OFFSETS.tolist(), len(WORDS)]
    rows = []
    for first, last in pairwise(bounds):
        kept = [i for i in range(first, last) if WORDS[i] != padding]
        values = [network.bag.weight[WORDS[i]] * (SHARES[i] if network.weighted else 1) for i in kept]
        stacked = torch.stack(values)
        rows.append({"sum": stacked.sum(0), "mean": stacked.mean(0), "max": stacked.amax(0)}[mode])
    return torch.stack(rows).detach()


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize(("mode", "weighted"), [("sum", False), ("sum", True), ("mean", False), ("max", False)])
def test_words_with_offsets_are_explained_by_bags(
    mode: str, weighted: bool, padding: int | None, rewritten: bool
) -> None:
    network = Bags(mode, padding, weighted=weighted)
    given: tuple[Tensor, ...] = (WORDS, OFFSETS, SHARES) if weighted else (WORDS, OFFSETS)
    model: Any = network
    if rewritten:
        model = bcos_fx.bcosify(network, example_inputs=given, recipe="equivalent", batch_axis=None)
        torch.testing.assert_close(model(*given).detach(), network(*given).detach())
    bags = by_hand(network, mode, padding)
    for bag, word in ((0, 2), (1, 0)):
        found = bcos_fx.explain(model, WORDS, (bag, word), others=given[1:], source="bag", batch_axis=None)
        wanted = torch.zeros_like(bags)
        wanted[bag] = network.fc.weight[word].detach() * (bags[bag] > 0)
        torch.testing.assert_close(found.weights[0], wanted)
        torch.testing.assert_close(found.contributions[0], (wanted * bags).sum(1))
        torch.testing.assert_close(found.output[0], network(*given).detach()[bag, word])
        assert found.complete
    assert bcos_fx.certify(model, given, source="bag", batch_axis=None).ok


def test_words_have_no_samples_and_the_error_leads_there() -> None:
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        bcos_fx.explain(Bags("sum", None, weighted=False), WORDS, 2, others=(OFFSETS,), source="bag")
    assert "batch_axis=None" in (caught.value.hint or "")
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        bcos_fx.explain(Bags("sum", None, weighted=False), WORDS, (0, 2), others=(OFFSETS,), batch_axis=None)
    assert "source=" in (caught.value.hint or "")


class Both(Bags):
    """Weights of words that count by themselves too."""

    def forward(self, words: Tensor, offsets: Tensor, shares: Tensor) -> Tensor:
        return super().forward(words, offsets, shares) + shares.sum()


class Called(Bags):
    """The function in place of the module."""

    def forward(self, words: Tensor, offsets: Tensor, shares: Tensor) -> Tensor:
        bags = nn.functional.embedding_bag(words, self.bag.weight, offsets, mode="sum", per_sample_weights=shares)
        return self.fc(bags.relu())


class Rows(Bags):
    """A bag is a row of words: a sample."""

    def forward(self, words: Tensor, shares: Tensor) -> Tensor:
        return self.fc(self.bag(words, per_sample_weights=shares).relu())


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize(("kind", "padding"), [(Bags, None), (Bags, 2), (Both, None), (Called, None), (Rows, 2)])
def test_weights_of_words_are_explained_by(kind: type[Bags], padding: int | None, rewritten: bool) -> None:
    network = kind("sum", padding, weighted=True)
    rows = kind is Rows
    given = {"words": WORDS, "offsets": OFFSETS, "shares": SHARES}
    if rows:
        given = {"words": WORDS[:6].view(2, 3), "shares": SHARES[:6].view(2, 3)}
    axis, target = (0, 2) if rows else (None, (1, 2))
    options: dict[str, Any] = {"batch_axis": axis}
    model: Any = network
    if rewritten:
        model = from_bytes(to_bytes(bcos_fx.bcosify(network, example_inputs=given, recipe="equivalent", **options)))
    leaf = given["shares"].clone().requires_grad_()
    out = network(**(given | {"shares": leaf}))
    explained = out[:, 2] if rows else out[1:2, 2]
    explained.sum().backward()
    for source in ("shares", None):  # words are integers, so their weights are the main input
        found = bcos_fx.explain(model, given, target, source=source, **options)
        assert found.complete
        torch.testing.assert_close(found.weights.reshape(leaf.shape), leaf.grad)
        torch.testing.assert_close(found.output, explained.detach())
        total = found.contributions.flatten(1).sum(1) + found.constants.total()
        torch.testing.assert_close(total, explained.detach())


class Ranked(Bags):
    """The words are the ranks of numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bag(x.argsort(1)).relu() + x)


def test_words_without_weights_lead_to_the_bag() -> None:
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        bcos_fx.explain(Ranked("sum", None, weighted=False), torch.rand(2, 6, dtype=torch.float64), 2)
    assert "embedding_bag is not dynamic linear in its input; instead: explain by what it gives" in str(caught.value)
