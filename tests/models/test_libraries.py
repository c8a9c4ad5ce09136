"""Small networks of timm and transformers as they are: each construct that once went wrong, where it came up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.testing import norm_statistics_from_data_, randomise_

# name -> what it has that others have not
TIMM = {
    "test_efficientnet": "squeeze and excitation",
    "test_nfnet": "standardised weights",
    "test_vit": "class token and positions",
    "test_vit3": "class attention pooling",
    "test_convnext3": "layer scale, channels-first norm, activation of its own",
    "test_mambaout": "gates",
    "edgenext_xx_small": "a position encoding made in the network's precision",
    "convnextv2_atto": "addcmul",
    "gmlp_ti16_224": "a product of two values",
    "levit_128s": "reshape_as, attention biases that are cached",
}


def images(side: int) -> Tensor:
    return torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def proven(module: nn.Module, inputs: Any, **options: Any) -> None:
    network = bcos_fx.bcosify(module, example_inputs=inputs, recipe="equivalent", **options)
    verification = network.report.figures.verification
    assert verification is not None
    assert verification["ok"], verification["detail"]
    assert not network.report.unknown
    assert network.report.coverage.share == 1
    given = [inputs[spec.name] for spec in network.record.inputs] if isinstance(inputs, dict) else [inputs]
    wide = [value.double() if value.is_floating_point() else value for value in given]
    certification = bcos_fx.certify(network.double(), wide)
    assert certification.ok, certification.to_text()
    assert certification.completeness is not None
    assert certification.completeness.worst <= 1e-9, certification.to_text()


LONG = {"edgenext_xx_small", "gmlp_ti16_224", "levit_128s"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in TIMM])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model(name, num_classes=7).eval()
    side = module.pretrained_cfg["input_size"][1]
    x = images(96 if "vit" not in name and "gmlp" not in name and "levit" not in name else side)
    norm_statistics_from_data_(randomise_(module), x)
    proven(module, x[:2])


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "DINOv3ViT"])
def test_vision_transformers(kind: str, attention: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    configuration = getattr(transformers, f"{kind}Config")(**SMALL, attn_implementation=attention)
    module = randomise_(getattr(transformers, f"{kind}Model")(configuration)).eval()
    proven(module, {"pixel_values": images(32)[:2]}, output_key="last_hidden_state")


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_language_models_from_their_embeddings(kind: str, attention: str, masked: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2} if kind == "GPT2" else {k: SMALL[k] for k in list(SMALL)[:4]}
    configuration = getattr(transformers, f"{kind}Config")(**sizes, vocab_size=50, attn_implementation=attention)
    module = randomise_(getattr(transformers, f"{kind}Model")(configuration)).eval()
    tokens = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    inputs = {"inputs_embeds": tokens}
    if masked:
        inputs["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    proven(module, inputs, output_key="last_hidden_state", input="none")
