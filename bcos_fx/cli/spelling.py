"""Errors in the command line's own spelling: ``output_key="scores"`` becomes ``--output-key scores``.

Errors of the library name keywords as ``name=value``, which a caller in Python would write. Which
of them a command has as an option, and how that is spelled, is read off the command's own parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

from bcos_fx.errors import BcosFxError

RENAMED = {
    "calibration_images": "calibrate",
    "example_inputs": "input_shape",
    "metrics": "metric",
    "overwrite": "force",
    "protocols": "protocol",
    "inputs": "input_shape",
    "loggers": "logger",
    "rescaled": "rescale",
}
"""Keywords of the library whose options have another name."""

_KEYWORD = re.compile(r"""(?<![\w.\-"'])(?P<name>[a-z]\w*)=(?P<value>"[^"]*"|'[^']*'|-?[\w./*:+-]*\w)?(?![=\w(\[{])""")


_WORD = re.compile(r"""(?<![\w.\-"'])[a-z]+(?:_[a-z]+)+(?![\w=(\[{"']|\.\w)""")
"""A name that is not an English word, as in "channel_axis is 9"."""


_SUBJECT = re.compile(
    r"""^[a-z]\w*(?=\ (?:was\ given|(?:is|has|names)\ (?:['"(\[{<\d]|-[\di]|inf|nan|None|True|False)))""", re.VERBOSE
)
"""A name that a message begins with, before a value, as in "scale is 'cosin'"."""


@dataclass(frozen=True)
class Flags:
    """How an option is spelled.

    Attributes:
        given: what is written before a value, or to switch on.
        refused: what is written to switch off, for a switch that has such a spelling.
        is_switch: it takes no value.
    """

    given: str
    refused: str | None
    is_switch: bool


def flags_of(command: Callable[..., object]) -> dict[str, Flags]:
    """Return parameter -> spelling for the options of a command."""
    flags = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        info = next((declared for declared in metadata if isinstance(declared, OptionInfo)), None)
        if info is None:
            continue
        # In Annotated[...] typer takes the first word for a default, and moves it to the others later.
        declared_words = (info.default, *(info.param_decls or ()))
        words = [
            word.strip() for spelling in declared_words if isinstance(spelling, str) for word in spelling.split("/")
        ]
        long = [word for word in words if word.startswith("--")]
        refused = next((word for word in long if word.startswith("--no-")), None)
        given = next((word for word in long if word != refused), f"--{name.replace('_', '-')}")
        flags[name] = Flags(given, refused, get_args(hint)[0] is bool)
    return flags


def as_options(text: str, flags: Mapping[str, Flags]) -> str:
    """Return a text with the keywords that a command has as options spelled as these; others stay as they are."""

    def spelled(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        option = flags.get(name) or flags.get(RENAMED.get(name, ""))
        if option is None:
            return match[0]
        if option.is_switch:
            return (option.refused or match[0]) if value == "False" else option.given
        if value is None or value == "None":
            return option.given
        # Quotes are Python's; on a command line only words with spaces need them.
        bare = value[1:-1] if value[0] in "\"'" else value
        return f"{option.given} {value if len(bare.split()) > 1 else bare}"

    def named(match: re.Match[str]) -> str:
        option = flags.get(match[0]) or flags.get(RENAMED.get(match[0], ""))
        return match[0] if option is None else option.given

    return _WORD.sub(named, _KEYWORD.sub(spelled, _SUBJECT.sub(named, text)))


def in_options(error: BcosFxError, command: Callable[..., object]) -> BcosFxError:
    """Return the error as the command's user is to read it."""
    flags = flags_of(command)
    hint = None if error.hint is None else as_options(error.hint, flags)
    return BcosFxError(as_options(error.what, flags), where=error.where, hint=hint)
