"""Accuracy, agreement and calibration, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import accuracy
from bcos_fx.evaluation.correctness import BINS, judged_accuracy
from bcos_fx.evaluation.curve_measures import curve_measure
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import Prediction
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.network import BcosNetwork
from bcos_fx.verification.original import NormalizedModel
from tests.evaluation.test_selection import predictions
from tests.evaluation.toy import CLASSES, Colours, images

pytest.importorskip("torchmetrics")


@pytest.mark.parametrize("confidence", ["softmax", "sigmoid"])
def test_the_calibration_error_is_that_of_bins_in_a_loop(confidence: str) -> None:
    found = predictions(500, 10, seed=0)
    error = 0.0
    for b in range(BINS):
        inside = [
            p for p in found
            if b / BINS < (p.sigmoid if confidence == "sigmoid" else p.probability) <= (b + 1) / BINS
        ]  # fmt: skip
        if inside:
            right = sum(p.predicted == p.label for p in inside) / len(inside)
            sure = sum(p.sigmoid if confidence == "sigmoid" else p.probability for p in inside) / len(inside)
            error += len(inside) / len(found) * abs(right - sure)
    measured = judged_accuracy(found, confidence=confidence)
    assert measured.calibration_error == pytest.approx(error, abs=1e-6)
    assert error > 0.05
    assert measured.top1 == sum(p.predicted == p.label for p in found) / 500
    assert measured.interval[0] < measured.top1 < measured.interval[1]


def test_top_five_and_agreement(network: BcosNetwork) -> None:
    data = images(60)
    pixels, labels = data.tensors
    worse = Colours().eval()
    with torch.no_grad():
        worse.conv.bias[2] += 20
    found = accuracy(worse, data, original=NormalizedModel(Colours().eval(), network.record.inputs), batch_size=7)
    outputs = worse(pixels).detach()
    order = outputs.argsort(1, descending=True)
    assert found.top1 == pytest.approx(float((order[:, 0] == labels).double().mean()))
    assert 0.2 < found.top1 < 1
    assert found.top5 == pytest.approx(float((order[:, :5] == labels[:, None]).any(1).double().mean()))
    assert found.agreement == pytest.approx(found.top1)  # the original is always right
    assert found.original_top1 == 1.0
    assert found.images == 60
    assert accuracy(network, data).agreement is None


def test_five_classes_or_fewer_are_all_among_the_five() -> None:
    few = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    pixels, labels = images(12).tensors
    found = accuracy(few, list(zip(pixels, labels % 3, strict=True)))
    assert found.top5 == 1.0


def test_figures_are_plain_data_and_the_choice_is_checked() -> None:
    found = judged_accuracy(predictions(20, 3, seed=0))
    assert found.to_dict()["top1"] == found.top1
    assert np.isfinite(found.calibration_error)
    assert CLASSES == 6
    with pytest.raises(UsageError, match="did you mean 'softmax'"):
        judged_accuracy(predictions(20, 3, seed=0), confidence="softmx")


def test_the_original_sees_normalised_images_and_its_neutral_colour_as_zero() -> None:
    mean, std = (0.2, 0.5, 0.6), (0.5, 0.25, 1.0)
    plain = Colours().eval()
    example = torch.rand(2, 3, 8, 8)
    made = bcos_fx.bcosify(plain, recipe="equivalent", example_inputs=example, mean=mean, std=std, channels="bgr")
    original = NormalizedModel(plain.eval(), made.record.inputs)
    torch.testing.assert_close(original(example), made(example), atol=1e-3, rtol=1e-4)
    assert original.neutral == pytest.approx(mean[::-1])  # told as RGB
    colour = torch.tensor(original.neutral).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert float(made.original_input(colour).abs().max()) < 1e-6
    unencoded = bcos_fx.bcosify(plain, recipe="equivalent", example_inputs=example, input="none")
    assert NormalizedModel(plain, unencoded.record.inputs).neutral == (0.0, 0.0, 0.0)


def test_a_curve_needs_a_correct_image(network: BcosNetwork) -> None:
    measure = curve_measure("none", lambda *given: [0.0], [0.0], ylabel="nothing")
    with pytest.raises(UsageError, match="none has nothing to measure"):
        measure(task_of(network, images(6)), [], [Prediction(0, 1, 2, 0.0, 0.5, False)], Runner())
