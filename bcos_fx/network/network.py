"""The converted network: an ordinary module that holds its graph, its report and what its input means."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, fx, nn

from bcos_fx.data.batches import prepared
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.errors import UsageError, nearest
from bcos_fx.escaping import amount
from bcos_fx.network.facts import check_facts
from bcos_fx.network.record import InputSpec, Record
from bcos_fx.report import Report
from bcos_fx.tracing.graph_module import GraphModule
from bcos_fx.tracing.program import compile_graph, module_at

_NOT_COPIED = ("graph", "record", "_program", "_other_sizes")
"""Attributes of a network besides its parts; of a copy they are set one by one."""


class SizeCacheProtocol(Protocol):
    """Networks for inputs of other sizes; see :class:`bcos_fx.network.size_cache.SizeCache`."""

    def network(self, main: BcosNetwork, inputs: Sequence[Tensor]) -> BcosNetwork:
        """Return the network for inputs like these, over the parts of ``main``."""
        ...

    def empty(self) -> SizeCacheProtocol:
        """Return the same for a copy of the network."""
        ...


class BcosNetwork(nn.Module):
    """A network rewritten by bcos_fx.

    An ordinary module: ``.to``, ``.train``, ``state_dict``, ``deepcopy`` and the rest work as always. Submodules
    keep the names that they had in the original.

    Attributes:
        graph: the fx graph that ``forward`` runs.
        record: what is known about it; ``report`` is part of it.
    """

    def __init__(self, graph_module: fx.GraphModule, record: Record) -> None:
        super().__init__()
        self.record = record
        self.graph = copy.deepcopy(graph_module.graph)
        for name in (*graph_module._modules, *graph_module._parameters, *graph_module._buffers):
            if name in reserved_names() or hasattr(self, name):
                raise UsageError(
                    f"the module has a part named {name!r}, which is an attribute of every converted network",
                    hint="rename that attribute of the module",
                )
        for name, child in graph_module._modules.items():
            self.add_module(name, child)
        for name, parameter in graph_module._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in graph_module._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in graph_module._non_persistent_buffers_set)
        self._other_sizes: SizeCacheProtocol | None = None
        self._program = compile_graph(self.graph)
        nn.Module.train(self, graph_module.training)

    def get_submodule(self, target: str) -> nn.Module:
        """Return the registered submodule at a dotted path; the network itself for an empty one."""
        return module_at(self, target)

    @property
    def report(self) -> Report:
        """What was done, verified and refused."""
        return self.record.report

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of the first input."""
        return self.record.inputs[0].sizes(self.record.inputs[0].shape)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the first input; UsageError where that is not an image with 1 or 3 channels."""
        return self.record.inputs[0].preprocessing()

    def preprocess(self, images: object) -> Tensor:
        """Return images as the first input, prepared as every command prepares them; see :attr:`preprocessing`.

        Args:
            images: a path (of an image, an array, or a folder of them), a picture of PIL, an array or a tensor; or a
                list of these.

        Returns:
            (N, C, H, W) in [0, 1], also for one image, on the device and in the type of the network's parameters;
            newly allocated. Where the network holds its samples elsewhere, they are there.

        Raises:
            UsageError: the network does not take photographs, or an item is not one.
        """
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        batch = prepared(images, self.preprocessing).to(like)
        samples = self.record.inputs[0].samples
        if samples is None:
            if len(batch) > 1:
                raise UsageError(f"the network takes one image, and {len(batch)} were given", hint="one at a time")
            return batch[0]
        return batch.movedim(0, samples)

    def original_input(self, x: Tensor, index: int = 0) -> Tensor:
        """Return what the original network expects in place of this network's input ``x``."""
        return self.record.inputs[index].original(x)

    def graph_module(self) -> fx.GraphModule:
        """Return a graph module over the same parts; parameters are shared, the graph is a copy."""
        return GraphModule(self, copy.deepcopy(self.graph), class_name="BcosGraph")

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run the network.

        Args:
            inputs: an image network takes (N, C, H, W) in [0, 1], as ``record.inputs`` says.
            named: the same, by name.

        Raises:
            UsageError: too few inputs, or a shape for which the traced graph does not hold.
        """
        if named:
            inputs = self._in_order(inputs, named)
        self.check_inputs(inputs)
        network = self.of_size(inputs)
        if torch.compiler.is_compiling():
            return network._program(network, *inputs)
        with self.naming_shapes(inputs):
            return network._program(network, *inputs)

    @contextmanager
    def naming_shapes(self, inputs: Sequence[Any]) -> Iterator[None]:
        """Say of what fails within, for inputs of another shape than the example's, that this is why.

        Raises:
            UsageError: that PyTorch refused such an input, somewhere inside.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            for spec, value in zip(self.record.inputs, inputs, strict=False):
                if isinstance(value, Tensor) and spec.sizes(value.shape) != spec.sizes(spec.shape):
                    raise UsageError(
                        f"the input {spec.name!r} has shape {tuple(value.shape)}, which the network cannot take: "
                        f"{str(error).partition(chr(10))[0]}",
                        hint=f"the example that it was converted with has {spec.sample(spec.shape)}",
                    ) from error
            raise

    def class_count(self) -> int:
        """Run the network on zeros, in eval mode, and return how many classes it gives scores for.

        Raises:
            UsageError: its output is not a row of scores for each sample.
        """
        like = next(self.parameters())
        inputs = [torch.zeros(spec.shape, dtype=like.dtype, device=like.device) for spec in self.record.inputs]
        training = self.training
        with torch.no_grad():
            scores = self.eval()(*inputs)
        self.train(training)
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            raise UsageError(
                "the network puts out no row of scores (N, classes)", hint="convert it with output_key= that part"
            )
        return int(scores.shape[1])

    @property
    def outputs(self) -> int | None:
        """How many classes it gives scores for, (N, classes, ...), by the graph's notes; None where it does not."""
        (value,) = next(node for node in self.graph.nodes if node.op == "output").args
        shape = value.meta.get("shape") if isinstance(value, fx.Node) else None
        return int(shape[1]) if shape is not None and len(shape) > 1 else None

    def keep_source(self, other_sizes: SizeCacheProtocol) -> None:
        """Take inputs of other sizes too, by graphs that are made when they are first needed."""
        self._other_sizes = other_sizes

    def of_size(self, inputs: Sequence[Any]) -> BcosNetwork:
        """Return the network whose graph holds for inputs of this size: this one, or one over the same parts.

        Raises:
            UsageError: the source does not take such inputs.
        """
        specs = self.record.inputs[: len(inputs)]
        if self._other_sizes is None or not self.record.guards:
            return self
        if all(spec.sizes(value.shape) == spec.sizes(spec.shape) for spec, value in zip(specs, inputs, strict=False)):
            return self
        return self._other_sizes.network(self, inputs)

    def _in_order(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        missing = [spec.name for spec in self.record.inputs[len(inputs) :]]
        for name in named:
            if name not in missing:
                raise UsageError(f"no input {name!r} is left to give", hint=nearest(name, missing or ["no other"]))
        return (*inputs, *(named[name] for name in missing if name in named))

    def check_inputs(self, inputs: tuple[Any, ...], *, partly: bool = False) -> None:
        """Check that these are inputs that the network takes; only the first few of them if ``partly``.

        Raises:
            UsageError: too few inputs, or a shape for which the traced graph does not hold.
        """
        specs = self.record.inputs[: len(inputs)] if partly else self.record.inputs
        if len(inputs) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise UsageError(f"{amount(len(inputs), 'input')} given, the network takes {len(specs)} ({names})")
        for spec, value in zip(specs, inputs, strict=True):
            if not isinstance(value, Tensor):
                raise UsageError(f"the input {spec.name!r} is a {type(value).__name__}", hint="give a tensor")
            self._check_tensor(spec, value)

    def _check_tensor(self, spec: InputSpec, value: Tensor) -> None:
        axis = spec.channel_axis
        if spec.encoded and (value.ndim != len(spec.shape) or value.shape[axis] != spec.shape[axis]):
            raise UsageError(
                f"the input {spec.name!r} has shape {tuple(value.shape)}, the network takes {spec.sample(spec.shape)}",
                hint="one sample needs a first dimension too: x.unsqueeze(0)" if value.ndim == 3 else None,
            )
        if spec.encoded and not value.is_floating_point():
            raise UsageError(
                f"the input {spec.name!r} holds {str(value.dtype).removeprefix('torch.')}, the network takes "
                "floating-point values in [0, 1]",
                hint="x.float() / 255 for an image of bytes",
            )
        if self.record.guards and self._other_sizes is None and spec.sizes(value.shape) != spec.sizes(spec.shape):
            raise UsageError(
                f"the graph was traced for inputs of shape {spec.sample(spec.shape)} and may be "
                f"wrong for {tuple(value.shape)}: tracing took branches or numbers from that shape",
                where=str(self.record.guards[0]),
                hint="convert the original again with example_inputs of the new shape, or with keep_source=True",
            )

    def train(self, mode: bool = True) -> Self:
        """Switch between train and eval.

        Raises:
            UsageError: the original does something else in train mode that this graph does not hold.
        """
        if mode and self.record.train_difference is not None and self.record.train == "refuse":
            raise UsageError(
                "this network cannot be trained as the original would be: its graph is that of eval mode",
                where=self.record.train_difference,
                hint='convert with train="eval-graph" to train the eval graph instead',
            )
        return super().train(mode)

    def with_report(self, report: Report) -> Self:
        """Set the report, in place, and return the network."""
        return self.with_record(report=report)

    def with_record(self, **changes: Any) -> Self:
        """Set fields of the record (``classes``, ``training``, ``origin``, ``report``), in place; return the network.

        Raises:
            UsageError: they do not fit the network.
        """
        record = replace(self.record, **changes)
        check_facts(record.classes, record.training, record.origin, self.outputs, UsageError)
        self.record = record
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> BcosNetwork:
        state: Mapping[str, Any] = {
            name: copy.deepcopy(value, memo) for name, value in self.__dict__.items() if name not in _NOT_COPIED
        }
        new = type(self).__new__(type(self))
        nn.Module.__init__(new)
        new.__dict__.update(state)
        new.record, new.graph, new._program = self.record, copy.deepcopy(self.graph), self._program
        new._other_sizes = None if self._other_sizes is None else self._other_sizes.empty()
        return new

    def extra_repr(self) -> str:
        """Return one line on what the network is."""
        share = self.report.coverage.share
        return f"recipe={self.report.recipe}, B-cos coverage={share:.1%}"


@functools.cache
def reserved_names() -> frozenset[str]:
    """Return the names that no part of a network's root may have: attributes of networks and of graph modules."""
    of_graph_modules = vars(GraphModule(nn.Module(), fx.Graph()))
    return frozenset({*dir(BcosNetwork), *dir(GraphModule), *of_graph_modules, *_NOT_COPIED})
