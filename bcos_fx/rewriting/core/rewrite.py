"""The one place where a graph is edited.

Everything that a rewrite needs is built first; only when all of it exists is the graph touched, so a refusal
leaves nothing half done. The anchor keeps its node, and so its name and its users: what computes the same
value before and after a rewrite bears the same name, and checks can compare it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from bcos_fx.errors import BcosFxError, RewriteError
from bcos_fx.rewriting.core.build import Build, Builder, Part, Refused, Rewired
from bcos_fx.rewriting.core.match import Hit, NearMiss
from bcos_fx.rewriting.core.module_paths import ModulePlacer, set_module, source_of
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rule import ARGUMENTS, COEFFICIENTS, Replacement
from bcos_fx.rewriting.core.shapes import note_shape
from bcos_fx.rewriting.core.slots import SLOTS, Slot
from bcos_fx.rewriting.core.stored import sources_of
from bcos_fx.tracing.arguments import exchange

COEFFICIENTS_INPUT = "_coefficients"
"""The placeholder behind :data:`~bcos_fx.rewriting.core.rule.COEFFICIENTS`."""


@dataclass(frozen=True)
class RuleApplication:
    """One application of a rule.

    Attributes:
        rule: its name.
        phase: its phase.
        node: the node that it rewrote.
        before: canonical op that the node was.
        after: canonical op that it became; ``removed`` where nothing stands in its place.
    """

    rule: str
    phase: str
    node: str
    before: str
    after: str


def add_coefficients(graph: fx.Graph) -> fx.Node:
    """Give a graph, in place, the input through which an explanation view counts its constants."""
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        node = graph.placeholder(COEFFICIENTS_INPUT)
    node.meta.update(shape=None, dtype=None, type="other")
    return node


def end_at(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Make a node the output of a graph, in place, and drop what only led to the old one."""
    graph = graph_module.graph
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = (node,)
    output.meta.update({key: node.meta.get(key) for key in ("shape", "dtype", "type")})
    graph.eliminate_dead_code()
    graph_module.recompile()


class Rewriter:
    """Applies hits to one graph module, in place.

    Args:
        reader: reads the graph that is edited.
        builders: name -> builder.

    Attributes:
        erased: nodes that rewrites have removed so far.
    """

    def __init__(self, reader: GraphReader, builders: Mapping[str, Builder]) -> None:
        self.erased: set[fx.Node] = set()
        self._reader = reader
        self._builders = builders
        # What was built from a module serves every call of it. The module is kept with it: an id means
        # nothing once its object is gone.
        self._made: dict[Hashable, tuple[str, nn.Module | None]] = {}
        self._placer = ModulePlacer(reader)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph module that is edited."""
        return self._reader.graph_module

    def apply(self, hit: Hit) -> RuleApplication | NearMiss:
        """Carry out a rewrite, or say why its builder refused; then nothing was changed."""
        try:
            built = {name: self._build(hit, name, entry) for name, entry in hit.rule.replace.items()}
        except Refused as refusal:
            return NearMiss(hit.rule.name, hit.anchor.name, str(refusal))
        # All builders have returned, so nothing can be refused from here on.
        targets = {name: self._target(hit, name, module) for name, module in built.items()}
        before, name = hit.calls[hit.rule.anchor].op.name, hit.anchor.name
        edit = _Edit(self.graph_module, hit, targets, self._slots(hit))
        after = edit.carry_out()
        for part in built.values():
            if isinstance(part, Rewired):
                _rewire(part)
        self.erased |= edit.erased
        label = "removed" if after is None else self._reader.op(after) or str(after.target)
        return RuleApplication(hit.rule.name, hit.rule.phase, name, before, label)

    def finish(self) -> None:
        """Drop what is no longer used, check the graph and make its code again."""
        graph = self.graph_module.graph
        graph.eliminate_dead_code()
        # Only when dead code is gone are the old places free.
        for moved in (self._placer.move_back(), self._placer.move_out()):
            self._made = {key: (moved.get(at, at), old) for key, (at, old) in self._made.items()}
        self.graph_module.delete_all_unused_submodules()
        self._keep_what_is_read()
        graph.lint()
        self.graph_module.recompile()

    def _keep_what_is_read(self) -> None:
        """Keep of modules that nothing calls only the tensors that are read, and the parts; others would mislead."""
        root = self.graph_module
        called = [str(node.target) for node in root.graph.nodes if node.op == "call_module"]
        whole = {id(part) for path in called for part in root.get_submodule(path).modules()}
        places = (str(node.target).rpartition(".") for node in root.graph.nodes if node.op == "get_attr")
        read = {(id(root.get_submodule(owner)), name) for owner, _, name in places}
        # Under each of its paths, as a shared module has several; a list, as modules are exchanged on the way.
        for path, holder in list(root.named_modules(remove_duplicate=False)):
            if id(holder) in whole:
                continue
            for name in (*holder._parameters, *holder._buffers):
                if (id(holder), name) not in read:
                    delattr(holder, name)
            if path and type(holder) is not nn.Module:
                set_module(root, path, _bare(holder))

    def _slots(self, hit: Hit) -> dict[str, Slot]:
        """Find the slots that the rule names, before anything is changed."""
        named = {name for e in hit.rule.replace.values() for name in (*e.inputs, e.instead_of or "")}
        named.add(hit.rule.result or "")
        slots = {}
        for name in named:
            matched, _, suffix = name.partition(".")
            # Found now, as the flow they are found by is that of the graph before the edit.
            slot = SLOTS[suffix](self._reader, hit.calls[matched]) if suffix in SLOTS else None
            if slot is not None:
                slots[name] = slot
        return slots

    def _source(self, hit: Hit, name: str, entry: Replacement) -> str:
        source = source_of(hit, name, entry)
        if source not in hit.calls:
            raise Refused(f"{source} is absent here")
        return source

    def _build(self, hit: Hit, name: str, entry: Replacement) -> nn.Module | Part | Rewired | str | None:
        """Build an entry's module, or find the path of one built before; None for a reused node."""
        if entry.build is None:
            return None
        call = hit.calls[self._source(hit, name, entry)]
        placed = self._made.get(_identity(entry.build, call))
        return (
            _built(self._builders[entry.build], Build(hit, call, self._reader), entry) if placed is None else placed[0]
        )

    def _target(self, hit: Hit, name: str, built: nn.Module | Part | Rewired | str | None) -> str | None:
        """Place a built module in the module tree and return its path."""
        built = built.module if isinstance(built, Rewired) else built
        if built is None or isinstance(built, str):
            return built
        entry = hit.rule.replace[name]
        call = hit.calls[self._source(hit, name, entry)]
        if isinstance(built, Part):
            return self._placer.put_part(built, call)
        path = self._placer.put(built, call, hit, name)
        identity = _identity(str(entry.build), call)
        if identity is not None:
            self._made[identity] = (path, call.module)
        return path


def _built(builder: Builder, build: Build, entry: Replacement) -> nn.Module | Part | Rewired:
    """Call a builder; what it raises or returns by mistake becomes an error that names it."""
    try:
        built = builder(build)
    except (Refused, BcosFxError):
        raise
    except Exception as error:  # the code of a user's own builder may raise anything; the cause stays attached
        raise _broken(build, entry, f"raised {type(error).__name__}: {error}") from error
    if not isinstance(built, nn.Module | Part | Rewired):
        raise _broken(build, entry, f"returned a {type(built).__name__}, not a module")
    return built


def _broken(build: Build, entry: Replacement, problem: str) -> RewriteError:
    rule = build.hit.rule
    return RewriteError(
        f"the builder {entry.build!r} {problem}",
        where=f"rule {rule.name!r} ({rule.origin}) at node {build.call.node.name}",
        hint="let it return an nn.Module, or raise bcos_fx.rules.Refused(reason) where it cannot do its work",
    )


def _rewire(part: Rewired) -> None:
    """Give nodes, in place, the arguments that a builder asks for, and note what they come to in the example run."""
    for node, (args, kwargs) in part.calls.items():
        node.args, node.kwargs = args, kwargs
    for node, value in part.values.items():
        if isinstance(value, Tensor):
            node.meta["shape"] = tuple(value.shape)
        elif "value" in node.meta:
            node.meta["value"] = value


def _bare(module: nn.Module) -> nn.Module:
    """Return a plain ``nn.Module`` with the same tensors and parts."""
    bare = nn.Module().train(module.training)
    for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        setattr(bare, store, getattr(module, store))
    return bare


def _identity(build: str, call: Call) -> Hashable:
    """Return what two calls must share to be given one new module: the module, or all parameters and options."""
    if call.module is not None:
        return build, id(call.module)
    weights = {n: a for n, a in call.arguments.items() if isinstance(a, fx.Node) and n not in call.op.value}
    stored = [(n, _computation(a)) for n, a in weights.items()]
    options = [(n, repr(a)) for n, a in call.arguments.items() if not isinstance(a, fx.Node)]
    # Of what no stored tensor tells apart (a ReLU), each call gets a module of its own.
    rank = len(call.node.meta.get("shape") or ())
    return (build, tuple(stored), tuple(options), rank) if stored else None


def _computation(node: fx.Node) -> Hashable:
    """Return what two nodes share that compute the same from stored tensors; any other node is like itself alone."""
    sources = sources_of(node)
    if any(source.op not in ("get_attr", "call_function", "call_method") for source in sources):
        return node
    numbers: dict[fx.Node, Any] = {source: f"#{place}" for place, source in enumerate(sources)}
    return tuple(
        (source.op, source.target, repr(fx.node.map_arg((source.args, dict(source.kwargs)), numbers.__getitem__)))
        for source in sources
    )


class _Edit:
    """One edit: resolves names to nodes, makes the new nodes, puts the result in the anchor's place."""

    def __init__(
        self, root: fx.GraphModule, hit: Hit, targets: Mapping[str, str | None], slots: Mapping[str, Slot]
    ) -> None:
        self.root, self.graph, self.hit, self.targets, self.slots = root, root.graph, hit, targets, slots
        self.made: dict[str, fx.Node] = {}
        self.erased: set[fx.Node] = set()
        read = dict.fromkeys(source for node in hit.nodes.values() for source in node.all_input_nodes)
        self.stored = [source for source in read if source.op == "get_attr" and source not in hit.nodes.values()]
        entries = hit.rule.replace
        self.result = hit.rule.result or list(entries)[-1]
        self.anchor_stays = any(hit.rule.anchor in entry.inputs for entry in entries.values())

    def carry_out(self) -> fx.Node | None:
        """Edit the graph.

        Returns:
            The node that now stands for the anchor's value, or None where the anchor was removed.
        """
        cursor = self.hit.anchor
        old_users = list(cursor.users)
        for name, entry in self.hit.rule.replace.items():
            if entry.build is None and name not in self.hit.nodes:
                self.made[name] = self.hit.stand_in[name] if not entry.inputs else self._node(entry.inputs[0])
            elif entry.instead_of is not None:
                self._exchange(name, entry)
            elif name == self.result and not self.anchor_stays:
                self._retarget(name, entry)
            else:
                cursor = self._insert(name, entry, cursor)
        result = self._node(self.result)
        if self.anchor_stays:
            # Only those that read the anchor before: the new nodes read it too, and must go on doing so.
            for user in old_users:
                user.replace_input_with(self.hit.anchor, result)
        elif result is not self.hit.anchor:
            self.hit.anchor.replace_all_uses_with(result)
        self._sweep()
        return None if "." in self.result else result

    def _nodes(self, name: str) -> list[fx.Node]:
        """Return the nodes that an input of an entry names: one, except for ``node.inputs`` and an omitted argument."""
        matched, _, suffix = name.partition(".")
        if suffix in ARGUMENTS:
            return self.hit.calls[matched].nodes(suffix)
        return list(self.hit.nodes[matched].all_input_nodes) if suffix == "inputs" else [self._node(name)]

    def _node(self, name: str) -> fx.Node:
        if name == COEFFICIENTS:
            inputs: list[fx.Node] = [node for node in self.graph.nodes if node.op == "placeholder"]
            return next(node for node in inputs if node.target == COEFFICIENTS_INPUT)
        if name in self.slots:
            content: fx.Node = self.slots[name].content
            return content
        if name.endswith(".input"):
            matched = name.removesuffix(".input")
            return self.hit.stand_in[matched] if matched in self.hit.stand_in else self.hit.calls[matched].inputs[0]
        if name.endswith(".second"):
            return self.hit.calls[name.removesuffix(".second")].inputs[1]
        if name in self.made:
            return self.made[name]
        return self.hit.nodes.get(name) or self.hit.stand_in[name]

    def _call(self, name: str, entry: Replacement) -> tuple[str, Any, tuple[Any, ...], dict[str, Any], fx.Node]:
        """Return kind, target, arguments and the node whose record the new node continues."""
        inputs = [node for source in entry.inputs for node in self._nodes(source)]
        target = self.targets[name]
        if target is not None:
            continued = self.hit.nodes.get(entry.source or name, self.hit.anchor)
            return "call_module", target, tuple(inputs), {}, continued
        old = self.hit.nodes[name]
        # Only the inputs are exchanged; options and stored tensors of the reused call stay where they stand.
        renamed = dict(zip(self.hit.calls[name].inputs, inputs, strict=False))
        args = fx.node.map_arg(old.args, lambda n: renamed.get(n, n))
        kwargs = fx.node.map_arg(old.kwargs, lambda n: renamed.get(n, n))
        # A parameter that the call names keeps its place; another one is given by name, under the op's own word for it.
        if entry.arguments:
            op = self.hit.calls[name].op
            by_place = op.parameters[: len(args)]
            args = tuple(entry.arguments.get(p, a) for p, a in zip(by_place, args, strict=True))
            others = {key: a for key, a in kwargs.items() if op.aliases.get(key, key) not in entry.arguments}
            kwargs = others | {p: a for p, a in entry.arguments.items() if p not in by_place}
        return old.op, old.target, args, kwargs, old

    def _retarget(self, name: str, entry: Replacement) -> None:
        node = self.hit.anchor
        kind, target, args, kwargs, continued = self._call(name, entry)
        node.op, node.target = kind, target
        node.args, node.kwargs = args, kwargs
        node.meta = _tagged(node.meta | {"was": continued.meta.get("was")}, self.hit)
        self.made[name] = node

    def _exchange(self, name: str, entry: Replacement) -> None:
        """Put one new input into one slot of a node that stays what it is."""
        node = self.hit.nodes[name]
        exchange(node, self.slots[str(entry.instead_of)].index, self._node(entry.inputs[0]))
        node.meta = _tagged(node.meta, self.hit)
        self.made[name] = node

    def _insert(self, name: str, entry: Replacement, cursor: fx.Node) -> fx.Node:
        kind, target, args, kwargs, continued = self._call(name, entry)
        if cursor.op == "placeholder":  # a graph begins with all of its inputs
            cursor = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
        before = self.graph.inserting_before(self.hit.anchor)
        with self.graph.inserting_after(cursor) if self.anchor_stays else before:
            node = self.graph.create_node(kind, target, args, kwargs)
        is_new = continued is self.hit.anchor and self.anchor_stays
        # A layer gives one tensor, whatever gave that one in whose place it stands.
        given = {"type": "tensor"} if kind == "call_module" else {}
        node.meta = _tagged(continued.meta | given | ({"was": None} if is_new else {}), self.hit)
        note_shape(node, self.root)
        self.made[name] = node
        return node if self.anchor_stays else cursor

    def _sweep(self) -> None:
        """Erase matched nodes, and the stored tensors that they read, where nothing uses them any more."""
        new_nodes = set(self.made.values())
        for node in (*reversed(list(self.hit.nodes.values())), *self.stored):
            if node not in new_nodes and not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)
                self.erased.add(node)
        for name, node in self.made.items():  # a node that only moved keeps its name
            old = self.hit.nodes.get(name)
            if self.targets.get(name) is None and old in self.erased and node is not self.hit.anchor:
                node.name = old.name


def _tagged(meta: dict[str, Any], hit: Hit) -> dict[str, Any]:
    return dict(meta) | {"rules": (*meta.get("rules", ()), hit.rule.name)}
