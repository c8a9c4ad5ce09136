"""Post-hoc baselines: what to compare a network's own explanation with, on the original network.

All take images in [0, 1], explain the same classes and give maps of one shape. Each prints what it was set to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bcos_fx.errors import UsageError, check_count, nearest
from bcos_fx.lazy import check_installed
from bcos_fx.methods.explained_network import ExplainedNetwork
from bcos_fx.methods.grad_cam import grad_cam
from bcos_fx.methods.gradients import (
    deeplift,
    gradient,
    guided_backprop,
    input_x_gradient,
    integrated_gradients,
)
from bcos_fx.methods.method import Method
from bcos_fx.methods.perturbations import lime, occlusion, rise

_MAKERS: dict[str, Callable[..., Method]] = {
    "gradient": gradient,
    "input-x-gradient": input_x_gradient,
    "integrated-gradients": integrated_gradients,
    "guided-backprop": guided_backprop,
    "deeplift": deeplift,
    "grad-cam": grad_cam,
    "occlusion": occlusion,
    "lime": lime,
    "rise": rise,
}
BASELINES = tuple(_MAKERS)
"""Names of all baselines, in the order of tables."""

CONDITIONAL = ("guided-backprop", "deeplift", "grad-cam")
"""Those that are right for some networks only, and refuse others."""

_OWN = ("grad-cam", "rise")
"""Those that need no captum."""


def baselines(
    names: str | Iterable[str] | None = None,
    *,
    network: nn.Module,
    mean: Sequence[float] | float | str | None = None,
    std: Sequence[float] | float | None = None,
    reference: str | float | Sequence[float] = "mean",
    seed: int = 0,
    batch_size: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Method]:
    """Return post-hoc methods that explain a network.

    A method refuses a network that it is not right for when its maps are asked for, with the node that is in the way.

    Args:
        names: of :data:`BASELINES`, one or several; None: all.
        network: the *original* network: takes normalized images (N, C, H, W), gives (N, classes). It is copied and not
            changed; it is explained in eval mode.
        mean: what it expects to be subtracted from images in [0, 1], per channel; None: 0; ``"auto"``: as timm
            keeps it on the module.
        std: what it expects them to be divided by afterwards; None: 1.
        reference: the color that stands for nothing: where IG and DeepLIFT start, what Input x Gradient counts from,
            what occlusions show. ``mean`` (0 after normalization, as these methods are usually run), ``black``, or a
            color in [0, 1].
        seed: of LIME's samples and RISE's masks.
        batch_size: images, or perturbed ones, that are computed at once; None: as many as are fast together, fewer if
            they are large.
        options: baseline name -> its own options, such as ``{"rise": {"masks": 500}}``.

    Raises:
        UsageError: an unknown name or option (with the nearest known), or a senseless value.
        MissingExtraError: captum is not installed.
    """
    chosen = [names] if isinstance(names, str) else list(BASELINES if names is None else names)
    given = dict(options or {})
    for name in (*chosen, *given):
        if name not in _MAKERS:
            raise UsageError(f"no baseline is named {name!r}", hint=nearest(str(name), BASELINES))
    check_count("seed", seed, 0)
    if any(name not in _OWN for name in chosen):
        check_installed("captum", "evaluate", "explaining by captum's methods")
    # Tensors that are made in the caller's inference mode could never be part of a gradient.
    with torch.inference_mode(False):
        explained = ExplainedNetwork(network, mean=mean, std=std, reference=reference, batch_size=batch_size)
    return [_make_method(name, explained, seed, dict(given.get(name, {})), reference) for name in dict.fromkeys(chosen)]


def _make_method(
    name: str, explained: ExplainedNetwork, seed: int, options: Mapping[str, Any], reference: object
) -> Method:
    accepted = [p for p in inspect.signature(_MAKERS[name]).parameters if p != "explained"]
    own_names = [parameter for parameter in accepted if parameter != "seed"]
    for option in options:
        if option not in own_names:
            hint = nearest(str(option), own_names) if own_names else "it has none"
            raise UsageError(f"{name} has no option named {option!r}", hint=hint)
    method = _MAKERS[name](explained, **({"seed": seed} if "seed" in accepted else {}), **options)
    # These three do not read the reference at all, so it is not among their settings.
    from_reference = {} if name in ("gradient", "guided-backprop", "grad-cam") else {"reference": reference}
    return Method(method.name, {**method.settings, **from_reference}, method.maps)
