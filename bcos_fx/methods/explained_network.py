"""The network that post-hoc methods explain: the original, behind its own normalization, seen from a reference image.

With d = x - r, where r is one color everywhere, every published method has its zero where d = 0: Input x Gradient
multiplies by d, Integrated Gradients and DeepLIFT start at r, Occlusion, LIME and RISE fill with r. At the usual
r = mean this is what these methods do where they are given images that were normalized first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError, check_choice, check_count
from bcos_fx.example import statistics
from bcos_fx.methods.checks import check_images, check_targets, class_outputs
from bcos_fx.tracing.modules import deep_copy
from bcos_fx.validation import check_module

REFERENCES = ("mean", "black")
# 32 images of 224 pixels on an accelerator, 4 on a processor; see at_once().
_PIXELS, _CPU_PIXELS = 32 * 224 * 224, 4 * 224 * 224


class ExplainedNetwork(nn.Module):
    """A classifier as a function of the image's difference from one color; an own copy, in eval mode.

    Args:
        network: takes normalized images (N, C, H, W), gives (N, classes). It is copied, so methods go on to explain
            what it was when they were made.
        mean: what the network expects to be subtracted from images in [0, 1], per channel; None: 0; ``"auto"``: as
            timm keeps it on the module.
        std: what it expects them to be divided by afterwards; None: 1.
        reference: ``mean``, ``black``, or a color in [0, 1], one number or one per channel.
        batch_size: images that are run at once; None: by their size, see :meth:`at_once`.

    Raises:
        UsageError: it is not a network, or a number is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] | float | str | None = None,
        std: Sequence[float] | float | None = None,
        reference: str | float | Sequence[float] = "mean",
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        check_module(network)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        self.batch_size = batch_size
        center, spread = (torch.tensor(values or (default,), dtype=torch.float64) for values, default in
                          zip(statistics(network, mean, std), (0.0, 1.0), strict=True))  # fmt: skip
        if bool((spread <= 0).any()) or not bool(torch.isfinite(torch.cat([center, spread])).all()):
            raise UsageError("mean must be finite and std finite and positive", hint="for example std=(0.5, 0.5, 0.5)")
        color = _color(reference, center)
        like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))

        def per_channel(values: Tensor) -> Tensor:
            return values.to(like).reshape(1, -1, 1, 1)

        self.reference: Tensor
        self.scale: Tensor
        self.offset: Tensor
        # Buffers, so that .to() moves them with the network.
        self.register_buffer("reference", per_channel(color))
        self.register_buffer("scale", per_channel(1 / spread))
        self.register_buffer("offset", per_channel((color - center) / spread))
        # A copy, since captum sets hooks and the caller may go on training.
        self.network = deep_copy(network)
        self.requires_grad_(False).eval()

    def forward(self, differences: Tensor) -> Tensor:
        """Return the outputs (N, classes) for images that differ by so much (N, C, H, W) from the reference."""
        outputs: Tensor = self.network(differences * self.scale + self.offset)
        return outputs

    def differences(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) in [0, 1], as differences from the reference.

        Raises:
            UsageError: they are not images, or on another device or in another precision than the network.
        """
        checked = check_images(images)
        given, expected = (f"{t.device}, {str(t.dtype).removeprefix('torch.')}" for t in (checked, self.reference))
        if given != expected:
            raise UsageError(f"the images are {given}, the network is {expected}", hint="move or convert the images")
        if self.reference.shape[1] not in (1, checked.shape[1]):
            raise UsageError(
                f"the images have {checked.shape[1]} channels, mean, std and reference have {self.reference.shape[1]}",
                hint="give one number per channel",
            )
        return checked - self.reference

    def prepared(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return images as differences from the reference, and their classes as indices (N, K); neither is shared.

        Raises:
            UsageError: as :meth:`differences`, targets are not classes of the network, or it gives no class outputs.
        """
        differences = self.differences(images).clone()
        with torch.no_grad():
            classes = class_outputs(self, differences[:1]).shape[1]
        return differences, check_targets(images, targets, classes)

    def at_once(self, images: Tensor) -> int:
        """Return how many images of this size (..., H, W) are run at once, at least one.

        On a processor few large ones: what a layer gives should still lie in its cache when the next layer takes it.
        """
        if self.batch_size is not None:
            return self.batch_size
        pixels = _CPU_PIXELS if images.device.type == "cpu" else _PIXELS
        return max(1, pixels // (images.shape[-2] * images.shape[-1]))


def _color(reference: str | float | Sequence[float], mean: Tensor) -> Tensor:
    if isinstance(reference, str):
        check_choice("reference", reference, REFERENCES)
        return mean if reference == "mean" else torch.zeros_like(mean)
    color = torch.as_tensor(reference, dtype=mean.dtype).reshape(-1)
    if not bool(((color >= 0) & (color <= 1)).all()) or not color.numel():
        raise UsageError(f"reference is {reference!r}", hint='give "mean", "black" or a color in [0, 1]')
    return color
