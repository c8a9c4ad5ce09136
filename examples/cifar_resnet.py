"""A ResNet-20 for CIFAR-10 (He et al. 2016, "Deep Residual Learning", section 4.2), written as people do.

Nothing here knows of bcos_fx: a network to convert, and a factory for ``--arch examples/cifar_resnet.py:resnet20``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)


def padded_shortcut(extra_channels: int) -> Callable[[Tensor], Tensor]:
    """Shortcut A of the paper: every second pixel, and zeros for the channels that are new on either side."""
    return lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra_channels // 2, extra_channels // 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters; (N, in, H, W) to (N, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else padded_shortcut(out_channels - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for ``x``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of basic blocks; (N, 3, 32, 32) normalised images to (N, num_classes) logits."""

    def __init__(self, blocks_per_stage: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = self._stage(WIDTHS[0], WIDTHS[0], blocks_per_stage, stride=1)
        self.layer2 = self._stage(WIDTHS[0], WIDTHS[1], blocks_per_stage, stride=2)
        self.layer3 = self._stage(WIDTHS[1], WIDTHS[2], blocks_per_stage, stride=2)
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride)
        return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size(3))
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def resnet20(num_classes: int = 10) -> nn.Module:
    """Build a ResNet-20 (269,722 parameters for ten classes) with random weights."""
    return CifarResNet(blocks_per_stage=3, num_classes=num_classes)
