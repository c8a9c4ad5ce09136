"""How explanations are drawn: panels, colors of contributions, the photograph under maps, sizes and fonts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any

from bcos_fx.errors import UsageError, check_choice, nearest
from bcos_fx.lazy import library

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

PANELS = ("input", "weights", "contributions", "outputs")


@dataclass(frozen=True)
class Style:
    """How a figure looks; fields are checked when it is made.

    Attributes:
        panels: which of :data:`PANELS` each row has, in this order; None: all that the explanation has.
        overlay: draw maps over the photograph, which is drawn in gray.
        cmap: a color map of matplotlib for contributions, from against to for; None: blue, white, red.
        size: width of a panel in inches, > 0.
        font: family of the texts; None: matplotlib's.
        font_size: of titles, in points, > 0; the other texts keep their proportions to it.

    Raises:
        UsageError: a panel, color map or font is not known, or a size is not positive.
    """

    panels: Sequence[str] | None = None
    overlay: bool = False
    cmap: str | None = None
    size: float = 2.6
    font: str | None = None
    font_size: float = 9.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Style:
        """Return the style that a caller's keywords describe.

        Raises:
            UsageError: a keyword is not known, or a value makes no sense.
        """
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise UsageError(f"a figure has no {name!r} to choose", hint=nearest(name, names))
        return cls(**given)

    def __post_init__(self) -> None:
        if isinstance(self.panels, str):
            raise UsageError(f"panels is {self.panels!r}", hint=f"give a list, such as [{self.panels!r}]")
        for name in self.panels or ():
            check_choice("panels", name, PANELS)
        if self.panels is not None and not self.panels:
            raise UsageError("there is no panel to draw", hint=f"choose from {', '.join(PANELS)}")
        for name in ("size", "font_size"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < float(value) < 1000:
                raise UsageError(f"{name} is {value!r}", hint="give a number above 0, below 1000")
        if self.cmap is not None:
            # Only for its check: an unknown color map is found out before the work, and not after it.
            self.colors()
        if self.font is not None:
            _check_font(self.font)

    def colors(self) -> Colormap | None:
        """Return matplotlib's color map for contributions; None for blue, white and red."""
        if self.cmap is None:
            return None
        colormaps = library("matplotlib", "plot", "a color map").colormaps
        check_choice("cmap", self.cmap, colormaps)
        colormap: Colormap = colormaps[self.cmap]
        return colormap


def _check_font(family: str) -> None:
    manager = library("matplotlib.font_manager", "plot", "a font")
    try:
        manager.findfont(family, fallback_to_default=False)
    except ValueError as error:
        hint = nearest(family, manager.get_font_names())
        raise UsageError(f"font is {family!r}, which is not installed", hint=hint) from error
