"""Losses, and what labels become before a loss reads them.

``off-label-bce`` is what B-cos networks are trained with: binary cross entropy per class, with the target 1/C instead
of 0 for the classes that are not the label (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 4.1); the
logit bias log(1 / (C - 1)) that belongs to it is part of the network, by the recipe option ``head = "logit"``.

``bce`` takes several labels per sample, (N, C) in [0, 1]. ``mse`` and ``l1`` are for regression: outputs and targets of
one shape.

The distillation losses need no labels. ``distil-pairwise`` is the sigmoid loss over all pairs of a batch between
normalized embeddings, with scale 10 and bias -10 (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV
2023, section 3.2), as the B-cosification of CLIP uses it (Arya et al., "B-cosification", NeurIPS 2024, section 5).
``distil-layers`` compares what layers read inside, see :mod:`bcos_fx.training.matching`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bcos_fx.errors import UsageError
from bcos_fx.validation import check_same_classes

PAIR_SCALE, PAIR_BIAS = 10.0, -10.0

SupervisedLoss = Callable[[Tensor, Tensor], Tensor]


def class_targets(labels: Tensor, classes: int) -> Tensor:
    """Return targets (N, C) that add up to 1: one-hot for indices (N,); mixed labels (N, C) as they are."""
    if labels.dim() == 2:
        if labels.shape[1] != classes or not bool(((labels >= 0) & (labels <= 1)).all()):
            raise UsageError(
                f"labels {tuple(labels.shape)} from {float(labels.min()):.3g} to {float(labels.max()):.3g} do not fit "
                f"{classes} outputs",
                hint='give numbers in [0, 1] for each output; for a regression loss="mse" or "l1"',
            )
        return labels.float()
    if labels.is_floating_point():
        raise UsageError("the labels are numbers, no class indices", hint='for a regression loss="mse" or "l1"')
    return F.one_hot(labels, classes).float()


def off_label_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross entropy with targets max(target, 1/C); logits and targets (N, C), the mean over both."""
    return F.binary_cross_entropy_with_logits(logits, targets.clamp_min(1 / targets.shape[1]))


def _reshape_targets(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return the targets (N, ...) in the outputs' shape: (N,) and (N, 1) are one; nothing else is broadcast."""
    if targets.shape == outputs.shape or {targets.shape, outputs.shape} == {outputs.shape[:1], (*outputs.shape[:1], 1)}:
        return targets.float().reshape(outputs.shape)
    raise UsageError(
        f"targets {tuple(targets.shape)} and outputs {tuple(outputs.shape)} do not fit",
        hint="give a number for each output",
    )


def distil_kl(ours: Tensor, reference: Tensor) -> Tensor:
    """Return the KL divergence of our softmax from the reference's; logits (N, C), the mean over samples."""
    return F.kl_div(F.log_softmax(ours, 1), F.log_softmax(reference, 1), log_target=True, reduction="batchmean")


def distil_bce(ours: Tensor, reference: Tensor) -> Tensor:
    """Return the binary cross entropy toward the reference's softmax; logits (N, C), the mean over both."""
    return F.binary_cross_entropy_with_logits(ours, F.softmax(reference, 1))


def distil_cosine(ours: Tensor, reference: Tensor) -> Tensor:
    """Return 1 - cosine of each sample's features; (N, ...), the mean over samples, in [0, 2]."""
    return (1 - F.cosine_similarity(ours.flatten(1), reference.flatten(1), dim=1)).mean()


def distil_pairwise(ours: Tensor, reference: Tensor, place: int = 0) -> Tensor:
    """Return the sigmoid loss over all pairs: sample i of ours belongs to sample place + i of the reference alone.

    Args:
        ours: embeddings (N, ...); normalized here.
        reference: embeddings of the reference (M, ...), M >= N, of the same samples or those of all processes. The
            reference is not trained, so a process needs nothing else of the others: the mean of the processes' losses
            is the loss of one process with all samples, and the same holds for gradients.
        place: of our first sample among the reference's.

    Returns:
        -1/N Σ_ij log sigmoid(z_ij (10 <ours_i, reference_j> - 10)), with z = 1 where j = place + i and -1 elsewhere.
    """
    similarity = F.normalize(ours.flatten(1), dim=1) @ F.normalize(reference.flatten(1), dim=1).T
    signs = torch.full_like(similarity, -1.0)
    signs.diagonal(offset=place).fill_(1.0)
    return -F.logsigmoid(signs * (PAIR_SCALE * similarity + PAIR_BIAS)).sum() / len(similarity)


SUPERVISED: dict[str, SupervisedLoss] = {
    "off-label-bce": off_label_bce,
    "bce": F.binary_cross_entropy_with_logits,
    "cross-entropy": F.cross_entropy,
}
"""Name -> loss of logits (N, C) and targets (N, C) that add up to 1."""
REGRESSION: dict[str, SupervisedLoss] = {"mse": F.mse_loss, "l1": F.l1_loss}
"""Name -> loss of outputs and numbers of one shape."""
ON_OUTPUTS: dict[str, SupervisedLoss] = {"distil-kl": distil_kl, "distil-bce": distil_bce}
ON_FEATURES: dict[str, Callable[..., Tensor]] = {"distil-cosine": distil_cosine, "distil-pairwise": distil_pairwise}


def total_loss(
    losses: Mapping[str, float],
    outputs: Tensor,
    labels: Tensor | None,
    reference: Tensor | None = None,
    features: tuple[Tensor, Tensor] | None = None,
    gathered: tuple[Tensor, int] | None = None,
    layers: Tensor | None = None,
) -> Tensor:
    """Add up losses by name and weight, in float32.

    Args:
        losses: name -> weight.
        outputs: (N, C) of the network.
        labels: (N,) class indices, (N, C) mixed or several ones, or (N, ...) numbers for a regression;
            None where every loss distils.
        reference: (N, C) outputs of the original, for losses that distil.
        features: (ours, the reference's) of one layer; None takes the outputs.
        gathered: for ``distil-pairwise``: the reference's of all processes, and where ours begin; None: ours alone.
        layers: for ``distil-layers``: what it is (:mod:`bcos_fx.training.matching`).

    Returns:
        A scalar.
    """
    ours = outputs.float()
    theirs = None if reference is None else reference.float()
    pair: Any = (ours, theirs) if features is None else (features[0].float(), features[1].float())
    parts = []
    for name, weight in losses.items():
        if name in SUPERVISED and labels is not None:
            parts.append(weight * SUPERVISED[name](ours, class_targets(labels, ours.shape[1])))
        elif name in REGRESSION and labels is not None:
            parts.append(weight * REGRESSION[name](ours, _reshape_targets(labels, ours)))
        elif name in ON_OUTPUTS and theirs is not None:
            check_same_classes(ours.shape[1], theirs.shape[1])
            parts.append(weight * ON_OUTPUTS[name](ours, theirs))
        elif name == "distil-layers" and layers is not None:
            parts.append(weight * layers)
        elif name == "distil-pairwise" and gathered is not None:
            parts.append(weight * distil_pairwise(pair[0], gathered[0].float(), gathered[1]))
        else:
            parts.append(weight * ON_FEATURES[name](*pair))
    return torch.stack(parts).sum()
