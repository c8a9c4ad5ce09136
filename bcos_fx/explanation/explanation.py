"""The explanation as its user sees it: the result, with its texts, pictures and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcos_fx.explanation.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Result):
    """Why a network gave an output; see :class:`bcos_fx.explanation.result.Result` for its numbers."""

    def with_tokens(self, tokens: Sequence[str] | Sequence[Sequence[str]]) -> Explanation:
        """Return the explanation with the tokens that stand behind its positions; see :meth:`to_text`.

        Args:
            tokens: of each sample, one text for each position; those of the last positions (padding) may be left out.
                Of a single sample also without a list around them.

        Raises:
            UsageError: the source is not a sequence, or the tokens do not fit it.
        """
        from bcos_fx.explanation.render.tokens import checked

        return replace(self, tokens=checked(self, tokens))

    def to_text(self) -> str:
        """Return what each token, position or feature and all constants contributed; the numbers add up to the output.

        Raises:
            UsageError: the source is an image.
        """
        from bcos_fx.explanation.render.tokens import text

        return text(self)

    def _repr_html_(self) -> str:
        from bcos_fx.explanation.render.html import fragment  # pictures take a while to import

        return fragment(self)

    def image(
        self, *, smooth: int | None = None, percentile: float = 99.5, overlay: bool = False
    ) -> Image.Image | list[Image.Image]:
        """Return the colored explanation as an RGBA image; a list where there are several samples or targets.

        Where W(x) has no color (see ``colors``) the image shows signed contributions: red for, blue against.

        Args:
            smooth: width in pixels of the box that opacity is averaged over; None: 15 at 224 pixels, in proportion.
            percentile: of the weights' norm, in percent, at which opacity is full.
            overlay: draw it over the photograph, which is drawn in light gray.

        Raises:
            UsageError: the source is not an image.
        """
        from bcos_fx.explanation.render.color import images

        drawn = images(self, smooth=smooth, percentile=percentile, overlay=overlay)
        return drawn[0] if len(drawn) == 1 else drawn

    def plot(
        self,
        *,
        top: int = 5,
        panels: Sequence[str] | None = None,
        overlay: bool = False,
        cmap: str | None = None,
        size: float = 2.6,
        font: str | None = None,
        font_size: float = 9.0,
    ) -> Figure:
        """Return a matplotlib figure with a row for each sample and target; a notebook shows it by itself.

        Args:
            top: how many of the highest classes are shown as bars.
            panels: which of ``input``, ``weights``, ``contributions`` and ``outputs`` each row has; None: all.
            overlay: draw maps over the photograph, which is drawn in light gray.
            cmap: a color map of matplotlib for contributions, from against to for; None: blue, white, red.
            size: width of a panel in inches.
            font: family of the texts.
            font_size: of titles, in points; the other texts keep their proportions to it.

        Raises:
            MissingExtraError: matplotlib is not installed.
            UsageError: the explanation has no such panel, or a color map, font or size makes no sense.
        """
        from bcos_fx.explanation.render.figure import figure  # matplotlib is an extra
        from bcos_fx.explanation.render.style import Style

        style = Style(panels=panels, overlay=overlay, cmap=cmap, size=size, font=font, font_size=font_size)
        return figure(self, top=top, style=style)

    def save(self, path: str | Path, **style: Any) -> Path:
        """Write the explanation: a figure (.png, .pdf, .svg), a gallery (.html) or its tensors (.safetensors, .npz).

        The file is written under another name and renamed, so no half-written file is ever seen.

        Args:
            path: of the file.
            style: of a figure: ``panels``, ``overlay``, ``cmap``, ``size``, ``font`` and ``font_size``, as for
                :meth:`plot`.

        Raises:
            UsageError: another suffix, a place that cannot be written to, or a style that does not apply.
            MissingExtraError: a figure is asked for, and matplotlib is not installed.
        """
        from bcos_fx.explanation.render.saving import save
        from bcos_fx.explanation.render.style import Style

        return save(self, Path(path), Style.of(style))
