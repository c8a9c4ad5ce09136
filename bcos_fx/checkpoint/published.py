"""Checkpoints of the published B-cos networks, put into the plain architecture that they were made from.

Two codes wrote such files: that of B-cosification (Arya et al., NeurIPS 2024; a training framework's checkpoint, whose
names begin ``model.model.``) and the package ``bcos`` of B-cos v2 (Böhle et al., TPAMI 2024; its hub files bear no
prefix). Both keep the weight of a B-cos layer in an inner layer, ``layer.linear.weight``; there is no bias, and a
running mean is not read. Nothing of either package is imported: a file is recognized by its keys, its weights go into
the plain architecture, that is converted as any other, and the layers that the file holds as B-cos layers get its B.
A first layer of B-cos v2 reads [x, 1 - x]: the encoding goes before it, so that the whole takes images as any other.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.checkpoint.architecture import published_candidates
from bcos_fx.checkpoint.layouts import nearest_layouts
from bcos_fx.checkpoint.reading import StateDict
from bcos_fx.errors import CheckpointError, UsageError
from bcos_fx.escaping import listed
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosLayer, InputEncoding
from bcos_fx.nn.construction import rebuilt
from bcos_fx.rewriting.core.recipe import Recipe

B = 2.0
"""Of every published network; a file that does not name another has it."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and std that B-cosified networks of ImageNet, and of CLIP's image tower, normalize with."""

_INNER = ".linear.weight"
_AVERAGED = "ema."
_WRAPPERS = ("model.", "module.", "_orig_mod.")
_COUNTER = "num_batches_tracked"
_WIDENABLE = {nn.Linear: "in_features", nn.Conv2d: "in_channels"}
_SHOWN = 5
_ATTRIBUTE = "published_origin"


@dataclass(frozen=True)
class Published:
    """Where the weights of a plain architecture come from, and what of them a plain layer cannot hold.

    Attributes:
        source: the file.
        origin: ``B-cosification`` or ``B-cos v2``.
        b: the B of its B-cos layers.
        weights: path of each B-cos layer of the file -> its weight as the file has it.
        options: of the conversion, as published.
        statistics: mean and std that the published network normalizes with; None where it reads [x, 1 - x] itself.
        notes: what the reader did, in plain sentences.
    """

    source: str
    origin: str
    b: float
    weights: Mapping[str, Tensor]
    options: Mapping[str, Any]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None
    notes: tuple[str, ...]

    def chosen(self, recipe: Recipe, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a conversion: the caller's, with those that are the file's own.

        Raises:
            UsageError: the recipe or the caller asks for another B, or for an option that contradicts the file.
        """
        asked = chosen.get("b", recipe.options.b)
        if isinstance(asked, Mapping) and "b" not in chosen:  # a recipe's exceptions are for layers that no file has
            asked = asked.get("*", 1.0)
        if asked != self.b:
            whose = "b" if "b" in chosen else f"the recipe {recipe.name!r}"
            raise UsageError(
                f"{whose} asks for B = {asked!r}, and the layers of the file have B = {self.b:g} ({self.origin})",
                where=self.source,
                hint=f"convert it with --recipe bcosification, whose B is {B:g}; what is B-cos already is not raised",
            )
        for name, value in self.options.items():
            if name in chosen and chosen[name] != value:
                raise UsageError(
                    f"{name}={chosen[name]!r} contradicts the file, which has {name}={value!r} ({self.origin})",
                    where=self.source,
                    hint=f"leave {name} out",
                )
        # The published network normalizes inside; its statistics are not in the file, for they are not tensors of it.
        usual: dict[str, Any] = {}
        if self.statistics is not None and not recipe.options.mean:
            usual = {"mean": self.statistics[0], "std": self.statistics[1]}
        return {**usual, **chosen, **self.options}

    def settled(self, network: BcosNetwork) -> BcosNetwork:
        """Give a converted network, in place, the file's own weights, and its report the origin in place of a drift.

        Raises:
            CheckpointError: other layers became B-cos than the file's, or of another shape.
        """
        raised = {path: part for path, part in network.named_modules() if isinstance(part, BcosLayer) and part.b != 1}
        linear_by_rule = self._in_attention_pools(network)
        missing = [path for path in self.weights if path not in raised and path not in linear_by_rule]
        others = [path for path in raised if path not in self.weights]
        if missing or others:
            differing = (("B-cos in the file alone", missing), ("plain in the file", others))
            listing = [f"{listed(names, _SHOWN, '; ')}: {place}" for place, names in differing if names]
            raise CheckpointError(
                "the layers that are B-cos in the file are not those that the recipe raises",
                where=f"{self.source}: {'; '.join(listing)}",
                hint="check --arch and --recipe",
            )
        for path, layer in raised.items():
            self._settle(network, path, layer)
        figures = dataclasses.replace(network.report.figures, drift=(), total_drift=None)
        notes = (*network.report.notes, *self.notes)
        return network.with_report(dataclasses.replace(network.report, figures=figures, notes=notes))

    def _settle(self, network: BcosNetwork, path: str, layer: BcosLayer) -> None:
        weight = self.weights[path]
        if layer.weight.dim() == 2 and weight.dim() == 4:
            weight = weight.flatten(1)
        if layer.weight.dim() == 4 and weight.dim() == 2:
            weight = weight[:, :, None, None]
        if weight.shape != layer.weight.shape:
            raise CheckpointError(
                f"the weight of {path} is {tuple(weight.shape)}, and that of its layer {tuple(layer.weight.shape)}",
                where=self.source,
                hint="check --arch",
            )
        with torch.no_grad():
            layer.weight.copy_(weight)
        if self.origin == "B-cos v2":  # weights of unit norm, and no gain
            owner, _, name = path.rpartition(".")
            setattr(network.get_submodule(owner), name, rebuilt(layer, gain=False))

    def _in_attention_pools(self, network: BcosNetwork) -> set[str]:
        """Return the paths of layers that B-cosification wrapped but never called: a pool reads only their weight."""
        paths = {row.name: row.module for row in network.report.nodes}
        misses = [miss for miss in network.report.near_misses if miss.rule == "layer-to-bcos"]
        return {str(paths[miss.node]) for miss in misses if "attention pool" in miss.reason and miss.node in paths}


def origin_of(module: nn.Module) -> Published | None:
    """Return where the weights of a module come from, if they are those of a published B-cos network."""
    return module.__dict__.get(_ATTRIBUTE)


def options_of(module: nn.Module, recipe: Recipe, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options for converting a module: the caller's and, of a published network, the file's own.

    Raises:
        UsageError: the recipe or the caller contradicts the file.
    """
    origin = origin_of(module)
    return chosen if origin is None else origin.chosen(recipe, chosen)


def settled(module: nn.Module, network: BcosNetwork) -> BcosNetwork:
    """Return what a module was converted into; of a published network, with the file's own weights and origin.

    Raises:
        CheckpointError: other layers became B-cos than the file's.
    """
    origin = origin_of(module)
    return network if origin is None else origin.settled(network)


def load_published(module: nn.Module, state: StateDict, hyper: Mapping[str, Any] | None = None) -> nn.Module | None:
    """Put the weights of a published B-cos network into its plain architecture, in place, and note their origin.

    Args:
        module: the plain architecture.
        state: what a file holds.
        hyper: the training's own settings, where the file holds them.

    Returns:
        The network, which takes images: the architecture, or where its first layer reads [x, 1 - x] a sequence of the
        encoding and it. None where the file holds no B-cos network; nothing is changed then.

    Raises:
        CheckpointError: it holds one, but not of this architecture.
    """
    tensors, origin, notes = _own_tensors(state)
    if not any(key.endswith(_INNER) for key in tensors) or module.state_dict().keys() <= tensors.keys():
        return None
    # A digit may be a place in a renamed nn.Sequential or a name of its own; the reading that fits better is right.
    assigned = min((_Assignment(module, tensors, numbered) for numbered in (True, False)), key=lambda a: len(a.misfits))
    if not assigned.weights and not _published_names(tensors, module):
        return None
    if assigned.misfits:
        raise _does_not_fit(state.source, assigned.misfits, next(iter(state.tensors)))
    if assigned.renumbered:
        origin = "B-cosification"
    b = _pressure(tensors, hyper, state.source)
    options = _options(origin, assigned)
    assigned.load(six_channels=origin == "B-cos v2")
    note = f"the weights are those of {state.source}, {origin}: its layers have B = {b:g} and were not raised again"
    statistics = None if origin == "B-cos v2" else CLIP if assigned.without_positions else IMAGENET
    weights = assigned.weights
    if origin == "B-cos v2" and assigned.wide:
        module = nn.Sequential(OrderedDict(encoding=InputEncoding(), network=module))
        weights = {f"network.{path}": weight for path, weight in weights.items()}
        # Nothing lies between the encoding and the first layer, whatever the recipe's statistics are.
        options |= {"mean": (), "std": (), "pixel_max": 1.0, "channels": "rgb"}
    published = Published(state.source, origin, b, weights, options, statistics, (note, *notes))
    module.__dict__[_ATTRIBUTE] = published
    return module


def _options(origin: str, assigned: _Assignment) -> dict[str, Any]:
    options: dict[str, Any] = {"eps": "published", "projections": "output", "bias": "strip-all", "pool": "average"}
    options["scale"] = "unit" if origin == "B-cos v2" else "raw"
    if origin == "B-cos v2":
        options["activation"] = "remove"
    if assigned.without_positions:
        options["positions"] = "strip-in-pool"
    return options


def _published_names(tensors: Mapping[str, Tensor], module: nn.Module) -> bool:
    """Return whether the names look like those of B-cos layers: an inner layer where the architecture has no part."""
    expected = module.state_dict().keys()
    inner = [key for key in tensors if key.endswith(_INNER)]
    return sum(key not in expected for key in inner) > len(inner) / 2


def _own_tensors(state: StateDict) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return the network's tensors without prefixes, the code base that wrote them, and notes on what was left out."""
    tensors, notes = dict(state.tensors), []
    averaged = [key for key in tensors if key.startswith(_AVERAGED)]
    if averaged and len(averaged) < len(tensors):
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(_AVERAGED)}
        notes.append("averaged weights lie beside those that were taken (--key state_dict.ema.module)")
    network = {key: tensor for key, tensor in tensors.items() if key.startswith("model.")}
    if any(key.endswith(_INNER) for key in network):
        tensors = network
    depth = state.prefix.split(".").count("model")
    while wrapper := next((w for w in _WRAPPERS if all(key.startswith(w) for key in tensors)), ""):
        depth += wrapper == "model."
        tensors = {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    if tensors and all(key.startswith("0.") for key in tensors):
        tensors = {key.removeprefix("0."): tensor for key, tensor in tensors.items()}
    of_training = "state_dict" in state.nesting and "ema" not in state.nesting and _is_training(state)
    return tensors, "B-cosification" if depth - of_training >= 1 else "B-cos v2", tuple(notes)


def _is_training(state: StateDict) -> bool:
    return any(name in state.ignored for name in ("pytorch-lightning_version", "hyper_parameters", "epoch"))


def _pressure(tensors: Mapping[str, Tensor], hyper: Mapping[str, Any] | None, source: str) -> float:
    """Return the B of the file: learned beside the weights, or from the training's settings, or else the usual one.

    Raises:
        CheckpointError: it is another B, at which our layers compute something else.
    """
    learned = {float(tensor) for key, tensor in tensors.items() if key.endswith(".b") and tensor.numel() == 1}
    model = hyper.get("model") if hyper is not None else None
    settings = model.get("bcos_args") if isinstance(model, Mapping) else None
    b = settings.get("b", B) if isinstance(settings, Mapping) else B
    pressures = learned or {float(b) if isinstance(b, int | float) else B}
    if pressures != {B}:
        named = ", ".join(f"{b:g}" for b in sorted(pressures))
        raise CheckpointError(
            f"the file's layers have B = {named}; only B = 2 is computed alike",
            where=source,
            hint="at any other B the published code adds 1e-6 to the cosine, which our layers do not",
        )
    return B


class _Assignment:
    """Which tensor of a file belongs to which part of an architecture; nothing is written before :meth:`load`.

    Args:
        module: the architecture.
        tensors: of the file, without prefixes.
        numbered: take a digit in a key for a place in an ``nn.Sequential``, as B-cosification renames those, where the
            architecture's own names are others.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor], numbered: bool) -> None:
        self.module, self.numbered = module, numbered
        self.weights: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.misfits: list[str] = []
        self.wide: list[str] = []
        self.renumbered = self.without_positions = False
        self.expected = module.state_dict()
        for key, tensor in tensors.items():
            self._assign(key, tensor)
        self._complete()

    def _assign(self, key: str, tensor: Tensor) -> None:
        if key.rpartition(".")[2] in (_COUNTER, "running_mean", "b"):
            return
        inner = self._path(key.removesuffix(_INNER)) if key.endswith(_INNER) else None
        is_layer = inner is not None and isinstance(self.module.get_submodule(inner), nn.Linear | nn.Conv2d)
        outer, _, name = key.rpartition(".")
        path = inner if is_layer else self._path(outer)
        target = f"{path}.{name}" if path else name
        if path is None or target not in self.expected:
            reason = ": at B = 2 a bias would be scaled too" if ".bias" in key else ""
            self.misfits.append(f"{key} (no such part){reason}")
            return
        shape = self.expected[target].shape
        if is_layer:
            self.weights[path] = tensor
            # B-cos v2 has convolutions of 1 x 1 where the architecture has linear layers.
            if tensor.dim() == 4 and len(shape) == 2 and tensor.shape[2:] == (1, 1):
                tensor = tensor.flatten(1)
        # Twice the channels: the layer reads [x, 1 - x].
        if is_layer and len(shape) > 1 and tensor.shape == (shape[0], 2 * shape[1], *shape[2:]):
            self.wide.append(target)
        elif tensor.shape != shape:
            self.misfits.append(f"{key}: {tuple(tensor.shape)} in the file, {tuple(shape)} in the architecture")
        self.values[target] = tensor

    def _path(self, path: str) -> str | None:
        """Translate a path in the file to the architecture's own path; None if there is no such part."""
        part, names = self.module, []
        for name in path.split(".") if path else []:
            children = list(part._modules)
            numbered = children == [str(i) for i in range(len(children))]
            by_place = isinstance(part, nn.Sequential) and name.isdigit() and not numbered
            if by_place and self.numbered and int(name) < len(children):
                name, self.renumbered = children[int(name)], self.renumbered or not children[0].lstrip("-").isdigit()
            below = part._modules.get(name)
            if below is None:
                return None
            part = below
            names.append(name)
        return ".".join(names)

    def _complete(self) -> None:
        """Fill in what the file leaves out: biases and running means are 0; record any other tensor as missing."""
        for name, tensor in self.expected.items():
            last = name.rpartition(".")[2]
            if name in self.values or last == _COUNTER:
                continue
            if last == "positional_embedding":
                self.without_positions = True
            elif last not in ("bias", "running_mean"):
                self.misfits.append(f"{name} (missing in the file)")
            self.values[name] = torch.zeros_like(tensor)

    def load(self, *, six_channels: bool) -> None:
        """Write the weights; a first layer over twice the channels as what it is on x', or as it is."""
        for name in self.wide:
            path = name.rpartition(".")[0]
            if six_channels:
                layer = self.module.get_submodule(path)
                wide = rebuilt(layer, **{_WIDENABLE[type(layer)]: self.values[name].shape[1]})
                wide.weight = nn.Parameter(self.values[name].to(self.expected[name]))
                owner, _, last = path.rpartition(".")
                setattr(self.module.get_submodule(owner), last, wide)
            else:
                self.values[name] = narrow_weight(self.values[name])
        self.module.load_state_dict(self.values, strict=False)


def narrow_weight(weight: Tensor) -> Tensor:
    """Return w with w x' = [a, b] [x', -x']: a - b, of channels in a convolution, of each pixel's in a Linear."""
    if weight.dim() > 2:
        a, b = weight.chunk(2, 1)
        return a - b
    a, b = weight.view(len(weight), -1, 6).chunk(2, 2)
    return (a - b).flatten(1)


def guess_published(state: StateDict) -> tuple[str, str | None] | None:
    """Return which code wrote a published B-cos network, and the torchvision model that its weights belong to.

    Returns:
        None where the keys are not those of B-cos layers; the model is None where there is none of these widths.
    """
    tensors, origin, _ = _own_tensors(state)
    inner = [key for key in tensors if key.endswith(_INNER)]
    if len(inner) < 2 or any(key.removesuffix(_INNER) + ".weight" in tensors for key in inner):
        return None
    for arch, candidate in published_candidates(tensors):
        for numbered in (True, False):
            assigned = _Assignment(candidate, tensors, numbered)
            if not assigned.misfits:
                return "B-cosification" if assigned.renumbered else origin, arch
    return origin, None


def _does_not_fit(source: str, misfits: list[str], key: str) -> CheckpointError:
    return CheckpointError(
        f"the file holds a B-cos network, and {len(misfits)} of its keys do not fit the architecture: "
        + listed(misfits, _SHOWN, "; "),
        where=source,
        hint=f"check --arch; the nearest known layouts are {' and '.join(nearest_layouts(key))}",
    )
