"""Figures that notebooks show by themselves, in files of the same bytes each time. Imports matplotlib, an extra."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Text stays text that editors can change and search: TrueType outlines, not Type 3.
_SETTINGS: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "bcos_fx"}
_DATELESS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


@contextmanager
def reproducible() -> Iterator[None]:
    """Write figures within so that the same one gives the same bytes, and text that editors can change."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # Names in a script that the font lacks are drawn as boxes, which the picture itself shows.
        warnings.filterwarnings("ignore", "Glyph ", UserWarning)
        yield


class Drawing(Figure):
    """A matplotlib figure outside of pyplot, which a notebook shows without ``%matplotlib inline``."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Write the figure as matplotlib does, without dates and with fonts of Type 42."""
        suffix = Path(fname).suffix[1:] if isinstance(fname, str | Path) else ""
        form = str(options.get("format") or suffix or mpl.rcParams["savefig.format"]).lower()
        metadata = _DATELESS.get(form, {}) | dict(options.pop("metadata", None) or {})
        with reproducible():
            super().savefig(fname, metadata=metadata or None, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
