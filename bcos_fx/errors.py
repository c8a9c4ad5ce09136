"""One tree of errors. Each says what was wrong, where, and what to do about it.

Everything that bcos_fx raises on purpose is a :class:`BcosFxError`, so a caller can catch the whole
tree, and the command line can turn any of them into one message and exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from numbers import Integral

from bcos_fx.escaping import listed, shortened, shown, shown_in_a_line

_COMPARED, _LISTED, _KNOWN = 200, 12, "known: "


class BcosFxError(Exception):
    """An error that the user can understand and correct.

    Args:
        what: what was wrong, in one sentence.
        where: the place: a node, a source line, a file and line.
        hint: what to do next, in one sentence.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(what, where, hint)

    def __str__(self) -> str:
        lines = [shown(shortened(self.what))]
        if self.where:
            lines.append(f"  where: {shown_in_a_line(shortened(self.where))}")
        if self.hint:
            lines.append(f"  try:   {shown(shortened(self.hint))}")
        return "\n".join(lines)


class UsageError(BcosFxError):
    """An argument that makes no sense: a wrong shape, an unknown option, a missing value."""


class TraceError(BcosFxError):
    """The module's forward could not be turned into a graph."""


class RuleError(BcosFxError):
    """A rule, a rule file or a recipe is wrong."""


class RewriteError(BcosFxError):
    """A rewrite could not be carried out, or the rules undo each other."""


class VerificationError(BcosFxError):
    """A check failed: the rewritten network is not the original one."""


class CheckpointError(BcosFxError):
    """A file of another program (a checkpoint, a state dict) cannot be read or does not fit."""


class ArtifactError(BcosFxError):
    """A file of ours cannot be written or read."""


class TrainingError(BcosFxError):
    """Training cannot go on; what was reached before is kept."""


class MissingExtraError(BcosFxError):
    """A library that an optional part needs is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the library {library!r}, which is not installed",
            hint=f"""it comes with the extra bcos-fx[{extra}]; in a clone of the project: pip install ".[{extra}]\"""",
        )


FORWARD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the code of a module may raise on an input that does not suit it; anything else is a defect and let through."""


def check_choice(what: str, value: object, known: Collection[str], error: type[BcosFxError] = UsageError) -> None:
    """Raise an error, with the nearest known value and all of them, where an argument has none of them."""
    if value not in known:
        near = nearest(str(value), known)
        every = "" if near.startswith(_KNOWN) else f" {_KNOWN}{listed(sorted(known), _LISTED)}"
        raise error(f"{what} is {value!r}", hint=near + every)


def check_count(name: str, value: object, least: int = 1, *, hint: str | None = None) -> None:
    """Raise UsageError where an argument is not an integer of at least ``least``; ``hint`` replaces the usual one."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise UsageError(f"{name} is {value!r}", hint=hint or f"give an integer of at least {least}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the known word nearest to a mistyped one, as a hint; the first of the known words when none is near."""
    words = sorted(set(known))
    # Comparing takes the product of the lengths, and a name from a file can have millions of characters.
    short = [word for word in words if len(word) <= _COMPARED] if len(name) <= _COMPARED else []
    close = difflib.get_close_matches(name, short, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return _KNOWN + listed(words, _LISTED) if words else "none is known"
