"""fx's graph module without fx's generated source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from bcos_fx.tracing.program import compile_graph, module_at


class _Forward:
    """The forward of a graph, compiled once it is asked for: rewriting changes a graph many times between two runs."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph

    def __get__(self, instance: nn.Module | None, owner: type[nn.Module]) -> Callable[..., Any]:
        owner.forward = compile_graph(self._graph)
        return owner.forward if instance is None else owner.forward.__get__(instance, owner)


class GraphModule(fx.GraphModule):
    """A graph over modules and tensors, run by :func:`bcos_fx.tracing.program.compile_graph`.

    fx's own class writes the graph's names into source, keeps that source for ever, and prints a traceback to stderr
    when a call fails. As with fx, :meth:`recompile` must follow an edit of the graph.
    """

    def recompile(self) -> Any:
        """Bring ``forward`` up to date with the graph."""
        # fx makes a class for each graph module, which holds its forward.
        type(self).forward = _Forward(self._graph)  # type: ignore[assignment]

    @property
    def code(self) -> str:
        """The graph as text for people; it is not what runs."""
        return str(self._graph)

    def get_submodule(self, target: str) -> nn.Module:
        """Return the registered submodule at a dotted path; the module itself for an empty one."""
        return module_at(self, target)
