"""Schedules as data: how B rises, and how what is constant, or a loss, fades over the course of training.

A schedule is a pure function of how much of training is done, so that a resumed run needs no state to be where it was.
All variants of the ablation of Arya et al., "B-cosification", NeurIPS 2024 (B at once, linear, learned; biases removed,
kept, decayed) are values of these classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bcos_fx.errors import UsageError, check_choice

SHAPES = ("at-once", "linear", "cosine", "steps")


@dataclass(frozen=True)
class Course:
    """How a quantity goes from 0 to 1.

    Attributes:
        shape: ``at-once`` (at ``start``), ``linear``, ``cosine`` (slow at both ends) or ``steps`` (``steps`` equal
            stairs, the last one taken at ``end``).
        start, end: shares of training in [0, 1] between which it happens; at and after ``end`` it is exactly 1.
        steps: number of stairs, >= 1.
    """

    shape: str = "at-once"
    start: float = 0.0
    end: float = 0.5
    steps: int = 4

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, SHAPES)
        if not 0 <= self.start <= 1 or not 0 <= self.end <= 1:
            raise UsageError(f"start={self.start:g} and end={self.end:g} are shares of training, in [0, 1]")
        if self.shape != "at-once" and not self.start < self.end:
            raise UsageError(f"a {self.shape} course from {self.start:g} to {self.end:g} has no length")
        if self.steps < 1:
            raise UsageError(f"steps is {self.steps}", hint="give at least 1")

    def at(self, done: float) -> float:
        """Return the value in [0, 1] when ``done``, a share in [0, 1], of training is over."""
        if self.shape == "at-once":
            return float(done >= self.start)
        if done >= self.end:
            return 1.0
        share = max(0.0, (done - self.start) / (self.end - self.start))
        if self.shape == "cosine":
            return (1 - math.cos(math.pi * share)) / 2
        return math.floor(share * self.steps) / self.steps if self.shape == "steps" else share


@dataclass(frozen=True)
class BSchedule:
    """How the alignment pressure B of some layers goes from what it is to what it shall be.

    Attributes:
        layers: pattern of module names, or a family such as ``depthwise``; the first rise that fits a layer decides.
        to: B at the end, >= 1.
        course: how it gets there; not read where B is learned.
        learned: ``no``; or B is a parameter that is trained with the weights, clamped at >= 1: one per ``layer``, or
            one for the whole ``network``.
        drift: for a learned B, how strongly it is drawn toward ``to``: each step takes off lr * drift of the distance
            (decoupled weight decay on B - to). 0 leaves it to the loss.
    """

    layers: str = "*"
    to: float = 2.0
    course: Course = Course()
    learned: str = "no"
    drift: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.to) and self.to >= 1):
            raise UsageError(f"B shall rise to {self.to!r}", hint="B is a finite number >= 1")
        check_choice("learned", self.learned, ("no", "layer", "network"))
        if not self.drift >= 0:
            raise UsageError(f"drift is {self.drift!r}", hint="give a number of at least 0")
        if self.drift and self.learned == "no":
            raise UsageError("drift is for a B that is learned", hint='say learned = "layer", or leave drift out')

    def at(self, first: float, done: float) -> float:
        """Return B of a layer that began at ``first``, when a share ``done`` of training is over."""
        share = self.course.at(done)
        return self.to if share == 1 else first + share * (self.to - first)


@dataclass(frozen=True)
class BiasDecay:
    """How biases and the shifts of norms (the folded mean too) of some layers go away.

    A fade that reaches 0 leaves exact zeros, which the rules of the bias phase then take out of the graph.

    Attributes:
        layers: pattern of module names; the first fade whose pattern fits a layer decides. Layers that none names keep
            their constants.
        course: ``at-once`` from 0 removes them before training begins; not read where they decay.
        decay: above 0, weight decay instead of a course: each step takes off lr * decay of them.
    """

    layers: str = "*"
    course: Course = Course()
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.decay >= 0:
            raise UsageError(f"decay is {self.decay!r}", hint="give a number of at least 0")

    def left(self, done: float) -> float:
        """Return the share in [0, 1] that is left when a share ``done`` of training is over, decay aside."""
        return 1.0 if self.decay else 1.0 - self.course.at(done)

    def factor(self, before: float, after: float, lr: float) -> float:
        """Return what constants are multiplied with on the way from one share of training to a later one."""
        if self.decay:
            return max(0.0, 1.0 - lr * self.decay)
        left = self.left(before)
        return 0.0 if left == 0 else self.left(after) / left


@dataclass(frozen=True)
class LossDecay:
    """How the weight of one of several losses goes to 0: a teacher helps at first, and holds back in the end."""

    loss: str
    course: Course

    def __post_init__(self) -> None:
        if self.left(0.0) == 0:
            raise UsageError(
                f"{self.loss} tapers off before training begins", hint='say shape = "linear", or a later start'
            )

    def left(self, done: float) -> float:
        """Return the share in [0, 1] of the weight that is left when a share ``done`` of training is over."""
        return 1.0 - self.course.at(done)
