"""Where new modules stand in the module tree: in the old one's place wherever that is free."""

from __future__ import annotations

import copy

from torch import fx, nn

from bcos_fx.rewriting.core.build import Part
from bcos_fx.rewriting.core.match import Hit
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rule import Replacement
from bcos_fx.rewriting.core.stored import sources_of


class ModulePlacer:
    """Finds the paths of new modules in one graph module, and puts them there, in place."""

    def __init__(self, reader: GraphReader) -> None:
        self._reader = reader
        self._moved: dict[str, str] = {}
        self._divided: set[str] = set()
        self._containers: dict[int, tuple[str, nn.Module | None]] = {}  # an id means nothing once its object is gone

    @property
    def _root(self) -> fx.GraphModule:
        return self._reader.graph_module

    def put(self, module: nn.Module, call: Call, hit: Hit, name: str) -> str:
        """Place the module that an entry of a rule built from a call, and return its path."""
        path = self._path(call, hit, name)
        if call.module is None:  # what stands for a call of a function is in the mode of the graph
            module.train(self._root.training)
        set_module(self._root, path, module)
        return path

    def put_part(self, part: Part, call: Call) -> str:
        """Place a module for a part of the one that is called inside that one, and return its path."""
        # The twin is put in the layer's place once: a graph may share its layers with another's, which keep theirs.
        if str(call.node.target) not in self._divided:
            set_module(self._root, str(call.node.target), _twin(self._root.get_submodule(str(call.node.target))))
        inside = self._unused_path(f"{call.node.target}.{part.name}")
        set_module(self._root, inside, part.module)
        self._divided.add(str(call.node.target))
        return inside

    def move_out(self) -> dict[str, str]:
        """Move parts beside the module that they were taken from, where that is still called for what is left of it.

        It is a layer then, and a layer has no parts: nothing could store it.

        Returns:
            Path -> new path of those that were moved.
        """
        moved: dict[str, str] = {}
        nodes = [n for n in self._root.graph.nodes if n.op in ("call_module", "get_attr")]
        for path in self._divided & {str(n.target) for n in nodes if n.op == "call_module"}:
            for name, part in list(self._root.get_submodule(path).named_children()):
                inside, beside = f"{path}.{name}", self._unused_path(f"{path}_{name}")
                set_module(self._root, beside, part)
                self._root.delete_submodule(inside)
                moved[inside] = beside
                for node in nodes:
                    if f"{node.target}.".startswith(f"{inside}."):
                        node.target = beside + str(node.target).removeprefix(inside)
        return moved

    def move_back(self) -> dict[str, str]:
        """Move modules that had to stand beside an old one into its place, where nothing keeps that any more.

        Returns:
            Path -> new path of those that were moved.
        """
        moved: dict[str, str] = {}
        # Only now, when unused nodes are gone, is it known what still reads the old module.
        for beside, path in list(self._moved.items()):
            targets = [(n, str(n.target)) for n in self._root.graph.nodes if n.op == "call_module"]
            if any(target == path for _, target in targets) or self._is_read(path):
                continue
            calls = [(n, target) for n, target in targets if f"{target}.".startswith(f"{beside}.")]
            if calls:
                set_module(self._root, path, self._root.get_submodule(beside))
                for node, target in calls:
                    node.target = path + target.removeprefix(beside)
                # fx's own sweep of unused submodules would pass over it: it is the same object as the other.
                self._root.delete_submodule(beside)
                moved[beside] = path
            del self._moved[beside]
        return moved

    def _path(self, call: Call, hit: Hit, name: str) -> str:
        """Return where the new module goes: in the old one's place, if nothing else lives there."""
        if call.node.op == "placeholder":
            return self._unused_path(name)
        if call.module is None:
            owner = "" if self._stays(call, hit) else _owner_of_matched(hit) or _owner(call)
            if owner and not self._is_free(owner, hit):
                # What else reads tensors there may be gone when all rules have run.
                beside = self._unused_path(call.node.name)
                self._moved[beside] = owner
                return beside
            return owner or self._unused_path(call.node.name)
        path = str(call.node.target)
        # The old place is preferred: checkpoints, and patterns for B, name modules by their paths.
        if self._serves_several(call, hit):
            return f"{self._container(call)}.{name}"
        if self._stays(call, hit):
            return self._unused_path(f"{path}_{name}")
        if len(self._reader.callers[id(call.module)]) == 1 and self._is_unread(path, hit):
            return path
        # Other calls may keep the module, or its tensors. If in the end none does, the new one moves into its place.
        beside = self._unused_path(f"{path}_{name}")
        self._moved[beside] = path
        return beside

    def _serves_several(self, call: Call, hit: Hit) -> bool:
        """Return whether several modules are built from this one, as the parts of a layer that is taken apart."""
        entries = hit.rule.replace.items()
        built = [name for name, entry in entries if entry.build and hit.calls[source_of(hit, name, entry)] is call]
        return len(built) > 1

    def _container(self, call: Call) -> str:
        """Return the path of a plain module in the old one's place, or beside it if that is called elsewhere too."""
        key = id(call.module)
        if key not in self._containers:
            path, alone = str(call.node.target), len(self._reader.callers[key]) == 1
            place = path if alone else self._unused_path(f"{path}_parts")
            set_module(self._root, place, nn.Module().train(self._root.training))
            self._containers[key] = place, call.module
        return self._containers[key][0]

    def _stays(self, call: Call, hit: Hit) -> bool:
        """Return whether the node that a module is built from is still there after the rewrite, with its own module."""
        name = next(name for name, node in hit.nodes.items() if node is call.node)
        entries = hit.rule.replace
        reused = name in entries and entries[name].build is None
        return reused or (name == hit.rule.anchor and any(name in entry.inputs for entry in entries.values()))

    def _is_free(self, path: str, hit: Hit) -> bool:
        """Return whether no module at or below the path is called and no tensor below it is read by another call."""
        called = self._reader.called_below[path] or (
            _exists(self._root, path) and self._reader.callers[id(self._root.get_submodule(path))]
        )
        return not called and self._is_unread(path, hit)

    def _is_unread(self, path: str, hit: Hit) -> bool:
        """Return whether no tensor below the path is read by another call."""
        matched = set(hit.nodes.values())
        return all(set(node.users) <= matched for node in self._reader.stored_below[path])

    def _unused_path(self, path: str) -> str:
        candidate, number = path, 1
        while _exists(self._root, candidate):
            candidate, number = f"{path}_{number}", number + 1
        return candidate

    def _is_read(self, path: str) -> bool:
        """Return whether the graph uses a tensor or a module below a path."""
        below = (n for n in self._root.graph.nodes if n.op in ("get_attr", "call_module"))
        return any(str(node.target).startswith(f"{path}.") for node in below)


def source_of(hit: Hit, name: str, entry: Replacement) -> str:
    """Return the matched node that an entry's module is built from, by name."""
    return entry.source or (name if name in hit.calls else hit.rule.anchor)


def _owner_of_matched(hit: Hit) -> str:
    """Return the path of the one module whose tensors a rule matches as nodes; empty if there is no such module."""
    owners = {str(node.target).rpartition(".")[0] for node in hit.nodes.values() if node.op == "get_attr"}
    return owners.pop() if len(owners) == 1 else ""


def _owner(call: Call) -> str:
    """Return the path of the one module whose tensors a functional call reads, directly or through computations.

    A bias may be put together from several modules' (multi-head attention); then the weight's module counts. Of a
    product it is the module of the stored factor. A call that was made by a part of that module, which holds no tensors
    itself, belongs to the part.
    """
    for names in (("weight", "bias", "running_mean"), ("weight",), ("other",)):
        stored = [n for name in names for node in call.nodes(name) for n in sources_of(node) if n.op == "get_attr"]
        owners = {str(node.target).rpartition(".")[0] for node in stored}
        if len(owners) == 1:
            owner, part = owners.pop(), str(call.node.meta.get("module_path") or "")
            return part if part.startswith(f"{owner}." if owner else "") and part != owner else owner
    return ""


def _exists(root: nn.Module, path: str) -> bool:
    for part in path.split("."):
        if not hasattr(root, part):
            return False
        root = getattr(root, part)
    return True


def _twin(module: nn.Module) -> nn.Module:
    """Copy a module shallowly: its own stores can then be changed without changing the original's."""
    twin = copy.copy(module)
    for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        setattr(twin, store, copy.copy(getattr(module, store)))
    return twin


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, making plain containers on the way."""
    owner: nn.Module = root
    *parents, name = path.split(".")
    # Through registered modules alone, as graphs find them.
    for parent in parents:
        below = owner._modules.get(parent)
        if below is None:
            below = nn.Module()
            owner.add_module(parent, below)
        owner = below
    owner.add_module(name, module)
