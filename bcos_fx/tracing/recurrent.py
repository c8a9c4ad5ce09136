"""Recurrent layers as what they are made of: linear layers, gates and products, one step after another.

PyTorch calls one kernel for all steps of an LSTM, GRU or RNN (Hochreiter and Schmidhuber, Neural Computation 1997; Cho
et al., EMNLP 2014, section 2.3; Elman, Cognitive Science 1990). Nothing inside of it could be explained. Written out,
the candidate carries the value, and gates weight it:

    LSTM   c' = f * c + i * tanh(candidate),   h' = o * tanh(c')
    GRU    h' = z * h + (1 - z) * tanh(candidate)
    RNN    h' = tanh(candidate), or relu(candidate)

A candidate is the sum of two linear layers, one of the step's input and one of the state before; both are on the value
path. The layers of the gates are not. The number of steps becomes that of the example.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import _disable_current_modes

from bcos_fx.errors import TraceError
from bcos_fx.tracing.source import current_source

State = tuple[Tensor, ...]
RunLayer = Callable[..., tuple[Tensor, State]]

_GATES = {"LSTM": 3, "GRU": 2, "RNN": 0}
_CANDIDATE = {"LSTM": 2, "GRU": 2, "RNN": 0}
"""Which of the blocks of rows of the weights belongs to the candidate: i f g o, r z n, or the one."""


class RecurrentStep(nn.Module):
    """One step of a recurrent layer, in one direction, with linear layers for its parts.

    Args:
        kind: ``LSTM``, ``GRU`` or ``RNN``.
        weights: of the input and of the state, their rows in PyTorch's blocks.
        biases: of the input and of the state, in the same blocks; or None.
        projection: weight that the state is multiplied by at the end, or None.
        activation: of the candidate: ``tanh`` or ``relu``.
    """

    candidate_input: nn.Linear
    candidate_state: nn.Linear
    gates_input: nn.Linear
    gates_state: nn.Linear

    def __init__(
        self,
        kind: str,
        weights: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor] | None,
        projection: Tensor | None = None,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.kind, self.activation = kind, activation
        self.features = weights[0].shape[0] // (_GATES[kind] + 1)
        for place, name in enumerate(("input", "state")):
            bias = None if biases is None else biases[place]
            candidate, gates = _rows(kind, weights[place]), None if bias is None else _rows(kind, bias)
            self.add_module(f"candidate_{name}", _linear(candidate[0], None if gates is None else gates[0]))
            if _GATES[kind]:
                self.add_module(f"gates_{name}", _linear(candidate[1], None if gates is None else gates[1]))
        self.projection = None if projection is None else _linear(projection.detach(), None)

    def read(self, x: Tensor) -> State:
        """Compute what all steps take from the input (..., features) alone."""
        read = (self.candidate_input(x),)
        return (*read, self.gates_input(x)) if _GATES[self.kind] else read

    def start(self, read: State, given: State | None) -> State:
        """Return the state before the first step.

        It is written as zeros computed from the input, plus what is given: a value, as every state after it is.
        """
        like = read[0][..., :0]  # not the input times zero: that is not zero where it is infinite
        width = self.features if self.projection is None else self.projection.out_features
        widths = (width, self.features) if self.kind == "LSTM" else (width,)
        zeros = tuple(pad(like, (0, wide)) for wide in widths)
        return zeros if given is None else tuple(zero + state for zero, state in zip(zeros, given, strict=True))

    def forward(self, read: State, state: State) -> State:
        """Return the state after a step."""
        return getattr(self, f"_{self.kind.lower()}")(read, state)  # type: ignore[no-any-return]

    def _rnn(self, read: State, state: State) -> State:
        candidate = read[0] + self.candidate_state(state[0])
        return (torch.relu(candidate) if self.activation == "relu" else torch.tanh(candidate),)

    def _gru(self, read: State, state: State) -> State:
        gates = torch.sigmoid(read[1] + self.gates_state(state[0]))
        reset, keep = gates[..., : self.features], gates[..., self.features :]
        candidate = torch.tanh(read[0] + reset * self.candidate_state(state[0]))
        return (keep * state[0] + (1 - keep) * candidate,)

    def _lstm(self, read: State, state: State) -> State:
        gates = torch.sigmoid(read[1] + self.gates_state(state[0]))
        write, keep, show = (gates[..., i * self.features : (i + 1) * self.features] for i in range(3))
        memory = keep * state[1] + write * torch.tanh(read[0] + self.candidate_state(state[0]))
        shown = show * torch.tanh(memory)
        return (shown if self.projection is None else self.projection(shown), memory)


def _rows(kind: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a weight or bias into the rows of the candidate and those of the gates, as copies."""
    blocks = list(tensor.detach().chunk(_GATES[kind] + 1))
    candidate = blocks.pop(_CANDIDATE[kind])
    return candidate.clone(), torch.cat(blocks) if blocks else candidate[:0]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone())
    layer.bias = None if bias is None else nn.Parameter(bias.clone())  # type: ignore[assignment]
    return layer


def layer_forward(self: nn.RNNBase, input: Tensor | PackedSequence, hx: Tensor | State | None = None) -> Any:
    """Run all layers as ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` do, on a tensor or a packed sequence."""
    given = hx if hx is None or isinstance(hx, tuple) else (hx,)
    if isinstance(input, PackedSequence):
        return _forward_packed(self, input, given)
    batched = input.dim() == 3
    if not batched:
        input = input.unsqueeze(0)
        given = None if given is None else tuple(state.unsqueeze(1) for state in given)
    elif not self.batch_first:
        input = input.transpose(0, 1)
    output, states = _layers(self, input, given, _run)
    if not batched:
        return output.squeeze(0), _as_given(self, tuple(state.squeeze(1) for state in states))
    return output if self.batch_first else output.transpose(0, 1), _as_given(self, states)


def _forward_packed(layer: nn.RNNBase, packed: PackedSequence, given: State | None) -> Any:
    data, batch_sizes, order, back = packed
    lengths = getattr(batch_sizes, _LENGTHS, None)
    if lengths is None:  # outside a recording; in one, only a sequence that was not packed there
        rows, lengths = torch._pad_packed_sequence(data, batch_sizes, True, 0.0, -1)
    else:
        rows = rows_of(data, batch_sizes)
    # Packing sorts samples by length; the caller's states are in the caller's order.
    if given is not None and order is not None:
        given = tuple(state.index_select(1, order) for state in given)
    run = functools.partial(_run, lengths=lengths)
    output, states = _layers(layer, rows, given, run)
    if back is not None:
        states = tuple(state.index_select(1, back) for state in states)
    data, batch_sizes = torch._pack_padded_sequence(output, lengths, True)
    return PackedSequence(data, batch_sizes, order, back), _as_given(layer, states)


def _as_given(layer: nn.RNNBase, states: State) -> Any:
    return states if layer.mode == "LSTM" else states[0]


def _layers(layer: nn.RNNBase, x: Tensor, given: State | None, run: RunLayer) -> tuple[Tensor, State]:
    """Run layer after layer, each in its one or two directions; return the output and the stacked last states."""
    directions = ("", "_reverse")[: 2 if layer.bidirectional else 1]
    ends: list[State] = []
    for index in range(layer.num_layers):
        outputs = []
        for backwards, suffix in enumerate(directions):
            # PyTorch stacks the states of all layers, both directions of each in turn: the order in which `ends` grows.
            start = None if given is None else tuple(state[len(ends)] for state in given)
            shown, end = run(layer._modules[f"layer_{index}{suffix}"], x, start, backwards=bool(backwards))
            outputs.append(shown)
            ends.append(end)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if layer.dropout and index < layer.num_layers - 1:
            x = dropout(x, layer.dropout, layer.training)
    return x, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))


def _run(
    step: RecurrentStep, x: Tensor, given: State | None, *, backwards: bool, lengths: Tensor | None = None
) -> tuple[Tensor, State]:
    """Run one layer in one direction on (N, T, features); beyond a sample's length its state stays, and it shows 0."""
    steps = list(zip(*(part.unbind(1) for part in step.read(x)), strict=True))
    state = step.start(steps[-1 if backwards else 0], given)
    shown = []
    for time, part in list(enumerate(steps))[:: -1 if backwards else 1]:
        new = step(part, state)
        if lengths is None:
            state = new
            shown.append(state[0])
            continue
        # Backwards, a short sample begins at its own last step: before that it does not run and keeps its start state.
        runs = (lengths > time).unsqueeze(1)
        state = tuple(torch.where(runs, after, before) for after, before in zip(new, state, strict=True))
        shown.append(new[0].masked_fill(~runs, 0.0))
    return torch.stack(shown[::-1] if backwards else shown, 1), state


# ---------------------------------------------------------------- packed sequences

_LENGTHS = "_lengths_of_the_samples"


def pack_padded(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Stand in for packing samples of several lengths, inside a recording: all rows stay, and lengths go beside them.

    How many rows a packed sequence has depends on the values of the lengths, which no graph can follow.
    """
    steps = input if not batch_first else input.transpose(0, 1)
    batch_sizes = torch.ones(int(steps.shape[0]), dtype=torch.int64)
    setattr(batch_sizes, _LENGTHS, lengths)
    return steps.flatten(0, 1), batch_sizes


def pad_packed(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """Give the rows of :func:`pack_padded` back, as many for each sample as the example has.

    PyTorch's function gives as many as the longest sample of the batch has. Whether that matters the proof finds, on an
    example of several lengths.
    """
    lengths, padded, steps = lengths_of(batch_sizes), rows_of(data, batch_sizes), len(batch_sizes)
    # A look at the example, which the graph does not hold.
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        longest, shortest = int(lengths.max()), int(lengths.min())
    if not shortest < longest == steps:
        raise TraceError(
            f"the example's lengths are {shortest} to {longest}, and it has {steps} steps",
            where=str(current_source()),
            hint="give an example in which one sample fills all steps, and another does not",
        )
    runs = torch.arange(steps, device=data.device) < lengths.to(data.device).unsqueeze(1)
    padded = padded.masked_fill(~torch.unflatten(runs, 1, (-1, *[1] * (padded.dim() - 2))), padding_value)
    if total_length > steps:
        padded = pad(padded, (*(0, 0) * (padded.dim() - 2), 0, total_length - steps), value=padding_value)
    return padded if batch_first else padded.transpose(0, 1), lengths


def lengths_of(batch_sizes: Tensor) -> Tensor:
    """Return the lengths of the samples that were packed.

    Raises:
        TraceError: they were not packed inside the forward.
    """
    lengths: Tensor | None = getattr(batch_sizes, _LENGTHS, None)
    if lengths is None:
        raise TraceError(
            "a packed sequence that was not packed in forward cannot be followed",
            where=str(current_source()),
            hint="give the padded samples and their lengths as inputs, and call pack_padded_sequence in forward",
        )
    return lengths


def rows_of(data: Tensor, batch_sizes: Tensor) -> Tensor:
    """Return the rows of :func:`pack_padded` as (N, T, ...)."""
    return torch.unflatten(data, 0, (len(batch_sizes), -1)).transpose(0, 1)


# ---------------------------------------------------------------- cells, and writing out


def cell_forward(self: nn.RNNCellBase, input: Tensor, hx: object = None) -> Any:
    """Return the next state, as ``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell`` do; (N, features) or (features,)."""
    step = self._modules["step"]
    assert isinstance(step, RecurrentStep)  # for the type alone
    read = step.read(input)
    given = hx if hx is None or isinstance(hx, tuple) else (hx,)
    state = step(read, step.start(read, given))
    return state if step.kind == "LSTM" else state[0]


_LAYERS: Sequence[type[nn.Module]] = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS: Sequence[type[nn.Module]] = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def write_out(root: nn.Module) -> None:
    """Let recurrent layers and cells run step by step, in place; their weights move into linear layers.

    A subclass keeps its own forward, and what it finds at ``super().forward`` is written out. One with hooks stays as
    it is, and so does one whose forward does not call that: it may compute anything.
    """
    for part in list(root.modules()):
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        base = next((kind for kind in (*_LAYERS, *_CELLS) if isinstance(part, kind)), None)
        if base is None or any(hooks) or "forward" in vars(part) or not _reaches(type(part), base):
            continue
        if base in _LAYERS:
            _write_out_layer(part, base)  # type: ignore[arg-type]
        else:
            _write_out_cell(part, base)  # type: ignore[arg-type]


def _reaches(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Return whether each forward of a class leads on to the next by ``super()``, down to that of PyTorch's."""
    subclasses = kind.__mro__[: kind.__mro__.index(base)]
    codes = [getattr(vars(c)["forward"], "__code__", None) for c in subclasses if "forward" in vars(c)]
    return all({"super", "forward"} <= set(getattr(code, "co_names", ())) for code in codes)


def _write_out_layer(layer: nn.RNNBase, base: type[nn.Module]) -> None:
    activation = "relu" if layer.mode == "RNN_RELU" else "tanh"
    kind = layer.mode.partition("_")[0]
    suffixes = [f"{i}{end}" for i in range(layer.num_layers) for end in ("", "_reverse")[: 1 + layer.bidirectional]]
    stored = layer._parameters
    steps = {}
    for suffix in suffixes:
        weights = (stored[f"weight_ih_l{suffix}"], stored[f"weight_hh_l{suffix}"])
        biases = (stored[f"bias_ih_l{suffix}"], stored[f"bias_hh_l{suffix}"]) if layer.bias else None
        steps[f"layer_{suffix}"] = RecurrentStep(kind, weights, biases, stored.get(f"weight_hr_l{suffix}"), activation)  # type: ignore[arg-type]
    _exchange(layer, base, steps, layer_forward)


def _write_out_cell(cell: nn.RNNCellBase, base: type[nn.Module]) -> None:
    kind, activation = base.__name__.removesuffix("Cell"), str(getattr(cell, "nonlinearity", "tanh"))
    biases = (cell.bias_ih, cell.bias_hh) if cell.bias else None
    step = RecurrentStep(kind, (cell.weight_ih, cell.weight_hh), biases, None, activation)
    _exchange(cell, base, {"step": step}, cell_forward)


def _exchange(module: nn.Module, base: type[nn.Module], steps: dict[str, RecurrentStep], forward: Any) -> None:
    module._parameters.clear()
    module._modules.update(steps)
    kind = type(module)
    if kind.forward is base.forward:
        module.forward = MethodType(forward, module)
    else:  # in the order of lookup the written-out forward comes between the subclass and PyTorch's class
        written = type(base.__name__, (base,), {"forward": forward, "__module__": __name__})
        module.__class__ = type(kind.__name__, (kind, written), {"__module__": kind.__module__})
