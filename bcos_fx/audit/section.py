"""The parts of a report, before they become a page or a PDF."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Section:
    """One part of a report; its texts are as they came, and are escaped where they are drawn.

    Attributes:
        title: above it.
        text: a paragraph.
        head: titles of the columns of ``rows``; empty for pairs of label and text.
        rows: a table.
        pictures: caption and image, in one row.
        alert: something that a reader must not miss; empty for nothing.
    """

    title: str
    text: str = ""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    pictures: tuple[tuple[str, Image.Image], ...] = ()
    alert: str = ""
