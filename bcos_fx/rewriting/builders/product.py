"""Builders and predicates that make a linear layer of a product with a stored matrix, and of a bias added to it.

``x @ W`` and ``torch.addmm(b, x, W)`` are linear layers without the name: left as they are, none of their weights
would be in a B-cos layer, and their biases would be constants that no rule finds.
"""

from __future__ import annotations

from torch import fx, nn

from bcos_fx.nn.construction import construct, rebuilt
from bcos_fx.rewriting.builders.layers import computed_parameter
from bcos_fx.rewriting.core.build import Build, Refused
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder, predicate
from bcos_fx.rewriting.core.stored import sources_of
from bcos_fx.tracing.program import attribute


@predicate("weights-by-stored-matrix")
def weights_by_stored_matrix(reader: GraphReader, call: Call) -> Verdict:
    """Check that the second factor is a matrix computed only from stored tensors that nothing else uses."""
    first, matrix = (call.arguments.get(name) for name in ("input", "other"))
    if not (isinstance(first, fx.Node) and isinstance(matrix, fx.Node)):
        return False
    if len(reader.shape(matrix) or ()) != 2 or not reader.follows_from_stored(matrix):
        return False
    if reader.follows_from_stored(first):
        return False
    # A new layer gets a copy of the matrix, so a Parameter that others use too would be two from now on.
    for node in sources_of(matrix):
        stored = attribute(reader.graph_module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(stored, nn.Parameter) and len(reader.owners[id(stored)]) > 1:
            return f"its weight {node.target} is shared with another layer, and a new one would untie them"
    return True


@predicate("adds-stored-vector")
def adds_stored_vector(reader: GraphReader, call: Call) -> Verdict:
    """Check that one of the summands is a parameter with a number for each feature."""
    vector, shape = _vector(call), reader.shape(call.node)
    if vector is None or shape is None or reader.shape(vector) != shape[-1:]:
        return False
    if any(reader.shape(node) != shape for node in call.read if node is not vector):
        return False  # a score beside several thresholds, as of ordinal regression: the vector has more numbers
    stored = attribute(reader.graph_module, str(vector.target))
    return isinstance(stored, nn.Parameter) and call.arguments.get("alpha") in (None, 1)


def _vector(call: Call) -> fx.Node | None:
    summands = [call.arguments.get(name) for name in ("input", "other")]
    return next((node for node in summands if isinstance(node, fx.Node) and node.op == "get_attr"), None)


@predicate("has-no-bias")
def has_no_bias(reader: GraphReader, call: Call) -> Verdict:
    """Check that the layer adds nothing."""
    return getattr(call.module, "bias", None) is None


@builder("linear-from-matrix")
def linear_from_matrix(build: Build) -> nn.Module:
    """Build the linear layer that multiplies by a stored matrix: its weight is that matrix, transposed."""
    matrix = computed_parameter(build.reader, build.call.nodes("other")[0])
    weight = nn.Parameter(matrix.detach().t().contiguous(), matrix.requires_grad)
    options = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
    layer = construct(nn.Linear, options)
    layer.weight = weight
    return layer.train(build.reader.graph_module.training)


@builder("layer-with-added-bias")
def layer_with_added_bias(build: Build) -> nn.Module:
    """Build the layer with the vector that is added to its result as its bias."""
    vector = _vector(build.hit.calls["sum"])
    if vector is None:
        raise Refused("nothing stored is added to it")
    layer = rebuilt(build.layer, bias=True)
    layer._parameters["bias"] = build.reader.graph_module.get_parameter(str(vector.target))
    return layer
