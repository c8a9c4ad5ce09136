"""What the page shows for which choice: plain functions of a network and its photographs, apart from any page."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from bcos_fx.artifact import load
from bcos_fx.audit.audit import audit, certified, check_one_photograph, confidence_of, photograph_of
from bcos_fx.audit.decision import constants_section, equation, terms
from bcos_fx.audit.page import page
from bcos_fx.audit.section import Section
from bcos_fx.data.classes import check_class_count
from bcos_fx.data.decoding import Unreadable, read_content
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.explanation.explain import explain
from bcos_fx.explanation.explanation import Explanation
from bcos_fx.explanation.render.color import images, photograph, planes, signed, to_image
from bcos_fx.explanation.targets import difference
from bcos_fx.files import replacing
from bcos_fx.methods.baselines import baselines
from bcos_fx.report.sentences import verdict

LISTED = 10
"""How many of the highest classes are offered first, and what a region contributes to."""

POST_HOC = {
    "Input x Gradient (post-hoc)": "input-x-gradient",
    "Integrated Gradients (post-hoc)": "integrated-gradients",
    "Guided Backprop (post-hoc)": "guided-backprop",
    "DeepLIFT (post-hoc)": "deeplift",
    "Grad-CAM (post-hoc)": "grad-cam",
}
OWN = ("W(x) in its own colors", "contributions", "W(x) over the photograph")
WAYS = (*OWN, *POST_HOC)
"""How a class is shown. Methods that run the network thousands of times are left to ``bcos-fx evaluate``."""

_KEPT, _SIDE = 8, 448

Classes = tuple[int, ...]
"""What is explained: () the predicted class, (a,) a class, (a, b) the score of a minus that of b."""


@dataclass(frozen=True)
class Region:
    """A square of pixels of the network's own input.

    Attributes:
        row, column: of the pixel in its middle, from 0.
        side: in pixels.
    """

    row: int
    column: int
    side: int

    def within(self, height: int, width: int) -> tuple[slice, slice]:
        """Return its rows and columns, as far as they lie in an image; at least one of each."""
        first = (self.row - self.side // 2, self.column - self.side // 2)
        rows, columns = (
            slice(max(0, min(low, size - 1)), max(1, min(low + self.side, size)))
            for low, size in zip(first, (height, width), strict=True)
        )
        return rows, columns


class Explorer:
    """Answers questions about the decisions of one network; one at a time, whichever thread asks.

    Args:
        model: file of a converted classifier of photographs.
        folder: for the photographs; they are written there under their SHA-256.
        names: of the classes; None: those that the file keeps.

    Raises:
        UsageError: the network is not a classifier of photographs.
        ArtifactError: the file cannot be read.
    """

    def __init__(self, model: Path, folder: Path, names: Sequence[str] | None = None) -> None:
        self.model, self._folder = model, folder
        self.network = load(model).eval()
        check_one_photograph(self.network)
        self.preprocessing = self.network.preprocessing
        height, width = self.preprocessing.size
        gray = self.network.preprocess(torch.full((self.preprocessing.channels, height, width), 0.5))
        self.certification, self._output = certified(self.network, gray)
        self.names = tuple(names) if names is not None else self.network.record.classes or None
        self._paths: dict[str, Path] = {}
        self._lock = threading.RLock()
        self._explained: Callable[[str, Any], Explanation] = functools.lru_cache(_KEPT)(self._explain)
        self._mapped: Callable[[str, Classes, str], Tensor] = functools.lru_cache(_KEPT)(self._map)
        with torch.no_grad():
            scores = self.network(gray)
        if not isinstance(scores, Tensor) or scores.dim() != 2 or not scores.shape[1]:
            raise UsageError("the network gives no row of scores for classes", hint="a classifier can be shown")
        self.classes = int(scores.shape[1])
        if self.names is not None:
            check_class_count(self.names, self.classes)

    def add(self, file: Path) -> str:
        """Keep a photograph, and return its SHA-256, by which it is asked for.

        Raises:
            Unreadable: it is not an image.
            UsageError: it is several images, or of a shape that the network does not take.
        """
        content = read_content(file)
        if not content:
            raise Unreadable("the file is empty", hint="choose another one")
        digest = hashlib.sha256(content).hexdigest()
        with self._lock:
            if digest not in self._paths:
                photograph_of(self.network, file)
                self.network.preprocess(file)  # an array may have a wrong size
                place = self._folder / digest
                place.mkdir(exist_ok=True)
                self._paths[digest] = place / file.name
                with replacing(self._paths[digest], "the photograph") as stream:
                    stream.write(content)
        return digest

    def path(self, photo: str) -> Path:
        """Return the file of a photograph.

        Raises:
            UsageError: it was not shown since the server started.
        """
        if photo not in self._paths:
            raise UsageError("this photograph was not shown since the server started", hint="drop it on the page again")
        return self._paths[photo]

    def explained(self, photo: str, classes: Classes) -> Explanation:
        """Return the explanation of a class, or of the difference of two.

        Raises:
            UsageError: there is no such photograph or class.
        """
        with self._lock:
            return self._explained(photo, difference(*classes) if len(classes) == 2 else (classes or (None,))[0])

    def listed(self, photo: str, classes: Classes = ()) -> list[tuple[int, str, float]]:
        """Return index, name and probability of the highest classes and of those that are asked for, highest first."""
        seen = self.explained(photo, ())
        assert seen.scores is not None
        scores = seen.scores[0].detach().double()
        sigmoid = confidence_of(self.network, len(scores)) == "sigmoid"
        shares = scores.sigmoid() if sigmoid else scores.softmax(0)
        order = scores.argsort(descending=True, stable=True).tolist()
        return [(i, seen.name(i), float(shares[i])) for place, i in enumerate(order) if place < LISTED or i in classes]

    def name(self, index: int) -> str:
        """Return the name of a class, or its number."""
        return self.names[index] if self.names is not None and index < len(self.names) else f"class {index}"

    def strongest(self, photo: str, classes: Classes, side: int) -> Region:
        """Return the square that contributes most to the score that is shown."""
        values = self.explained(photo, classes).contributions[:1].detach()
        side = min(side, *values.shape[1:])
        sums = F.avg_pool2d(values, side, stride=1)[0]
        row, column = divmod(int(sums.argmax()), sums.shape[1])
        return Region(row + side // 2, column + side // 2, side)

    def pictures(self, photo: str, classes: Classes, way: str, region: Region | None) -> list[Image.Image]:
        """Return what the network sees and what explains the classes, enlarged, with the region's outline.

        Raises:
            UsageError: a post-hoc method does not apply to the network, or there is no such way.
            MissingExtraError: captum, which the post-hoc methods need, is not installed.
        """
        part = self.explained(photo, classes)
        seen = photograph(part, 0)
        assert seen is not None
        return [self._draw_region(picture, region) for picture in (seen, self._picture(part, photo, classes, way))]

    def answer(self, photo: str, classes: Classes) -> list[Section]:
        """Return what the score is made of, and its constants."""
        part = self.explained(photo, classes)
        score, image, constants, residual = terms(part)
        rows = (
            ("score", f"{score:.6g}"),
            ("from the image", f"{image:.6g}"),
            ("from constants", f"{constants:.6g}"),
            ("rounding", f"{residual:.1e}"),
            ("the sum is", part.verdict),
        )
        return [Section(f"Why {part.target_name()}", equation(part), rows=rows, alert=part.warning),
                constants_section(part)]  # fmt: skip

    def region(self, photo: str, classes: Classes, region: Region) -> Section:
        """Return what a region contributes to the score that is shown, and to each of the highest classes."""
        part = self.explained(photo, classes)
        rows, columns = region.within(*self.preprocessing.size)
        inside = float(part.contributions[0, rows, columns].sum())
        whole = float(part.contributions.sum())
        share = f": {inside / whole:.1%} of what comes from the image" if whole > 0 else ""
        listed = [index for index, *_ in self.listed(photo, classes)]
        with self._lock:
            of_all = self._explained(photo, tuple(listed))
        values = of_all.contributions[0, :, rows, columns].sum((1, 2)).tolist()
        order = sorted(zip(values, listed, strict=True), key=lambda pair: -pair[0])
        where = f"Rows {rows.start} to {rows.stop - 1}, columns {columns.start} to {columns.stop - 1}"
        text = f"{inside:+.4g} of the score {float(part.output[0]):.4g} for {part.target_name()}{share}."
        table = tuple((part.name(index), f"{value:+.4g}") for value, index in order)
        return Section(where, text, ("strongest for", "contribution"), table)

    def glance(self) -> str:
        """Return in a line what is certified, and what was proved of the conversion."""
        count = "" if self.names is None else f" · {amount(len(self.names), 'class')}"
        certificate = "Certified dynamic linear: the sums are what the network computed"
        if not self.certification.ok:
            certificate = "NOT DYNAMIC LINEAR: the sums are no explanation"
        proof = f"when converted: {verdict(self.network.report)}"
        since = ", fine-tuned since" if self.network.record.training else ""
        return f"{certificate} · {proof}{since}{count}"

    def report(self, photo: str, classes: Classes) -> bytes:
        """Return the report on the decision, the same bytes as ``bcos-fx report`` writes of the same files."""
        first, others = (classes or (None,))[0], classes[1:]
        with self._lock:
            return page(audit(self.model, self.path(photo), target=first, against=others, names=self.names))

    def _explain(self, photo: str, target: Any) -> Explanation:
        image, several = self.network.preprocess(self.path(photo)), isinstance(target, tuple)
        return explain(
            self.network, image, [list(target)] if several else target, output=self._output, names=self.names
        )

    def _picture(self, part: Explanation, photo: str, classes: Classes, way: str) -> Image.Image:
        if way == OWN[0]:
            return images(part)[0]
        if way == OWN[1]:
            return to_image(signed(planes(part))[0])
        if way == OWN[2]:
            return images(part, overlay=True)[0]
        if way not in POST_HOC:
            raise UsageError(f"nothing is shown as {way!r}", hint=f"known: {', '.join(WAYS)}")
        with self._lock:
            return to_image(signed(self._mapped(photo, classes or (self.listed(photo)[0][0],), way))[0])

    def _map(self, photo: str, classes: Classes, way: str) -> Tensor:
        """Return a class's map (1, H, W) by a post-hoc method on this network; of two classes the maps' difference."""
        (method,) = baselines(POST_HOC[way], network=self.network)
        maps = method.maps(self.network.preprocess(self.path(photo)), torch.tensor([classes]))[0]
        return maps[:1] - maps[1:].sum(0, keepdim=True)

    def _draw_region(self, picture: Image.Image, region: Region | None) -> Image.Image:
        """Enlarge a picture so far that its pixels can be pointed at, and outline the region."""
        factor = self.enlargement
        size = (picture.width * factor, picture.height * factor)
        enlarged = picture.convert("RGBA").resize(size, Image.Resampling.NEAREST)
        opaque = Image.new("RGB", size, "white")
        opaque.paste(enlarged, mask=enlarged)
        if region is not None:
            rows, columns = region.within(*self.preprocessing.size)
            corner, end = (columns.start * factor, rows.start * factor), (columns.stop * factor, rows.stop * factor)
            for inset, color in enumerate(("white", "white", "black", "black"), start=1):
                outline = (*(value - inset for value in corner), *(value - 1 + inset for value in end))
                ImageDraw.Draw(opaque).rectangle(outline, outline=color)
        return opaque

    @property
    def enlargement(self) -> int:
        """How many pixels of a shown picture stand for one of the network's, on each side."""
        return max(1, -(-_SIDE // max(self.preprocessing.size)))
