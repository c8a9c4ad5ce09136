"""Example inputs and outputs: what a trace takes and what it selects, checked before anything is run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from bcos_fx.errors import TraceError, UsageError, nearest
from bcos_fx.escaping import amount, listed
from bcos_fx.tracing.arguments import oddity
from bcos_fx.tracing.modules import Alone

_DEEPEST, _MOST_NAMED = 8, 12

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""The inputs of one call of a module: one tensor, positional arguments, or arguments by name."""

BatchAxis = int | None | Mapping[str, int | None]
"""Dimension of the samples in the first input; None: it is one sample as a whole; or name of an input -> either."""


class ExampleError(UsageError):
    """The module does not run on the example inputs: others may do."""


@dataclasses.dataclass(frozen=True)
class BoundInputs:
    """The example run's arguments.

    Attributes:
        args: positional arguments of ``forward``; those that are tensors are clones of the caller's.
        kwargs: keyword arguments, cloned too.
        named: every tensor among them, by name, in the order of the signature: the graph's inputs.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Tensor]

    def call(self, module: nn.Module, values: Sequence[Any]) -> Any:
        """Call ``module`` as in the example run, with other values in place of the tensors, in their order."""
        bound = self._with(values)
        return module(*bound.args, **bound.kwargs)

    def cast(self, dtype: torch.dtype) -> BoundInputs:
        """Return the same arguments with floating-point tensors in another precision."""
        return self._with([x.to(dtype) if x.is_floating_point() else x.clone() for x in self.named.values()])

    def _with(self, values: Sequence[Any]) -> BoundInputs:
        # By identity, not by equality: bind() cloned each tensor, so every input is an object of its own.
        new = dict(zip(map(id, self.named.values()), values, strict=True))
        args = tuple(new.get(id(value), value) for value in self.args)
        kwargs = {name: new.get(id(value), value) for name, value in self.kwargs.items()}
        return BoundInputs(args, kwargs, dict(zip(self.named, values, strict=True)))


def bind(module: nn.Module, example: ExampleInputs) -> BoundInputs:
    """Match the example inputs with the signature of ``module.forward`` and clone them.

    Raises:
        UsageError: for a wrong number of inputs, unknown names, or tensors that a network cannot be traced with.
        TraceError: where no input is a tensor.
    """
    given = (example,) if isinstance(example, Tensor) else example
    if not isinstance(given, (Mapping, Sequence)) or isinstance(given, str):
        raise UsageError(f"example_inputs is a {type(example).__name__}", hint="give a tensor, a tuple or a dict")
    signature = inspect.signature((module.layer if isinstance(module, Alone) else module).forward)
    try:
        bound = signature.bind(**given) if isinstance(given, Mapping) else signature.bind(*given)
    except TypeError as error:
        raise UsageError(
            f"the example inputs do not fit the module's forward: {error}",
            where=f"{type(module).__name__}.forward{signature}",
            hint="give one value for each argument, in order, or a dict by name",
        ) from error
    bound.arguments.update({name: _clone(name, value) for name, value in bound.arguments.items()})
    named = _tensors_by_name(signature, bound)
    if not named:
        raise TraceError("no input of the module is a tensor", hint="give example_inputs with at least one tensor")
    return BoundInputs(bound.args, bound.kwargs, named)


def _clone(name: str, value: object) -> Any:
    if isinstance(value, Tensor):
        _check_tensor(name, value)
        return value.detach().clone()
    if isinstance(value, tuple):
        return tuple(_clone(f"{name}[{i}]", item) for i, item in enumerate(value))
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _clone(key, item) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, Tensor) for item in value):
        raise UsageError(
            f"the input {name!r} is a list of tensors", hint="wrap the module so that it takes each one alone"
        )
    return value


def _tensors_by_name(signature: inspect.Signature, bound: inspect.BoundArguments) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            items = {f"{name}_{i}": item for i, item in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            items = value
        elif any(isinstance(item, Tensor) for item in _items(value)):
            raise UsageError(
                f"the input {name!r} holds tensors in a {type(value).__name__}",
                hint="wrap the module so that it takes each tensor as an argument of its own",
            )
        else:
            items = {name: value}
        named |= {key: item for key, item in items.items() if isinstance(item, Tensor)}
    return named


def _items(value: object) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()


def _check_tensor(name: str, tensor: Tensor) -> None:
    reason = oddity(tensor) or ("on the meta device" if tensor.is_meta else "complex" if tensor.is_complex() else None)
    if reason is not None:
        raise UsageError(f"the input {name!r} is {reason}", hint="give an ordinary dense tensor of real numbers")


def axes_by_name(names: Sequence[str], given: Sequence[Tensor], batch_axis: BatchAxis) -> tuple[int | None, ...]:
    """Return the dimension of samples for each input; those that are not named belong to every sample.

    Raises:
        UsageError: there is no such dimension or input, or inputs hold different numbers of samples.
    """
    if len(names) != len(given):
        raise UsageError(f"{amount(len(given), 'input')} given, the network takes {len(names)} ({', '.join(names)})")
    asked = batch_axis if isinstance(batch_axis, Mapping) else {names[0]: batch_axis}
    for name, axis in asked.items():
        if name not in names:
            raise UsageError(f"batch_axis names {name!r}, which is not an input", hint=nearest(name, names))
        rank = given[names.index(name)].dim()
        number = isinstance(axis, int) and not isinstance(axis, bool)
        if axis is not None and not (number and -rank <= axis < rank):
            raise UsageError(
                f"batch_axis is {axis!r} for the input {name!r}, which has {rank} dimensions",
                hint=f"give a number from 0 to {rank - 1}, or None where the input is one sample as a whole",
            )
    values = list(zip(names, given, strict=True))
    axes = tuple(None if (axis := asked.get(name)) is None else axis % value.dim() for name, value in values)
    counts = {value.shape[axis]: name for (name, value), axis in zip(values, axes, strict=True) if axis is not None}
    if len(counts) > 1:
        held = " and ".join(f"{name!r} {count}" for count, name in counts.items())
        raise UsageError(
            f"inputs hold different numbers of samples along batch_axis: {held}",
            hint="those that batch_axis does not name belong to every sample",
        )
    return axes


def check_state(module: nn.Module, inputs: BoundInputs) -> None:
    """Check that the parameters are there, on one device, and that the inputs are on it too.

    Raises:
        UsageError: naming the devices, or the parameter.
    """
    devices: dict[torch.device, str] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise UsageError(f"{name!r} is not initialized yet", hint="call the module once with real data before")
        devices.setdefault(tensor.device, name)
    if any(device.type == "meta" for device in devices):
        raise UsageError("the module has parameters on the meta device", hint="load its weights before")
    if len(devices) > 1:
        places = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise UsageError(f"the module is spread over several devices: {places}", hint="move it with .to(device)")
    for name, tensor in inputs.named.items():
        if devices and tensor.device not in devices:
            raise UsageError(
                f"the input {name!r} is on {tensor.device}, the module on {next(iter(devices))}",
                hint="move both to one device",
            )


def advice(module: nn.Module, inputs: BoundInputs) -> str:
    """Return what to look at when a module does not run on its example inputs."""
    dtypes = [parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()]
    floats = [tensor.dtype for tensor in inputs.named.values() if tensor.is_floating_point()]
    if any(isinstance(part, nn.Embedding) for part in module.modules()):
        return "an embedding reads integers (torch.int64) below the number of its rows"
    if len(floats) < len(inputs.named):
        return "convert the images to floating point: x.float() / 255"
    if dtypes and any(dtype not in dtypes for dtype in floats):
        return f"convert the inputs to the module's precision: x.to({dtypes[0]})"
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            return f"example_inputs gives the shape of samples: the layer {name!r} reads (N, ..., {part.in_features})"
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            sizes = ", ".join(("D", "H", "W")[-len(part.kernel_size) :])
            shape = f"(N, {part.in_channels}, {sizes})"
            return f"example_inputs gives the shape of samples: the layer {name!r} reads {shape}"
    return "example_inputs gives the shape of samples: compare it with what the module takes"


def select_output(value: object, output: int | str | None) -> Tensor:
    """Return the tensor that the graph is to compute.

    Args:
        value: what the module returned.
        output: which part of it: a key, an attribute, a position, or a path of these with dots between them, such as
            ``detections.0.scores``.

    Raises:
        UsageError: where the output is not one tensor and `output` does not name one.
    """
    if isinstance(value, Tensor):
        if output is None:
            return value
        raise UsageError("the module returns one tensor", hint="leave output_key= out")
    try:
        chosen = None if output is None else part_of(value, output)
    except LookupError as error:
        raise _no_part(value, f"; it has no {error.args[0]!r}") from error
    if output is None:
        raise _no_part(value, "")
    if not isinstance(chosen, Tensor):
        inner = [f"{output}.{path}" for path in _paths(chosen)]
        hint = f"choose one of these with output_key=: {listed(inner, _MOST_NAMED)}" if inner else "choose another one"
        raise UsageError(f"the output {output!r} is a {type(chosen).__name__}, not a tensor", hint=hint)
    return chosen


def _no_part(value: object, suffix: str) -> UsageError:
    kind = "nothing" if value is None else f"a {type(value).__name__} that holds no tensor"
    paths = _paths(value)
    if not paths:
        return UsageError(
            f"the module returns {kind}{suffix}",
            hint="a graph computes a tensor: wrap the module so that it returns one",
        )
    named = listed([path if path.isdecimal() else repr(path) for path in paths], _MOST_NAMED)
    return UsageError(
        f"the module returns a {type(value).__name__} with {named}{suffix}",
        hint="choose one of these with output_key=",
    )


def part_of(value: object, output: int | str) -> Any:
    """Return a part of a nested output by its key, attribute, position, or a path of these with dots between them.

    Raises:
        KeyError: it has no such part; the argument is the beginning of the path up to what is missing.
    """
    parts = _parts(value)
    if output in parts:
        return parts[output]
    if not isinstance(output, str):
        raise KeyError(output)
    segments = output.split(".")
    for end in range(len(segments), 0, -1):  # keys may hold dots themselves
        key = ".".join(segments[:end])
        number = int(key) if key.removeprefix("-").isdecimal() else None
        if number is not None and number < 0 and isinstance(value, (tuple, list)):
            number += len(value)
        for name in (key, number):
            if name in parts:
                rest = ".".join(segments[end:])
                try:
                    return part_of(parts[name], rest) if rest else parts[name]
                except KeyError as error:
                    raise KeyError(f"{key}.{error.args[0]}") from error
    raise KeyError(segments[0])


def _paths(value: object, before: str = "", depth: int = 0) -> list[str]:
    """Return the paths of all tensors in an output; fields of a named tuple by name only."""
    if isinstance(value, Tensor):
        return [before]
    if depth == _DEEPEST:
        return []
    parts, names = _parts(value), getattr(value, "_fields", ())
    paths = []
    for key, item in parts.items():
        if not (names and isinstance(key, int)):
            paths += _paths(item, f"{before}.{key}".removeprefix("."), depth + 1)
    return paths


def _parts(value: object) -> dict[int | str, Any]:
    """List what can be chosen from an output: by key, by attribute or by position."""
    parts: dict[int | str, Any] = {}
    if isinstance(value, Mapping):
        parts |= {key: item for key, item in value.items() if isinstance(key, (int, str))}
    elif dataclasses.is_dataclass(value):
        parts |= {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", ())
        parts |= dict(zip(names, value, strict=True)) if names else {}
        parts |= dict(enumerate(value))
    return parts
