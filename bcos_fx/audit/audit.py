"""audit(): everything that a report on one decision contains, as data."""

from __future__ import annotations

import copy
import datetime
import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch
from PIL import Image
from torch import Tensor

from bcos_fx.artifact import load, read_header
from bcos_fx.audit.decision import (
    compared_section,
    constants_section,
    decision_section,
    explained_section,
    sums_section,
)
from bcos_fx.audit.network import network_sections
from bcos_fx.audit.section import Section
from bcos_fx.data.datasets import source_of
from bcos_fx.errors import UsageError, check_choice
from bcos_fx.escaping import amount
from bcos_fx.explanation.certify import Certification, certify
from bcos_fx.explanation.explain import explain
from bcos_fx.explanation.targets import difference, named
from bcos_fx.network import BcosNetwork
from bcos_fx.version import __version__

CONFIDENCES = ("softmax", "sigmoid")
_LIMITS = (
    "This report shows how the network came to its answer, exactly. It does not show that the answer is right, that "
    "the network was trained on suitable data, or how it would decide on another image. A checksum detects damage and "
    "is not a signature: whoever alters a file can compute it again."
)


@dataclass(frozen=True)
class Audit:
    """What is known of one decision.

    Attributes:
        title: of the report.
        sections: its parts, in order.
        complete: whether the network is certified and all contributions add up. Where hardly anything comes from the
            image, that says little, and a section carries an alert.
        prediction: the class with the highest score.
        probabilities: of the classes that are shown, highest first: name -> share in [0, 1].
    """

    title: str
    sections: tuple[Section, ...]
    complete: bool
    prediction: str
    probabilities: dict[str, float]


def audit(
    model: Path,
    image: Path,
    *,
    target: int | str | None = None,
    against: Sequence[int | str] = (),
    top: int = 3,
    names: Sequence[str] | None = None,
    date: str = "",
    confidence: str = "",
) -> Audit:
    """Explain one decision of a network, with all that an auditor needs to check it.

    Args:
        model: file of a converted classifier of photographs.
        image: the photograph.
        target: the class that is compared with others, by name or index; None: the one with the highest score.
        against: classes that it is compared with; empty: the one with the highest score besides.
        top: how many of the highest classes are explained, at least 1.
        names: of the classes; None: those that the file keeps.
        date: for the report, in ISO 8601; it is not taken from the clock, so that a report can be made again.
        confidence: how scores become probabilities: ``softmax``, or ``sigmoid`` for networks that were trained with
            binary cross-entropy. Empty: by the loss of the last training, where the file keeps it, else softmax.

    Raises:
        UsageError: the network is not a classifier of photographs, or an argument makes no sense.
        Unreadable: the image cannot be read.
        ArtifactError: the model cannot be read.
        VerificationError: the network is not dynamic linear.
    """
    if top < 1:
        raise UsageError(f"top is {top!r}", hint="give 1 or more")
    if date:
        try:
            datetime.datetime.fromisoformat(date)
        except ValueError as error:
            raise UsageError(f"{date!r} is not a date", hint="write it as 2026-11-30 (ISO 8601)") from error
    if confidence:
        check_choice("confidence", confidence, CONFIDENCES)
    header, network = read_header(model), load(model).eval()
    picture = photograph_of(network, image)
    given = network.preprocess(image)
    certification, output = certified(network, given)
    known = tuple(names) if names is not None else network.record.classes or None
    seen = explain(network, given, target=None, output=output, names=known)
    if seen.scores is None or seen.scores.shape[1] < 1:
        raise UsageError("the network gives no row of scores for classes", hint="a report is of a classifier")
    scores = seen.scores[0].detach().double()
    order = scores.argsort(descending=True, stable=True).tolist()
    winner = order[0] if target is None else _index(named(target, known), len(scores))
    others = [_index(named(other, known), len(scores)) for other in against] or [i for i in order if i != winner][:1]
    shown = list(dict.fromkeys([*order[:top], winner, *others]))
    explanation = explain(network, given, target=[shown], output=output, names=known)
    parts = [explanation.of_target(place) for place in range(len(shown))]
    compared = [
        explain(network, given, target=difference(winner, other), output=output, names=known)
        for other in others
        if other != winner
    ]
    how = confidence or confidence_of(network, len(scores))
    shares = scores.sigmoid() if how == "sigmoid" else scores.softmax(0)
    file = [("file", f"{model.name}, {header.size:,} bytes, format {header.format}"), ("SHA-256", _digest(model))]
    file.append(("written by", ", ".join(f"{name} {version}" for name, version in header.versions.items())))
    sections = [
        decision_section(image.name, date, seen, order[: max(top, 5)], shares, how),
        *(
            explained_section(part, shares[index])
            for part, index in zip(parts, shown, strict=True)
            if index in (*order[:top], winner)
        ),
        *(compared_section(part) for part in compared),
        constants_section(parts[shown.index(winner)]),
        sums_section([*parts, *compared]),
        *network_sections(network, certification, file),
        _versions(image, picture),
    ]
    complete = certification.ok and all(part.verdict != "incomplete" for part in (*parts, *compared))
    return Audit(
        f"Report on a decision: {seen.name(order[0])}",
        tuple(sections),
        complete,
        seen.name(order[0]),
        {seen.name(index): float(shares[index]) for index in order[:top]},
    )


def check_one_photograph(network: BcosNetwork) -> None:
    """Refuse a network that takes something else than one photograph.

    Raises:
        UsageError: it takes several inputs, a sample as a whole, or no image with 1 or 3 channels.
    """
    inputs = network.record.inputs
    if len(inputs) != 1 or inputs[0].samples != 0:
        taken = amount(len(inputs), "input") if len(inputs) > 1 else "a sample as a whole"
        hint = "what is shown here is one photograph; explain others from Python"
        raise UsageError(f"the network takes {taken}", hint=hint)
    inputs[0].preprocessing()


def photograph_of(network: BcosNetwork, image: Path) -> Any:
    """Read the photograph, as its file has it.

    Raises:
        UsageError: the network takes something else than one photograph, or the path is not that of one.
        Unreadable: it is not an image.
    """
    check_one_photograph(network)
    images = source_of(image)
    if image.is_dir() or len(images) != 1:
        raise UsageError(f"{amount(len(images), 'image')} were given", where=str(image), hint="give one photograph")
    return images.load(0).image


def certified(network: BcosNetwork, given: Tensor) -> tuple[Certification, str | None]:
    """Certify the network in float64 on the photograph; of one that ends in a softmax, the value before it."""
    exact = copy.deepcopy(network).double()
    whole = certify(exact, given.double())
    if whole.ok:
        return whole, None
    before = certify(exact, given.double(), output="logits")
    return (before, "logits") if before.ok else (whole, None)


def _index(target: object, count: int) -> int:
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < count:
        raise UsageError(
            f"{target!r} is not one of the network's {amount(count, 'class')}", hint=f"a name, or 0 to {count - 1}"
        )
    return target


def confidence_of(network: BcosNetwork, classes: int) -> str:
    """Return how scores become probabilities: by the loss of the last training that is recorded, else softmax."""
    losses = [str(run.options.get("loss", "")) for run in network.record.training[-1:]]
    return "sigmoid" if classes == 1 or any("bce" in loss and "distil" not in loss for loss in losses) else "softmax"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _versions(image: Path, picture: object) -> Section:
    size = f"{picture.width} x {picture.height} pixels" if isinstance(picture, Image.Image) else "an array"
    libraries = f"torch {torch.__version__}, numpy {numpy.__version__}, Pillow {PIL.__version__}"
    rows = (
        ("image", f"{image.name}, {image.stat().st_size:,} bytes, {size}"),
        ("SHA-256 of the image", _digest(image)),
        ("made with", f"bcos-fx {__version__}, {libraries}"),
        ("on", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, CPU"),
    )
    return Section("Files, versions and limits", _LIMITS, rows=rows)
