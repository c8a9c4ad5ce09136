"""Which node computed which tensor, and what an in-place change of one tensor does to the others.

The example run works on real tensors, so two tensors alias exactly when they share storage. A graph has no
storage: after ``view.add_(1)`` the view, its base and the base's other views must all come from new nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bcos_fx.tracing.functional import set_item

RecordFunction = Callable[[str, Any, tuple[Any, ...], dict[str, Any], object], Node]

_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"})
_SWAPS = frozenset({"transpose", "swapaxes", "swapdims", "t"})


@dataclass(eq=False)
class RecordedTensor:
    """A tensor of the example run (kept alive, so that its identity stays its own) and the node that computes it."""

    tensor: Tensor
    node: Node
    broken: str | None = None  # the line of an in-place change that no node can express for this alias


class Memory:
    """The tensors of one example run, by identity and by storage."""

    def __init__(self, record: RecordFunction) -> None:
        self._record = record
        self._entries: dict[int, RecordedTensor] = {}
        self._by_storage: dict[int, list[RecordedTensor]] = {}

    def add(self, tensor: Tensor, node: Node) -> None:
        """Note that `node` computes `tensor`; a tensor seen before moves to its new node."""
        entry = self._entries.get(id(tensor))
        if entry is not None:
            entry.node = node
            return
        entry = RecordedTensor(tensor, node)
        self._entries[id(tensor)] = entry
        self._by_storage.setdefault(_storage(tensor), []).append(entry)

    def clear(self) -> None:
        """Let go of all tensors."""
        self._entries.clear()
        self._by_storage.clear()

    def knows(self, tensor: Tensor) -> bool:
        """Return whether this very tensor object has an entry."""
        return id(tensor) in self._entries

    def find(self, tensor: Tensor) -> RecordedTensor | None:
        """Return the entry of this very tensor object, or of one that is the same part of the same storage."""
        entry = self._entries.get(id(tensor))
        if entry is not None:
            return entry
        return next((e for e in self.sharing(tensor) if _geometry(e.tensor) == _geometry(tensor)), None)

    def sharing(self, tensor: Tensor) -> list[RecordedTensor]:
        """Return the entries whose storage `tensor` uses, oldest first."""
        # The address is 0 where a tensor has no elements; all such tensors would count as aliases of each other.
        key = _storage(tensor)
        return self._by_storage.get(key, []) if key else []

    def breaks(self, tensor: Tensor, where: str) -> None:
        """Mark every alias of `tensor` as changed by code that the graph does not hold."""
        for entry in self.sharing(tensor):
            if _overlap(tensor, entry.tensor):
                entry.broken = where

    def change(self, tensor: Tensor, node: Node, where: str) -> None:
        """Note that `tensor` was overwritten and that `node` computes what it holds now; its aliases follow."""
        changed = self._entries[id(tensor)]
        # The bases come first: another view of a base is recomputed from the base's new node.
        replaced = {changed.node: node}
        self._climb(changed, node, replaced)
        changed.node, changed.broken = node, None
        for entry in self.sharing(tensor):
            if entry is changed or entry.node in replaced.values() or not _overlap(tensor, entry.tensor):
                continue
            self._update_alias(entry, changed, replaced, where)

    def _climb(self, changed: RecordedTensor, node: Node, replaced: dict[Node, Node]) -> None:
        """Write the new value of a view back into its base, the base's base and so on."""
        view, old, new = changed, changed.node, node
        while True:
            # The first argument of a node that makes a view is the node of its base.
            base = next((e for e in self.sharing(view.tensor) if e.node in old.args[:1] and e is not view), None)
            if base is None:
                return
            if _geometry(base.tensor) != _geometry(view.tensor):
                call = _inverse(view, old, base, new)
                # change() then finds the base among the aliases that were not replaced, and marks it as broken.
                if call is None:
                    return
                new = self._record("call_function", *call, base.tensor)
            replaced[base.node] = new
            view, old, base.node = base, base.node, new

    def _update_alias(
        self, entry: RecordedTensor, changed: RecordedTensor, replaced: dict[Node, Node], where: str
    ) -> None:
        """Recompute another alias from the nodes that were replaced, or mark it as broken."""
        if entry.broken is None and _geometry(entry.tensor) == _geometry(changed.tensor):
            self._move(entry, changed.node, replaced)
        # A view of something replaced: the same call on the new node gives what the view now shows.
        elif entry.broken is None and any(source in replaced for source in entry.node.args[:1]):
            old = entry.node
            args = tuple(replaced.get(a, a) if isinstance(a, Node) else a for a in old.args)
            self._move(entry, self._record(old.op, old.target, args, dict(old.kwargs), entry.tensor), replaced)
        else:
            entry.broken = where

    def _move(self, entry: RecordedTensor, node: Node, replaced: dict[Node, Node]) -> None:
        replaced[entry.node] = node
        entry.node = node


def same_memory(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors lie in one storage: views of it count changes together."""
    return _storage(first) == _storage(second)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _geometry(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of one storage have an element in common; different dtypes count as overlapping."""
    if first.dtype != second.dtype:
        return True
    # Element by element, as strides interleave: x[:, 0] and x[:, 1] span the same addresses and share none.
    marks = torch.zeros(first.untyped_storage().nbytes() // first.element_size(), dtype=torch.bool)
    marks.as_strided(first.shape, first.stride(), first.storage_offset()).fill_(True)
    return bool(marks.as_strided(second.shape, second.stride(), second.storage_offset()).any())


def _inverse(
    view: RecordedTensor, old: Node, base: RecordedTensor, new: Node
) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Find the call that puts `new`, the new value of `view`, back into `base`; None where there is no simple one.

    `old` is the node that made the view of `base`.
    """
    if old.target is operator.getitem:
        return set_item, (base.node, old.args[1], new), {}
    if old.op == "call_module":
        whole = view.tensor.numel() == base.tensor.numel() and view.tensor.is_contiguous()
        return (torch.Tensor.reshape_as, (new, base.node), {}) if whole and base.tensor.is_contiguous() else None
    name = old.target if isinstance(old.target, str) else getattr(old.target, "__name__", "")
    if name in _RESHAPES:
        return torch.Tensor.reshape_as, (new, base.node), {}
    if name in _SWAPS:
        dims = old.args[1:] or ((0, 1) if name == "t" else ())
        return torch.transpose, (new, *dims), dict(old.kwargs)
    if name == "permute" and not old.kwargs:
        order = old.args[1] if isinstance(old.args[1], (tuple, list)) else old.args[1:]
        if all(isinstance(d, int) for d in order):
            places = {int(d) % len(order): i for i, d in enumerate(order)}
            return torch.permute, (new, tuple(places[i] for i in range(len(order)))), {}
    return None
