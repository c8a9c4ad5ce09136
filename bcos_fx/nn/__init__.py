"""Layers: the B-cos transform, norms in a form that explanations can use, input encoding, logits."""

from __future__ import annotations

from bcos_fx.nn.attention import Attention, Heads
from bcos_fx.nn.batchnorm import BatchNormUncentred1d, BatchNormUncentred2d, BatchNormUncentred3d
from bcos_fx.nn.bcos import BcosLayer, BcosLinear, EpsAt, Scale
from bcos_fx.nn.constants import Counted, CountedAtZero, CountedConstant, CountedLiteral, CountedShift
from bcos_fx.nn.conv import (
    BcosConv1d,
    BcosConv2d,
    BcosConv3d,
    BcosConvTranspose1d,
    BcosConvTranspose2d,
    BcosConvTranspose3d,
)
from bcos_fx.nn.drop_path import DropPath
from bcos_fx.nn.dynamic import DynamicLayer
from bcos_fx.nn.frozen import (
    FrozenL2Normalisation,
    FrozenLayer,
    FrozenRatio,
    FrozenResponseNorm,
    FrozenScale,
    FrozenShiftedRatio,
    StopGradient,
)
from bcos_fx.nn.functional import alignment, bcos_scale, default_eps, energy
from bcos_fx.nn.heads import LogitLayer
from bcos_fx.nn.inputs import InputDecoding, InputEncoding, InputNormalisation, fold, widen
from bcos_fx.nn.norms import (
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    NormLayer,
    PositionNorm,
    RMSNorm,
)
from bcos_fx.nn.sums import InPlaceSum, Sum

__all__ = [
    "Attention",
    "BatchNormUncentred1d",
    "BatchNormUncentred2d",
    "BatchNormUncentred3d",
    "BcosConv1d",
    "BcosConv2d",
    "BcosConv3d",
    "BcosConvTranspose1d",
    "BcosConvTranspose2d",
    "BcosConvTranspose3d",
    "BcosLayer",
    "BcosLinear",
    "Counted",
    "CountedAtZero",
    "CountedConstant",
    "CountedLiteral",
    "CountedShift",
    "DropPath",
    "DynamicLayer",
    "EpsAt",
    "FrozenL2Normalisation",
    "FrozenLayer",
    "FrozenRatio",
    "FrozenResponseNorm",
    "FrozenScale",
    "FrozenShiftedRatio",
    "GroupNorm",
    "Heads",
    "InPlaceSum",
    "InputDecoding",
    "InputEncoding",
    "InputNormalisation",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LogitLayer",
    "NormLayer",
    "PositionNorm",
    "RMSNorm",
    "Scale",
    "StopGradient",
    "Sum",
    "alignment",
    "bcos_scale",
    "default_eps",
    "energy",
    "fold",
    "widen",
]
