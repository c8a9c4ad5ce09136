"""Nested outputs by their path, and what of a detector can be explained."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.tracing.inputs import part_of

Pair = namedtuple("Pair", ["scores", "boxes"])


@dataclasses.dataclass
class Found:
    """What a network returns, as a dataclass."""

    logits: Tensor
    extra: Any = None


class Detector(nn.Module):
    """Scores and boxes for each place, in one of several forms; no suppression."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.body = form, nn.Conv2d(3, 4, 3)
        self.score, self.box = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        deep = self.body(x).relu()
        scores, boxes = self.score(deep).flatten(2).mT, self.box(deep).flatten(2).mT
        return {
            "list of dicts": lambda: {"detections": [{"scores": scores, "boxes": boxes}], "loss": None},
            "tuple of tuples": lambda: ((boxes, scores), deep),
            "named tuple": lambda: {"last": Pair(scores, boxes)},
            "dataclass": lambda: Found(boxes, {"scores": [scores]}),
            "ordered, dotted": lambda: OrderedDict({"head.0": {"cls.scores": scores}, "head": boxes}),
        }[self.form]()


PATHS = {
    "list of dicts": ["detections.0.scores", "detections.-1.scores"],
    "tuple of tuples": ["0.1", "0.-1"],
    "named tuple": ["last.scores", "last.0"],
    "dataclass": ["extra.scores.0"],
    "ordered, dotted": ["head.0.cls.scores"],
}


@pytest.mark.parametrize(("form", "path"), [(form, path) for form, paths in PATHS.items() for path in paths])
def test_a_boxs_score_is_explained_by_its_own_gradient(form: str, path: str) -> None:
    torch.manual_seed(0)
    network = Detector(form).double().eval()
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    made = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", input="none", output_key=path)
    box, kind = 5, 1
    found = bcos_fx.explain(made, x, (box, kind))
    leaf = x.clone().requires_grad_()
    scores = network.score(network.body(leaf).relu()).flatten(2)[:, kind, box]
    scores.sum().backward()
    torch.testing.assert_close(found.output, scores.detach())
    torch.testing.assert_close(found.weights, leaf.grad, rtol=1e-9, atol=1e-12)
    assert found.complete


@pytest.mark.parametrize("form", PATHS)
def test_without_a_choice_all_paths_are_listed(form: str) -> None:
    with pytest.raises(bcos_fx.errors.UsageError) as caught:
        bcos_fx.bcosify(Detector(form).eval(), example_inputs=torch.rand(2, 3, 6, 6))
    assert "output_key=" in str(caught.value)
    for word in {"list of dicts": ["detections.0.scores"], "tuple of tuples": ["0.1", "'0.0'"]}.get(form, ["scores"]):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("detections.1.scores", "detections.1"),
        ("detections.0.masks", "detections.0.masks"),
        ("nothing", "nothing"),
        ("detections.0", "detections.0.scores"),
        ("loss", "NoneType"),
        (3, "3"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(path: int | str, words: str) -> None:
    with pytest.raises(bcos_fx.errors.UsageError) as caught:
        bcos_fx.bcosify(Detector("list of dicts").eval(), example_inputs=torch.rand(2, 3, 6, 6), output_key=path)
    assert words in str(caught.value)


def test_no_path_reads_more_than_what_was_returned() -> None:
    value = {"a": torch.zeros(1), "b": [1]}
    for path in ("__class__", "a.data", "b.append", "b.__len__", "a.__dict__"):
        with pytest.raises(KeyError):
            part_of(value, path)


class ScoresOfBoxes(nn.Module):
    """The scores (N, boxes, classes) of a torchvision detector, before suppression."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(list(self.backbone(x).values()))["cls_logits"]


def test_a_torchvision_detector_is_refused_and_its_boxes_scores_are_explained() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    torch.manual_seed(0)
    network = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    for given in (([torch.rand(3, 320, 320)],), torch.rand(1, 3, 320, 320)):
        with pytest.raises(bcos_fx.errors.UsageError, match="cls_logits"):
            bcos_fx.bcosify(network, example_inputs=given, output_key="0.scores")
    scores = ScoresOfBoxes(network).eval()
    x = torch.rand(1, 3, 96, 96)
    found = bcos_fx.explain(scores, x, (7, 2))
    assert found.complete
    with torch.no_grad():
        torch.testing.assert_close(found.output, scores(x)[:, 7, 2], rtol=1e-4, atol=1e-5)
    added = found.contributions.sum((1, 2)) + found.constants.total()
    torch.testing.assert_close(added, found.output, rtol=1e-4, atol=1e-5)
