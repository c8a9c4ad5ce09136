"""Mixup and CutMix of a batch.

Both act on the images that the network is given, in [0, 1], before its encoding: a mixture of encodings [x, 1 - x] is
the encoding of the mixture.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bcos_fx.lazy import library

Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixer(mixup: float, cutmix: float, classes: int) -> Mixer:
    """Return what mixes (images (N, C, H, W), labels (N,)) into images and labels (N, classes) that add up to 1.

    Args:
        mixup: alpha of mixup (Zhang et al., "mixup", ICLR 2018), 0 for none.
        cutmix: alpha of CutMix (Yun et al., "CutMix", ICCV 2019), 0 for none; with both, one of them by chance.
        classes: C.
    """
    v2 = library("torchvision.transforms.v2", "vision", "mixup and CutMix")
    chosen = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    chosen += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    mix: Mixer = chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)
    return mix
