"""Recurrent layers, cells and packed sequences: equal at B = 1, complete at every B, against loops by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import bcos_fx
from bcos_fx.errors import TraceError
from bcos_fx.nn import BcosLinear
from bcos_fx.testing import randomise_
from bcos_fx.tracing import recurrent, trace

LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "without bias": (nn.LSTM, {"bias": False}),
    "steps first": (nn.GRU, {"batch_first": False}),
    "both directions": (nn.LSTM, {"bidirectional": True}),
    "layers": (nn.GRU, {"num_layers": 2, "dropout": 0.5}),
    "projected": (nn.LSTM, {"proj_size": 4, "num_layers": 2, "bidirectional": True}),
}


class Reader(nn.Module):
    """Reads a sequence (N, T, 5), and scores the last output and the last state."""

    def __init__(self, kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
        super().__init__()
        self.rnn = kind(5, 6, **({"batch_first": True} | options))  # type: ignore[arg-type]
        self.head = nn.Linear((self.rnn.proj_size or 6) * (1 + self.rnn.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        output, states = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        last = output[:, -1] if self.rnn.batch_first else output[-1]
        state = states[0] if isinstance(states, tuple) else states
        return self.head(last) + state[-1][:, :3]


def reader(name: str) -> Reader:
    return Reader(*LAYERS[name]).eval()


def sequences(count: int = 3, steps: int = 5) -> Tensor:
    return torch.randn(count, steps, 5, generator=torch.Generator().manual_seed(1))


def figures(network: bcos_fx.BcosNetwork) -> dict[str, Any]:
    assert network.report.figures.verification is not None
    return network.report.figures.verification


@pytest.mark.parametrize("name", LAYERS)
def test_a_recurrent_layer_converts_is_certified_and_complete(name: str, tmp_path: Path) -> None:
    module, x = reader(name), sequences()
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    assert figures(network)["ok"]
    assert figures(network)["error"] < 1e-12
    assert bcos_fx.certify(network, x).ok
    explained = bcos_fx.explain(network.double(), x.double())
    assert explained.weights.shape == x.shape
    sums = (explained.weights * x).flatten(1).sum(1) + explained.constants.total()
    torch.testing.assert_close(sums, explained.output, atol=1e-12, rtol=1e-12)
    bcos_fx.save(network.float(), tmp_path / "network.safetensors")
    assert torch.equal(bcos_fx.load(tmp_path / "network.safetensors")(x), network(x))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "both directions"])
def test_candidates_become_bcos_layers_and_gates_do_not(name: str) -> None:
    module, x = reader(name), sequences()
    network = bcos_fx.bcosify(module, example_inputs=x, b=2.0)
    layers = {path: part for path, part in network.named_modules() if isinstance(part, nn.Linear | BcosLinear)}
    for path, layer in layers.items():
        raised = isinstance(layer, BcosLinear) and layer.b == 2.0
        assert raised is ("gates" not in path), path
    assert sum("candidate" in path for path in layers) == 2 * (1 + module.rnn.bidirectional)
    explained = bcos_fx.explain(network.double(), x.double())
    assert float(explained.residual.abs().max()) < 1e-12
    assert not torch.allclose(network.float()(x), module(x), atol=1e-3)


# ---------------------------------------------------------------- loops by hand


def lstm_by_hand(rnn: nn.LSTM, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last state of one layer (N, H), and W(x) of each of its entries: (N, H, T, features), gates fixed."""
    (w, u, b, d), size = rnn.all_weights[0], rnn.hidden_size
    h = c = x.new_zeros(len(x), size)
    wh = wc = x.new_zeros(len(x), size, *x.shape[1:])
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ w.T + b + h @ u.T + d).split(size, 1)
        i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
        read = torch.zeros_like(wh)
        read[:, :, t] = w[2 * size : 3 * size]
        wg = read + torch.einsum("ij,njtk->nitk", u[2 * size : 3 * size], wh)
        wc = f[:, :, None, None] * wc + (i * g.tanh() / g)[:, :, None, None] * wg
        c = f * c + i * g.tanh()
        wh = (o * c.tanh() / c)[:, :, None, None] * wc
        h = o * c.tanh()
    return h, wh


def gru_by_hand(rnn: nn.GRU, x: Tensor) -> tuple[Tensor, Tensor]:
    (w, u, b, d), size = rnn.all_weights[0], rnn.hidden_size
    h, wh = x.new_zeros(len(x), size), x.new_zeros(len(x), size, *x.shape[1:])
    for t in range(x.shape[1]):
        xr, xz, xn = (x[:, t] @ w.T + b).split(size, 1)
        hr, hz, hn = (h @ u.T + d).split(size, 1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = xn + r * hn
        read = torch.zeros_like(wh)
        read[:, :, t] = w[2 * size :]
        wn = read + r[:, :, None, None] * torch.einsum("ij,njtk->nitk", u[2 * size :], wh)
        wh = z[:, :, None, None] * wh + ((1 - z) * n.tanh() / n)[:, :, None, None] * wn
        h = z * h + (1 - z) * n.tanh()
    return h, wh


def rnn_by_hand(rnn: nn.RNN, x: Tensor) -> tuple[Tensor, Tensor]:
    w, u, b, d = rnn.all_weights[0]
    h, wh = x.new_zeros(len(x), rnn.hidden_size), x.new_zeros(len(x), rnn.hidden_size, *x.shape[1:])
    for t in range(x.shape[1]):
        g = x[:, t] @ w.T + b + h @ u.T + d
        read = torch.zeros_like(wh)
        read[:, :, t] = w
        wh = (g.tanh() / g)[:, :, None, None] * (read + torch.einsum("ij,njtk->nitk", u, wh))
        h = g.tanh()
    return h, wh


class LastState(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(5, 6, batch_first=True)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


@pytest.mark.parametrize(("kind", "by_hand"), [(nn.LSTM, lstm_by_hand), (nn.GRU, gru_by_hand), (nn.RNN, rnn_by_hand)])
def test_w_is_that_of_a_loop_by_hand(kind: type[nn.RNNBase], by_hand: Any) -> None:
    module, x = LastState(kind).double().eval(), sequences().double()
    state, weights = by_hand(module.rnn, x)
    torch.testing.assert_close(state, module(x))
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    targets = torch.arange(6).expand(len(x), 6)
    torch.testing.assert_close(bcos_fx.explain(network, x, target=targets).weights, weights, atol=1e-12, rtol=1e-10)


def test_w_of_a_rectified_rnn_is_the_gradient() -> None:
    module, x = reader("relu").double(), sequences().double().requires_grad_()
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    (gradient,) = torch.autograd.grad(module(x)[:, 1].sum(), x)
    torch.testing.assert_close(bcos_fx.explain(network, x.detach(), target=1).weights, gradient)


def raised_by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The B-cos transform of Böhle et al., CVPR 2022, equation 3, at B = 2: |cos(x, w)| w x, and the bias."""
    product = x @ weight.T
    length = x.norm(dim=-1, keepdim=True) * weight.norm(dim=1)
    return torch.where(length > 0, product.abs() / length.clamp_min(1e-300) * product, 0.0) + bias


def test_b_2_raises_both_projections_of_the_candidate() -> None:
    module, x = LastState(nn.RNN).double().eval(), sequences().double()
    w, u, b, d = module.rnn.all_weights[0]
    h = x.new_zeros(len(x), 6)
    for t in range(x.shape[1]):
        h = (raised_by_hand(x[:, t], w, b) + raised_by_hand(h, u, d)).tanh()
    network = bcos_fx.bcosify(module, example_inputs=x, b=2.0, scale="cosine", bias="keep", head="keep")
    torch.testing.assert_close(network(x), h, atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------- states, cells, what surrounds them


class Given(nn.Module):
    """Starts from a state: zeros made in forward, learnt numbers, or something computed from the input."""

    def __init__(self, start: str, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.start = kind(5, 6, batch_first=True), start  # type: ignore[arg-type]
        self.learnt = nn.Parameter(torch.randn(1, 1, 6))
        self.embed = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.start == "zeros":
            state = torch.zeros(self.rnn.num_layers, x.shape[0], self.rnn.hidden_size)
        elif self.start == "learnt":
            state = self.learnt.expand(-1, x.shape[0], -1).contiguous()
        else:
            state = self.embed(x.mean(1)).unsqueeze(0)
        output, _ = self.rnn(x, (state, state) if isinstance(self.rnn, nn.LSTM) else state)
        return output.mean(1)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("start", ["zeros", "learnt", "computed"])
def test_first_states(start: str, kind: type[nn.RNNBase]) -> None:
    module, x = Given(start, kind).eval(), sequences()
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    assert figures(network)["ok"]
    assert bcos_fx.certify(network, x).ok
    assert float(bcos_fx.explain(network.double(), x.double()).residual.abs().max()) < 1e-12


class Looping(nn.Module):
    """A cell in a Python loop."""

    def __init__(self, kind: type[nn.RNNCellBase], given: bool, **options: Any) -> None:
        super().__init__()
        self.cell, self.head, self.given = kind(5, 6, **options), nn.Linear(6, 3), given  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state: Any = torch.zeros(x.shape[0], self.cell.hidden_size) if self.given else None
        if self.given and isinstance(self.cell, nn.LSTMCell):
            state = (state, state)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(self.cell, nn.LSTMCell) else state)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTMCell, {}),
        (nn.GRUCell, {}),
        (nn.RNNCell, {}),
        (nn.RNNCell, {"nonlinearity": "relu"}),
        (nn.GRUCell, {"bias": False}),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_cells_in_loops(kind: type[nn.RNNCellBase], options: dict[str, Any], given: bool, tmp_path: Path) -> None:
    module, x = Looping(kind, given, **options).eval(), sequences()
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    assert figures(network)["ok"]
    assert bcos_fx.certify(network, x).ok
    assert sum("candidate_state.weight" in name for name, _ in network.named_parameters()) == 1
    bcos_fx.save(network, tmp_path / "network.safetensors")
    torch.testing.assert_close(bcos_fx.load(tmp_path / "network.safetensors")(x), module(x))


class Packing(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], *, ordered: bool, padded: bool, both: bool) -> None:
        super().__init__()
        self.rnn = kind(5, 6, 2, batch_first=True, bidirectional=both)  # type: ignore[arg-type]
        self.head, self.ordered, self.padded = nn.Linear(6 * (1 + both), 3), ordered, padded

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.ordered)
        output, states = self.rnn(packed)
        last = (states[0] if isinstance(states, tuple) else states)[-1][:, :3]
        if not self.padded:
            return last
        rows, read = pad_packed_sequence(output, batch_first=True)
        return self.head(rows.sum(1) / read.unsqueeze(1)) + last


@pytest.mark.parametrize(
    ("kind", "ordered", "padded", "both"),
    [
        (nn.LSTM, True, True, False),
        (nn.GRU, True, True, True),
        (nn.RNN, True, False, True),
        (nn.LSTM, False, True, True),
        (nn.GRU, False, False, False),
    ],
)
def test_packed_sequences(kind: type[nn.RNNBase], ordered: bool, padded: bool, both: bool) -> None:
    module = Packing(kind, ordered=ordered, padded=padded, both=both).eval()
    example = (sequences(3, 4), torch.tensor([4, 3, 2] if ordered else [2, 4, 3]))
    network = bcos_fx.bcosify(module, example_inputs=example, recipe="equivalent")
    assert figures(network)["ok"]
    assert bcos_fx.certify(network, example).ok
    other = (sequences(4, 4), torch.tensor([4, 4, 1, 1] if ordered else [1, 4, 3, 4]))
    torch.testing.assert_close(network(*other), module(*other))


def test_what_depends_on_the_longest_sample_of_a_batch_is_refused() -> None:
    class Mean(Packing):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            output, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
            return self.head(pad_packed_sequence(output, batch_first=True)[0].mean(1))

    module = Mean(nn.GRU, ordered=True, padded=True, both=False).eval()
    with pytest.raises(TraceError, match="like the example only"):
        bcos_fx.bcosify(module, example_inputs=(sequences(3, 4), torch.tensor([4, 3, 2])))
    with pytest.raises(TraceError, match="lengths are 4 to 4"):
        bcos_fx.bcosify(module, example_inputs=(sequences(3, 4), torch.tensor([4, 4, 4])))


def test_a_sequence_that_was_packed_elsewhere_is_refused() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(5, 6)
            self.packed = pack_padded_sequence(torch.rand(3, 2, 5), torch.tensor([3, 2]))

        def forward(self, x: Tensor) -> Tensor:
            moved = PackedSequence(self.packed.data * x.mean(), self.packed.batch_sizes)
            return self.rnn(moved)[0].data

    with pytest.raises(TraceError, match="packed"):
        trace(Kept(), torch.rand(2, 3))


def test_one_sample_without_a_batch() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    module, x = Alone().eval(), torch.randn(4, 5)
    torch.testing.assert_close(trace(module, x).graph_module(x), module(x))


def test_the_callers_layer_keeps_its_weights() -> None:
    module = reader("projected")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    bcos_fx.bcosify(module, example_inputs=sequences(), recipe="equivalent", verified=False)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_length_that_is_not_the_examples_is_refused() -> None:
    network = bcos_fx.bcosify(reader("gru"), example_inputs=sequences(), recipe="equivalent")
    with pytest.raises(bcos_fx.errors.UsageError, match="traced for inputs of shape"):
        network(sequences(steps=7))


def test_a_weight_that_a_called_module_holds_too_stays_with_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.linear(x, self.linear.weight).relu())

    module, x = Twice().eval(), torch.randn(4, 5)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    torch.testing.assert_close(network(x), module(x))


@pytest.mark.parametrize("mutant", ["gates swapped", "state bias lost", "direction lost", "zeros forgotten"])
def test_a_wrong_step_is_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutant == "gates swapped":
        monkeypatch.setitem(recurrent._CANDIDATE, "LSTM", 3)
    elif mutant == "state bias lost":
        plain = recurrent._linear
        calls: list[None] = []

        def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
            calls.append(None)
            return plain(weight, None if len(calls) == 3 or bias is None else bias)

        monkeypatch.setattr(recurrent, "_linear", linear)
    elif mutant == "direction lost":
        run = recurrent._run
        monkeypatch.setattr(recurrent, "_run", lambda *given, backwards: run(*given, backwards=False))
    else:
        monkeypatch.setattr(recurrent.RecurrentStep, "start", lambda self, read, given: (read[0], read[0]))
    with pytest.raises(bcos_fx.errors.BcosFxError):
        bcos_fx.bcosify(reader("both directions"), example_inputs=sequences(), recipe="equivalent")


@pytest.mark.slow
def test_sequencer_converts_and_is_stored(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    module = randomise_(timm.create_model("sequencer2d_s", num_classes=3)).eval()
    x = torch.rand(2, 3, 56, 56)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    assert figures(network)["ok"]
    torch.testing.assert_close(network(x), module(x), atol=1e-4, rtol=1e-4)
    assert bcos_fx.certify(network).ok
    bcos_fx.save(network, tmp_path / "network.safetensors")
    assert torch.equal(bcos_fx.load(tmp_path / "network.safetensors")(x), network(x))
