"""The module tree as data: for every module its class, its constructor's options and its tensors, in order.

A class is named by its spelling in the op vocabulary; a module that only holds others has none. What is one object
in two places is written once: a module as ``same``, a tensor by the key of its first place.
"""

from __future__ import annotations

import inspect
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.artifact.fields import Fields
from bcos_fx.artifact.own_ops import check_attributes, construct_own, is_own_class
from bcos_fx.artifact.values import decode, encode
from bcos_fx.budgets import PATH_PARTS, PLACES
from bcos_fx.errors import ArtifactError, BcosFxError, nearest
from bcos_fx.network import reserved_names
from bcos_fx.nn.construction import construct, constructor_options
from bcos_fx.rewriting.core.ops import Vocabulary
from bcos_fx.rewriting.core.spelling import resolve

_RESERVED = "__metadata__"


def is_path(path: str) -> bool:
    """Return whether a file may hold a dotted path.

    A path only ever leads to what is registered under its parts. What torch's own tools make of a name is not ours, so
    names that mean something to Python stay out, in any spelling that its compiler folds into them (NFKC).
    """
    parts = path.split(".")
    return len(parts) <= PATH_PARTS.limit and all(map(_is_name, parts)) and _is_free_at_root(parts[0])


def _is_name(part: str) -> bool:
    folded = unicodedata.normalize("NFKC", part)
    plain = part.isprintable() and not set(part + folded) & set('"\\')
    return bool(part) and plain and not folded.startswith("__")


def _is_free_at_root(name: str) -> bool:
    return unicodedata.normalize("NFKC", name) not in reserved_names()


class ModuleWriter:
    """Turns a network's modules into entries."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._spellings = vocabulary.spellings
        self._keys: dict[int, str] = {}
        self._paths: dict[int, str] = {}
        self.entries: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}

    def add(self, module: nn.Module, path: str = "") -> None:
        """Write a module and all below it.

        Raises:
            ArtifactError: a class that the vocabulary does not know, or one that its options do not rebuild; a tensor
                on the meta device, or of a special kind; a name that no graph can hold.
        """
        where = f"module {path!r} ({type(module).__name__})"
        if path and not is_path(path):
            raise ArtifactError(
                "no file can hold a module of that name",
                where=where,
                hint="rename it: no quotes, backslashes, unprintable signs, leading __ or attributes of a network",
            )
        # A shared module is written once, and is one module again when the file is read.
        if id(module) in self._paths:
            self.entries.append({"path": path, "same": self._paths[id(module)]})
            return
        self._paths[id(module)] = path
        plain = type(module) is nn.Module or not path
        self.entries.append(
            {
                "path": path,
                "class": None if plain else self._spelling(module, where),
                "options": [] if plain else _options(module, where),
                "training": module.training,
                "parameters": [self._tensor(path, name, tensor) for name, tensor in module._parameters.items()],
                "buffers": [
                    {**self._tensor(path, name, tensor), "persistent": name not in module._non_persistent_buffers_set}
                    for name, tensor in module._buffers.items()
                ],
            }
        )
        for name, child in module._modules.items():
            if child is None:
                raise ArtifactError(f"the module's part {name!r} is None", where=where, hint="delete that attribute")
            self.add(child, f"{path}.{name}" if path else name)

    def _spelling(self, module: nn.Module, where: str) -> str:
        kind = type(module)
        if kind not in self._spellings or "forward" in vars(module):
            raise ArtifactError(
                f"a layer of the class {kind.__module__}.{kind.__qualname__} cannot be stored: the op vocabulary does "
                "not know it" + (" with a forward of its own" if kind in self._spellings else ""),
                where=where,
                hint=f'register it with @bcos_fx.rules.op("my_ops.{kind.__name__}", linearity=...) and convert again; '
                "or leave it out of leaf_modules, so that the operations in it are traced",
            )
        return self._spellings[kind]

    def _tensor(self, path: str, name: str, tensor: Tensor | None) -> dict[str, Any]:
        qualified = f"{path}.{name}" if path else name
        if not is_path(qualified) or qualified == _RESERVED:
            raise ArtifactError(f"no file can hold a tensor named {qualified!r}", hint="rename it")
        if tensor is None:
            return {"name": name, "key": None, "gradient": False}
        key = self._keys.setdefault(id(tensor), qualified)
        if key not in self.tensors:
            self.tensors[key] = _plain_tensor(tensor, qualified)
        return {"name": name, "key": key, "gradient": tensor.requires_grad}


def _options(module: nn.Module, where: str) -> list[list[Any]]:
    """Read a layer's options back, and see that they rebuild it."""
    try:
        options = constructor_options(module)
        again = _constructed(type(module), options, where)
    except ArtifactError:
        raise
    except (BcosFxError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ArtifactError(f"the layer cannot be stored: {error}", where=where) from error
    for name in ("_parameters", "_buffers", "_modules"):
        check_parts(getattr(again, name), getattr(module, name), where)
    if is_own_class(type(module)):
        check_attributes(module, again, where)
    # torch's layers gain options from version to version: an unknown one stands in a file only if it means something.
    defaults = inspect.signature(type(module)).parameters if type(module).__module__.startswith("torch.") else {}
    return [
        [name, encode(value, f"{where}, option {name!r}")]
        for name, value in options.items()
        if name not in defaults or not _is_same(value, defaults[name].default)
    ]


def _constructed(cls: type[nn.Module], options: Mapping[str, Any], where: str) -> nn.Module:
    if is_own_class(cls):
        return construct_own(cls, options, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initial values, which are replaced
        return construct(cls, options)


def _is_same(value: object, default: object) -> bool:
    return type(value) is type(default) and bool(value == default)


def check_parts(constructed: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Compare the parts that a layer's constructor made with those that it is to have.

    Raises:
        ArtifactError: other names, or a tensor of another shape.
    """
    if set(constructed) != set(wanted):
        odd = ", ".join(sorted(set(constructed) ^ set(wanted)))
        raise ArtifactError(f"the layer's parts are not those that its options make: {odd}", where=where)
    for name, part in wanted.items():
        other = constructed[name]
        if (part is None) != (other is None):
            raise ArtifactError(f"{name!r} is there, and the layer's options make none, or the other way", where=where)
        if isinstance(part, Tensor) and other is not None and part.shape != other.shape:
            raise ArtifactError(
                f"{name!r} has shape {tuple(part.shape)}, but the layer's options make {tuple(other.shape)}",
                where=where,
                hint="set the layer's attributes to what its tensors are",
            )


def _plain_tensor(tensor: Tensor, where: str) -> Tensor:
    """Return a plain, contiguous tensor on the CPU."""
    if tensor.is_meta:
        raise ArtifactError(
            "a tensor on the meta device holds no values to store", where=where, hint="load the weights first"
        )
    is_plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if not is_plain or tensor.is_quantized or tensor.layout is not torch.strided:
        raise ArtifactError(
            f"a {type(tensor).__name__} of layout {tensor.layout}, dtype {tensor.dtype} cannot be stored",
            where=where,
            hint="make it an ordinary dense tensor",
        )
    return tensor.detach().cpu().contiguous()


class ModuleReader:
    """Rebuilds a module tree from its entries."""

    def __init__(self, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]) -> None:
        self._classes = {name: resolve(name) for op in vocabulary if not op.view for name in op.modules}
        self._tensors = tensors
        self._given: dict[str, Tensor] = {}
        self._made: dict[str, nn.Module] = {}
        self._placed: dict[str, int] = {}
        self._last = ""
        self.training: list[tuple[nn.Module, bool]] = []

    def read(self, entries: list[Any]) -> nn.Module:
        """Return the root of the tree; ``training`` then lists each module with its flag.

        Raises:
            ArtifactError: an entry that no tree has, or tensors and entries that do not fit each other.
        """
        for item in entries:
            self._place(Fields(item, "a module"))
        unused = sorted(set(self._tensors) - set(self._given))
        if unused:
            raise ArtifactError(f"no module of the network holds the tensor {unused[0]!r}")
        for path, module in self._made.items():
            missing = [name for name in module._modules if (f"{path}.{name}" if path else name) not in self._placed]
            if missing:
                raise ArtifactError(f"the file lacks the layer's part {missing[0]!r}", where=f"module {path!r}")
        return self._made[""]

    def _place(self, fields: Fields) -> None:
        path = fields.text("path")
        where = f"module {path!r}"
        parent, _, name = path.rpartition(".")
        # Parents first and depth first, as written: what is the same as another module cannot lie within itself.
        depth_first = f"{self._last}.".startswith(f"{parent}.") or not parent
        if path:
            fits = is_path(path) and path not in self._placed and depth_first and parent in self._made
            if not fits or not _is_free(self._made[parent], name):
                raise ArtifactError("the module has no place in the network", where=where)
        elif self._made:
            raise ArtifactError("a module has no name")
        module = self._shared_module(fields, where) if "same" in fields else self._module(fields.within(where), where)
        self._last = path
        self._count(path, self._placed.get(fields.text("same"), 1) if "same" in fields else 1, where)
        if "same" not in fields:
            self._made[path] = module
        if path:
            self._made[parent]._modules[name] = module

    def _shared_module(self, fields: Fields, where: str) -> nn.Module:
        first = fields.text("same")
        if first not in self._made or f"{fields.text('path')}.".startswith(f"{first}.") or not first:
            raise ArtifactError(f"there is no module {first!r} to be the same as", where=where)
        fields.finish("path", "same")
        return self._made[first]

    def _count(self, path: str, places: int, where: str) -> None:
        """Count the places of every tree, and refuse one that shared modules in shared modules make endless."""
        # Each module counts at every ancestor: shared modules inside shared modules multiply, as they do in a bomb.
        parts = path.split(".") if path else []
        for length in range(len(parts) + 1):
            above = ".".join(parts[:length])
            self._placed[above] = self._placed.get(above, 0) + places
        PLACES.check(places, "the network", ArtifactError, where)

    def _module(self, fields: Fields, where: str) -> nn.Module:
        module = self._constructed(fields, where)
        parameters = {f.text("name"): self._parameter(f) for f in fields.below("parameters")}
        buffers = {f.text("name"): self._buffer(f) for f in fields.below("buffers")}
        path = fields.text("path")
        odd = [name for name in (*parameters, *buffers) if not is_path(f"{path}.{name}" if path else name)]
        if odd or set(parameters) & set(buffers):
            raise ArtifactError(f"no tensor can be named {(odd or sorted(buffers))[0]!r}", where=where)
        fixed = {f.text("name") for f in fields.below("buffers") if not f.truth("persistent")}
        if type(module) is not nn.Module:
            check_parts(module._parameters, parameters, where)
            check_parts(module._buffers, buffers, where)
        # A plain module has no constructor that would name its tensors, so any name but an attribute's may stand there.
        for name in (*parameters, *buffers) if type(module) is nn.Module else ():
            if "." in name or hasattr(module, unicodedata.normalize("NFKC", name)):
                raise ArtifactError(f"no tensor can be named {name!r}", where=where)
        module._parameters, module._buffers = parameters, buffers
        module._non_persistent_buffers_set = fixed
        self.training.append((module, fields.truth("training")))
        fields.finish("path", "class", "options", "training", "parameters", "buffers")
        return module

    def _constructed(self, fields: Fields, where: str) -> nn.Module:
        options = {Fields.word(name, where): decode(value, where) for name, value in fields.pairs("options")}
        if fields.value("class") is None:
            return nn.Module()
        # The class comes from the vocabulary of this program; the file only names the entry.
        spelling = fields.text("class")
        if spelling not in self._classes:
            raise ArtifactError(
                f"the op vocabulary has no layer {spelling!r}", where=where, hint=nearest(spelling, self._classes)
            )
        cls = self._classes[spelling]
        module = _constructed(cls, options, where)
        odd = sorted(set(options) - set(constructor_options(module)))
        if odd and not is_own_class(cls):
            raise ArtifactError(f"{spelling} has no option {odd[0]!r} that a file may set", where=where)
        return module

    def _parameter(self, fields: Fields) -> nn.Parameter | None:
        fields.finish("name", "key", "gradient")
        parameter = self._tensor(fields, lambda t: nn.Parameter(t, requires_grad=fields.truth("gradient")))
        if not isinstance(parameter, nn.Parameter | None):
            raise ArtifactError("a tensor is a parameter here and a buffer elsewhere", where=fields.where)
        return parameter

    def _buffer(self, fields: Fields) -> Tensor | None:
        fields.finish("name", "key", "gradient", "persistent")
        return self._tensor(fields, lambda t: t.detach().requires_grad_(fields.truth("gradient")))

    def _tensor(self, fields: Fields, make: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return the object for a tensor, which is one however many places it has."""
        if fields.value("key") is None:
            return None
        key = fields.text("key")
        if key not in self._tensors:
            raise ArtifactError(f"the file lacks the tensor {key!r}", where=fields.where)
        if key not in self._given:
            self._given[key] = make(self._tensors[key])
        return self._given[key]


def _is_free(parent: nn.Module, name: str) -> bool:
    """Return whether a child may have the name: a new one in a plain module, or one that the constructor made."""
    if type(parent) is not nn.Module:
        return name in parent._modules
    return not hasattr(parent, name) and not hasattr(parent, unicodedata.normalize("NFKC", name))
