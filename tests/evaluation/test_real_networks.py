"""Real networks: which baselines run, which are refused and why, and that measures tell a map from chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.convert import bcosify
from bcos_fx.errors import UsageError
from bcos_fx.evaluation.completeness import completeness_of, completeness_residual
from bcos_fx.evaluation.deletion import pixel_deletion
from bcos_fx.evaluation.sparsity import sparsity
from bcos_fx.methods.baselines import BASELINES, baselines
from bcos_fx.methods.method import Method, dynamic_linear

pytest.importorskip("captum")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
# With random weights evidence may be negative everywhere: Grad-CAM's ReLU would leave nothing of it.
SIGNED = {"grad-cam": {"relu": False}}
QUICK = {
    **SIGNED,
    "integrated-gradients": {"steps": 8},
    "occlusion": {"window": 56, "stride": 56},
    "lime": {"samples": 24, "patches": 4},
    "rise": {"masks": 24},
}


def outcome(method: Method, images: Tensor, targets: Tensor) -> str:
    """``runs``, or why it is refused."""
    try:
        maps = method.maps(images, targets)
    except UsageError as error:
        return error.what.rpartition(": ")[2]
    assert maps.shape == (*targets.shape, *images.shape[2:])
    assert bool(torch.isfinite(maps).all())
    assert bool((maps != 0).any())
    return "runs"


def outcomes(network: nn.Module, images: Tensor, targets: Tensor, statistics: tuple) -> dict[str, str]:
    mean, std = statistics
    made = baselines(network=network, mean=mean, std=std, options=QUICK)
    return {name: outcome(method, images, targets) for name, method in zip(BASELINES, made, strict=True)}


@pytest.mark.vision
@pytest.mark.slow
def test_resnet18_runs_them_all() -> None:
    from torchvision.models import resnet18

    network, images, targets = resnet18(weights=None), torch.rand(1, 3, 128, 128), torch.tensor([[3, 700]])
    assert set(outcomes(network, images, targets, IMAGENET).values()) == {"runs"}
    (deeplift,) = baselines("deeplift", network=network, mean=IMAGENET[0], std=IMAGENET[1])
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in IMAGENET)
    network.eval()
    gap = completeness_of(deeplift, lambda x: network((x - mean) / std), images, targets, mean)
    assert float(gap.values.max()) < 1e-3


@pytest.mark.vision
@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "refused"),
    [
        ("squeezenet1_1", {}),  # pooling with ceil_mode, a convolution as classifier
        ("densenet121", {}),  # ReLUs as functions
        ("mobilenet_v2", {}),  # ReLU6
        (
            "mobilenet_v3_small",
            {"guided-backprop": "there is no rule for hardswish", "deeplift": "there is no rule for hardswish"},
        ),
        (
            "vit_b_16",
            {
                "guided-backprop": "there is no rule for scaled_dot_product_attention",
                "deeplift": "there is no rule for layer_norm",
                "grad-cam": "the output depends on the image past it (node add_24)",
            },
        ),
    ],
)
def test_other_architectures(architecture: str, refused: dict[str, str]) -> None:
    import torchvision.models

    network = torchvision.models.get_model(architecture, weights=None)
    size = 224 if architecture == "vit_b_16" else 96
    found = {}
    for name in ("guided-backprop", "deeplift", "grad-cam"):
        (made,) = baselines(name, network=network, mean=IMAGENET[0], std=IMAGENET[1], options=SIGNED)
        found[name] = outcome(made, torch.rand(1, 3, size, size), torch.tensor([[3]]))
    assert {name: reason for name, reason in found.items() if reason != "runs"} == refused


@pytest.mark.slow
def test_efficientnet_lite0_on_photographs() -> None:
    """Functional convolutions and ReLU6: all methods run, and DeepLIFT adds up."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from bcos_fx.cli.demo import efficientnet_lite0, photographs

    network = efficientnet_lite0()
    images, labels = photographs()
    images, targets = images[:3], torch.tensor(labels[:3])[:, None]
    found = outcomes(network, images[:1], targets[:1], LITE)
    assert {name: reason for name, reason in found.items() if reason != "runs"} == {}
    mean, std = LITE
    names = ("gradient", "input-x-gradient", "deeplift", "grad-cam")
    methods = baselines(names, network=network, mean=mean, std=std)
    reference = torch.tensor(mean).reshape(3, 1, 1)

    def outputs(x: Tensor) -> Tensor:
        return network((x - mean[0]) / std[0])

    assert float(completeness_of(methods[2], outputs, images, targets, reference).values.max()) < 1e-3
    converted = bcosify(network, mean=mean, std=std, recipe="equivalent", verified=False)
    assert float(completeness_residual(converted, images, targets).values.max()) < 1e-4
    # What Grad-CAM finds is mostly the object: deleted first, it takes the class along; deleted last, the class stays.
    # On the mean only: of the second photograph the reverse is true.
    most, least = (
        pixel_deletion(methods[3], outputs, images, targets, steps=8, imputation="mean", order=order)
        for order in ("most", "least")
    )
    assert most.mean < 0.6 * least.mean
    assert 0 < sparsity(dynamic_linear(converted), images, targets).mean < 1
