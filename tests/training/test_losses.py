"""Losses against loops that compute them number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bcos_fx.training import losses
from bcos_fx.training.mixing import mixer

N, C = 5, 4


def pair() -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(N, C, dtype=torch.float64), 2 * torch.randn(N, C, dtype=torch.float64)


def slow_bce(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def test_off_label_bce() -> None:
    logits, _ = pair()
    labels = torch.tensor([0, 3, 1, 1, 2])
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for index, logit in enumerate(row):
            total += slow_bce(logit, 1.0 if index == label else 1 / C)
    found = losses.total_loss({"off-label-bce": 1.0}, logits, labels)
    assert float(found) == pytest.approx(total / (N * C), rel=1e-6)


def test_bce_and_cross_entropy() -> None:
    logits, _ = pair()
    labels = torch.tensor([0, 3, 1, 1, 2])
    rows = logits.tolist()
    plain = sum(slow_bce(rows[i][j], float(j == labels[i])) for i in range(N) for j in range(C))
    entropy = -sum(math.log(softmax(row)[label]) for row, label in zip(rows, labels.tolist(), strict=True))
    assert float(losses.total_loss({"bce": 1.0}, logits, labels)) == pytest.approx(plain / (N * C), rel=1e-6)
    assert float(losses.total_loss({"cross-entropy": 2.0}, logits, labels)) == pytest.approx(2 * entropy / N, rel=1e-6)


def test_distillation_of_logits() -> None:
    ours, theirs = pair()
    divergence, entropy = 0.0, 0.0
    for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
        p, q = softmax(b), softmax(a)
        divergence += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        entropy += sum(slow_bce(logit, target) for logit, target in zip(a, p, strict=True))
    assert float(losses.distil_kl(ours, theirs)) == pytest.approx(divergence / N)
    assert float(losses.distil_bce(ours, theirs)) == pytest.approx(entropy / (N * C))
    assert float(losses.distil_kl(ours, ours)) == pytest.approx(0, abs=1e-12)


def test_distillation_of_features() -> None:
    ours, theirs = torch.randn(N, 3, 2, dtype=torch.float64), torch.randn(N, 3, 2, dtype=torch.float64)

    def cosine(a: Tensor, b: Tensor) -> float:
        x, y = a.flatten().tolist(), b.flatten().tolist()
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        return dot / math.sqrt(sum(p * p for p in x)) / math.sqrt(sum(q * q for q in y))

    expected = sum(1 - cosine(a, b) for a, b in zip(ours, theirs, strict=True)) / N
    assert float(losses.distil_cosine(ours, theirs)) == pytest.approx(expected)
    pairs = 0.0
    for i in range(N):
        for j in range(N):
            z = (1 if i == j else -1) * (10 * cosine(ours[i], theirs[j]) - 10)
            pairs += math.log(1 + math.exp(-z))
    assert float(losses.distil_pairwise(ours, theirs)) == pytest.approx(pairs / N)


def test_pairs_of_all_processes_are_those_of_one_with_all_samples() -> None:
    """Each process has its own embeddings and all of the reference; their mean is the loss of the whole."""
    ours, theirs = torch.randn(N + 1, 4, dtype=torch.float64, requires_grad=True), torch.randn(N + 1, 4).double()
    whole = losses.distil_pairwise(ours, theirs)
    (gradient,) = torch.autograd.grad(whole, ours)
    half = (N + 1) // 2
    parts = [
        losses.total_loss({"distil-pairwise": 1.0}, ours[place : place + half], None, gathered=(theirs, place)) / 2
        for place in (0, half)
    ]
    (found,) = torch.autograd.grad(sum(parts), ours)
    assert float(sum(part.detach() for part in parts)) == pytest.approx(float(whole.detach()), rel=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-7)
    alone = sum(float(losses.distil_pairwise(ours.detach()[p : p + half], theirs[p : p + half])) for p in (0, half)) / 2
    assert alone != pytest.approx(float(whole.detach()), rel=1e-3)  # fewer pairs to tell apart


def test_losses_add_up_and_read_features_where_there_are_any() -> None:
    ours, theirs = pair()
    labels = torch.zeros(N, dtype=torch.long)
    features = torch.randn(N, 7), torch.randn(N, 7)
    found = losses.total_loss({"bce": 0.5, "distil-kl": 2.0, "distil-cosine": 1.0}, ours, labels, theirs, features)
    parts = 0.5 * losses.total_loss({"bce": 1.0}, ours, labels) + 2 * losses.distil_kl(ours, theirs)
    assert float(found) == pytest.approx(float(parts + losses.distil_cosine(*features)), rel=1e-5)


@pytest.mark.vision
def test_mixed_labels_add_up_to_one_and_are_lifted_to_one_over_c() -> None:
    images, labels = torch.rand(N, 3, 8, 8), torch.tensor([0, 3, 1, 1, 2])
    mixed, soft = mixer(0.4, 0.0, C)(images, labels)
    assert torch.allclose(soft.sum(1), torch.ones(N))
    assert torch.equal(losses.class_targets(soft, C), soft)
    logits = torch.randn(N, C)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft.clamp(min=1 / C))
    assert torch.equal(losses.total_loss({"off-label-bce": 1.0}, logits, soft), expected)
    # A mixture of encodings is the encoding of the mixture.
    weight = float(soft.max())
    assert float(mixed.min()) >= 0
    assert float(mixed.max()) <= 1
    assert 0.5 <= weight <= 1


@pytest.mark.vision
def test_cutmix_and_a_choice_of_both() -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % C
    for alphas in ((0.0, 1.0), (0.3, 1.0)):
        mixed, soft = mixer(*alphas, C)(images, labels)
        assert mixed.shape == images.shape
        assert torch.allclose(soft.sum(1), torch.ones(6))
