"""Networks as their authors wrote them: graphs, experts, capsules, solvers, hooks, with W as it is by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tests.anyone.by_hand import Case, check_at_b_2, check_equivalent, gate, numbers, ratio

EDGES = torch.tensor([[0, 1, 2, 3, 1, 4], [1, 2, 3, 0, 3, 2]])


class Convolved(nn.Module):
    """A graph network that scatters normalised messages, self-loops included."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        n = x.size(0)
        loops = torch.arange(n, device=x.device)
        row, col = torch.cat([edge_index[0], loops]), torch.cat([edge_index[1], loops])
        degree = torch.zeros(n, dtype=x.dtype).scatter_add_(0, col, torch.ones_like(col, dtype=x.dtype))
        share = degree.pow(-0.5)
        share.masked_fill_(share == float("inf"), 0)
        hidden = self.first(x)
        messages = hidden[row] * (share[row] * share[col]).view(-1, 1)
        got = torch.zeros_like(hidden).scatter_add_(0, col.view(-1, 1).expand_as(messages), messages)
        return self.second(got.relu())


class Attending(nn.Module):
    """A graph network with a softmax over the edges of each node."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 8, bias=False), nn.Linear(8, 3)
        self.source, self.sink = nn.Parameter(torch.randn(1, 2, 4)), nn.Parameter(torch.randn(1, 2, 4))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        n, h = x.shape[0], self.inner(x).view(-1, 2, 4)
        score = F.leaky_relu((h * self.source).sum(-1)[src] + (h * self.sink).sum(-1)[dst], 0.2)
        top = torch.full((n, 2), float("-inf"), dtype=x.dtype)
        top = top.scatter_reduce(0, dst.unsqueeze(-1).expand(-1, 2), score, "amax")
        score = (score - top[dst]).exp()
        total = torch.zeros(n, 2, dtype=x.dtype).index_add_(0, dst, score)
        share = gate(score / (total[dst] + 1e-16))
        got = torch.zeros(n, 2, 4, dtype=x.dtype).index_add_(0, dst, h[src] * share.unsqueeze(-1))
        return self.out(ratio(F.elu, got.flatten(1)))


class Pooled(nn.Module):
    """A graph network whose batch is a vector of graph numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.eps, self.head = nn.Parameter(torch.tensor(0.3)), nn.Linear(8, 4)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        got = torch.zeros_like(x).index_add(0, edge_index[1], x.index_select(0, edge_index[0]))
        hidden = self.inner((1 + self.eps) * x + got)
        total = torch.zeros(2, 8, dtype=x.dtype).index_add(0, batch, hidden)
        return self.head(total / torch.bincount(batch, minlength=2).clamp(min=1).to(x.dtype)[:, None])


class Causal(nn.Module):
    """Dilated convolutions that are padded on both sides, and chomped."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            weight_norm(nn.Conv1d(i, 8, 3, padding=2 * d, dilation=d)) for i, d in ((3, 1), (8, 2))
        )
        self.skip, self.head = nn.Conv1d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y)[:, :, : -block.padding[0]].contiguous().relu()
        return self.head((y + self.skip(x)).relu()[:, :, -1])


class Skipping(nn.Module):
    """A U-Net on sizes that are not even: what is upsampled is padded to the skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.out = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.inner(x).relu()
        y = self.up(self.deep(F.max_pool2d(skip, 2)).relu())
        down, right = skip.size(2) - y.size(2), skip.size(3) - y.size(3)
        y = F.pad(y, [right // 2, right - right // 2, down // 2, down - down // 2])
        return self.out(torch.cat([skip, y], dim=1))


class Routed(nn.Module):
    """Experts that see their tokens only, as many as the router gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(6, 4, bias=False), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(F.softmax(self.router(flat), dim=-1), 2, dim=-1)
        weights = gate(weights / weights.sum(-1, keepdim=True))
        out = torch.zeros_like(flat)
        mask = F.one_hot(chosen, num_classes=4).permute(2, 1, 0)
        for number, expert in enumerate(self.experts):
            place, tokens = torch.where(mask[number])
            own = flat[None, tokens].reshape(-1, x.shape[-1])
            out.index_add_(0, tokens, expert(own) * weights[tokens, place, None])
        return self.head(out.view(x.shape).mean(1))


class Solver(nn.Module):
    """Runge-Kutta steps of a learnt equation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(5, 6), nn.Linear(7, 9), nn.Linear(9, 6), nn.Linear(6, 3)

    def slope(self, t: float, y: Tensor) -> Tensor:
        return self.b(ratio(torch.tanh, self.a(torch.cat([y, torch.full_like(y[:, :1], t)], 1))))

    def forward(self, x: Tensor) -> Tensor:
        y, times = self.first(x), torch.linspace(0, 1, 3)
        for i in range(len(times) - 1):
            t, h = times[i].item(), (times[i + 1] - times[i]).item()
            one = self.slope(t, y)
            two = self.slope(t + h / 2, y + h * one / 2)
            y = y + h / 6 * (one + 2 * two + 3 * self.slope(t + h, y + h * two))
        return self.last(y)


class Latents(nn.Module):
    """Learnt queries that read a padded sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.inner = nn.Parameter(torch.randn(3, 8)), nn.Linear(5, 8)
        self.q, self.k, self.v, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padded = torch.arange(x.size(1), device=x.device)[None] >= lengths[:, None]
        h = self.inner(x)
        score = self.q(self.latent) @ self.k(h).mT / 8**0.5
        share = gate(score.masked_fill(padded[:, None], float("-inf")).softmax(-1))
        return self.head((share @ self.v(h)).mean(1))


class Turned(nn.Module):
    """Points that are turned by a matrix that a network made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.turn, self.point, self.head = nn.Conv1d(3, 8, 1), nn.Linear(8, 9), nn.Conv1d(3, 8, 1), None
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.max(F.relu(self.look(x)), 2, keepdim=True)[0].view(-1, 8)
        turn = (self.turn(seen) + torch.eye(3, dtype=x.dtype).view(1, 9).repeat(x.size(0), 1)).view(-1, 3, 3)
        x = torch.bmm(x.transpose(2, 1), gate(turn)).transpose(2, 1)
        return self.head(torch.max(F.relu(self.point(x)), 2)[0])


class Remembering(nn.Module):
    """A convolutional LSTM, written out as its authors do."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Conv2d(6, 16, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), 4, *x.shape[3:])
        c = torch.zeros_like(h)
        for step in range(x.size(1)):
            i, f, o, g = torch.split(self.cell(torch.cat([x[:, step], h], 1)), 4, dim=1)
            c = gate(torch.sigmoid(f)) * c + gate(torch.sigmoid(i)) * ratio(torch.tanh, g)
            h = gate(torch.sigmoid(o)) * ratio(torch.tanh, c)
        return self.head(h.mean((2, 3)))


class Normalised(nn.Module):
    """A forecast in the units of each series, which are taken off before and put back after."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift, self.line = nn.Parameter(torch.full((3,), 1.2)), nn.Parameter(torch.ones(3)), None
        self.line = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        deviation = gate(torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5))
        y = (x - mean) / deviation * self.gain + self.shift
        y = self.line(y.permute(0, 2, 1)).permute(0, 2, 1)
        return ((y - self.shift) / self.gain * deviation + mean)[:, :, 0]


class Adapted(nn.Module):
    """A network that is called with other weights than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.low, self.high = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: parameter.clone() for name, parameter in self.base.named_parameters()}
        weights["0.weight"] = weights["0.weight"] + self.high @ self.low
        mean = {"1.running_mean": self.base[1].running_mean * 2}
        return functional_call(self.base, weights | mean, (x,))


class Conditioned(nn.Module):
    """Weights that are made of another input."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.made = nn.Linear(6, 3), nn.Linear(2, 18)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return functional_call(self.base, {"weight": self.base.weight + self.made(z.mean(0)).view(3, 6)}, (x,))


GRAPH: dict[str, Any] = {"batch_axis": None}
BATCH = torch.tensor([0, 0, 1, 1, 1])
CASES = {
    "a graph by scatter": Case(Convolved, {"x": numbers(5, 5), "edge_index": EDGES}, (2, 1), GRAPH),
    "a graph by attention": Case(Attending, {"x": numbers(5, 5), "edge_index": EDGES}, (2, 1), GRAPH),
    "graphs by number": Case(Pooled, {"x": numbers(5, 5), "edge_index": EDGES, "batch": BATCH}, (1, 2), GRAPH),
    "causal convolutions": Case(Causal, {"x": numbers(2, 3, 16)}, (1,)),
    "a U-Net of odd sizes": Case(Skipping, {"x": numbers(2, 3, 9, 11).sigmoid()}, (1, 5, 6)),
    "experts with tokens of their own": Case(Routed, {"x": numbers(2, 5, 6)}, (1,)),
    "a learnt equation": Case(Solver, {"x": numbers(3, 5)}, (1,)),
    "latent queries": Case(Latents, {"x": numbers(2, 6, 5), "lengths": torch.tensor([6, 3])}, (1,)),
    "points turned": Case(Turned, {"x": numbers(2, 3, 12)}, (1,)),
    "a convolutional LSTM": Case(Remembering, {"x": numbers(2, 3, 2, 6, 6)}, (1,)),
    "series in their own units": Case(Normalised, {"x": numbers(3, 12, 3)}, (2,)),
    "other weights": Case(Adapted, {"x": numbers(3, 6)}, (1,)),
    "weights made of an input": Case(Conditioned, {"x": numbers(3, 6), "z": numbers(3, 2)}, (1,), source="x"),
}


@pytest.mark.parametrize("name", CASES)
def test_w_is_that_by_hand(name: str) -> None:
    check_equivalent(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_at_b_2_contributions_add_up(name: str) -> None:
    check_at_b_2(CASES[name])
