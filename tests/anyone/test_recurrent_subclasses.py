"""Subclasses of LSTM, GRU, RNN and their cells: explained as the same network around PyTorch's own layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx


class Plain(nn.LSTM):
    """The same under another name, with an attribute."""

    note = "ours"


class Scaled(nn.LSTM):
    """Something before and after."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        shown, state = super().forward(2 * x, hx)
        return 0.5 * shown, state


class Twice(Scaled):
    """A subclass of a subclass."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        shown, state = super().forward(x, hx)
        return shown + x[..., :1], state


class Projected(nn.GRU):
    """A layer of its own."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.after = nn.Linear(6, 6)

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        shown, state = super().forward(x, hx)
        return self.after(shown), state


class Cell(nn.LSTMCell):
    """A cell whose state is halved."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        shown, memory = super().forward(x, hx)
        return 0.5 * shown, memory


class Kernel(nn.RNN):
    """Calls PyTorch's kernel itself."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        start = torch.zeros_like(x[:, 0, :1]).repeat(1, 6).unsqueeze(0)
        return torch.rnn_tanh(x, start, self._flat_weights, True, 1, 0.0, False, False, True)


class Reader(nn.Module):
    """Sequences (N, T, 5) to three numbers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = layer, nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shown(x)[:, -1])

    def shown(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Around(Reader):
    """What the subclasses do, around PyTorch's own layer."""

    def __init__(self, layer: nn.Module, like: Reader) -> None:
        super().__init__(layer)
        self.kind, self.after = type(like.rnn), getattr(like.rnn, "after", None)
        self.rnn.load_state_dict(like.rnn.state_dict(), strict=False)
        self.head.load_state_dict(like.head.state_dict())

    def shown(self, x: Tensor) -> Tensor:
        if self.kind is Plain:
            return self.rnn(x)[0]
        if self.kind is Projected:
            return self.after(self.rnn(x)[0])
        return 0.5 * self.rnn(2 * x)[0] + (x[..., :1] if self.kind is Twice else 0)


class Stepped(Reader):
    """A cell in a loop."""

    def __init__(self, layer: nn.Module, *, half: bool) -> None:
        super().__init__(layer)
        self.half = half

    def shown(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            shown, memory = self.rnn(step, state)
            state = (0.5 * shown if self.half else shown, memory)
        assert state is not None
        return state[0].unsqueeze(1)


def pairs(name: str) -> tuple[Reader, Reader]:
    torch.manual_seed(0)
    if name == "Cell":
        subclass = Stepped(Cell(5, 6), half=False)
        plain = Stepped(nn.LSTMCell(5, 6), half=True)
        plain.load_state_dict(subclass.state_dict())
        return subclass, plain
    kind = {"Plain": Plain, "Scaled": Scaled, "Twice": Twice, "Projected": Projected}[name]
    made = Reader(kind(5, 6, batch_first=True))
    return made, Around((nn.GRU if kind is Projected else nn.LSTM)(5, 6, batch_first=True), made)


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", ["Plain", "Scaled", "Twice", "Projected", "Cell"])
def test_a_subclass_is_written_out(name: str, rewritten: bool) -> None:
    network, plain = pairs(name)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(network(x), plain(x))
    model: Any = network
    if rewritten:
        model = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent")
    found, wanted = bcos_fx.explain(model, x, 1), bcos_fx.explain(plain, x, 1)
    torch.testing.assert_close(found.output, network(x).detach()[:, 1])
    torch.testing.assert_close(found.weights, wanted.weights)
    torch.testing.assert_close(found.constants.total(), wanted.constants.total())
    assert found.complete
    assert type(network.rnn).__mro__[0].__name__ == name  # the caller's own is as it was
    assert "weight_ih_l0" in network.rnn._parameters or name == "Cell"


def test_a_kernel_of_ones_own_stays_whole_and_is_named() -> None:
    network = Reader(Kernel(5, 6, batch_first=True))
    with pytest.raises(bcos_fx.BcosFxError, match="rnn_tanh"):
        bcos_fx.explain(network, torch.randn(3, 4, 5, dtype=torch.float64), 1)
