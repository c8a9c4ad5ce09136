"""Random networks of several inputs: masks, scales, mixing matrices, second images, joined early or late.

They consist of selections (ReLU, maxima, choices) and of products whose two factors depend on different inputs, and
each input enters once. So their output is piecewise linear in every single input, and W(x) of any one of them has to be
its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

Join = Callable[["JointNetwork", int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class JointSpecification:
    """A network of several inputs, as data.

    Attributes:
        side: height and width of the image, in pixels.
        width: number of channels inside.
        joins: how each further input enters, in order: keys of :data:`JOINS`.
        first: place of the image among the inputs.
        pool: ``mean`` or ``amax`` over all positions.
        seed: of the weights.
    """

    side: int
    width: int
    joins: tuple[str, ...]
    first: int
    pool: str
    seed: int

    def build(self) -> JointNetwork:
        """Return the network, float64, in eval mode; equal specifications give equal weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return JointNetwork(self).double().eval()


class JointNetwork(nn.Module):
    """A network of an image and further inputs, which returns (N, 3).

    Args:
        specification: what it is built from.

    Attributes:
        shapes: of one sample of each input, in order.
        image: place of the image among them.
    """

    def __init__(self, specification: JointSpecification) -> None:
        super().__init__()
        side, width = specification.side, specification.width
        self.specification, self.image = specification, specification.first
        shapes = [_shape(JOINS[join][1], side, width) for join in specification.joins]
        shapes.insert(self.image, (3, side, side))
        self.shapes = tuple(shapes)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.encoders = nn.ModuleList(nn.Conv2d(2, width, 3, padding=1) for _ in specification.joins)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in specification.joins)
        self.merge = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in specification.joins)
        self.fc = nn.Linear(width, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the scores (N, 3).

        Args:
            inputs: (N, *shape) each, in the order of ``shapes``.
        """
        others = [value for place, value in enumerate(inputs) if place != self.image]
        h = self.stem(inputs[self.image]).relu()
        for place, (join, other) in enumerate(zip(self.specification.joins, others, strict=True)):
            h = JOINS[join][0](self, place, h, other)
            h = self.blocks[place](h).relu()
        scores: Tensor = self.fc(h.mean((2, 3)) if self.specification.pool == "mean" else h.amax((2, 3)))
        return scores

    def extra_repr(self) -> str:
        """Return the specification."""
        return repr(self.specification)


def _mixed(network: JointNetwork, place: int, h: Tensor, matrix: Tensor) -> Tensor:
    return (h.flatten(2) @ matrix).view_as(h)


JOINS: dict[str, tuple[Join, str]] = {
    "mask": (lambda n, i, h, m: h * m, "map"),
    "mask first": (lambda n, i, h, m: torch.mul(m, h), "map"),
    "scale": (lambda n, i, h, s: h * s[:, :, None, None], "channels"),
    "divisor": (lambda n, i, h, s: h / (1 + s[:, :, None, None].abs()), "channels"),
    "mixing": (_mixed, "positions"),
    "einsum": (lambda n, i, h, s: torch.einsum("nchw,nc->nchw", h, s), "channels"),
    "choice": (lambda n, i, h, m: torch.where(m > 0.5, h, m), "map"),
    "sum": (lambda n, i, h, x: h + n.encoders[i](x), "image"),
    "difference": (lambda n, i, h, x: h - n.encoders[i](x).relu(), "image"),
    "larger": (lambda n, i, h, x: torch.maximum(h, n.encoders[i](x)), "image"),
    "joined": (lambda n, i, h, x: n.merge[i](torch.cat([h, n.encoders[i](x).relu()], 1)), "image"),
    "opaque": (lambda n, i, h, s: h + s.exp().log1p()[:, :, None, None], "channels"),
}
"""Name -> how a further input enters, and what it is like."""

NOT_PIECEWISE_LINEAR = frozenset({"divisor", "opaque"})
"""Joins that are not piecewise linear in the further input, though they are in the image."""


def _shape(kind: str, side: int, width: int) -> tuple[int, ...]:
    shapes = {"map": (1, side, side), "channels": (width,), "positions": (side**2,) * 2, "image": (2, side, side)}
    return shapes[kind]


@st.composite
def joint_networks(draw: st.DrawFn, *, most: int = 3) -> JointNetwork:
    """Draw a network of an image and one to ``most`` further inputs, float64, in eval mode.

    Args:
        draw: supplied by hypothesis.
        most: largest number of further inputs.
    """
    joins = draw(st.lists(st.sampled_from(sorted(JOINS)), min_size=1, max_size=most))
    specification = JointSpecification(
        side=draw(st.integers(3, 6)),
        width=draw(st.integers(2, 5)),
        joins=tuple(joins),
        first=draw(st.integers(0, len(joins))),
        pool=draw(st.sampled_from(["mean", "amax"])),
        seed=draw(st.integers(0, 2**16)),
    )
    return specification.build()


def joint_inputs(network: JointNetwork, *, count: int = 2, seed: int = 0) -> list[Tensor]:
    """Return float64 inputs (count, *shape) in [0, 1) for a network of several inputs."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, *shape, generator=generator, dtype=torch.float64) for shape in network.shapes]
