"""Prompt templates: sentences with a place for the name of a class."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bcos_fx.budgets import TEXT_BYTES, read_text
from bcos_fx.errors import UsageError

PLACE = "{}"
"""Where the name of a class goes."""


def imagenet_templates() -> tuple[str, ...]:
    """Return the 80 templates that CLIP was evaluated with on ImageNet (Radford et al., ICML 2021, section 3.1.4)."""
    return _lines(resources.files("bcos_fx.text").joinpath("imagenet_templates.txt").read_text(encoding="utf-8"))


def read_templates(path: Path | str) -> tuple[str, ...]:
    """Read templates from a file: one a line, each with {} where the name goes; lines that begin with # are comments.

    The name ``imagenet`` stands for :func:`imagenet_templates`.

    Raises:
        UsageError: the file cannot be read, or holds no templates.
    """
    if str(path) == "imagenet":
        return imagenet_templates()
    try:
        templates = _lines(read_text(Path(path), TEXT_BYTES, "the file of templates", UsageError, encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = "give a text file with one a line, or the word imagenet"
        raise UsageError(f"templates is {str(path)!r}, which cannot be read: {reason}", hint=hint) from error
    check_templates(templates, where=str(path))
    return templates


def check_templates(templates: tuple[str, ...], *, where: str | None = None) -> None:
    """Check that there are templates, each with a place for a name."""
    if not templates:
        raise UsageError("there are no templates", where=where, hint='give at least one: "a photo of a {}."')
    for template in templates:
        if PLACE not in template:
            raise UsageError(
                f"the template {template!r} has no place for a name", where=where, hint="put {} where the name goes"
            )


def _lines(text: str) -> tuple[str, ...]:
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))
