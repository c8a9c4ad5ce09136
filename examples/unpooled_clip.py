"""CLIP's ResNet without the pooling of its attention pool: an embedding for each place of the image.

CLIP's attention pool takes a weighted mean, over places, of each place's value, projected. Without the weights every
place has an embedding of its own in the space of the texts (Zhou et al., "Extract Free Dense Labels from CLIP", ECCV
2022, section 3.2; Arya et al., "B-cosification", NeurIPS 2024, section 5). The parameters are those of the network, so
its checkpoint fits. As a factory: ``--arch examples/unpooled_clip.py:rn50``; ``bcos-fx explain`` then wants a
``--location``.
"""

from __future__ import annotations

from torch import Tensor, nn


class Unpooled(nn.Module):
    """(N, 3, H, W) normalised images to embeddings (N, D, H/32, W/32).

    Args:
        visual: an image tower ``open_clip.modified_resnet.ModifiedResNet``; its layers are used, not copied.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding of each place; positions and attention have no say."""
        visual = self.visual
        x = visual.stem(x)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
        places = x.permute(0, 2, 3, 1)
        return visual.attnpool.c_proj(visual.attnpool.v_proj(places)).permute(0, 3, 1, 2)


def rn50() -> nn.Module:
    """CLIP's ResNet-50 without pooling, with random weights."""
    import open_clip

    return Unpooled(open_clip.create_model("RN50").visual)


def rn50_openai() -> nn.Module:
    """Build the same with OpenAI's weights, which open_clip fetches."""
    import open_clip

    visual = open_clip.create_model("RN50-quickgelu", pretrained="openai").visual
    unpooled = Unpooled(visual)
    unpooled.preprocess_cfg = visual.preprocess_cfg
    return unpooled
