"""Files of converted networks: one ``.safetensors`` file with everything in it, and no code.

    >>> import bcos_fx, torch
    >>> model = bcos_fx.bcosify(torch.nn.Linear(3, 2), example_inputs=torch.rand(2, 3))
    >>> path = bcos_fx.save(model, "model.safetensors")
    >>> model = bcos_fx.load("model.safetensors")     # needs none of the original's source code

The file holds the graph, the layers' options, all tensors and the record of the conversion, with a checksum over all
of it. The same network gives the same bytes. Not kept are hooks, ``.grad``, the devices and memory formats of tensors,
and that a tensor was a view of another; a tensor that is *the same* in several places stays so.
"""

from __future__ import annotations

import copyreg
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from bcos_fx.artifact.container import Container, write
from bcos_fx.artifact.document import Document, describe, read
from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.files import nearest_path, replacing
from bcos_fx.network import BcosNetwork, Record

__all__ = ["Header", "example_network", "example_path", "from_bytes", "load", "read_header", "save", "to_bytes"]

_EXAMPLE = "imagenette.bcos.safetensors"


T = TypeVar("T")


@dataclass(frozen=True)
class Header:
    """What a file says about its network, without the network.

    Attributes:
        format: number of the file format.
        versions: of bcos_fx and torch that wrote the file.
        record: the report of the conversion, what the inputs take, guards.
        ops: canonical op -> how many nodes of the graph are one.
        parameters: how many numbers the parameters hold; shared ones count once.
        tensors: how many tensors the file holds.
        size: of the file, in bytes.
        intact: whether the contents fit the checksum.
    """

    format: int
    versions: Mapping[str, str]
    record: Record
    ops: Mapping[str, int]
    parameters: int
    tensors: int
    size: int
    intact: bool

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self.record.report.recipe

    @property
    def options(self) -> Mapping[str, Any]:
        """The recipe's options."""
        return self.record.report.options


def save(model: BcosNetwork, path: str | os.PathLike[str], *, overwrite: bool = False, half: bool = False) -> Path:
    """Write a converted network to one file.

    The file appears, or replaces another, only once it is whole and on the disk. Symbolic links are followed.

    Args:
        model: what :func:`bcos_fx.bcosify` returned; it is not changed.
        path: where to; the usual suffix is ``.safetensors``, and any other is taken too.
        overwrite: replace a file that exists. What is not a regular file (a device, a FIFO) is never replaced.
        half: store float32 tensors in half precision: a file of half the size. They are float32 again when it is read,
            rounded to 11 bits, and the report contains a note.

    Returns:
        The path.

    Raises:
        ArtifactError: the network holds something that no file can (it says which node or module), the file exists
            and ``overwrite`` is false, or it cannot be written.
        UsageError: ``model`` is not a converted network.
    """
    text, tensors = describe(_network(model), half=half)
    target = _path(path)
    with replacing(target, overwrite=overwrite, error=ArtifactError) as stream:
        write(stream, text, tensors)
    return target


def example_network() -> BcosNetwork:
    """Return the network that comes with the package: a fine-tuned B-cos network for photographs of ten classes.

    Raises:
        UsageError: the file is missing from the installation.
    """
    return load(example_path())


def example_path() -> Path:
    """Return the file of :func:`example_network`: inside the wheel, or in examples/ of a checkout.

    Raises:
        UsageError: the installation has neither.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_examples" / _EXAMPLE, package.parent / "examples" / _EXAMPLE):
        if candidate.is_file():
            return candidate
    raise UsageError(f"{_EXAMPLE} is missing from this installation", where=str(package), hint="reinstall bcos-fx")


def load(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> BcosNetwork:
    """Read a network that :func:`save` wrote. Nothing in the file is run.

    Args:
        path: the file.
        device: where to put the tensors.

    Returns:
        The network as it was saved: the same values, names, modes and report.

    Raises:
        ArtifactError: there is no such file, it is damaged, was altered, is of a newer version, or is another kind.
        UsageError: there is no such device.
    """
    where = _device(device)
    return _opened(_path(path), lambda stream: read(Container(stream), where))


def to_bytes(model: BcosNetwork) -> bytes:
    """Return what :func:`save` would write."""
    text, tensors = describe(_network(model))
    stream = io.BytesIO()
    write(stream, text, tensors)
    return stream.getvalue()


def from_bytes(data: bytes, *, device: str | torch.device = "cpu") -> BcosNetwork:
    """Return the network that :func:`to_bytes` wrote; raises as :func:`load` does."""
    return read(Container(io.BytesIO(data)), _device(device))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read what a file says about its network, and compare its checksum, without building the network.

    Raises:
        ArtifactError: as :func:`load`; but a file that does not fit its checksum is only reported as not intact.
    """
    return _opened(_path(path), _header)


def _header(stream: BinaryIO) -> Header:
    container = Container(stream)
    document = Document(container.text)
    digest = document.digest()
    # All tensors are read, one at a time, since the checksum covers them.
    sizes = {entry.name: tensor.numel() for entry, tensor in container.tensors(digest)}
    modules = [entry for entry in document.fields.below("modules") if "same" not in entry]
    parameters = [parameter for entry in modules for parameter in entry.below("parameters")]
    keys = {parameter.text("key") for parameter in parameters if parameter.value("key") is not None}
    return Header(
        format=document.format,
        versions=document.versions,
        record=document.record(),
        ops=dict(sorted(Counter(node.text("op") for node in document.fields.below("nodes")).items())),
        parameters=sum(sizes.get(key, 0) for key in keys),
        tensors=len(sizes),
        size=container.size,
        intact=document.matches(digest),
    )


def _network(model: object) -> BcosNetwork:
    if type(model) is BcosNetwork:
        return model
    inner = next((name for name in ("module", "_orig_mod") if type(getattr(model, name, None)) is BcosNetwork), None)
    raise UsageError(
        f"a {type(model).__name__} is not a converted network",
        hint=f"save its .{inner}"
        if inner
        else "convert it first with bcos_fx.bcosify; torch.save stores other modules",
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"the device {device!r} cannot be used: {error}", hint='leave it out for "cpu"') from error


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path)
    except TypeError as error:
        raise UsageError(f"{path!r} is not the path of a file", hint="give a string or a pathlib.Path") from error


def _opened(path: Path, read_stream: Callable[[BinaryIO], T]) -> T:
    try:
        if not path.is_file():
            raise _missing(path)
        with path.open("rb") as stream:
            return read_stream(stream)
    except ArtifactError as error:
        where = f"{path}, {error.where}" if error.where else str(path)
        raise ArtifactError(error.what, where=where, hint=error.hint) from error
    except OSError as error:
        raise ArtifactError(f"the file cannot be read: {error.strerror}", where=str(path)) from error


def _missing(path: Path) -> ArtifactError:
    if path.is_dir():
        return ArtifactError("this is a directory, not a file", hint="name a file in it")
    return ArtifactError("there is no such file", hint=nearest_path(path))


def _reduce(model: BcosNetwork) -> tuple[Callable[[bytes], BcosNetwork], tuple[bytes]]:
    return from_bytes, (to_bytes(model),)


# A graph's compiled function cannot be pickled, and a pickled graph would run code when it is read.
copyreg.pickle(BcosNetwork, _reduce)
