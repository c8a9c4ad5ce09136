"""Hypothesis strategies that draw networks and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from bcos_fx.testing.blocks import ACTIVATION_CALLS, ACTIVATION_MODULES, FLATTENINGS, GLOBAL_POOLS
from bcos_fx.testing.specification import Block, BlockKind, Network, Specification, Window
from bcos_fx.verification.samples import synthetic_images

BLOCK_KINDS: tuple[BlockKind, ...] = get_args(BlockKind)
NORMS: tuple[str, ...] = ("none", "batch", "batch plain", "layer", "group", "instance", "rms")
ACTIVATIONS: tuple[str, ...] = tuple(ACTIVATION_MODULES)
PADDING_MODES: tuple[str, ...] = ("zeros", "reflect", "replicate", "circular")
LEAST_VARIATION = 1e-2

_KEEPS_SIZE: frozenset[str] = frozenset({"residual", "concatenation", "twice"})
_NEEDS_SPACE: frozenset[str] = frozenset({"transposed", "max pool", "average pool"})
_SPELLINGS = ("module", *ACTIVATION_CALLS)
_LARGEST_SIDE = {1: 16, 2: 16, 3: 8}


@st.composite
def networks(
    draw: st.DrawFn,
    *,
    dims: Sequence[int] = (0, 1, 2, 3),
    kinds: Sequence[BlockKind] = BLOCK_KINDS,
    norms: Sequence[str] = NORMS,
    activations: Sequence[str] = ACTIVATIONS,
    max_blocks: int = 4,
    casts: Sequence[str] = ("none",),
) -> Network:
    """Draw a small random network in eval mode, float32, whose output varies with its input.

    Args:
        draw: supplied by hypothesis.
        dims: numbers of spatial dimensions to draw from; 0 is a network on vectors.
        kinds: kinds of block to draw from; at least one must suit every number of dimensions asked for
            ("transposed" and the pools need space).
        norms: norms to draw from.
        activations: activations to draw from.
        max_blocks: largest number of blocks.
        casts: how forward names float32, to draw from; such a network runs in no other precision.

    Returns:
        A network that takes (N, *network.input_shape) in [0, 1]; over such inputs its output varies by more than
        a hundredth of its scale. Its ``repr`` holds the specification that builds it again.
    """
    specification = draw(
        specifications(dims=dims, kinds=kinds, norms=norms, activations=activations, max_blocks=max_blocks, casts=casts)
    )
    network = specification.build()
    assume(variation(network) > LEAST_VARIATION)
    return network


def images(network: Network, *, count: int = 4) -> st.SearchStrategy[Tensor]:
    """Return a strategy for float32 inputs (count, *input_shape) in [0, 1): noise, ramps, patches, dark, bright."""
    seeds = st.integers(0, 2**16)
    return seeds.map(lambda seed: synthetic_images(network.input_shape, count, seed=seed).tensors[0].float())


@torch.no_grad()
def variation(network: Network) -> float:
    """Measure how much the output varies over made-up inputs, as a share of its largest absolute value."""
    outputs = network(synthetic_images(network.input_shape, 10, seed=1).tensors[0].to(next(network.parameters()).dtype))
    spread, scale = (outputs.amax(0) - outputs.amin(0)).max(), outputs.abs().max()
    return float(spread / scale) if bool(torch.isfinite(outputs).all()) and scale > 0 else 0.0


@st.composite
def specifications(
    draw: st.DrawFn,
    *,
    dims: Sequence[int] = (0, 1, 2, 3),
    kinds: Sequence[BlockKind] = BLOCK_KINDS,
    norms: Sequence[str] = NORMS,
    activations: Sequence[str] = ACTIVATIONS,
    max_blocks: int = 4,
    casts: Sequence[str] = ("none",),
) -> Specification:
    """Draw the specification of a network; see :func:`networks` for the arguments."""
    rank = draw(st.sampled_from(dims))
    channels = draw(st.integers(1, 4)) if rank else draw(st.integers(4, 12))
    size = draw(_sizes(rank))
    shape, width = (channels, *size), channels
    blocks = []
    for _ in range(draw(st.integers(1, max_blocks))):
        fitting = [kind for kind in kinds if _block_fits(kind, size)]
        block, size = draw(_blocks(width, size, kinds=fitting, norms=norms, activations=activations))
        blocks.append(block)
        width = 2 * block.outputs if block.kind == "concatenation" else block.outputs
    head = draw(st.sampled_from(["pool, linear", "flatten, linear", "conv, pool"])) if rank else "linear"
    for side in size if head == "flatten, linear" else ():
        width *= side
    return Specification(
        input_shape=shape,
        blocks=tuple(blocks),
        head=head,
        pool=draw(st.sampled_from(GLOBAL_POOLS)),
        flatten=draw(st.sampled_from(FLATTENINGS)),
        dropout=draw(st.sampled_from([0.0, 0.2])),
        features=width,
        classes=draw(st.integers(2, 5)),
        seed=draw(st.integers(0, 2**16)),
        cast=draw(st.sampled_from(casts)),
    )


def _sizes(rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    side = st.integers(5, _LARGEST_SIDE.get(rank, 0) or 5)
    return st.tuples(*(side for _ in range(rank)))


def _block_fits(kind: BlockKind, size: tuple[int, ...]) -> bool:
    if kind == "transposed":
        return bool(size) and max(size) <= 8
    return kind not in _NEEDS_SPACE or (bool(size) and min(size) >= 2)


@st.composite
def _blocks(
    draw: st.DrawFn,
    width: int,
    size: tuple[int, ...],
    *,
    kinds: Sequence[BlockKind],
    norms: Sequence[str],
    activations: Sequence[str],
) -> tuple[Block, tuple[int, ...]]:
    """Draw a block on ``width`` channels, and the size after it."""
    kind = draw(st.sampled_from(kinds))
    if kind in ("max pool", "average pool"):
        window = draw(_pool_windows(size))
        return Block(kind, width, width, window), window.output_size(size)
    outputs = width if kind in ("residual", "twice") else draw(st.sampled_from([4, 6, 8]))
    if kind == "transposed":
        window = draw(_transposed_windows(size))
        after = window.transposed_size(size)
    else:
        window = draw(_windows(size, keeps_size=kind in _KEEPS_SIZE, zeros_only=kind == "functional"))
        after = window.output_size(size)
    # Instance norm of one value is that value's shift, whatever it was; layer norm of two says which is the larger.
    constant = ({"instance"} if all(side == 1 for side in after) else set()) | ({"layer"} if outputs <= 2 else set())
    wiring = {"residual": ["+=", "+", "torch.add"], "gated": ["sigmoid", "hardsigmoid"]}.get(kind, [""])
    block = Block(
        kind=kind,
        inputs=width,
        outputs=outputs,
        window=window,
        groups=draw(st.sampled_from(_groups(width, outputs))) if size else 1,
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from([norm for norm in norms if norm not in constant] or ["none"])),
        activation=draw(st.sampled_from(activations)),
        spelling=draw(st.sampled_from(_SPELLINGS)),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.1])),
        wiring=draw(st.sampled_from(wiring)),
    )
    return block, after


def _groups(inputs: int, outputs: int) -> list[int]:
    """Return the numbers of groups that divide both; the largest is depthwise where inputs and outputs are as many."""
    return [groups for groups in range(1, inputs + 1) if inputs % groups == 0 and outputs % groups == 0]


@st.composite
def _windows(draw: st.DrawFn, size: tuple[int, ...], *, keeps_size: bool, zeros_only: bool) -> Window:
    kernel, stride, padding, dilation = [], [], [], []
    for side in size:
        k = draw(st.sampled_from([k for k in (1, 3) if k <= side] if keeps_size else range(1, min(side, 4) + 1)))
        d = draw(st.sampled_from([d for d in (1, 2) if d * (k - 1) + 1 <= side]))
        reach = d * (k - 1)
        kernel.append(k)
        dilation.append(d)
        stride.append(draw(st.sampled_from((1, 2, 3))) if side >= 4 and not keeps_size else 1)
        padding.append(reach // 2 if keeps_size else draw(st.integers(0, min(reach, side - 1))))
    words: list[Any] = [tuple(padding)]
    # Padding on one side only makes PyTorch warn, which tests take for an error.
    even = all(d * (k - 1) % 2 == 0 for d, k in zip(dilation, kernel, strict=True))
    if size and even and all(step == 1 for step in stride):
        words.append("same")
    if size and not keeps_size:
        words.append("valid")
    mode = "zeros" if zeros_only else draw(st.sampled_from(PADDING_MODES))
    chosen = draw(st.sampled_from(words))
    return Window(tuple(kernel), tuple(stride), chosen, tuple(dilation), padding_mode=mode)


@st.composite
def _transposed_windows(draw: st.DrawFn, size: tuple[int, ...]) -> Window:
    kernel = tuple(draw(st.integers(2, 3)) for _ in size)
    stride = tuple(draw(st.integers(1, 2)) for _ in size)
    extra = tuple(draw(st.integers(0, step - 1)) for step in stride)
    padding = tuple(draw(st.integers(0, 1)) if side > 1 else 0 for side in size)
    return Window(kernel, stride, padding, (1,) * len(size), extra)


@st.composite
def _pool_windows(draw: st.DrawFn, size: tuple[int, ...]) -> Window:
    kernel = tuple(draw(st.integers(2, min(3, side))) for side in size)
    stride = tuple(draw(st.integers(1, 2)) for _ in size)
    padding = tuple(draw(st.integers(0, 1)) for _ in size)
    return Window(kernel, stride, padding, (1,) * len(size), ceil_mode=draw(st.booleans()))
