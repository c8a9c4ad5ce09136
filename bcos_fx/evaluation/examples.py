"""The best, the median and the worst grids, as cards for a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bcos_fx.escaping import shown_in_html
from bcos_fx.evaluation.localisation import Localisation, grid_image, windowed
from bcos_fx.evaluation.predictions import EvaluationTask
from bcos_fx.evaluation.session import Evaluation
from bcos_fx.explanation.explain import explain
from bcos_fx.explanation.render.color import images, signed, to_image
from bcos_fx.explanation.render.html import data_uri
from bcos_fx.methods.method import dynamic_linear

_SIDE = 224


def example_cards(evaluation: Evaluation) -> list[str]:
    """Return a card for the best, the median and the worst grid of each protocol, by the network's own explanation."""
    cards = []
    for results in evaluation.localisations:
        result = results[0]
        # Stable: of equal grids the first, in every run.
        order = np.argsort(-result.per_grid.mean(1), kind="stable").tolist()
        places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
        cards += [_card(evaluation.task, result, number, name) for name, number in places.items()]
    return cards


def _card(task: EvaluationTask, result: Localisation, number: int, name: str) -> str:
    grid, scores = result.grids[number], result.per_grid[number].tolist()
    image = grid_image(task, grid, result.protocol)
    views = [_view(to_image(image[0]), f"grid {number}")]
    for picture, label, score in zip(_pictures(task, result, image, grid.labels), grid.labels, scores, strict=True):
        views.append(_view(picture, f"{task.source.class_name(label)}: {score:.3f}"))
    mean = float(np.mean(scores))
    side = result.protocol.side
    title = f"{name} of {len(result.grids)}: {side}x{side} grid {number}, mean score {mean:.3f}"
    files = ", ".join(task.source.name(index) for index in grid.images)
    words = shown_in_html(f"{title} {files}".lower())
    return (
        f'<figure class="card" data-words="{words}" data-output="{mean:.6g}">'
        f"<figcaption><b>{shown_in_html(title)}</b></figcaption>"
        f'<div class="views">{"".join(views)}</div><p class="note">{shown_in_html(files)}</p></figure>'
    )


def _pictures(task: EvaluationTask, result: Localisation, image: Tensor, labels: Sequence[int]) -> list[Image.Image]:
    """Draw the network's explanation of each label: in color where W(x) has colors, else signed contributions."""
    targets = torch.tensor([list(labels)], device=image.device)
    if result.protocol.windows:
        method = windowed(dynamic_linear(task.model), task.preprocessing.height, task.preprocessing.width)
        return [to_image(picture) for picture in signed(method.maps(image, targets)[0].float().cpu())]
    return images(explain(task.model, image, targets))


def _view(picture: Image.Image, caption: str) -> str:
    picture.thumbnail((_SIDE, _SIDE))  # a page of full grids would be tens of megabytes
    text = shown_in_html(caption)
    return f'<div class="view"><img src="{data_uri(picture)}" alt="{text}" width="{_SIDE}"><span>{text}</span></div>'
