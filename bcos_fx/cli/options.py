"""Requests: dataclasses whose fields are the arguments and options of a command, each with its help text."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

Asked = TypeVar("Asked")
T = TypeVar("T")

IMAGE_FORMS = "a folder of images or of a folder per class, an image, .npy, .npz, or webdataset shards (.tar)"
"""What every command takes as images; docs/data.md has the details."""

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A converted network, from bcos-fx convert.")]
Classifier = Annotated[Path, typer.Argument(metavar="MODEL", help="A converted classifier, a file or hf:user/name.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")]
Overwrite = Annotated[bool, typer.Option("-f", "--force", "--overwrite", help="Overwrite files that are there.")]
"""The option of every command that writes a file: without it, none that is there is touched."""

_DECLARED = "typer"


def option(*flags: str, default: Any = None, **described: Any) -> Any:
    """Declare a field of a request as an option.

    Args:
        flags: how it is spelled; none: as the field is called.
        default: its value where it is not given; ``...``: it has to be given.
        described: what ``typer.Option`` takes, such as ``help``.
    """
    return _field(default, typer.Option(*flags, **described))


def argument(*, default: Any = None, **described: Any) -> Any:
    """Declare a field of a request as an argument, as :func:`option` does for options."""
    return _field(default, typer.Argument(**described))


def _field(default: Any, declared: Any) -> Any:
    metadata = {_DECLARED: declared}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    # One list in the class would be shared by all requests.
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def takes(asked: type[Asked]) -> Callable[[Callable[[Asked], T]], Callable[..., T]]:
    """Give a command that takes one request the request's fields as its parameters, for typer to read."""

    def decorate(command: Callable[[Asked], T]) -> Callable[..., T]:
        @functools.wraps(command)
        def run(**given: Any) -> T:
            return command(asked(**given))

        hints = get_type_hints(asked, include_extras=True)
        parameters = []
        for f in dataclasses.fields(asked):  # type: ignore[arg-type]
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            hint = Annotated[hints[f.name], f.metadata[_DECLARED]] if f.metadata else hints[f.name]
            parameters.append(
                inspect.Parameter(
                    f.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
                    annotation=hint,
                )
            )
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__dict__["__signature__"] = inspect.Signature(parameters)
        del run.__dict__["__wrapped__"]  # or typer would read the command's own parameter instead
        return run

    return decorate
