"""A classifier that is right by construction, and images for it: one bright colour channel per class pair."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bcos_fx
from bcos_fx.network import BcosNetwork
from bcos_fx.text import TextEmbeddings

CLASSES, WIDTH = 6, 5
FACTORY = """
from tests.evaluation.toy import Colours
def build():
    return Colours(centred=True)
def fewer():
    return Colours(5, centred=True)
"""


class Colours(nn.Module):
    """(N, 3, H, W) in [0, 1] to six logits: class c looks for one colour, and its evidence is where that colour is.

    Args:
        classes: how many.
        centred: take images minus 0.5.
    """

    def __init__(self, classes: int = CLASSES, *, centred: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            colors = palette(classes) - 0.5
            self.conv.weight.copy_(40 * colors.view(classes, 3, 1, 1))
            self.conv.bias.copy_((0 if centred else -20) * colors.sum(1) - 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x)).flatten(1)


def palette(classes: int) -> Tensor:
    """(classes, 3) colours: corners of the cube, without black and white."""
    corners = torch.tensor([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(1, 7)], dtype=torch.float32)
    return corners[:classes]


def images(count: int, size: int = 8, seed: int = 0) -> TensorDataset:
    """Noisy images of the palette's colours, labelled; the classes follow each other."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = 0.6 * (torch.rand(count, 3, size, size, generator=generator) - 0.5)
    return TensorDataset((palette(CLASSES)[labels].view(count, 3, 1, 1) + noise).clamp(0, 1), labels)


def write_network(path: Path) -> None:
    """Write the classifier, converted at B = 1."""
    settings: dict[str, Any] = {"recipe": "equivalent", "mean": (0.5,) * 3, "std": (1.0,) * 3}
    made = bcos_fx.bcosify(Colours(centred=True).eval(), example_inputs=torch.rand(2, 3, 8, 8), **settings)
    bcos_fx.save(made, path)


def embedder() -> BcosNetwork:
    """An image tower, (N, 3, 8, 8) to embeddings (N, 5), converted at B = 1."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    settings: dict[str, Any] = {"recipe": "equivalent", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 8, 8), **settings)


def texts_of_colours(network: BcosNetwork) -> TextEmbeddings:
    """Texts that say what each colour is embedded as."""
    pure = palette(CLASSES).view(-1, 3, 1, 1).expand(-1, -1, 8, 8)
    vectors = nn.functional.normalize(network(pure).detach(), dim=1)
    return TextEmbeddings(tuple(f"colour {n}" for n in range(CLASSES)), vectors, "made-up")


def write_embedder(path: Path) -> BcosNetwork:
    network = embedder()
    bcos_fx.save(network, path)
    return network


def write_images(path: Path, count: int, broken: tuple[int, ...] = (), every: int = 1) -> None:
    """Write images as an ``.npz``, of every so many pixels; some of them are none."""
    pixels, labels = images(count).tensors
    pixels = pixels[..., ::every, ::every]
    files = [b"no image" if n in broken else encoded(image) for n, image in enumerate(pixels)]
    np.savez(
        path,
        jpeg=np.frombuffer(b"".join(files), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=labels.numpy(),
        names=np.array([f"colour <{n}>" for n in range(CLASSES)]),
    )


def encoded(image: Tensor) -> bytes:
    """Return an image's file."""
    buffer = io.BytesIO()
    Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
