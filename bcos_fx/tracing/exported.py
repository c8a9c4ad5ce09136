"""Programs of ``torch.export`` as modules that can be traced: the second way into a graph.

A program is a flat list of ATen calls. Each of them notes the module and the line that it came from; run one by one
under these names they are recorded as the module itself would have been, so that rules, reports and names are the same.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.overrides import _get_current_function_mode

from bcos_fx.tracing.recorder import Recorder
from bcos_fx.tracing.source import SourceLine, attribute_to, is_torchs
from bcos_fx.tracing.wrappers import unwrap

_PRECISION_CHECK = torch.ops.aten._assert_tensor_metadata.default
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')


class Exported(nn.Module):
    """An exported program with the names of the module that it was made from.

    Its parameters are the program's own. The mode was fixed when it was exported.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        inner = program.module()
        for store in ("_parameters", "_buffers", "_modules"):
            getattr(self, store).update(getattr(inner, store))
        self.calls: fx.Graph = copy.deepcopy(inner.graph)
        inputs = [node for node in self.calls.nodes if node.op == "placeholder"]
        noted = [node.meta.get("val") for node in inputs]
        self.sizes = [_sizes(value) if isinstance(value, Tensor) else None for value in noted]
        self.dtypes = [value.dtype if isinstance(value, Tensor) else None for value in noted]
        for node in reversed(self.calls.nodes):
            # Checks of the input are made by this module. A check that a tensor is still of the precision that it had
            # says nothing of a network that is moved to another one.
            if not node.users and (node.op == "call_module" or node.target is _PRECISION_CHECK):
                self._modules.pop(str(node.target), None)
                self.calls.erase_node(node)
        self._non_persistent_buffers_set |= inner._non_persistent_buffers_set
        for node in self.calls.nodes:  # tensors without data are among the rest, and cannot be copied
            node.meta = {name: node.meta[name] for name in ("nn_module_stack", "stack_trace") if name in node.meta}
        self.names = [node.name for node in inputs]
        self.__class__ = _with_names(self.names)
        self.eval()

    def noted_input(self) -> Tensor | None:
        """Return noise of the shape that the program notes of its one input; sizes left open become 2."""
        sizes, dtype = self.sizes[0], self.dtypes[0]
        if len(self.sizes) != 1 or sizes is None or dtype is None or not dtype.is_floating_point:
            return None
        shape = [2 if size is None else size for size in sizes]
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def run(self, values: tuple[Any, ...]) -> Any:
        """Run the program on its inputs, in order."""
        with attribute_to(SourceLine("exported program", 0, "the sizes of its inputs")):
            self._check_sizes(values)
        runner = _Regrouped(self, garbage_collect_values=False, graph=self.calls)
        return self.calls.process_outputs(runner.run(*values, enable_io_processing=False))

    def _check_sizes(self, values: tuple[Any, ...]) -> None:
        """Read the sizes that were fixed, so that a recording notes them."""
        for name, sizes, value in zip(self.names, self.sizes, values, strict=True):
            for dim, size in enumerate(sizes or ()):
                if dim and size is not None and value.shape[dim] != size:
                    raise ValueError(f"{name} is {value.shape[dim]} long in dimension {dim}, the program takes {size}")


def _sizes(noted: Tensor) -> list[int | None]:
    """Return the sizes that a program was exported for; None for a size that may vary."""
    return [size if isinstance(size, int) else None for size in noted.shape]


def as_module(network: object) -> Any:
    """Return an exported program as a module, a module without wrappers around it, anything else as it is."""
    if isinstance(network, ExportedProgram):
        return Exported(network)
    return unwrap(network) if isinstance(network, nn.Module) else network


def _with_names(names: list[str]) -> type[Exported]:
    """Return the class with a forward whose arguments bear the names of the program's inputs."""

    def forward(self: Exported, *args: Any, **kwargs: Any) -> Any:
        return self.run(signature.bind(self, *args, **kwargs).args[1:])

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    return type("Exported", (Exported,), {"forward": forward, "__module__": __name__})


class _Regrouped(fx.Interpreter):
    """Runs each call under the name of the module, and with the line, that it came from."""

    def run_node(self, node: fx.Node) -> Any:
        with _as_it_was(node):
            return super().run_node(node)


@contextmanager
def _as_it_was(node: fx.Node) -> Iterator[None]:
    recorder = _get_current_function_mode()  # type: ignore[no-untyped-call]
    if not isinstance(recorder, Recorder):
        yield
        return
    stack = [place for place in (node.meta.get("nn_module_stack") or {}).values() if "_empty_nn_module" not in place[0]]
    path, kind = stack[-1] if stack else ("", "")
    name = kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
    with recorder.inside(path.partition("@")[0], name), attribute_to(_source(node)):
        yield


def _source(node: fx.Node) -> SourceLine | None:
    """Return the innermost line of the original's code that is not PyTorch's."""
    lines = [frame for frame in _FRAME.findall(node.meta.get("stack_trace") or "") if not is_torchs(frame[0])]
    if not lines:
        return None
    file, line, text = lines[-1]
    return SourceLine(file.rpartition("/")[2], int(line), text.strip())
