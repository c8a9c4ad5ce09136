"""A random network as data: small, readable, and buildable again from its printed form."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from bcos_fx.testing.blocks import (
    AVERAGE_POOLS,
    CASTS,
    CONVOLUTIONS,
    MAX_POOLS,
    TRANSPOSED,
    Concatenation,
    Flatten,
    FunctionalConv,
    FunctionalLinear,
    Gated,
    GlobalPool,
    Residual,
    Twice,
    activation,
    norm,
)
from bcos_fx.testing.statistics import norm_statistics_from_data_, randomise_
from bcos_fx.tracing.modules import keep_modes
from bcos_fx.verification.samples import synthetic_images

BlockKind = Literal[
    "plain", "residual", "concatenation", "gated", "twice", "functional", "transposed", "max pool", "average pool"
]
_SAMPLES = 10


def _brief(value: Window | Block) -> str:
    """Print a dataclass without what is at its default."""
    shown = [(field, getattr(value, field.name)) for field in fields(value)]
    given = [f"{field.name}={content!r}" for field, content in shown if content != field.default]
    return f"{type(value).__name__}({', '.join(given)})"


@dataclass(frozen=True)
class Window:
    """How a convolution or pool slides: one number per spatial dimension; none for a vector network."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | Literal["same", "valid"] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    padding_mode: str = "zeros"
    ceil_mode: bool = False

    def __repr__(self) -> str:
        return _brief(self)

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size after a convolution or pool over ``size``."""
        if self.padding == "same":
            return size
        padding = (0,) * len(size) if isinstance(self.padding, str) else self.padding
        sides = []
        for side, k, s, p, d in zip(size, self.kernel, self.stride, padding, self.dilation, strict=True):
            room = side + 2 * p - d * (k - 1) - 1
            steps = -(-room // s) if self.ceil_mode else room // s
            # A window may not start in the padding on the far side, says ceil_mode.
            sides.append(steps if self.ceil_mode and steps * s >= side + p else steps + 1)
        return tuple(sides)

    def transposed_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size after a transposed convolution over ``size``."""
        padding = (0,) * len(size) if isinstance(self.padding, str) else self.padding
        sides = zip(size, self.kernel, self.stride, padding, self.dilation, self.output_padding, strict=True)
        return tuple((side - 1) * s - 2 * p + d * (k - 1) + o + 1 for side, k, s, p, d, o in sides)


@dataclass(frozen=True)
class Block:
    """One stage of a network: a layer with norm, activation and dropout, and how it is wired."""

    kind: BlockKind
    inputs: int
    outputs: int
    window: Window
    groups: int = 1
    bias: bool = True
    norm: str = "none"
    activation: str = "relu"
    spelling: str = "module"
    dropout: float = 0.0
    wiring: str = ""

    def __repr__(self) -> str:
        return _brief(self)

    def build(self, dims: int) -> nn.Module:
        """Build the block for ``dims`` spatial dimensions."""
        if self.kind in ("max pool", "average pool"):
            return self._pool(dims)
        last = activation(self.activation, self.spelling)
        parts = [self._layer(dims), norm(self.norm, self.outputs, dims)]
        if self.dropout:
            parts.append(nn.Dropout(self.dropout))
        if self.kind == "residual":
            return Residual(nn.Sequential(*parts), last, self.wiring)
        unit = nn.Sequential(*parts, last)
        if self.kind == "concatenation":
            layer = partial(CONVOLUTIONS[dims], kernel_size=1) if dims else nn.Linear
            return Concatenation(unit, layer(self.inputs, self.outputs))
        if self.kind == "gated":
            return Gated(unit, self.outputs, nn.Hardsigmoid() if self.wiring == "hardsigmoid" else nn.Sigmoid())
        return Twice(unit) if self.kind == "twice" else unit

    def _layer(self, dims: int) -> nn.Module:
        functional = self.kind == "functional"
        if not dims:
            linear = nn.Linear(self.inputs, self.outputs, bias=self.bias)
            return FunctionalLinear(linear) if functional else linear
        window = self.window
        shared = {name: getattr(window, name) for name in ("stride", "padding", "dilation")}
        shared |= {"groups": self.groups, "bias": self.bias}
        if self.kind == "transposed":
            return TRANSPOSED[dims](
                self.inputs, self.outputs, window.kernel, output_padding=window.output_padding, **shared
            )
        conv = CONVOLUTIONS[dims](self.inputs, self.outputs, window.kernel, padding_mode=window.padding_mode, **shared)
        return FunctionalConv(conv) if functional else conv  # type: ignore[arg-type]

    def _pool(self, dims: int) -> nn.Module:
        window = self.window
        kinds = MAX_POOLS if self.kind == "max pool" else AVERAGE_POOLS
        return kinds[dims](window.kernel, window.stride, window.padding, ceil_mode=window.ceil_mode)


@dataclass(frozen=True)
class Specification:
    """A whole network.

    Attributes:
        input_shape: (C, spatial...) of an image, (D,) of a vector.
        blocks: the stages, in order.
        head: "pool, linear", "flatten, linear", "conv, pool" or "linear".
        pool: spelling of the global pool.
        flatten: spelling of the flattening.
        dropout: before the linear layer.
        features: channels after the last block, or their number after flattening.
        classes: number of outputs.
        seed: of the weights.
        cast: how forward names float32, for its input and for its features; a key of :data:`CASTS`.
    """

    input_shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    head: str
    pool: str
    flatten: str
    dropout: float
    features: int
    classes: int
    seed: int
    cast: str = "none"

    def build(self) -> Network:
        """Build the network, in eval mode and float32; the same specification gives the same weights."""
        # The constructors draw from the global generator.
        with torch.random.fork_rng(devices=[]):
            network = randomise_(Network(self), self.seed)
        samples = synthetic_images(self.input_shape, _SAMPLES, seed=self.seed).tensors[0].float()
        norm_statistics_from_data_(network, samples)
        _balance_head_(network, samples)
        return network.eval()


class Network(nn.Module):
    """A network built from a :class:`Specification`; its ``repr`` begins with that specification."""

    def __init__(self, specification: Specification) -> None:
        super().__init__()
        self.specification = specification
        self.input_shape = specification.input_shape
        dims = len(self.input_shape) - 1
        self.body = nn.Sequential(*(block.build(dims) for block in specification.blocks))
        features, classes = specification.features, specification.classes
        self.classifier = (
            CONVOLUTIONS[dims](features, classes, 1)
            if specification.head == "conv, pool"
            else nn.Linear(features, classes)
        )
        pool = GlobalPool(dims, specification.pool) if dims else nn.Identity()
        drop = nn.Dropout(specification.dropout)
        flatten = nn.Flatten() if specification.flatten == "module" else Flatten(specification.flatten)
        heads = {
            "pool, linear": (pool, drop, self.classifier),
            "flatten, linear": (flatten, drop, self.classifier),
            "conv, pool": (drop, self.classifier, pool),
            "linear": (drop, self.classifier),
        }
        self.head = nn.Sequential(*heads[specification.head])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, *input_shape) to (N, classes)."""
        cast = CASTS[self.specification.cast]
        return self.head(cast(self.body(cast(x))))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show the specification, from which ``build()`` makes the network again."""
        return repr(self.specification)


@torch.no_grad()
def _balance_head_(network: Network, samples: Tensor) -> None:
    """Shift and scale the classifier so that each output has mean 0 and deviation 1 over the samples.

    Deep random networks answer to everything with one large constant; this brings the part that varies to the
    fore, as training would.
    """
    with keep_modes(network):
        outputs = network.eval()(samples)
    deviation, mean = torch.std_mean(outputs, dim=0)
    gain = 1 / deviation.clamp(min=1e-4)
    weight, bias = network.classifier.get_parameter("weight"), network.classifier.get_parameter("bias")
    weight.mul_(gain.reshape(-1, *(1 for _ in range(weight.dim() - 1))))
    bias.sub_(mean).mul_(gain)
