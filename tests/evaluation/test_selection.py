"""Which images stand in which grids, against the published procedure told in plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bcos_fx.errors import UsageError
from bcos_fx.evaluation import fair, published
from bcos_fx.evaluation.selection import Grid, Prediction, Protocol, select


def predictions(images: int, classes: int, seed: int, *, steps: float = 0.0) -> list[Prediction]:
    """Made-up predictions, two thirds of them correct; rounded to steps there are ties."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(images):
        label = int(generator.integers(classes))
        predicted = label if generator.random() < 2 / 3 else (label + 1) % classes
        logit = float(np.float32(generator.normal(1.5, 2)))
        if steps:
            logit = round(logit / steps) * steps
        found.append(Prediction(index, label, predicted, logit, 1 / (1 + math.exp(-logit)), True))
    return found


def queues_slowly(found: list[Prediction], classes: int) -> dict[int, list[Prediction]]:
    """Each class's correct and confident images, put in their places one by one."""
    queues: dict[int, list[Prediction]] = {label: [] for label in range(classes)}
    for prediction in found:
        sigmoid = np.float32(1) / (np.float32(1) + np.exp(-np.float32(prediction.logit)))
        if prediction.predicted != prediction.label or sigmoid <= 0.5:
            continue
        queue = queues[prediction.label]
        place = 0
        while place < len(queue) and queue[place].logit >= prediction.logit:
            place += 1
        queue.insert(place, prediction)
    return queues


def told_slowly(found: list[Prediction], n: int, classes: int, grids: int, *, skipped: int, seed: int) -> list[Grid]:
    """The published procedure, class by class and image by image."""
    queues = queues_slowly(found, classes)
    np.random.seed(seed)
    listed: list[Prediction] = []
    while True:
        available = np.array([label for label in range(classes) if queues[label]])
        if len(available) <= n:
            break
        for label in np.random.choice(available, size=n, replace=False):
            listed.append(queues[int(label)].pop(0))
    made: list[Grid] = []
    start = 0
    while len(made) < grids:
        images: list[int] = []
        labels: list[int] = []
        position = start
        while position < len(listed) and len(images) < n:
            if listed[position].label not in labels:
                images.append(listed[position].index)
                labels.append(listed[position].label)
            position += 1
        if len(images) < n:
            break
        made.append(Grid(tuple(images), tuple(labels)))
        start = position + skipped
    return made


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("side", "classes", "steps"), [(2, 5, 0.0), (2, 12, 0.5), (3, 10, 0.25), (3, 30, 0.0)])
def test_published_grids_are_those_of_the_procedure_in_loops(side: int, classes: int, steps: float, seed: int) -> None:
    found = predictions(400, classes, seed, steps=steps)
    grids = select(found, published(side=side))
    assert list(grids) == told_slowly(found, side * side, classes, 500, skipped=1, seed=42)
    assert all(len(set(grid.labels)) == side * side for grid in grids)
    few = select(found, published(side=side, grids=2))
    assert few == grids[:2]


def test_a_grid_passes_over_a_class_that_it_has() -> None:
    """With 5 classes and 4 cells, a grid that straddles two draws nearly always meets a class again."""
    found = predictions(400, 5, seed=0)
    skipping = select(found, published(side=2))
    used = sum(len(grid.images) for grid in skipping)
    listed = sum(len(grid.images) for grid in select(found, fair(side=2, confidence="sigmoid")))
    assert used + len(skipping) - 1 < listed - 4  # more was lost than the images that are skipped on purpose


@pytest.mark.parametrize("seed", [0, 7])
def test_fair_grids_skip_nothing_and_follow_the_seed(seed: int) -> None:
    found = predictions(300, 12, seed)
    grids = select(found, fair(side=2, seed=seed, confidence="sigmoid", grids=1000))
    assert list(grids) == told_slowly(found, 4, 12, 1000, skipped=0, seed=seed)
    assert grids != select(found, fair(side=2, seed=seed + 1, confidence="sigmoid", grids=1000))
    images = [image for grid in grids for image in grid.images]
    assert len(images) == len(set(images))


def test_fair_reads_the_softmax() -> None:
    found = [Prediction(i, i, i, 9.0, 0.4 if i == 0 else 0.6, True) for i in range(6)]
    (grid,) = select(found, fair(side=2))
    assert 0 not in grid.labels
    with pytest.raises(UsageError, match="do not suffice"):
        select(found, fair(side=2, threshold=0.6))
    assert select(found, fair(side=2, confidence="sigmoid", threshold=0.99))


def test_the_callers_random_numbers_stay() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    select(predictions(100, 6, 0), published(side=2))
    assert np.random.get_state()[1].tolist() == before


def test_too_few_classes_are_counted() -> None:
    found = predictions(200, 9, seed=3)
    with pytest.raises(UsageError, match=r"more than 9 classes .* there are 9") as caught:
        select(found, published(side=3))
    assert "200 images" in str(caught.value)
    assert select(found, published(side=2))
    with pytest.raises(UsageError, match="no image is classified correctly"):
        select([Prediction(0, 1, 2, 3.0, 0.9, False)], published(side=2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"side": 0}, "side is 0"),
        ({"side": 2.5}, "side is 2.5"),
        ({"grids": 0}, "grids is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "below"),
        ({"smooth": 4}, "odd"),
        ({"confidence": "sofmax"}, "did you mean 'softmax'"),
        ({"threshold": 1.0}, "threshold"),
        ({"rescaled": True, "windows": True}, "leave one out"),
    ],
)
def test_settings_without_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fair(**options)


def test_the_protocols_are_what_their_names_say() -> None:
    assert published() == Protocol("published", 3, 500, 42, "sigmoid", 0.5, 1, 15, rescaled=False, windows=False)
    assert fair().to_dict() == {**published().to_dict(), "name": "fair", "confidence": "softmax", "skipped": 0}
