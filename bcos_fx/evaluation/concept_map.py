"""Text2Concept: a linear map that brings another network's features into the space of an image-text model.

Moayeri, Rezaei, Sanjabi and Feizi, "Text-To-Concept (and Back) via Cross-Model Alignment", ICML 2023, section 3. A
baseline for networks that were turned into image-text models by training. The map has no bias here: contributions then
go through it without a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError


def text2concept(features: Tensor, embeddings: Tensor) -> nn.Linear:
    """Return the linear map W, without bias, that minimizes Σ ‖W·features - embedding‖² in closed form.

    Of several maps that do, the one with the smallest norm: features may depend on each other.

    Args:
        features: (N, D) of images, by a network.
        embeddings: (N, E) of the same images, by an image-text model.

    Raises:
        UsageError: other shapes, or a number that is NaN or infinite.
    """
    if features.dim() != 2 or embeddings.dim() != 2 or len(features) != len(embeddings) or not len(features):
        raise UsageError(
            f"features {tuple(features.shape)} and embeddings {tuple(embeddings.shape)} do not belong together",
            hint="give (N, D) and (N, E) of the same images",
        )
    if not bool(torch.isfinite(features).all()) or not bool(torch.isfinite(embeddings).all()):
        raise UsageError("features or embeddings hold NaN or infinity")
    # By singular values: ordinary least squares would fail on features that depend on each other.
    solution = torch.linalg.lstsq(features.double().cpu(), embeddings.double().cpu(), driver="gelsd").solution
    layer = nn.Linear(features.shape[1], embeddings.shape[1], bias=False)
    with torch.no_grad():
        layer.weight.copy_(solution.T)
    return layer.to(features.device)
