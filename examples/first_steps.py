"""The API in one page: convert a network, read the report, save it, load it again.

Run it with ``python examples/first_steps.py [FOLDER]``; it writes ``small.safetensors`` and ``small.png`` there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import bcos_fx


class Small(nn.Module):
    """A classifier with a residual branch, a squeeze-and-excitation gate and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.branch = nn.Conv2d(16, 16, 3, padding=1)
        self.squeeze = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (N, 3, H, W); returns logits (N, 10)."""
        x = self.pool(self.stem(x))
        y = torch.relu(self.branch(x))
        gate = torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True)))
        return self.fc((x + y * gate).mean((2, 3)))


def main(folder: Path) -> None:
    """Convert the network above and show what happened."""
    torch.manual_seed(0)
    network = Small().eval()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.rand(8, 3, 32, 32)

    same = bcos_fx.bcosify(network, example_inputs=images, recipe="equivalent", mean=mean, std=std)
    result = bcos_fx.verify(network, same, images)  # at B = 1 the network is unchanged
    sys.stdout.write(f"{result.detail}\n\n")

    model = bcos_fx.bcosify(network, example_inputs=images, mean=mean, std=std)  # B = 2, as published
    sys.stdout.write(model.report.to_text())
    model.report.draw(folder / "small.png")

    path = bcos_fx.save(model, folder / "small.safetensors", overwrite=True)
    again = bcos_fx.load(path)  # needs none of the code above, and runs nothing from the file
    with torch.no_grad():
        sys.stdout.write(f"loaded: equal outputs {torch.equal(model(images), again(images))}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
