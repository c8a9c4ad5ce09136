"""Recording one forward pass of a module as a graph.

The forward runs on real tensors; a ``TorchFunctionMode`` sees each call that PyTorch dispatches and writes it down.
Nothing in PyTorch is patched, so threads do not see each other's recordings. What reaches the kernels by another way
(a TorchScript function, a C++ extension) is seen by a ``TorchDispatchMode`` one floor below.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from bcos_fx.errors import TraceError
from bcos_fx.tracing import composites, operations
from bcos_fx.tracing.arguments import LEAVE_WHOLE, describe, fill_meta, graph_argument, numbers, oddity, tensors
from bcos_fx.tracing.chance import Draws
from bcos_fx.tracing.functional import require
from bcos_fx.tracing.memory import Memory, same_memory
from bcos_fx.tracing.modes import GradientStops, unfollowable
from bcos_fx.tracing.operations import graph_call
from bcos_fx.tracing.sizes import Symbolic, TracedGuard, concrete, symbolic
from bcos_fx.tracing.source import SourceLine, autograd_forwards, current_source, error_source, is_running


class Recorder(TorchFunctionMode):
    """The graph of one forward pass, in the making."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = Graph()
        self.guards: dict[TracedGuard, None] = {}
        self.constants: dict[str, Tensor] = {}
        self.changed_state: dict[str, str] = {}  # buffer -> the line that changed it
        self.own_backward: dict[str, None] = {}  # lines that call functions with a backward of their own
        self.failure: str | None = None  # where the forward raised
        self.modules: list[tuple[str, str]] = []  # qualified name and class of the modules being run
        self.memory = Memory(self.record)
        self._state = {id(tensor): name for name, tensor in state.items()}
        self._names = frozenset(state)
        self._forwards = autograd_forwards()
        self._dependent: set[Node] = set()
        self._measured: set[Node] = set()  # depends on a floating-point input, or on chance
        self.stops = GradientStops(self.graph, (self._dependent, self._measured))
        self._sizes: dict[tuple[Node, object], Symbolic] = {}
        self._devices: dict[int, tuple[torch.device, Tensor]] = {}
        # How many recorded calls are running inside each other: what they call themselves is part of them.
        self._busy = 0
        self.draws = Draws()

    def placeholder(self, name: str, tensor: Tensor) -> None:
        """Add an input of the graph; `tensor` is its value in this run."""
        node = self.record("placeholder", name, (), {}, tensor)
        self._dependent.add(node)
        if tensor.is_floating_point():
            self._measured.add(node)
        self.memory.add(tensor, node)

    def output(self, tensor: Tensor) -> None:
        """Close the graph with `tensor` as its output."""
        node = self.node_of(tensor)
        if node not in self._dependent:
            raise TraceError("the output does not depend on any input tensor", hint="give the images as a tensor")
        self.record("output", "output", (node,), {}, tensor)
        # All activations of the run were kept until here, and the recorder is part of a cycle.
        self.memory.clear()
        self._devices.clear()

    def call_leaf(self, path: str, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module that stays whole, and record it as one call; inside another leaf it only runs."""
        if self._busy:
            return forward(*args, **kwargs)
        in_place = bool(getattr(module, "inplace", False))
        with torch._C.DisableTorchFunction():
            return self._call(forward, ("call_module", path, args, kwargs), args, kwargs, in_place=in_place)

    @contextmanager
    def inside(self, path: str, kind: str) -> Iterator[None]:
        """While this lasts, calls are recorded as made by the module of that name and class."""
        self.modules.append((path, kind))
        try:
            yield
        except BaseException as error:
            self.failure = self.failure or self._where(error_source(error))
            raise
        finally:
            self.modules.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """While this lasts, calls are recorded as made by a part of the module that is running."""
        self.modules.append((".".join([*(path for path, _ in self.modules[-1:] if path), name]), ""))
        try:
            yield
        finally:
            self.modules.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = operations.torch_level(func)
        args, kwargs, name = tuple(args), kwargs or {}, func.__name__
        if self._busy or not self._follows(func, args, kwargs):
            return self._run_unrecorded(func, args, kwargs)
        # Reads come before calls, as they answer Python with numbers. Composites come before in-place forms, so that
        # addcmul_ is recorded by its parts as addcmul is.
        if name == "__get__":
            return self._property(func, args[0])
        if name in operations.DATA_READS:
            return self._data_read(func, args, kwargs)
        if name in operations.SIZE_READS or name == "__len__":
            return self._size_read(func, args, kwargs)
        if name in operations.FORM_READS or (name == "__setitem__" and self._run(operations.writes_itself, args, {})):
            return self._run(func, args, kwargs)
        in_place = operations.is_in_place_call(func, kwargs)
        result = self._composed((in_place and operations.plain_form(func)) or func, args, kwargs)
        if result is not NotImplemented:
            return self._run_in_place(func, args, kwargs, result) if in_place else result
        if name == "__set__":
            raise self._refusal(f"assigning to a tensor's {func.__self__.__name__!r} cannot be traced")  # type: ignore[attr-defined]
        if in_place:
            call = operations.out_of_place(func, args, kwargs)
            if call is None:
                raise self._refusal(f"the in-place call {name!r} has no known out-of-place form")
            return self._call(func, call, args, kwargs, in_place=True)
        return self._call(func, graph_call(func, args, kwargs), args, kwargs, in_place=False)

    def unseen(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a kernel call that did not come through ``__torch_function__``."""
        if self._busy or not self._follows(func, args, kwargs):
            return self._run_unrecorded(func, args, kwargs)
        call = graph_call(operations.torch_level(func), args, kwargs)
        return self._call(func, call, args, kwargs, in_place=False)

    def record(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: object) -> Node:
        """Add a node; `args` may hold tensors, nodes and symbolic numbers, `value` is its result in this run."""
        graph_args, graph_kwargs = self.stops.leaving((self._argument(args), self._argument(kwargs)))
        if op == "placeholder":
            node = self.graph.placeholder(target)
        elif op == "output":
            node = self.graph.output(graph_args[0])
        else:
            node = self.graph.create_node(op, target, graph_args, graph_kwargs)
        source = current_source()
        fill_meta(node, value, source, self.modules[-1] if self.modules else ("", ""))
        if own_backward := is_running(self._forwards):
            self.own_backward[str(source)] = None
        drawn = self.draws.note(node) or describe(target) in operations.RANDOM
        if drawn or any(source in self._dependent for source in node.all_input_nodes):
            self._dependent.add(node)
        measured = any(source in self._measured for source in node.all_input_nodes)
        if drawn or (measured and not operations.reads_form(op, target, args)):
            self._measured.add(node)
            if not own_backward:
                self.stops.note(node)
        return node

    def guard(self, kind: str, node: Node, value: object) -> None:
        """Note that Python code read `value` from `node`."""
        self.guards[TracedGuard(kind, node.name, value, str(current_source()))] = None

    def node_of(self, tensor: Tensor) -> Node:
        """Return the node that computes what `tensor` holds now; tensors from elsewhere become constants."""
        entry = self.memory.find(tensor)
        if entry is None:
            node = self._from_outside(tensor)
        elif entry.broken:
            raise TraceError(
                "a tensor is used after memory that it shares was changed in place, in a way that no graph can follow",
                where=f"{current_source()}; changed at {entry.broken}",
                hint="write the change out of place, e.g. x = x + y for x += y",
            )
        else:
            node = entry.node
        self.memory.add(tensor, node)
        return node

    def _property(self, func: Any, tensor: Tensor) -> Any:
        name = func.__self__.__name__
        value = self._run(func, (tensor,), {})
        if name == "shape" and self._depends(tensor):
            return torch.Size([self._size(tensor, i, n) for i, n in enumerate(value)])  # type: ignore[misc]
        if isinstance(value, torch.device):
            self._devices[id(value)] = (value, tensor)
        if not isinstance(value, Tensor) or name == "grad":
            return value
        if name == "data":  # an older spelling of detach(), which the vocabulary has
            return self._adopt(value, self.record("call_method", "detach", (tensor,), {}, value))
        return self._adopt(value, self.record("call_function", getattr, (tensor, name), {}, value))

    def _size_read(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = self._run(func, args, kwargs)
        if not self._depends(args[0]):
            return value
        if func.__name__ == "__len__":
            self.guard("len", self._size(args[0], 0, value).as_node(), value)
            return value
        if isinstance(value, tuple):
            return torch.Size([self._size(args[0], i, n) for i, n in enumerate(value)])  # type: ignore[misc]
        asked = concrete(args[1] if len(args) > 1 else kwargs.get("dim"))
        return self._size(args[0], asked if asked is None else asked % args[0].dim(), value)

    def length(self, tensor: Tensor) -> Any:
        """Return the number of entries of a tensor's first dimension: symbolic where the tensor follows the input."""
        value = self._run(len, (tensor,), {})
        return self._size(tensor, 0, value) if not self._busy and self._depends(tensor) else value

    def _size(self, tensor: Tensor, dim: int | None, value: int) -> Symbolic:
        key = (self.node_of(tensor), dim)
        if key not in self._sizes:
            call = ("numel", key[:1]) if dim is None else ("size", key)
            self._sizes[key] = symbolic(self, value, "call_method", *call)
        return self._sizes[key]

    def _data_read(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = [tensor for tensor in tensors((args, kwargs)) if self._depends(tensor)]
        if not read:
            return self._run(func, args, kwargs)
        nodes = [self.node_of(tensor) for tensor in read]
        # A number read from integers (a mask) becomes a check in the graph. One measured on floating-point values
        # differs for nearly every input, so that such a check would refuse them all.
        if func.__name__ not in operations.NUMBER_READS or any(node in self._measured for node in nodes):
            raise self._refusal(f"Python code reads the values of a tensor that depends on the input ({func.__name__})")
        value = self._run(func, args, kwargs)
        self.record("call_function", require, (nodes[0], value, str(current_source())), {}, None)
        return value

    def _call(
        self, func: Callable[..., Any], call: operations.RecordedCall, args: Any, kwargs: Any, *, in_place: bool
    ) -> Any:
        """Run `func` for its value and record `call` for it."""
        op, target, call_args, call_kwargs = call
        # Arguments become nodes before the call runs: an in-place call changes which node their tensors belong to.
        call_args, call_kwargs = self._argument(tuple(call_args)), self._argument(call_kwargs)
        versions = [(tensor, tensor._version) for tensor in tensors((args, kwargs))]
        result = self._run(func, args, kwargs)
        changed = [tensor for tensor, version in versions if tensor._version != version]
        if in_place and all(same_memory(tensor, args[0]) for tensor in changed):
            node = self.record(op, target, call_args, call_kwargs, args[0])
            return self._overwritten(args[0], node, result, func.__name__)
        self._check_changed(changed, describe(target))
        if not self._is_graphable(func, result, args, kwargs):
            return result
        if isinstance(result, (bool, int, float)):
            return symbolic(self, result, op, target, call_args) if not call_kwargs else result
        node = self.record(op, target, call_args, call_kwargs, result)
        if func.__name__ in operations.PIECES and isinstance(result, (tuple, list)) and self._depends(args[0]):
            self.guard("iter", node, len(result))
        return self._adopt(result, node)

    def _composed(self, func: Callable[..., Any] | None, args: Any, kwargs: Any) -> Any:
        """Record a call as those that it is short for, and return its result; NotImplemented for other calls."""
        if func in operations.GRADIENTS:
            raise self._refusal("a gradient is computed in the forward, and no graph holds how")
        composite = None if func is None else composites.find(func, self.part, self._depends)
        if composite is None:
            return NotImplemented
        with self:  # PyTorch puts a mode aside while it handles a call
            return composite(*args, **kwargs)

    def _run_in_place(self, func: Callable[..., Any], args: Any, kwargs: Any, result: Tensor) -> Any:
        """Run an in-place call whose result was recorded out of place."""
        with self:
            node = self.node_of(result.to(args[0].dtype))
        return self._overwritten(args[0], node, self._run(func, args, kwargs), func.__name__)

    def _overwritten(self, tensor: Tensor, node: Node, result: object, name: str) -> Any:
        old = self.node_of(tensor)
        if old.op == "get_attr" and str(old.target) in self._names:
            self.changed_state.setdefault(str(old.target), str(current_source()))
        if name in operations.FORM_CHANGES:
            self.memory.add(tensor, node)
        else:
            self.memory.change(tensor, node, str(current_source()))
        return result

    def _check_changed(self, changed: list[Tensor], name: str) -> None:
        """Let a call change buffers (running statistics); refuse a change of anything else."""
        for tensor in changed:
            state = self._state.get(id(tensor))
            if state is None:
                raise self._refusal(f"{name} changes one of its arguments in place")
            self.changed_state.setdefault(state, str(current_source()))

    def _is_graphable(self, func: Callable[..., Any], result: object, args: object, kwargs: object) -> bool:
        """Return whether a result belongs in the graph; refuse a number that follows from the values of the input."""
        if tensors(result) or func is torch._assert:
            return True
        if not isinstance(result, (bool, int, float)):
            return False
        if any(self._depends(tensor) for tensor in tensors((args, kwargs))):
            raise self._refusal(f"{func.__name__} gives Python a number that depends on the input")
        return bool(numbers((args, kwargs)))

    def _run_unrecorded(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a call that the graph has no part in; if it changes memory that the graph knows, say so on use."""
        if self._busy:
            return func(*args, **kwargs)
        versions = [(tensor, tensor._version) for tensor in tensors((args, kwargs))]
        result = self._run(func, args, kwargs)
        if self.draws.drew:  # random numbers are new at every run, even where nothing of the graph was read
            op, target, args, kwargs = graph_call(func, self._argument(args), self._argument(kwargs))
            self.draws.drew = True
            return self._adopt(result, self.record(op, target, args, kwargs, result))
        for tensor, version in versions:
            if tensor._version != version:
                self.memory.breaks(tensor, str(current_source()))
        return result

    def _run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._busy += 1
        try:
            return self.draws.run(func, concrete(tuple(args)), concrete(dict(kwargs)))
        except BaseException:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors((args, kwargs)))
            self.failure = self.failure or f"{self._where()} (arguments of shape {shapes or 'none'})"
            raise
        finally:
            self._busy -= 1

    def _adopt(self, value: Any, node: Node) -> Any:
        """Tie the tensors in a result to `node`; one that was there before comes back as a new object."""
        if isinstance(value, Tensor):
            self._check_dense(value)
            # Dropout in eval gives back its very argument; as one object the two could not have two nodes.
            if self.memory.knows(value) or id(value) in self._state:
                value = self._run(torch.ops.aten.alias.default, (value,), {})
            self.memory.add(value, node)
            return value
        if isinstance(value, (tuple, list)):
            items = [self._adopt_item(item, node, i) for i, item in enumerate(value)]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: self._adopt_item(item, node, key) for key, item in value.items()}
        return value

    def _adopt_item(self, item: object, node: Node, key: object) -> Any:
        if not tensors(item):
            return item
        return self._adopt(item, self.record("call_function", operator.getitem, (node, key), {}, item))

    def _argument(self, value: object) -> Any:
        return graph_argument(value, self.node_of, self._device)

    def _device(self, device: torch.device) -> Any:
        """Return the node of a device that was read from a tensor, so that the graph follows ``.to(device)``."""
        known = self._devices.get(id(device))
        if known is None:
            return device
        return self.record("call_function", getattr, (known[1], "device"), {}, device)

    def _from_outside(self, tensor: Tensor) -> Node:
        """Make a node for a tensor that no recorded call computed."""
        name = self._state.get(id(tensor))
        if name is None:
            if isinstance(tensor, nn.Parameter):
                raise self._refusal("a parameter is used that is not registered in the module, or made at each call")
            if any(entry.node in self._dependent for entry in self.memory.sharing(tensor)):
                raise self._refusal("a tensor shares memory with one computed from the input, unseen")
            taken = self._names | self.constants.keys()
            name = next(n for n in map("constant_{}".format, range(10**9)) if n not in taken)
            self.constants[name] = self._run(torch.clone, (tensor.detach(),), {})
        return self.record("get_attr", name, (), {}, tensor)

    def _follows(self, func: Callable[..., Any], args: object, kwargs: object) -> bool:
        """Return whether a call concerns the graph: the input, its sizes, parameters, buffers or random numbers."""
        for tensor in tensors((args, kwargs)):
            self._check_dense(tensor)
        return (
            func.__name__ in operations.RANDOM
            or bool(numbers((args, kwargs)))
            or any(id(tensor) in self._state or self.memory.sharing(tensor) for tensor in tensors((args, kwargs)))
        )

    def _depends(self, tensor: Tensor) -> bool:
        """Return whether a tensor's values depend on the input or on chance."""
        entry = self.memory.find(tensor)
        return entry is not None and entry.node in self._dependent

    def _where(self, source: SourceLine | None = None) -> str:
        path, kind = self.modules[-1] if self.modules else ("", "")
        line = source or current_source()
        return f"{line} in module {path!r} ({kind})" if kind else str(line)

    def _check_dense(self, tensor: Tensor) -> None:
        kind = oddity(tensor)
        reason = unfollowable(tensor) if kind is None else f"a {kind} tensor is made, and no graph can hold one"
        if reason is not None:
            raise self._refusal(reason)

    def _refusal(self, reason: str) -> TraceError:
        return TraceError(reason, where=self._where(), hint=f"rewrite that line, or {LEAVE_WHOLE}")
