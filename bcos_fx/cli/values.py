"""Option values that are more than a word: lists of numbers, shapes, B per layer; UsageError for any other text."""

from __future__ import annotations

from collections.abc import Sequence

from bcos_fx.errors import UsageError


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Read ``0.485,0.456,0.406``."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"{option} is {text!r}", hint=f"give one number per channel, such as {option} 0.485,0.456,0.406"
        ) from error


def mean(text: str | None) -> tuple[float, ...] | str | None:
    """Read the mean: numbers, or the word ``auto``."""
    return "auto" if text == "auto" else numbers(text, "--mean")


def eps(text: str | None) -> float | str | None:
    """Read eps: the word ``published``, or a number."""
    if text is None or text == "published":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--eps is {text!r}", hint="give --eps published, or a number such as --eps 1e-6") from error


def shape(text: str | None) -> tuple[int, ...] | None:
    """Read ``3,32,32`` or ``3x32x32``, the shape of one sample."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--input-shape is {text!r}", hint="give one sample's shape, such as --input-shape 3,32,32")
    return tuple(int(part) for part in parts)


def pressure(texts: Sequence[str]) -> float | dict[str, float] | None:
    """Read B: one number for all layers, or ``PATTERN=B`` several times, where the first match wins.

    A bare number beside patterns is for the layers that no pattern names.
    """
    patterns: dict[str, float] = {}
    bare: list[float] = []
    for text in texts:
        pattern, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise UsageError(f"--b is {text!r}", hint="give --b 2, or --b 'layer4.*=2.5' for some layers") from error
        if equals:
            patterns[pattern] = value
        else:
            bare.append(value)
    if len(bare) > 1:
        raise UsageError(f"--b was given {len(bare)} times", hint="give one B for all layers, and patterns for others")
    if not patterns:
        return bare[0] if bare else None
    return patterns | ({"*": bare[0]} if bare else {})


def axis(text: str | None) -> int | None:
    """Read which dimension holds the samples: a number, or ``none`` where an input is one sample as a whole."""
    if text is None or text == "none":
        return 0 if text is None else None
    if not text.removeprefix("-").isdecimal():
        raise UsageError(
            f"--batch-axis is {text!r}",
            hint="give a dimension's number, such as --batch-axis 1, or none where an input is one sample as a whole",
        )
    return int(text)


def in_range(axis: int | None, rank: int) -> int | None:
    """Return the dimension of the samples, if an input of this rank has it."""
    if axis is not None and not -rank <= axis < rank:
        raise UsageError(
            f"--batch-axis is {axis}, the input has {rank} dimensions",
            hint=f"give a number from 0 to {rank - 1}, or none where an input is one sample as a whole",
        )
    return axis


def key(text: str | None) -> int | str | None:
    """Read which part of the output to take: a position, or a key or attribute."""
    return None if text is None else index_or_name(text)


def index_or_name(text: str) -> int | str:
    """Read what names a class: an index, or a name."""
    return int(text) if text.removeprefix("-").isdecimal() else text
