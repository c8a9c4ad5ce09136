"""Predicates about pooling: over which dimensions, to how many pixels, with what padding."""

from __future__ import annotations

import math

from torch import fx, nn

from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import predicate


@predicate("means-over-space")
def means_over_space(reader: GraphReader, call: Call) -> Verdict:
    """Check that the mean runs over all spatial dimensions of an image, and no other."""
    shape, dims = reader.shape(call.inputs[0]), call.arguments["dim"]
    if shape is None or len(shape) != 4 or call.arguments.get("dtype") is not None:
        return False
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, tuple | list) or not all(isinstance(d, int) for d in dims):
        return False
    return sorted(d % len(shape) for d in dims) == list(range(2, len(shape)))


@predicate("keeps-dimensions")
def keeps_dimensions(reader: GraphReader, call: Call) -> Verdict:
    """Check that the reduction keeps the reduced dimensions."""
    return call.arguments["keepdim"] is True


@predicate("drops-dimensions")
def drops_dimensions(reader: GraphReader, call: Call) -> Verdict:
    """Check that the reduction removes the reduced dimensions."""
    return call.arguments["keepdim"] is False


@predicate("covers-whole-map")
def covers_whole_map(reader: GraphReader, call: Call) -> Verdict:
    """Check that the window is the map's own height and width, so that the pool covers a map of any size."""
    window, image = call.arguments["kernel_size"], call.inputs[0]
    if not isinstance(window, tuple | list) or not _averages_all(call):
        return False
    return all(_is_size_of(k, image, dim) for dim, k in zip((2, 3), window, strict=True))


def _averages_all(call: Call) -> bool:
    """Return whether a pool neither pads nor divides by another number than it sums."""
    return call.arguments["padding"] in (0, (0, 0), [0, 0]) and call.arguments.get("divisor_override") is None


def _is_size_of(value: object, image: fx.Node, dim: int) -> bool:
    if not isinstance(value, fx.Node) or value.target != "size":
        return False
    return tuple(value.args) in ((image, dim), (image, dim - 4))


@predicate("averages-to-one-pixel")
def averages_to_one_pixel(reader: GraphReader, call: Call) -> Verdict:
    """Check that an average pool without padding gave a single pixel in the example run."""
    out = reader.shape(call.node)
    return out is not None and out[2:] == (1, 1) and _averages_all(call)


@predicate("flattens-one-pixel")
def flattens_one_pixel(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call turns (N, C, 1, 1) into (N, C)."""
    if not call.inputs:  # a stored tensor, such as a weight that is given its spatial dimensions
        return False
    shape, out = reader.shape(call.inputs[0]), reader.shape(call.node)
    if shape is None or out is None or len(shape) != 4 or out != shape[:2] or shape[2:] != (1, 1):
        return False
    if call.op.name == "squeeze" and call.arguments.get("dim") is None:
        return "squeeze() takes the dimension of one sample away too; flatten(1) does not"
    return True


@predicate("has-one-pixel")
def has_one_pixel(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call reads a map (N, C, 1, 1)."""
    shape = reader.shape(call.inputs[0]) if call.inputs else None
    return shape is not None and len(shape) == 4 and shape[2:] == (1, 1)


@predicate("has-two-dimensions")
def has_two_dimensions(reader: GraphReader, call: Call) -> Verdict:
    """Check that the result is (N, C)."""
    shape = reader.shape(call.node)
    return shape is not None and len(shape) == 2


@predicate("is-not-flatten-module")
def is_not_flatten_module(reader: GraphReader, call: Call) -> Verdict:
    """Check that the module is not ``nn.Flatten(1)``, the canonical form."""
    return not (isinstance(call.module, nn.Flatten) and call.module.start_dim == 1 and call.module.end_dim == -1)


@predicate("no-indices")
def no_indices(reader: GraphReader, call: Call) -> Verdict:
    """Check that a max pooling does not return its indices."""
    return "its indices are used, which an average does not have" if call.arguments["return_indices"] else True


@predicate("not-dilated")
def not_dilated(reader: GraphReader, call: Call) -> Verdict:
    """Check that a max pooling has no dilation."""
    dilation = call.arguments["dilation"]
    plain = all(d == 1 for d in (dilation if isinstance(dilation, tuple | list) else (dilation,)))
    return True if plain else f"average pooling knows no dilation ({dilation!r})"


@predicate("padded-with-numbers")
def padded_with_numbers(reader: GraphReader, call: Call) -> Verdict:
    """Check that the input of a pooling was not padded with infinities."""
    producer = reader.call(call.inputs[0])
    infinite = producer is not None and producer.op.name == "pad" and producer.arguments.get("value") == -math.inf
    return "its input is padded with -inf, which would be averaged" if infinite else True
