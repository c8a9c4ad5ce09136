"""Optimizers with options per group of parameters, adaptive gradient clipping, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.training.recipe import Optimizer

# Brock et al. 2021, section 4.1: weights of norm 0 could never be moved without a least norm.
LEAST_NORM = 1e-3


def parameter_groups(
    network: nn.Module, pressures: Iterable[nn.Parameter], options: Optimizer, head: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Sort parameters into groups: weights; what has one dimension (norms, gains, biases), never decayed; B; head."""
    of_head = set() if head is None else set(head.parameters())
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed, free = {"weight_decay": options.weight_decay}, {"weight_decay": 0.0}
    groups: list[dict[str, Any]] = []
    for where, chosen, rates in (
        ("", [p for p in trained if p not in of_head], {}),
        (" of the head", [p for p in trained if p in of_head], {"lr": options.lr * options.lr_of_head}),
    ):
        groups += [
            {"name": f"weights{where}", "params": [p for p in chosen if p.dim() > 1], **decayed, **rates},
            {"name": f"norms and biases{where}", "params": [p for p in chosen if p.dim() <= 1], **free, **rates},
        ]
    groups.append({"name": "B", "params": list(pressures), **free, "lr": options.lr * options.lr_of_b})
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], options: Optimizer) -> torch.optim.Optimizer:
    """Return torch's optimizer of that name over the groups."""
    if options.name == "sgd":
        return torch.optim.SGD(groups, options.lr, momentum=options.momentum, nesterov=options.momentum > 0)
    kind = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return kind(groups, options.lr)


def rate(step: int, options: Optimizer, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (from 0 on) as a share in [0, 1] of the highest."""
    warm = round(options.warmup * steps_per_epoch)
    if step < warm:
        return (step + 1) / (warm + 1)
    if options.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def _norms_by_unit(values: Tensor) -> Tensor:
    """Compute the norm of each unit, broadcastable: for a weight (units, ...) of its slices; a vector is one unit.

    A vector has one dimension at most that is longer than 1, as in the published code: also a weight (1, n) or (n, 1).
    """
    if values.squeeze().dim() <= 1:
        norm: Tensor = torch.linalg.vector_norm(values)
        return norm
    norms: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.dim())), keepdim=True)
    return norms


@torch.no_grad()
def clip_adaptively_(parameters: Iterable[nn.Parameter], clipping: float) -> None:
    """Scale gradients, in place, so that no unit's is longer than ``clipping`` times its weight.

    Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021, section 4.1: unit
    by unit, |g| <= clipping * max(|w|, 1e-3). Applied to all parameters, as the B-cosification recipe does: a unit is
    what one output reads, and a whole vector (the scale of a norm, a bias) is one unit.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        most = clipping * _norms_by_unit(parameter).clamp_min(LEAST_NORM)
        norms = _norms_by_unit(gradient)
        gradient.mul_(torch.where(norms > most, most / norms.clamp_min(1e-6), 1.0))
