"""The one place where text from files is made fit for a terminal.

Names of files, tensors, keys, classes, recipes and rules are other people's, and a terminal obeys what is in them:
escape sequences move its cursor, set its title or its clipboard, and bidirectional overrides make a text read as
another. Errors pass through here when they become text, and so does all that the commands print.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

# All of Unicode's control, format and surrogate characters and its line separators, but for tabs, line feeds, and
# the two joiners (U+200C, U+200D) that words of some languages need.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f]"
)
_LONGEST = 4000


def shown(text: str, encoding: str | None = None) -> str:
    r"""Return a text without characters that a terminal would obey or hide: each as its escape, such as ``\x1b``.

    Args:
        text: of one or several lines.
        encoding: what the terminal takes; characters that it lacks are escaped too. None: all of Unicode.
    """
    visible = _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return visible if encoding is None else visible.encode(encoding, "backslashreplace").decode(encoding)


def shown_in_a_line(text: str) -> str:
    """Return a text as :func:`shown` does, on one line."""
    return shown(text).replace("\n", r"\n")


def shortened(text: str) -> str:
    """Return a text, or of one with many thousands of characters its beginning and end."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def listed(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return the first few of some texts as one, and how many more there are."""
    return separator.join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def amount(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural but for one: ``1 constant``, ``1,000 classes``."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def shown_in_html(text: str) -> str:
    """Return a text as :func:`shown` does, fit for HTML: for its text and for its quoted attributes."""
    return html.escape(shown(text), quote=True)
