"""One call of every op that carries a value, by the names of its parameters: the tests make all its spellings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input.

    Attributes:
        shape: its shape.
        positive: it has no negative numbers, for functions such as the square root.
    """

    shape: tuple[int, ...]
    positive: bool = False


def v(*shape: int) -> Value:
    """A value of that shape."""
    return Value(shape)


def t(*shape: int) -> Tensor:
    """A stored tensor of that shape, of numbers between 0.5 and 1.5."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5


def i(*indices: int) -> Tensor:
    """A tensor of indices."""
    return torch.tensor(indices)


_MASK = torch.tensor([[True, False, True, False], [False, True, True, False], [True, False, False, False]])
_ROWS = torch.tensor([[0, 2, 1, 0], [2, 0, 0, 1]])

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "linear": [{"input": v(3, 4), "weight": t(2, 4), "bias": t(2)}, {"input": v(3, 4), "weight": t(2, 4)}],
    "conv1d": [{"input": v(1, 2, 6), "weight": t(3, 2, 3), "bias": t(3), "stride": 2, "padding": 1}],
    "conv2d": [{"input": v(1, 2, 5, 5), "weight": t(4, 1, 3, 3), "bias": None, "padding": 1, "groups": 2}],
    "conv3d": [{"input": v(1, 2, 3, 3, 3), "weight": t(2, 2, 2, 2, 2), "bias": t(2)}],
    "conv_transpose1d": [{"input": v(1, 2, 4), "weight": t(2, 3, 3), "bias": t(3), "stride": 2}],
    "conv_transpose2d": [{"input": v(1, 2, 3, 3), "weight": t(2, 3, 2, 2)}],
    "conv_transpose3d": [{"input": v(1, 2, 2, 2, 2), "weight": t(2, 1, 2, 2, 2)}],
    "conv_tbc": [{"input": v(5, 1, 3), "weight": t(3, 3, 2), "bias": t(2), "pad": 1}],
    "embedding_bag": [{"input": _ROWS, "weight": t(3, 5), "mode": "sum", "per_sample_weights": v(2, 4)}],
    "bilinear": [{"input1": v(2, 3), "input2": v(2, 4), "weight": t(5, 3, 4), "bias": None}],
    "batch_norm": [
        {
            "input": v(2, 3, 4),
            "running_mean": t(3),
            "running_var": t(3),
            "weight": t(3),
            "bias": t(3),
            "training": False,
        }
    ],
    "batch_norm_weight_first": [
        {
            "input": v(2, 3, 4),
            "weight": t(3),
            "bias": t(3),
            "running_mean": t(3),
            "running_var": t(3),
            "training": False,
            "momentum": 0.1,
            "eps": 1e-5,
            "cudnn_enabled": False,
        }
    ],
    "layer_norm": [{"input": v(3, 4), "normalized_shape": (4,), "weight": t(4), "bias": t(4)}],
    "group_norm": [{"input": v(1, 4, 3), "num_groups": 2, "weight": t(4), "bias": t(4)}],
    "instance_norm": [{"input": v(2, 3, 5)}],
    "rms_norm": [{"input": v(3, 4), "normalized_shape": (4,), "weight": t(4)}],
    "local_response_norm": [{"input": v(1, 4, 3), "size": 3}],
    "l2_normalise": [{"input": v(3, 4), "p": 2.0, "dim": 1}],
    "relu": [{"input": v(3, 4)}],
    "leaky_relu": [{"input": v(3, 4), "negative_slope": 0.2}],
    "prelu": [{"input": v(1, 3, 4), "weight": t(3)}],
    "rrelu": [{"input": v(3, 4)}],
    "relu6": [{"input": v(3, 4)}],
    "hardtanh": [{"input": v(3, 4), "min_val": -0.5, "max_val": 0.7}],
    "clamp": [{"input": v(3, 4), "min": -0.5, "max": 0.7}, {"input": v(3, 4), "min": 0}],
    "gelu": [{"input": v(3, 4)}],
    "silu": [{"input": v(3, 4)}],
    "mish": [{"input": v(3, 4)}],
    "hardswish": [{"input": v(3, 4)}],
    "elu": [{"input": v(3, 4), "alpha": 0.5}],
    "selu": [{"input": v(3, 4)}],
    "celu": [{"input": v(3, 4), "alpha": 0.5}],
    "tanh": [{"input": v(3, 4)}],
    "softsign": [{"input": v(3, 4)}],
    "hardshrink": [{"input": v(3, 4), "lambd": 0.3}],
    "softshrink": [{"input": v(3, 4), "lambd": 0.3}],
    "tanhshrink": [{"input": v(3, 4)}],
    "odd_function": [{"input": Value((3, 4), positive=True)}],
    "growth": [{"input": Value((3, 4), positive=True)}],
    "square": [{"input": v(3, 4)}],
    "sqrt": [{"input": Value((3, 4), positive=True)}],
    "pow": [{"input": v(3, 4), "exponent": 3}, {"input": Value((3, 4), positive=True), "exponent": t(4)}],
    "max_pool1d": [{"input": v(1, 2, 6), "kernel_size": 2}],
    "max_pool2d": [{"input": v(1, 2, 4, 6), "kernel_size": 2, "stride": 1, "padding": 1}],
    "max_pool3d": [{"input": v(1, 2, 4, 4, 4), "kernel_size": 2}],
    "max_pool_with_indices": [],
    "adaptive_max_pool_with_indices": [],
    "adaptive_max_pool": [],  # its spellings take inputs of different ranks: OWN
    "avg_pool1d": [{"input": v(1, 2, 6), "kernel_size": 3, "stride": 1, "padding": 1}],
    "avg_pool2d": [{"input": v(1, 2, 4, 6), "kernel_size": 2}],
    "avg_pool3d": [{"input": v(1, 2, 4, 4, 4), "kernel_size": 2}],
    "adaptive_avg_pool1d": [{"input": v(1, 2, 6), "output_size": 2}],
    "adaptive_avg_pool2d": [{"input": v(1, 2, 5, 6), "output_size": (2, 3)}],
    "adaptive_avg_pool3d": [{"input": v(1, 2, 4, 4, 4), "output_size": 2}],
    "mean": [{"input": v(3, 4), "dim": 1, "keepdim": True}, {"input": v(3, 4)}],
    "sum": [{"input": v(3, 4), "dim": 0}, {"input": v(3, 4)}],
    "nansum": [{"input": v(3, 4), "dim": 0}],
    "nanmean": [{"input": v(3, 4), "dim": 0}],
    "amax": [{"input": v(3, 4), "dim": 1}],
    "amin": [{"input": v(3, 4), "dim": 1}],
    "max": [{"input": v(3, 4), "dim": 1}, {"input": v(3, 4), "dim": v(3, 4)}, {"input": v(3, 4)}],
    "min": [{"input": v(3, 4), "dim": 1}, {"input": v(3, 4), "dim": v(3, 4)}, {"input": v(3, 4)}],
    "maximum": [{"input": v(3, 4), "other": v(4)}, {"input": v(3, 4), "other": t(4)}],
    "minimum": [{"input": v(3, 4), "other": v(4)}],
    "sort": [{"input": v(3, 4)}],
    "topk": [{"input": v(3, 4), "k": 2}, {"input": v(3, 4), "k": 2, "dim": 0, "largest": False}],
    "kthvalue": [{"input": v(3, 4), "k": 2, "dim": 1}],
    "median": [{"input": v(3, 4), "dim": 1}],
    "quantile": [{"input": v(3, 4), "q": 0.3, "dim": 1}],
    "aminmax": [{"input": v(3, 4)}],
    "cummax": [{"input": v(3, 4), "dim": 1}],
    "copysign": [{"input": v(3, 4), "other": t(4)}],
    "nan_to_num": [{"input": v(3, 4)}],
    "abs": [{"input": v(3, 4)}],
    "norm": [{"input": v(3, 4), "p": 2.0, "dim": 1}, {"input": v(3, 4), "p": 1.0, "dim": 1, "keepdim": True}],
    "matrix_norm": [{"input": v(3, 4)}],
    "std": [{"input": v(3, 4), "dim": 1}],
    "var": [{"input": v(3, 4), "dim": 1}],
    "distance": [{"input": v(3, 4), "other": v(3, 4), "p": 2.0}],
    "pairwise_distance": [{"input": v(3, 4), "other": v(3, 4), "p": 2.0, "eps": 0.0}],
    "hypot": [{"input": v(3, 4), "other": v(3, 4)}],
    "interpolate": [
        {"input": v(1, 2, 3, 4), "scale_factor": 2.0, "mode": "bilinear", "align_corners": False},
        {"input": v(1, 2, 3, 4), "size": (5, 5)},
    ],
    "upsample": [],  # as exported programs call it, with arguments that differ from kernel to kernel
    "slice": [],  # an ATen call, of which no module's forward makes one
    "pixel_shuffle": [{"input": v(1, 8, 2, 2), "upscale_factor": 2}],
    "pixel_unshuffle": [{"input": v(1, 2, 4, 4), "downscale_factor": 2}],
    "channel_shuffle": [{"input": v(1, 4, 2, 2), "groups": 2}],
    "unfold": [{"input": v(1, 2, 4, 4), "kernel_size": 2}],
    "fold": [{"input": v(1, 8, 9), "output_size": (4, 4), "kernel_size": 2}],
    "windows": [{"input": v(3, 6), "dimension": 1, "size": 3, "step": 2}],
    "pad": [
        {"input": v(3, 4), "pad": (1, 2)},
        {"input": v(3, 4), "pad": (1, 2), "mode": "constant", "value": 0.5},
        {"input": v(1, 3, 4), "pad": (1, 2), "mode": "reflect"},
    ],
    "reflection_pad": [],
    "replication_pad": [],
    "circular_pad": [],
    "max_unpool": [],
    "grid_sample": [
        {
            "input": v(1, 2, 3, 3),
            "grid": t(1, 4, 4, 2) - 1,
            "mode": "bilinear",
            "padding_mode": "zeros",
            "align_corners": False,
        }
    ],
    "affine_grid": [{"theta": v(1, 2, 3), "size": [1, 1, 3, 3], "align_corners": False}],
    "add": [{"input": v(3, 4), "other": v(4)}, {"input": v(3, 4), "other": t(4)}, {"input": v(3, 4), "other": 0.5}],
    "sub": [{"input": v(3, 4), "other": v(4)}, {"input": v(3, 4), "other": t(4)}],
    "rsub": [{"input": v(3, 4), "other": v(4)}, {"input": v(3, 4), "other": 2.0}],
    "neg": [{"input": v(3, 4)}],
    "mul": [{"input": v(3, 4), "other": v(4)}, {"input": v(3, 4), "other": t(4)}],
    "matmul": [{"input": v(3, 3), "other": v(3, 3)}],
    "einsum": [{"equation": "ab,bc->ac", "operands": (v(2, 3), v(3, 4))}],
    "inner": [{"input": v(2, 3), "other": v(4, 3)}],
    "outer": [{"input": v(3), "vec2": v(4)}],
    "kron": [{"input": v(2, 3), "other": v(2, 2)}],
    "cross": [{"input": v(2, 3), "other": v(2, 3), "dim": 1}],
    "vecdot": [{"x": v(2, 3), "y": v(2, 3)}],
    "tensordot": [{"a": v(2, 3), "b": v(3, 2), "dims": 1}],
    "div": [{"input": v(3, 4), "other": t(4)}],
    "cumsum": [{"input": v(3, 4), "dim": 1}],
    "scaled_dot_product_attention": [{"query": t(1, 2, 3, 4), "key": t(1, 2, 3, 4), "value": v(1, 2, 3, 4)}],
    "identity": [],
    "clone": [{"input": v(3, 4)}],
    "detach": [],  # a gradient stops at it: tests/tracing holds how
    "dropout": [{"input": v(3, 4), "p": 0.5, "training": False}],
    "feature_dropout": [],
    "alpha_dropout": [{"input": v(3, 4), "p": 0.5, "training": False}],
    "flatten": [{"input": v(3, 4)}],
    "unflatten": [{"input": v(3, 4), "dim": 1, "sizes": (2, 2)}],
    "reshape": [{"input": v(3, 4), "shape": (2, 6)}],
    "reshape_as": [{"input": v(3, 4), "other": t(2, 6)}],
    "permute": [{"input": v(2, 3, 4), "dims": (2, 0, 1)}],
    "transpose": [{"input": v(3, 4), "dim0": 0, "dim1": 1}],
    "matrix_transpose": [{"input": v(3, 4)}],
    "squeeze": [{"input": v(3, 1, 4), "dim": 1}],
    "unsqueeze": [{"input": v(3, 4), "dim": 1}],
    "expand": [{"input": v(3, 1), "sizes": (3, 4)}],
    "expand_as": [{"input": v(3, 1), "other": t(3, 4)}],
    "repeat": [{"input": v(3, 2), "sizes": (2, 3)}],
    "repeat_interleave": [{"input": v(3, 2), "repeats": 2, "dim": 1}],
    "tile": [{"input": v(3, 2), "dims": (2, 3)}],
    "cat": [{"tensors": (v(3, 4), v(3, 2)), "dim": 1}, {"tensors": (v(3, 4), t(3, 2)), "dim": 1}],
    "stack": [{"tensors": (v(3, 4), v(3, 4)), "dim": 1}, {"tensors": (t(3, 4), v(3, 4))}],
    "split": [{"input": v(3, 4), "split_size": [1, 3], "dim": 1}],
    "chunk": [{"input": v(3, 4), "chunks": 2, "dim": 1}],
    "tensor_split": [{"input": v(3, 4), "indices": 3, "dim": 1}],
    "unbind": [{"input": v(3, 4), "dim": 1}],
    "getitem": [
        {"input": v(3, 4), "index": (slice(None), 1)},
        {"input": v(3, 4), "index": (i(0, 2), i(1, 1))},
        {"input": v(3, 4), "index": _MASK},
    ],
    "set_item": [{"input": v(3, 4), "index": (slice(None), 1), "value": v(3)}],
    "select": [{"input": v(3, 4), "dim": 1, "index": 2}],
    "narrow": [{"input": v(3, 4), "dim": 1, "start": 1, "length": 2}],
    "index_select": [{"input": v(3, 4), "dim": 1, "index": i(0, 3, 0)}],
    "gather": [{"input": v(3, 4), "dim": 0, "index": _ROWS}],
    "take": [{"input": v(3, 4), "index": i(0, 7, 7)}],
    "take_along_dim": [{"input": v(3, 4), "indices": _ROWS, "dim": 0}],
    "index": [],  # the form in which exported programs write x[i]
    "index_fill": [
        {"input": v(3, 4), "dim": 1, "index": i(0, 2), "value": 0.5},
        {"input": v(3, 4), "dim": 0, "index": i(1), "value": 0.0},
    ],
    "index_add": [
        {"input": v(3, 4), "dim": 0, "index": i(0, 2), "source": v(2, 4)},
        {"input": t(3, 4), "dim": 0, "index": i(0, 0), "source": v(2, 4)},
    ],
    "index_copy": [{"input": v(3, 4), "dim": 0, "index": i(0, 2), "source": v(2, 4)}],
    "index_put": [{"input": v(3, 4), "indices": (i(0, 2), i(1, 1)), "values": v(2)}],
    "put": [{"input": v(3, 4), "index": i(0, 7), "source": v(2)}],
    "scatter": [
        {"input": v(3, 4), "dim": 0, "index": _ROWS, "src": v(2, 4)},
        {"input": v(3, 4), "dim": 0, "index": _ROWS, "src": t(2, 4)},
    ],
    "scatter_add": [{"input": v(3, 4), "dim": 0, "index": _ROWS, "src": v(2, 4)}],
    "scatter_reduce": [
        {"input": v(3, 4), "dim": 0, "index": _ROWS, "src": v(2, 4), "reduce": reduce}
        for reduce in ("sum", "mean", "amax", "amin")
    ],
    "index_reduce": [
        {"input": v(3, 4), "dim": 0, "index": i(0, 2), "source": v(2, 4), "reduce": reduce}
        for reduce in ("mean", "amax")
    ],
    "masked_select": [{"input": v(3, 4), "mask": _MASK}],
    "masked_fill": [{"input": v(3, 4), "mask": _MASK, "value": 0.5}],
    "masked_scatter": [{"input": v(3, 4), "mask": _MASK, "source": v(3, 4)}],
    "select_scatter": [{"input": v(3, 4), "src": v(4), "dim": 0, "index": 1}],
    "slice_scatter": [{"input": v(3, 4), "src": v(1, 4), "dim": 0, "start": 1, "end": 2}],
    "diagonal_scatter": [{"input": v(3, 4), "src": v(3)}],
    "where": [
        {"condition": _MASK, "input": v(3, 4), "other": v(3, 4)},
        {"condition": _MASK, "input": v(3, 4), "other": t(4)},
    ],
    "where_value_first": [{"input": v(3, 4), "condition": _MASK, "other": v(3, 4)}],
    "roll": [{"input": v(3, 4), "shifts": 1, "dims": 1}],
    "flip": [{"input": v(3, 4), "dims": (1,)}],
    "movedim": [{"input": v(2, 3, 4), "source": 0, "destination": 2}],
    "rot90": [{"input": v(3, 4), "k": 1, "dims": (0, 1)}],
    "to": [],  # precision is the tests of tracing's: tests/tracing/test_precision.py
    "type_as": [{"input": v(3, 4), "other": t(1)}],
    "float": [],
    "getattr": [],
    "scaled_by_a_constant": [{"input": v(3, 4)}],
    "sum_to_size": [{"input": v(3, 4), "size": (3, 1)}],
    "trapezoid": [{"y": v(3, 4)}, {"y": v(3, 4), "x": t(4).cumsum(0)}],
    "differences": [{"input": v(3, 4)}],
    "triangle": [{"input": v(3, 4), "diagonal": 1}],
    "diagonal": [{"input": v(3, 4)}],
    "diag": [{"input": v(4)}],
    "diag_embed": [{"input": v(3, 4)}],
    "trace": [{"input": v(3, 4)}],
    "block_diag": [{"tensors": (v(2, 3), v(1, 2))}, {"tensors": (v(2, 3), t(1, 2))}],
    "cartesian_prod": [{"tensors": (v(2), v(3))}],
    "combinations": [{"input": v(4), "r": 2}],
    "meshgrid": [{"tensors": (v(2), v(3)), "indexing": "ij"}],
    "fft": [{"input": v(3, 4)}],
    "fft_of_several_dimensions": [{"input": v(3, 4)}],
    "fftshift": [{"input": v(3, 4)}],
    "stft": [],  # with its window, beside the networks with learnt filters
    "istft": [],
    "complex_form": [],
    "complex": [{"real": v(3, 4), "imag": v(3, 4)}],
}

# Spellings that do not take the example of their op: op -> spelling -> its own arguments.
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "max_pool_with_indices": {
        "F.max_pool1d_with_indices": {"input": v(1, 2, 6), "kernel_size": 2},
        "torch.max_pool1d_with_indices": {"input": v(1, 2, 6), "kernel_size": 2},
        "F.max_pool2d_with_indices": {"input": v(1, 2, 4, 6), "kernel_size": 2},
        "F.max_pool3d_with_indices": {"input": v(1, 2, 4, 4, 4), "kernel_size": 2},
    },
    "adaptive_max_pool_with_indices": {
        "F.adaptive_max_pool1d_with_indices": {"input": v(1, 2, 6), "output_size": 2},
        "F.adaptive_max_pool2d_with_indices": {"input": v(1, 2, 6, 6), "output_size": 2},
        "F.adaptive_max_pool3d_with_indices": {"input": v(1, 2, 4, 4, 4), "output_size": 2},
    },
    "adaptive_max_pool": {
        "torch.adaptive_max_pool1d": {"input": v(1, 2, 6), "output_size": 2},
        "F.adaptive_max_pool2d": {"input": v(1, 2, 6, 6), "output_size": 2},
        "F.adaptive_max_pool3d": {"input": v(1, 2, 4, 4, 4), "output_size": 2},
    },
    "matmul": {
        name: dict(zip(("input", "other"), values, strict=True))
        for names, values in (
            (("torch.mv", "mv"), (v(2, 3), v(3))),
            (("torch.dot", "dot", "torch.vdot", "vdot"), (v(3), v(3))),
            (("torch.bmm", "bmm"), (v(2, 3, 4), v(2, 4, 3))),
        )
        for name in names
    },
    "max_unpool": {
        "F.max_unpool2d": {
            "input": v(1, 1, 2, 2),
            "indices": torch.tensor([[[[0, 3], [9, 14]]]]),
            "kernel_size": 2,
        },
        "F.max_unpool1d": {"input": v(1, 1, 2), "indices": torch.tensor([[[0, 3]]]), "kernel_size": 2},
    },
    "windows": {"torch.unfold_copy": {"input": v(3, 6), "dimension": 1, "size": 3, "step": 2}},
    "split": {
        name: {"input": v(3, 4), "split_size": 2, "dim": 1}
        for name in ("torch.unsafe_split", "torch.split_copy", "unsafe_split")
    },
    "grid_sample": {
        f"torch.grid_sampler{suffix}": {
            "input": v(1, 2, *(3,) * rank),
            "grid": t(1, *(4,) * rank, rank) - 1,
            "mode": 0,
            "padding_mode": 0,
            "align_corners": False,
        }
        for suffix, rank in (("", 2), ("_2d", 2), ("_3d", 3))
    },
    "cross": {"torch.linalg.cross": {"input": v(2, 3), "other": v(2, 3)}},
    "sort": {"torch.msort": {"input": v(3, 4)}, "msort": {"input": v(3, 4)}},
    "stft": {
        "torch.stft": {"input": v(1, 32), "n_fft": 8, "window": t(8), "return_complex": True},
        "stft": {"input": v(1, 32), "n_fft": 8, "window": t(8), "return_complex": True},
    },
    "feature_dropout": {"F.dropout2d": {"input": v(1, 2, 3, 3), "p": 0.5, "training": False}},
    "complex_form": {
        "torch.view_as_complex": {"input": v(3, 2)},
        "torch.conj": {"input": v(3, 2)},
        "torch.real": {"input": v(3, 2)},
        "conj": {"input": v(3, 2)},
    },
}
