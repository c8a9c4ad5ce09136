"""Image towers of image-text models: the libraries' own classes at their smallest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SIDE, WIDTH = 64, 16


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make().eval()

    return build


def resnet() -> nn.Module:
    """CLIP's ResNet, with attention pooling; the last scale of each block is not 0, as it is when training begins."""
    from open_clip.modified_resnet import ModifiedResNet

    network = ModifiedResNet((1, 1, 1, 1), output_dim=WIDTH, heads=4, image_size=SIDE, width=8)
    for name, parameter in network.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)
    return network


def vit(**options: Any) -> nn.Module:
    """CLIP's vision transformer."""
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(SIDE, 16, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=WIDTH, **options)


def quick_vit() -> nn.Module:
    """The same with the activation of OpenAI's weights."""
    from open_clip.transformer import QuickGELU

    return vit(act_layer=QuickGELU)


def siglip(**options: Any) -> nn.Module:
    """SigLIP's vision transformer, with a latent that pools by attention."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": SIDE, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    return VisionTransformer(**sizes, class_token=False, global_pool="map", num_classes=0, **options)


def bias_free_siglip() -> nn.Module:
    """The same without biases in its attention."""
    return siglip(qkv_bias=False, proj_bias=False)


def transformers_clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=16, projection_dim=WIDTH)
    return CLIPVisionModelWithProjection(settings)


def transformers_siglip() -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=SIDE, patch_size=16))


TOWERS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "open_clip ResNet": (_seeded(resnet), None),
    "open_clip ViT": (_seeded(vit), None),
    "open_clip ViT, QuickGELU": (_seeded(quick_vit), None),
    "open_clip SigLIP": (_seeded(siglip), None),
    "open_clip SigLIP, bias-free": (_seeded(bias_free_siglip), None),
    "transformers CLIP": (_seeded(transformers_clip), "image_embeds"),
    "transformers SigLIP": (_seeded(transformers_siglip), "pooler_output"),
}
"""Name -> what builds a tower, and which part of its output is the embedding."""
