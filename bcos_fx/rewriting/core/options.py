"""What a recipe can choose: the options that rules, predicates and builders read."""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bcos_fx.errors import UsageError, check_choice, nearest
from bcos_fx.nn import Scale
from bcos_fx.nn.families import FAMILIES, fits

CHOICES: dict[str, tuple[str, ...]] = {
    "input": ("normalised", "folded", "none"),
    "channels": ("rgb", "bgr"),
    "scale": ("cosine", "raw", "unit"),
    "pool": ("keep", "average"),
    "bias": ("keep", "strip", "strip-all"),
    "projections": ("value-and-output", "output"),
    "head": ("keep", "logit"),
    "activation": ("keep", "remove"),
    "classifier": ("pooled", "per-token"),
    "positions": ("keep", "strip", "strip-in-pool"),
}

PUBLISHED = "published"
"""The eps of each layer as published."""


class FromRecipe(enum.Enum):
    """The type of :data:`FROM_RECIPE`."""

    FROM_RECIPE = "the recipe's own value"

    def __repr__(self) -> str:
        return self.name


FROM_RECIPE = FromRecipe.FROM_RECIPE
"""The default of an option for which None is a value: what the recipe says."""


@dataclass(frozen=True)
class Options:
    """Options of one conversion.

    Attributes:
        b: alignment pressure B >= 1 of every B-cos layer, or pattern -> B, where a pattern is one of module names or a
            family of :data:`bcos_fx.nn.families.FAMILIES` (first match wins; layers that no pattern names stay at 1, or
            at the B of the recipe whose options these are changed from).
        scale: how the weight norm enters the B-cos transform: ``cosine``, ``raw`` or ``unit``.
        eps: eps of the B-cos transform's norm: a number, under the root of every layer; ``published`` (convolutions
            sqrt(sum x^2 + 1e-6), linear layers |x| + 1e-12); None takes the layer's own, by dtype.
        input: ``normalised`` (encoding, then a fixed map), ``folded`` (the map inside the first kernel) or
            ``none`` (the input is taken as it is).
        channels: order of the color channels that the original expects.
        mean, std: per-channel statistics that the original expects its input to be normalized with, in the
            order of its own channels.
        pixel_max: the value of a white pixel in the units of mean and std: 1, or 255.
        pool: ``average`` replaces max pooling.
        activation: ``remove`` takes activations on value paths out, as in B-cos v2.
        bias: ``strip`` removes the biases of layers and the shifts of norms on value paths, where they are constant
            contributors; ``strip-all`` those that feed gates alone too (queries, keys), as published.
        projections: which layers of attention become B-cos: ``value-and-output``, or the ``output`` alone and, of an
            attention pool, none, as published. Queries and keys stay plain either way.
        classifier: ``per-token`` puts norm and classifier of a vision transformer before the mean over its tokens.
        head: ``logit`` adds a logit layer at the output.
        positions: ``strip`` removes positional embeddings, ``strip-in-pool`` those of attention pools.
        logit_bias: its bias; None takes log(1 / (C - 1)) for C classes.
        temperature: its temperature, > 0.
        leaf_modules: patterns of the names of modules that stay one operation each, inside which nothing is traced
            or rewritten: what tracing cannot follow, or what shall be left alone. No certificate covers them.
    """

    b: float | Mapping[str, float] = 1.0
    scale: Scale = "cosine"
    eps: float | str | None = None
    input: str = "normalised"
    channels: str = "rgb"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pixel_max: float = 1.0
    pool: str = "keep"
    activation: str = "keep"
    bias: str = "keep"
    projections: str = "value-and-output"
    classifier: str = "pooled"
    head: str = "keep"
    positions: str = "keep"
    logit_bias: float | None = None
    temperature: float = field(default=1.0)
    leaf_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            check_choice(name, getattr(self, name), known)
        self._check_pressure()
        if isinstance(self.leaf_modules, str):
            raise UsageError(f"leaf_modules is {self.leaf_modules!r}", hint=f"give a list: [{self.leaf_modules!r}]")
        for name in ("temperature", "pixel_max", "eps"):
            value = getattr(self, name)
            if not (_is_number(value) and value > 0) and not (name == "eps" and value in (None, PUBLISHED)):
                other = f", {PUBLISHED!r}" if name == "eps" else ""
                raise UsageError(f"{name} is {value!r}", hint=f"give a positive number{other}, or leave it out")
        if self.logit_bias is not None and not _is_number(self.logit_bias):
            raise UsageError(f"logit_bias is {self.logit_bias!r}", hint="give a number, or leave it out")
        if len(self.mean) != len(self.std):
            raise UsageError(
                f"mean has {len(self.mean)} values and std has {len(self.std)}", hint="give one of each per channel"
            )
        if any(not math.isfinite(v) for v in (*self.mean, *self.std)) or any(s <= 0 for s in self.std):
            raise UsageError(
                "mean must be finite and std finite and positive", hint="for example std=(0.229, 0.224, 0.225)"
            )

    def _check_pressure(self) -> None:
        for pattern, pressure in self.b.items() if isinstance(self.b, Mapping) else (("*", self.b),):
            if not isinstance(pattern, str):
                raise UsageError(f"b names layers by {pattern!r}", hint='give patterns of names: {"layer1.*": 2}')
            if not (_is_number(pressure) and pressure >= 1):
                raise UsageError(f"B is {pressure!r}", hint="B is a number of at least 1; 1 is the ordinary layer")

    def pressure(self, module_path: str, layer: nn.Module) -> float:
        """Return the B that a layer of this name and family is to have."""
        if not isinstance(self.b, Mapping):
            return float(self.b)
        return next((float(b) for pattern, b in self.b.items() if fits(pattern, module_path, layer)), 1.0)

    def check_leaves(self, module_paths: Sequence[str]) -> None:
        """Check that every pattern in ``leaf_modules`` names a module.

        Raises:
            UsageError: one names none.
        """
        for pattern in self.leaf_modules:
            if not fnmatch.filter(module_paths, pattern):
                hint = nearest(pattern, module_paths)
                raise UsageError(f"leaf_modules names {pattern!r}, and no module has such a name", hint=hint)

    def with_changes(self, changes: Mapping[str, Any]) -> Options:
        """Return a copy with some options changed.

        Raises:
            UsageError: no option has that name, or its value makes no sense.
        """
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise UsageError(f"no option is named {name!r}", hint=nearest(name, names))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data, in a fixed order."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_patterns(patterns: Iterable[str], layers: Mapping[str, nn.Module]) -> None:
    """Check that every pattern for B that a caller chose decides about one of these layers at least.

    Args:
        patterns: in order. Those of a recipe are not checked: it is one for networks of any kind.
        layers: path -> B-cos layer.

    Raises:
        UsageError: a pattern names none of them, or only such as an earlier pattern names.
    """
    left = set(layers)
    for pattern in patterns:
        named = [path for path, layer in layers.items() if fits(pattern, path, layer)]
        if not named:
            hint = nearest(pattern, [*layers, *FAMILIES]) if layers else "it has none"
            raise UsageError(f"b names {pattern!r}, and no B-cos layer has such a name or is of it", hint=hint)
        if not set(named) & left:
            raise UsageError(
                f"b names {pattern!r}, but earlier patterns name all its layers ({', '.join(named)})",
                hint="the first pattern that fits a layer decides: put this one before them",
            )
        left -= set(named)


OPTION_NAMES = frozenset(f.name for f in dataclasses.fields(Options))
