"""Sensitivity to weights: a map that stays as it was when weights become random does not explain the network.

Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, sec. 3: cascading (from the output downwards,
everything down to a layer is random) and independent (one layer at a time). Maps are compared by rank correlation,
signed and of absolute values, and by SSIM of absolute values, each scaled by its largest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcos_fx.display import Displayed
from bcos_fx.errors import UsageError, check_choice, nearest
from bcos_fx.escaping import amount
from bcos_fx.evaluation.measured import Measured, maps_of
from bcos_fx.evaluation.plots import new_axes
from bcos_fx.methods.checks import check_images, check_targets
from bcos_fx.methods.method import Method
from bcos_fx.tracing.modules import deep_copy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = ("cascading", "independent")
SIMILARITIES = ("rank correlation", "rank correlation of absolute values", "SSIM of absolute values")
_SSIM_WINDOW = 11


@dataclass(frozen=True, eq=False, repr=False)
class Randomised(Displayed):
    """How alike a method's maps are before and after weights became random.

    Attributes:
        method: the method's name.
        layers: names of the L layers, from the output downwards.
        similarities: name -> (L, N, K), at most 1: 1 for the same map, about 0 for an unrelated one.
        left_out: layers with parameters that the network never called, and that were not randomized.
        settings: what measure and method were set to.
    """

    method: str
    layers: tuple[str, ...]
    similarities: Mapping[str, Tensor]
    left_out: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)

    def brief(self) -> list[str]:
        """Return how alike maps still are with all weights random, for each similarity."""
        rows = [f"  {measured}" for measured in self.measured.values()]
        return [f"Randomised, {amount(len(self.layers), 'layer')}, the last one:", *rows]

    @property
    def curve(self) -> dict[str, Tensor]:
        """Each similarity's mean over images and classes, (L,)."""
        return {name: values.mean((1, 2)) for name, values in self.similarities.items()}

    @property
    def measured(self) -> dict[str, Measured]:
        """Each similarity after the last layer: with all weights random, if they were randomized cascading."""
        return {
            name: Measured(name, self.method, values[-1], self.settings) for name, values in self.similarities.items()
        }

    def plot(self) -> Figure:
        """Draw the similarities along the layers."""
        figure, axes = new_axes(width=4 + 0.2 * len(self.layers), height=4)
        for name, values in self.curve.items():
            axes.plot(range(len(self.layers)), values.cpu().numpy(), marker="o", markersize=3, label=name)
        axes.set_xticks(range(len(self.layers)), self.layers, rotation=60, ha="right", fontsize=7)
        axes.axhline(0, color="#808080", linewidth=0.8)
        axes.set_ylabel(f"similarity to {self.method} before")
        axes.set_xlabel(
            f"{self.settings.get('mode', 'cascading')} randomization, from the output downwards", fontsize=8
        )
        axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
        return figure


def weight_randomisation(
    make: Callable[[nn.Module], Method],
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    mode: str = "cascading",
    layers: Sequence[str] | None = None,
    example: Tensor | None = None,
    seed: int = 0,
) -> Randomised:
    """Measure how alike a method's maps stay when the network's weights become random; on copies of it.

    Each parameter's numbers are drawn again from a normal distribution of their own mean and standard deviation, so
    activations keep their scale; running statistics stay. A parameter whose numbers are all equal stays too.

    Args:
        make: makes the method for a network, such as ``dynamic_linear``.
        network: the network; it is not changed.
        images: (N, C, H, W) in [0, 1].
        targets: (N, K) class indices.
        mode: ``cascading`` or ``independent``.
        layers: names of modules, in the order to randomize them in, each with everything below it; None: every module
            with parameters of its own that the network calls, the last called first.
        example: what the network takes, to see which modules it calls; None: the first image.
        seed: of the new weights.

    Raises:
        UsageError: something is not of that form, or no module has such a name.
    """
    images = check_images(images)
    targets = check_targets(images, targets)
    check_choice("mode", mode, MODES)
    called, left_out = _modules_last_first(network, images[:1] if example is None else example)
    chosen = _check_layers(network, layers) if layers is not None else called
    # On copies: a method may hook the network that it explains.
    before = maps_of(make(deep_copy(network)), images, targets)
    generator = torch.Generator().manual_seed(seed)
    altered, drawn = deep_copy(network), set[str]()
    similar = []
    for layer in chosen:
        if mode == "independent":
            # Independent: each layer is drawn in a network whose other layers are as they were.
            altered, drawn = deep_copy(network), set()
        randomise_(altered, layer, generator, alone=layers is None, drawn=drawn)
        similar.append(similarities(before, maps_of(make(altered), images, targets)))
    method = make(network)
    return Randomised(
        method.name,
        tuple(chosen),
        {name: torch.stack([after[name] for after in similar]) for name in SIMILARITIES},
        () if layers is not None else left_out,
        {**method.settings, "mode": mode, "seed": seed},
    )


def randomise_(network: nn.Module, layer: str, generator: torch.Generator, *, alone: bool, drawn: set[str]) -> None:
    """Draw a layer's parameters again, in place.

    Args:
        network: holds the layer; changed.
        layer: the module's name.
        generator: draws, on the CPU.
        alone: only parameters of the module itself, none of what is below it.
        drawn: names of parameters that were drawn before and are left; what is drawn now is added.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.get_submodule(layer).parameters(recurse=not alone):
            # A parameter that two layers share is drawn once.
            if names[id(parameter)] in drawn or not parameter.is_floating_point():
                continue
            drawn.add(names[id(parameter)])
            # On the CPU, so that a seed means the same weights on every device.
            values = parameter.detach().double().cpu()
            noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
            parameter.copy_(values.mean() + values.std(correction=0) * noise)


def _modules_last_first(network: nn.Module, example: Tensor) -> tuple[list[str], tuple[str, ...]]:
    """Return the modules with parameters of their own by name, the last to finish first, and those that never ran."""
    observed = deep_copy(network)
    holders = {name: module for name, module in observed.named_modules() if any(True for _ in module.parameters(False))}
    order: list[str] = []
    for name, module in holders.items():
        module.register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        observed(example)
    # A module that is called several times counts where it was called last.
    names = list(dict.fromkeys(reversed(order)))
    if not names:
        raise UsageError("the network calls no module that has parameters", hint="name modules with layers=")
    return names, tuple(name for name in holders if name not in names)


def _check_layers(network: nn.Module, layers: Sequence[str]) -> list[str]:
    modules = dict(network.named_modules())
    for layer in layers:
        if layer not in modules:
            raise UsageError(f"the network has no module named {layer!r}", hint=nearest(str(layer), modules))
        if not any(True for _ in modules[layer].parameters()):
            raise UsageError(f"the module {layer!r} has no parameters to randomize", hint="name another")
    if not layers:
        raise UsageError("layers= names no module", hint="leave it out for all")
    return list(layers)


def similarities(maps: Tensor, others: Tensor) -> dict[str, Tensor]:
    """Return how alike maps (N, K, H, W) are, each (N, K), by name of :data:`SIMILARITIES`.

    Equal pixels share the mean of their ranks; a map that is the same everywhere has a rank correlation of 0. SSIM of
    maps of fewer than 11 pixels on a side takes a smaller window.
    """
    first, second = maps.double(), others.double()
    measured = (_correlation(first, second), _correlation(first.abs(), second.abs()), _ssim(first, second))
    return {name: values.to(maps) for name, values in zip(SIMILARITIES, measured, strict=True)}


def _ranks(maps: Tensor) -> Tensor:
    """Return the ranks of the pixels of maps (N, K, H, W), (N, K, H·W)."""
    pixels = maps.flatten(2).contiguous()
    ordered = pixels.sort(-1).values
    # Mean rank of equal values: searchsorted counts the smaller ones on the left, and those up to it on the right.
    below, up_to = (torch.searchsorted(ordered, pixels, right=right) for right in (False, True))
    return (below + up_to - 1).to(maps) / 2


def _correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Return Spearman's rank correlation, (N, K)."""
    a, b = (ranks - ranks.mean(-1, keepdim=True) for ranks in (_ranks(maps), _ranks(others)))
    # A constant map has no ranks to correlate: 0, not NaN.
    spread = a.norm(dim=-1) * b.norm(dim=-1)
    return (a * b).sum(-1) / torch.where(spread > 0, spread, 1)


def _ssim(maps: Tensor, others: Tensor) -> Tensor:
    """SSIM (N, K) of absolute values scaled by their largest, over uniform windows (Wang et al. 2004, eq. 13)."""
    side = min(_SSIM_WINDOW, *maps.shape[2:])
    # Odd, so that a window has a middle pixel; padding by reflection needs less than a side.
    window = side if side % 2 else side - 1

    def local(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(values, (window // 2,) * 4, mode="reflect"), window, 1)

    def scaled(values: Tensor) -> Tensor:
        largest = values.abs().amax((2, 3), keepdim=True)
        return values.abs() / torch.where(largest > 0, largest, 1)

    a, b = scaled(maps), scaled(others)
    mean_a, mean_b = local(a), local(b)
    variances = local(a**2) - mean_a**2 + local(b**2) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    # 0.01 and 0.03 are the published K1 and K2, for values in [0, 1].
    alike = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
    return (alike / ((mean_a**2 + mean_b**2 + 0.01**2) * (variances + 0.03**2))).mean((2, 3))
