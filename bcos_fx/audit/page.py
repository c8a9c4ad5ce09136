"""A report as one HTML file that needs nothing else and prints well."""

from __future__ import annotations

import html
from importlib import resources

from bcos_fx.audit.audit import Audit
from bcos_fx.audit.section import Section
from bcos_fx.escaping import shown_in_a_line
from bcos_fx.explanation.render.html import data_uri


def page(found: Audit) -> bytes:
    """Return a report as HTML, in UTF-8; the same report gives the same bytes."""
    template = resources.files("bcos_fx.audit").joinpath("page.html").read_text(encoding="utf-8")
    before, after = template.split("{{sections}}")
    sections = "".join(map(section_html, found.sections))
    return f"{before.replace('{{title}}', _text(found.title))}{sections}{after}".encode("utf-8", errors="replace")


def section_html(section: Section) -> str:
    """Return a section as HTML; all its texts are escaped."""
    parts = [f"<h2>{_text(section.title)}</h2>"]
    parts += [f'<p class="alert">{_text(section.alert)}</p>'] if section.alert else []
    parts += [f"<p>{_text(section.text)}</p>"] if section.text else []
    if section.pictures:
        figures = (
            f'<figure><img src="{data_uri(picture)}" alt="{_text(caption)}"><figcaption>{_text(caption)}</figcaption>'
            "</figure>"
            for caption, picture in section.pictures
        )
        parts.append(f'<div class="pictures">{"".join(figures)}</div>')
    if section.rows:
        kind = "numbers" if section.head else "facts"
        parts.append(f'<table class="{kind}">{_head(section)}<tbody>{"".join(map(_row, section.rows))}</tbody></table>')
    return f"<section>{''.join(parts)}</section>\n"


def _head(section: Section) -> str:
    cells = "".join(f'<th scope="col">{_text(title)}</th>' for title in section.head)
    return f"<thead><tr>{cells}</tr></thead>" if cells else ""


def _row(row: tuple[str, ...]) -> str:
    first, *others = map(_text, row)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _text(text: str) -> str:
    return html.escape(shown_in_a_line(text), quote=True)
