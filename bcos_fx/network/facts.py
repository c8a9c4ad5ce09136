"""What is known of a network beside what it computes: its classes' names, where it came from, how it was trained.

All of it comes from people and files, so nothing is believed beyond what can be checked: types, sizes, and that there
are as many names as outputs. Texts are escaped where they are shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from bcos_fx.data.classes import check_class_count
from bcos_fx.errors import BcosFxError
from bcos_fx.escaping import amount

MOST_CLASSES, LONGEST_NAME, MOST_RUNS, _LONGEST_TEXT, _MOST_OPTIONS = 200_000, 1_000, 1_000, 2_000, 100
_SHOWN = 5
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Origin:
    """Which network was converted. A text that is not known is empty.

    Attributes:
        name: architecture and weights, such as ``torchvision:resnet50@IMAGENET1K_V2``; or the module's class.
        file: name of the file of weights, without its folder.
        sha256: of that file, 64 hexadecimal digits.
        license: of the weights, as their publisher or the user names it.
        url: where they come from.
    """

    name: str
    file: str = ""
    sha256: str = ""
    license: str = ""
    url: str = ""


@dataclass(frozen=True)
class TrainingRun:
    """One run of fine-tuning.

    Attributes:
        data: name of the training images.
        images: how many there are; None where that is not known.
        recipe: name of the recipe.
        epochs: passes over the images.
        options: further settings, such as lr, batch_size and seed.
        tested_on: name of the test images; empty for none.
        before, accuracy: share in [0, 1] of the test images that were answered rightly before and after, without labels
            as the original answers; None where that was not measured.
    """

    data: str
    images: int | None
    recipe: str
    epochs: int
    options: Mapping[str, float | str] = field(default_factory=dict)
    tested_on: str = ""
    before: float | None = None
    accuracy: float | None = None

    def __str__(self) -> str:
        counted = "" if self.images is None else f" ({amount(self.images, 'image')})"
        parts = [f"{self.recipe}, {amount(self.epochs, 'epoch')} on {self.data}{counted}"]
        parts += [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.options.items()
        ]
        if self.accuracy is not None:
            was = "" if self.before is None else f", {self.before:.2%} before"
            parts.append(f"accuracy {self.accuracy:.2%} on {self.tested_on or 'test images'}{was}")
        return ", ".join(parts)


def check_facts(
    classes: Sequence[str],
    training: Sequence[TrainingRun],
    origin: Origin | None,
    outputs: int | None,
    error: type[BcosFxError],
) -> None:
    """Check what is kept of a network.

    Args:
        classes: names of its classes, in order; empty where they are not known.
        training: its runs of fine-tuning, the latest last.
        origin: which network was converted.
        outputs: how many scores the network gives; None where it gives no row of them.
        error: what is raised.

    Raises:
        BcosFxError: of the type ``error``: something is too long, out of range, or does not fit the network.
    """
    if classes:
        check_class_count(classes, outputs, error)
    if len(classes) > MOST_CLASSES or any(not name or len(name) > LONGEST_NAME for name in classes):
        raise error(f"class names are texts of 1 to {LONGEST_NAME} characters", hint="name every class, in order")
    if len(training) > MOST_RUNS:
        raise error(f"the record lists {len(training)} runs of training, and at most {MOST_RUNS} are kept")
    for run in training:
        shares = [share for share in (run.before, run.accuracy) if share is not None]
        numbers = [value for value in run.options.values() if not isinstance(value, str)]
        sizes = [run.epochs, 0 if run.images is None else run.images, _MOST_OPTIONS - len(run.options)]
        if min(sizes) < 0 or not all(0 <= share <= 1 for share in shares) or not all(map(math.isfinite, numbers)):
            raise error("the record of a training makes no sense", where=f"the run by the recipe {run.recipe[:80]!r}")
    texts = [
        text for run in training for text in (run.data, run.recipe, run.tested_on, *run.options, *run.options.values())
    ]
    texts += [] if origin is None else [getattr(origin, field.name) for field in fields(origin)]
    if any(isinstance(text, str) and len(text) > _LONGEST_TEXT for text in texts):
        raise error(f"a text of the record is longer than {_LONGEST_TEXT} characters")
    if origin is not None and origin.sha256 and not _DIGEST.fullmatch(origin.sha256):
        raise error(f"{origin.sha256[:80]!r} is not a SHA-256", where="the record's origin")


def describe_facts(
    classes: Sequence[str], training: Sequence[TrainingRun], origin: Origin | None
) -> list[tuple[str, str]]:
    """Return what is known of a network as rows of label and text; nothing is escaped."""
    rows = []
    if origin is not None:
        rows.append(("original", origin.name))
        rows += [("weights", f"{origin.file}, SHA-256 {origin.sha256}")] if origin.file else []
        rows += [("licence", origin.license)] if origin.license else []
        rows += [("from", origin.url)] if origin.url else []
    if classes:
        more = f", and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
        rows.append(("classes", f"{len(classes)}: {', '.join(classes[:_SHOWN])}{more}"))
    numbered = len(training) > 1
    rows += [(f"training {place}" if numbered else "training", str(run)) for place, run in enumerate(training, 1)]
    return rows
