"""From a module and example inputs to a graph that computes the same.

The forward is run once in eval mode on a copy and recorded, once more in train mode for comparison, and the
graph is run once to see that it repeats the recorded output.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.errors import FORWARD_ERRORS, BcosFxError, TraceError, UsageError
from bcos_fx.seeding import host_state, preserved, seed_host
from bcos_fx.tracing.arguments import LEAVE_WHOLE
from bcos_fx.tracing.caches import bypass_caches
from bcos_fx.tracing.drop_path import replace_drop_paths
from bcos_fx.tracing.graph_module import GraphModule
from bcos_fx.tracing.inputs import BoundInputs, ExampleError, ExampleInputs, advice, bind, check_state, select_output
from bcos_fx.tracing.kernels import KernelWatch
from bcos_fx.tracing.lengths import follow_lengths
from bcos_fx.tracing.modes import TRANSFORMED, enable_gradients, is_transforming, own_modes
from bcos_fx.tracing.modules import (
    Leaves,
    check_parts,
    deep_copy,
    hooked_backward,
    instrument,
    keep_buffers,
    make_root,
    own_copy,
)
from bcos_fx.tracing.named import follow_named
from bcos_fx.tracing.precision import follow_precision, other_precision, reads_precision, without_numbers
from bcos_fx.tracing.recorder import Recorder
from bcos_fx.tracing.sizes import TracedGuard
from bcos_fx.tracing.state import (
    Attributes,
    attributes,
    buffer_values,
    changed_attributes,
    changed_buffers,
    restore_attributes,
    settle_sizes,
)
from bcos_fx.tracing.training import GraphAlignment
from bcos_fx.tracing.values import drop_needless_checks

# The random generators are the process's: two traces that put them back at once would spoil them.
_LOCK = threading.RLock()

_DRAWS = 32
"""Runs that tell whether the output depends on what Python code drew; some draw a number and do not use it in eval."""


@dataclass
class Trace:
    """A module as a graph.

    Attributes:
        graph_module: the graph over its own copy of the parameters, in eval mode. Each node's ``meta`` has
            ``source`` (``resnet.py:92: out = self.relu(out)``), ``text`` (that line alone), ``module_path`` and
            ``module_type`` (the module that made the call), ``shape`` and ``dtype`` (of a tensor, else None),
            ``value`` (of sizes, else None), ``type`` (``tensor``, ``tuple``, ``size`` or ``other``), ``origin``
            (its name in this trace) and, where a literal only says the mode, ``training_argument`` and
            ``training_value``.
        guards: what Python code read from the shapes; the graph holds for inputs that answer the same.
        notes: what Python code read from the values of integer inputs (masks), and whether it matters; where the
            module stops gradients.
        own_backward: lines and modules with a backward pass of their own, which no graph holds.
        unused: parameters that the graph never uses (auxiliary heads).
        train_difference: None if train mode has the same graph, else how and where it first differs.
        input_names: names of the graph's inputs, in order.
    """

    graph_module: GraphModule
    guards: tuple[TracedGuard, ...]
    notes: tuple[str, ...]
    own_backward: tuple[str, ...]
    unused: tuple[str, ...]
    train_difference: str | None
    input_names: tuple[str, ...]


@dataclass(frozen=True)
class _Recording:
    """What is recorded of a module: the arguments of :func:`trace` besides it."""

    example: ExampleInputs
    output: int | str | None
    leaf_modules: Leaves


def trace(
    module: nn.Module,
    example_inputs: ExampleInputs,
    *,
    output: int | str | None = None,
    leaf_modules: Leaves = (),
) -> Trace:
    """Record the eval-mode forward of `module` as a graph. The module itself is not changed.

    Args:
        module: any module whose control flow does not depend on the values in its input.
        example_inputs: one tensor, the positional arguments, or the arguments by name. Give a batch of 2 or more, so
            that no size is 1 by chance. Arguments that are not tensors are built into the graph.
        output: which element of the module's output the graph computes, where that is not one tensor: a key,
            an attribute or a position.
        leaf_modules: what stays one node each, besides layers of ``torch.nn`` and ``bcos_fx.nn``: classes, qualified
            names of classes (without their subclasses), and patterns of the names of modules.

    Raises:
        UsageError: the inputs do not fit the module, or `output` does not name a tensor.
        TraceError: the forward cannot be written as a graph.
    """
    with _LOCK, own_modes():
        check_parts(module)
        inputs, recording = bind(module, example_inputs), _Recording(example_inputs, output, leaf_modules)
        root = own_copy(module)
        # Before the recording, for in eval mode a dropped path leaves no node.
        replace_drop_paths(root)
        root = make_root(root, leaf_modules)
        check_state(root, inputs)
        devices = sorted({t.device.index or 0 for t in inputs.named.values() if t.device.type == "cuda"})
        with preserved(devices):
            torch.manual_seed(0)
            before = attributes(root)
            recorder, result = _evaluated(root, inputs, recording)
            graph_module = _build(root, recorder)
            _check_state_unchanged(graph_module, recorder)
            restore_attributes(root, before)
            # Train mode and the other precision are both compared with the graph node by node, so nothing is inserted
            # until both are done.
            compared = _train_difference(root, recorder, graph_module, recording)
            restore_attributes(root, before)
            named = _follow_precision(root, recorder, graph_module, inputs, recording)
            difference = compared.insert_paths() if isinstance(compared, GraphAlignment) else compared
            stay = [name for name, part in root.named_modules() if part.training]  # in spite of root.eval()
            graph_module.eval()
            torch.manual_seed(0)
            error = _confirm(graph_module, bind(root, example_inputs), result, stay)
            rerun = partial(_rerun, root, inputs, output)
            read = drop_needless_checks(graph_module, list(inputs.named.values()), rerun, _agree)
        unused = _unused_parameters(root, graph_module)
    own_backward = (*recorder.own_backward, *hooked_backward(module))
    guards, notes = tuple(recorder.guards), (*read, *recorder.stops.notes, *_on_precision(named, error))
    return Trace(graph_module, guards, notes, own_backward, unused, difference, tuple(inputs.named))


def _record(root: nn.Module, inputs: BoundInputs, recording: _Recording, recorder: Recorder) -> Tensor:
    """Run `root` once under `recorder`; return the selected output."""
    for name, tensor in inputs.named.items():
        recorder.placeholder(name, tensor)
    try:
        with instrument(root, recorder, recording.leaf_modules), bypass_caches(root), enable_gradients(root):
            with KernelWatch(recorder), follow_lengths(root, recorder), recorder:
                value = root(*inputs.args, **inputs.kwargs)
    finally:
        # Also after an error: a size that forward kept belongs to this recording alone.
        settle_sizes(root)
    chosen = select_output(value, recording.output)
    with torch.enable_grad():  # as outside of a forward that keeps no gradients itself
        recorder.output(chosen)
    return chosen


def _state(root: nn.Module) -> dict[str, Tensor]:
    return {**dict(root.named_parameters()), **dict(root.named_buffers())}


def _evaluated(root: nn.Module, inputs: BoundInputs, recording: _Recording) -> tuple[Recorder, Tensor]:
    """Record `root` in eval mode, and check that it repeats its output."""
    recorder, before = Recorder(_state(root)), attributes(root)
    with _explained_errors(root, recorder, recording.example), keep_buffers(root):
        buffers, generators = buffer_values(root), host_state()
        result = _record(root, inputs, recording, recorder)
        for name in changed_buffers(root, buffers):
            recorder.changed_state.setdefault(name, "an assignment in forward")
    _check_repeats(root, recording, result, before, _DRAWS if host_state() != generators else 1)
    return recorder, result


def _check_repeats(root: nn.Module, recording: _Recording, expected: Tensor, before: Attributes, runs: int) -> None:
    """Run `root` again: with state that it changes itself, or numbers that Python draws, it gives something else."""
    for seed in range(runs):
        seed_host(seed)
        torch.manual_seed(0)
        inputs = bind(root, recording.example)
        try:
            with keep_buffers(root), bypass_caches(root):
                again = select_output(root(*inputs.args, **inputs.kwargs), recording.output)
            repeats = _agree(again, expected)
        except FORWARD_ERRORS:
            repeats = False
        if not repeats and runs > 1:
            raise TraceError(
                "the output depends on random numbers that Python code draws in eval mode, from Python's own generator "
                "or NumPy's, which no graph holds",
                hint="leave the random numbers out in eval mode, or draw them outside and give them as an input",
            )
        if not repeats:
            raise TraceError(
                "run again on the same inputs, the module gives another output: its forward changes what it depends on",
                where=changed_attributes(root, before),
                hint="change it in train mode only, or pass it in and out as an argument",
            )


@contextlib.contextmanager
def _explained_errors(root: nn.Module, recorder: Recorder, example: ExampleInputs) -> Iterator[None]:
    """Turn an error of the module's own code into one of ours: of the inputs if the module fails alone too."""
    try:
        yield
    except BcosFxError:
        raise
    except FORWARD_ERRORS as error:
        inputs = bind(root, example)
        try:
            with keep_buffers(root):
                root(*inputs.args, **inputs.kwargs)
        except FORWARD_ERRORS:
            raise ExampleError(
                f"the module does not run on the example inputs: {error}",
                where=recorder.failure,
                hint=advice(root, inputs),
            ) from error
        raise TraceError(
            TRANSFORMED
            if is_transforming(error)
            else f"the module runs, but cannot be traced: {type(error).__name__}: {error}",
            where=recorder.failure,
            hint=f"rewrite that line, or {LEAVE_WHOLE}",
        ) from error


def _build(root: nn.Module, recorder: Recorder) -> GraphModule:
    """Make the graph module: the graph's own parts of `root`, under their names, and the constants as buffers."""
    parts: dict[str, Any] = {**_state(root), **recorder.constants, **dict(root.named_modules())}
    graph_module = GraphModule(parts, recorder.graph, class_name=type(root).__name__)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name in recorder.constants.keys() - used:
        if hasattr(graph_module, name):
            delattr(graph_module, name)
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and hasattr(part := graph_module.get_submodule(node.target), "inplace"):
            # The value that the layer overwrote has a node of its own, which others may read.
            part.inplace = False  # type: ignore[assignment]
    _keep_persistence(root, graph_module)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _keep_persistence(root: nn.Module, graph_module: GraphModule) -> None:
    """Leave the same buffers out of the state dict as the original does."""
    for path, part in root.named_modules():
        for name in part._non_persistent_buffers_set:
            with contextlib.suppress(AttributeError):
                owner = graph_module.get_submodule(path)
                if name in owner._buffers:
                    owner._non_persistent_buffers_set.add(name)


def _check_state_unchanged(graph_module: GraphModule, recorder: Recorder) -> None:
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name, source in recorder.changed_state.items():
        if name in used:
            raise TraceError(
                f"the forward changes {name!r} in eval mode and uses it, so its output depends on earlier calls",
                where=source,
                hint="change it in train mode only",
            )


def _train_difference(
    root: nn.Module, evaluated: Recorder, graph_module: GraphModule, recording: _Recording
) -> str | GraphAlignment:
    """Record `root` in train mode too and compare; `root` ends in eval mode with the buffers it had."""
    recorder = Recorder(_state(root))
    constants = evaluated.constants, recorder.constants
    try:
        with keep_buffers(root):
            root.train()
            _record(root, bind(root, recording.example), recording, recorder)
    except UsageError as error:
        first = GraphAlignment(graph_module, recorder.graph, None, constants).difference
        return f"in train mode {error.what}" + (f": {first}" if first else "")
    except (BcosFxError, *FORWARD_ERRORS) as error:
        reason = error.what if isinstance(error, BcosFxError) else str(error)
        return f"the forward cannot be compared in train mode: {reason} ({recorder.failure or 'no line known'})"
    finally:
        root.eval()
    trained = _build(root, recorder)
    return GraphAlignment(graph_module, trained.graph, trained, constants)


def _follow_precision(
    root: nn.Module,
    evaluated: Recorder,
    graph_module: GraphModule,
    inputs: BoundInputs,
    recording: _Recording,
) -> tuple[str, ...]:
    """Let the graph follow the network's precision, as a copy of `root` does in another one; return lines that do not.

    A copy that does not run in float64 names float32, and the graph follows where it does.
    """
    precision = other_precision(inputs.named, root.parameters())
    if precision is None or not reads_precision(graph_module, evaluated.constants):
        return ()
    torch.manual_seed(0)
    try:
        twin = deep_copy(root, without_numbers(root, precision)).to(precision)
        recorder = Recorder(_state(twin))
        _record(twin, inputs.cast(precision), recording, recorder)
    except (BcosFxError, *FORWARD_ERRORS):
        if precision != torch.float64:
            return ()  # the module or its device has one precision, and the graph is right in that
        return follow_named(graph_module, inputs.named, torch.float32, precision)
    recorded = torch.float32 if precision == torch.float64 else torch.float64
    follow_precision(graph_module, _build(twin, recorder), (evaluated.constants, recorder.constants), recorded)
    return ()


def _confirm(graph_module: GraphModule, inputs: BoundInputs, expected: Tensor, trained: list[str]) -> float:
    """Run the graph on the example: a difference means that something was not seen. Return the largest."""
    with keep_buffers(graph_module):
        actual = graph_module(*inputs.named.values())
    if not _agree(actual, expected):
        raise TraceError(
            "the graph does not repeat the module's output on the example inputs",
            where=", ".join(f"the module {name!r} stays in train mode after eval()" for name in trained) or None,
            hint="look for state that changes between calls, or name the module concerned in leaf_modules=[...]",
        )
    return 0.0 if torch.equal(actual, expected) else float((actual - expected).abs().max())


def _on_precision(lines: tuple[str, ...], error: float) -> tuple[str, ...]:
    """Return which lines name float32, and how well the graph repeats the module in float32."""
    if not lines:
        return ()
    repeats = f"to within {error:.1g}" if error else "bit by bit"
    return (
        f"float32 is named in forward, so the module runs in no other precision: {'; '.join(lines)}. The graph follows "
        f"its parameters' precision there; in float32 it repeats the module on the example {repeats}",
    )


def _rerun(root: nn.Module, inputs: BoundInputs, output: int | str | None, values: list[Tensor]) -> Tensor:
    """Run the module on other tensors, and leave its buffers as they are."""
    with keep_buffers(root):
        return select_output(inputs.call(root, values), output)


def _agree(actual: Tensor, expected: Tensor) -> bool:
    same = actual.shape == expected.shape and actual.dtype == expected.dtype
    return same and torch.allclose(actual, expected, rtol=1e-4, atol=1e-4 * _scale(expected), equal_nan=True)


def _scale(tensor: Tensor) -> float:
    finite = tensor[torch.isfinite(tensor)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _unused_parameters(root: nn.Module, graph_module: GraphModule) -> tuple[str, ...]:
    used: set[int] = set()
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            used.add(id(root.get_parameter(node.target)) if node.target in dict(root.named_parameters()) else 0)
        elif node.op == "call_module":
            used |= {id(parameter) for parameter in graph_module.get_submodule(node.target).parameters()}
    return tuple(name for name, parameter in root.named_parameters() if id(parameter) not in used)
