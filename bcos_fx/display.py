"""How a result looks in a session: a few lines, and in a notebook the whole text behind a click."""

from __future__ import annotations

from bcos_fx.escaping import shown, shown_in_html

_STYLE = "font-family:monospace;font-size:13px;line-height:1.4;white-space:pre-wrap;margin:0"


class Displayed:
    """A result that shows itself by its :meth:`brief`, and in a notebook by its whole text too."""

    def brief(self) -> list[str]:
        """Return a summary of the result in a few lines."""
        raise NotImplementedError

    def to_text(self) -> str:
        """Return the result as text for people."""
        return "\n".join(self.brief())

    def __repr__(self) -> str:
        return shown("\n".join(self.brief()))

    def _repr_html_(self) -> str:
        first, whole = "\n".join(self.brief()), self.to_text().rstrip()
        text = f'<pre style="{_STYLE}">{shown_in_html(first)}</pre>'
        if whole != first:
            text += f'<details><summary>all of it</summary><pre style="{_STYLE}">{shown_in_html(whole)}</pre></details>'
        return text
