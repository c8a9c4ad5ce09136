"""Ops that a program declared for itself, in files: what a file says of them, and how their layers are built again.

A file names such an op, its fields and its spellings. A reader compares them with what *it* has declared, and takes the
class or function from there; it never imports, or looks up in a module, what a file names. The layer's class is the
program's own code, so files choose what its constructor is called with: plain data, on torch's meta device.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.artifact.fields import Fields
from bcos_fx.artifact.values import encode
from bcos_fx.errors import ArtifactError
from bcos_fx.nn.construction import constructor_options
from bcos_fx.rewriting.core.op import Op
from bcos_fx.rewriting.core.ops import Vocabulary
from bcos_fx.rewriting.core.spelling import is_own
from bcos_fx.tracing.modules import keep_modes

_NOT_MEANT = frozenset({"name", "modules", "functions", "methods", "declared", "peers", "view", "instead"})
_COMPARED = (bool, int, float, str, types.NoneType, torch.dtype, tuple, list, dict)


# ---------------------------------------------------------------- what a file says of ops


def write_ops(ops: Iterable[Op]) -> list[dict[str, Any]]:
    """Return the declared ops among ``ops`` as data, sorted by name."""
    named = {op.name: op for op in ops if op.declared is not None}
    return [_described(op) for _, op in sorted(named.items())]


def _described(op: Op) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(op) if field.name not in _NOT_MEANT]
    spelled = [*op.modules, *op.functions, *op.methods]
    values = {name: getattr(op, name) for name in fields}
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {"name": op.name, "spelled": spelled, "fields": encode(plain, f"op {op.name!r}")}


def check_ops(entries: list[Any], vocabulary: Vocabulary) -> None:
    """Check that this program has declared the ops of a file, and as they are there.

    Raises:
        ArtifactError: it has not, or otherwise; names the registration that is missing.
    """
    unknown: dict[str, list[str]] = {}
    for item in entries:
        entry = Fields(item, "an op of the file")
        name, spelled = entry.text("name"), [Fields.word(word, entry.where) for word in entry.items("spelled")]
        entry.finish("name", "spelled", "fields")
        op = vocabulary.ops.get(name)
        here = None if op is None or op.declared is None else _described(op)
        if here is None or not set(spelled) <= set(here["spelled"]):
            unknown[name] = spelled
        elif op is not None and here["fields"] != entry.value("fields"):
            raise ArtifactError(
                f"the op {name!r} is declared otherwise in {op.declared} than in the file: {_difference(here, item)}",
                hint="declare it as it was when the file was written, or convert the network again",
            )
    # All in one error: each is an import that is missing, and they may be of one file.
    if unknown:
        raise _unregistered(unknown)


def _unregistered(unknown: Mapping[str, list[str]]) -> ArtifactError:
    named = [f"{name!r}, spelled {' and '.join(map(repr, spelled))}" for name, spelled in unknown.items()]
    decorated = next((word for spelled in unknown.values() for word in spelled if is_own(word)), None)
    call = f"@bcos_fx.rules.op({decorated!r})"
    if decorated is None:
        call = f"bcos_fx.rules.load(FILE) of the file with [op.{next(iter(unknown))}]"
    return ArtifactError(
        f"the file holds ops that this program has not registered: {'; '.join(named)}",
        hint=f"import the Python file that has {call} before you load it; on the command line: --import FILE.py",
    )


def _difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    try:
        file, program = dict(there["fields"]["dict"]), dict(here["fields"]["dict"])
        return next(f"{key} is {file.get(key)!r} there" for key in program if file.get(key) != program[key])
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
        return "the file's description of it makes no sense"


# ---------------------------------------------------------------- layers of a program's own


def construct_own(cls: type[nn.Module], options: Mapping[str, Any], where: str) -> nn.Module:
    """Construct a layer of a program's own class, its tensors on the meta device.

    Raises:
        ArtifactError: the constructor has no such arguments, or it fails.
    """
    accepted = inspect.signature(cls).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    odd = sorted(set(options) - set(accepted))
    if odd and not takes_any:
        raise ArtifactError(f"{cls.__name__} has no option {odd[0]!r} that a file may set", where=where)
    try:
        with torch.device("meta"):
            return cls(**options)
    except Exception as error:  # code that is not ours may raise anything; the cause stays attached
        raise ArtifactError(
            f"the constructor of {cls.__name__} raised {type(error).__name__}: {error}",
            where=where,
            hint="let it run on torch's meta device, with plain numbers, texts and tuples as arguments",
        ) from error


def check_attributes(module: nn.Module, rebuilt: nn.Module, where: str) -> None:
    """Check that a layer's constructor makes all of its attributes again, so that none is lost in a file.

    Raises:
        ArtifactError: one is another, or is a tensor that is neither a parameter nor a buffer.
    """
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, Tensor):
            raise ArtifactError(
                f"the layer keeps the tensor {name!r}, which is neither a parameter nor a buffer",
                where=where,
                hint=f"self.register_buffer({name!r}, ...) in its constructor",
            )
        again = vars(rebuilt).get(name)
        if not _is_alike(value, again):
            options = ", ".join(constructor_options(module)) or "(none)"
            raise ArtifactError(
                f"the layer's {name} is {str(value)[:40]!r}, and its constructor, called with {options}, makes "
                f"{str(again)[:40]!r}",
                where=where,
                hint=f"keep what {name!r} is made of in an attribute that has the name of a constructor's argument",
            )


def _is_alike(value: object, other: object) -> bool:
    if type(value) is not type(other):
        return False
    if isinstance(value, _COMPARED):
        return bool(value == other)
    return True  # an object of the layer's own: the comparison of their results has to tell


def check_same_results(network: fx.GraphModule | nn.Module, restored: nn.Module, graph: fx.Graph) -> None:
    """Compare what the layers of a program's own give with what those that were built again give, on random inputs.

    Raises:
        ArtifactError: another result, so the file would hold another network.
    """
    for node in graph.nodes:
        if node.op != "call_module" or not is_own_class(type(network.get_submodule(str(node.target)))):
            continue
        layers = [root.get_submodule(str(node.target)) for root in (network, restored)]
        # Only where random numbers of the example's shapes are inputs that the layer takes.
        shapes = [source.meta.get("shape") for source in node.all_input_nodes]
        if None in shapes or any(not _is_floating(source) for source in node.all_input_nodes):
            continue
        results = [_result(layer, shapes) for layer in layers]
        if not torch.allclose(results[0], results[1], rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ArtifactError(
                "the layer that its constructor's options make computes something else",
                where=f"module {str(node.target)!r} ({type(layers[0]).__name__})",
                hint="give the class a method constructor_options that returns all that its results depend on",
            )


def is_own_class(kind: type) -> bool:
    """Return whether a class is neither PyTorch's nor bcos_fx's."""
    return not kind.__module__.startswith(("torch.", "bcos_fx."))


def _is_floating(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return dtype is None or bool(dtype.is_floating_point)


def _result(layer: nn.Module, shapes: list[Any]) -> Tensor:
    like = next((t for t in layer.state_dict().values() if t.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(tuple(shape), generator=generator).to(like) for shape in shapes]
    with keep_modes(layer), torch.no_grad():
        result: Tensor = layer.eval()(*inputs)
    return result.detach().cpu().double()
