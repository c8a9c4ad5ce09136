"""Post-hoc methods by gradients, through captum.

Gradient, Input x Gradient, Integrated Gradients, Guided Backpropagation and DeepLIFT. All maps are signed and summed
over channels; all explain the class's own output.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bcos_fx.errors import VerificationError, check_count
from bcos_fx.methods.explained_network import ExplainedNetwork
from bcos_fx.methods.method import Maps, Method
from bcos_fx.methods.module_form import ModuleForms

Attribute = Callable[[Tensor, Tensor], Tensor]
"""From differences (P, C, H, W) and one class each (P,) to attributions (P, C, H, W)."""

_GAP = 0.02
"""The largest part of Σ|attributions| by which DeepLIFT may miss the difference of outputs that it must add up to."""


def gradient(explained: ExplainedNetwork) -> Method:
    """Return the gradient (Simonyan et al., "Deep Inside Convolutional Networks", 2014, sec. 3)."""
    from captum.attr import Saliency

    method = Saliency(explained)
    maps = _by_pairs(explained, lambda x, t: method.attribute(x, target=t, abs=False))
    return Method("Gradient", {"of": "logit", "channels": "sum, signed"}, maps)


def input_x_gradient(explained: ExplainedNetwork) -> Method:
    """Return Input x Gradient (Shrikumar et al., "Not Just a Black Box", 2016): (x - reference) times the gradient."""
    from captum.attr import InputXGradient

    method = InputXGradient(explained)
    maps = _by_pairs(explained, lambda x, t: method.attribute(x, target=t))
    return Method("Input x Gradient", {"of": "logit", "channels": "sum, signed"}, maps)


def integrated_gradients(explained: ExplainedNetwork, *, steps: int = 50) -> Method:
    """Return Integrated Gradients (Sundararajan et al. 2017, sec. 3), from the reference, by Gauss-Legendre."""
    from captum.attr import IntegratedGradients

    check_count("steps", steps)
    method = IntegratedGradients(explained)

    def attribute(differences: Tensor, targets: Tensor) -> Tensor:
        attributions: Tensor = method.attribute(
            differences,
            target=targets,
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=explained.at_once(differences),
        )
        return attributions

    settings = {"of": "logit", "steps": steps, "rule": "Gauss-Legendre", "channels": "sum, signed"}
    return Method("Integrated Gradients", settings, _by_pairs(explained, attribute, pairs=1))


def guided_backprop(explained: ExplainedNetwork) -> Method:
    """Return Guided Backpropagation (Springenberg et al., "Striving for Simplicity", 2015, sec. 3.4).

    Every ReLU is given a module of its own first, which captum hooks; a ReLU6 is a ReLU with an upper bound, past which
    no gradient passes. A network with other activations is refused, as the method is not defined for them and captum
    would pass them by.
    """
    from captum.attr import GuidedBackprop

    forms = ModuleForms(explained, "Guided Backpropagation")

    def attribute(differences: Tensor, targets: Tensor) -> Tensor:
        with _without_notices():
            attributions: Tensor = GuidedBackprop(forms.of(differences)).attribute(differences, target=targets)
        return attributions

    settings = {"of": "logit", "ReLUs": "each a module of its own", "channels": "sum, signed"}
    return Method("Guided Backprop", settings, _by_pairs(explained, attribute))


def deeplift(explained: ExplainedNetwork) -> Method:
    """Return DeepLIFT with the Rescale rule (Shrikumar et al. 2017, sec. 3.5.1), from the reference.

    Every activation and max pooling is given a form that captum's rules are right for; a network with others is
    refused. One image is explained at a time: captum's rule for max pooling would mix samples. What comes out must add
    up to f(x) - f(reference), or it is refused.
    """
    from captum.attr import DeepLift

    forms = ModuleForms(explained, "DeepLIFT")

    def attribute(differences: Tensor, targets: Tensor) -> Tensor:
        attributions: Tensor
        gap: Tensor
        with _without_notices():
            # The delta is what Rescale has to make 0: f(x) - f(reference) - Σ attributions.
            attributions, gap = DeepLift(forms.of(differences)).attribute(
                differences, target=targets, return_convergence_delta=True
            )
        whole, missed = float(attributions.detach().abs().sum()), float(gap.detach().abs().max())
        # Not ">": a gap of NaN has to be refused as well.
        if not missed <= _GAP * whole:
            raise VerificationError(
                f"DeepLIFT's attributions miss f(x) - f(reference) by {missed:.3g} (all of them together: {whole:.3g})",
                hint="leave DeepLIFT out for this network, or try it in float64",
            )
        return attributions

    settings = {"of": "logit", "rule": "Rescale", "channels": "sum, signed"}
    return Method("DeepLIFT", settings, _by_pairs(explained, attribute, pairs=1))


def _by_pairs(explained: ExplainedNetwork, attribute: Attribute, pairs: int | None = None) -> Maps:
    """Explain every image for each of its classes, some pairs of image and class at a time; None: by their size."""

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            differences, indices = explained.prepared(images, targets)
            samples, classes = indices.shape
            chunk = pairs or explained.at_once(differences)
            # Pairs in the order of images, then classes, so that the result only has to be reshaped.
            image_of = torch.arange(samples, device=indices.device).repeat_interleave(classes)
            # Images are repeated for each class as indices; only a chunk of them is copied at a time.
            chunks = zip(torch.split(image_of, chunk), torch.split(indices.flatten(), chunk), strict=True)
            maps_of_chunks = [attribute(differences[of].requires_grad_(), t).detach().sum(1) for of, t in chunks]
            return torch.cat(maps_of_chunks).reshape(samples, classes, *images.shape[2:])

    return maps


@contextmanager
def _without_notices() -> Iterator[None]:
    """Suppress the notice of captum at each call that it sets hooks, which it removes again."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*Setting (forward, )?backward hooks", category=UserWarning)
        yield
