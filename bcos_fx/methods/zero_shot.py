"""Zero-shot classification: the class whose text an image is most like (Radford et al., ICML 2021, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bcos_fx.explanation.explain import explain
from bcos_fx.explanation.similarity import cosine
from bcos_fx.network import BcosNetwork
from bcos_fx.text.embedding import TextEmbeddings

SCALE = 100.0
"""What cosines are multiplied by before the softmax: the largest that CLIP's training allows (section 2.4)."""


class ZeroShot(nn.Module):
    """A classifier made of an image tower and texts: scale · cos(image, text) for each class.

    Args:
        tower: takes images (N, C, H, W) and gives embeddings, as :func:`bcos_fx.explanation.cosine` takes them.
        texts: embeddings of the classes, in order.
        location: for towers that give an embedding for each place, as for the cosine.
        scale: see :data:`SCALE`.

    Raises:
        UsageError: the location makes no sense.
    """

    def __init__(
        self, tower: BcosNetwork, texts: TextEmbeddings, *, location: str | None = None, scale: float = SCALE
    ) -> None:
        super().__init__()
        self.tower, self.texts, self.scale = tower, texts, scale
        self.likeness = cosine(texts, location=location)
        self.train(tower.training)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) that the tower was made for."""
        return self.tower.input_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K) class outputs; raises UsageError where texts and tower do not belong together."""
        return self.scale * self.likeness(self.tower(images))

    def contributions(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return what each place of the images contributes to classes.

        Args:
            images: (N, C, H, W) in [0, 1].
            targets: (N, K) class indices.

        Returns:
            (N, K, H, W), which add up, with the constants, to the outputs.
        """

        def of_image(n: int) -> Tensor:
            def outputs(embeddings: Tensor) -> Tensor:
                return self.scale * self.likeness(embeddings)[:, targets[n]]

            return explain(self.tower, images[n : n + 1], outputs).contributions

        # One image at a time, because the targets are the classes of that image.
        return torch.cat([of_image(n) for n in range(len(images))])
