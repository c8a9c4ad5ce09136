"""Networks of the kinds that people report to explain and convert in vain, with W as it is by hand.

Two towers (captum 956), a cell that is called again and again (captum 1236), trackers, scans, graphs with features of
edges, series with gaps, weights that another input makes, a backbone without gradients.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.anyone.by_hand import Case, check_at_b_2, check_equivalent, gate, holding, numbers, ratio

EDGES = torch.tensor([[0, 1, 2, 3, 1, 4], [1, 2, 3, 0, 3, 2]])


def turned(x: Tensor) -> Tensor:
    """Rotary positions."""
    length, width = x.shape[-2:]
    rates = 100.0 ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    angles = torch.outer(torch.arange(length, dtype=x.dtype), rates).repeat(1, 2)
    half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
    return x * angles.cos() + half * angles.sin()


class GroupedQueries(nn.Module):
    """Two heads of queries that share one of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        k, v = self.kv(x).view(b, t, 2, 1, 4).permute(2, 0, 3, 1, 4)
        q = turned(self.q(x).view(b, t, 2, 4).transpose(1, 2))
        k, v = turned(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(gate(q), gate(k), v, is_causal=True)
        return self.head(x[:, -1] + self.out(y.transpose(1, 2).reshape(b, t, 8))[:, -1])


class Towers(nn.Module):
    """The cosine of two texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
        self.scale = nn.Parameter(torch.tensor(1.3))

    def encoded(self, x: Tensor) -> Tensor:
        h = self.tower(x).mean(1)
        return h / gate(h.norm(dim=-1, keepdim=True))

    def forward(self, query: Tensor, article: Tensor) -> Tensor:
        return (self.scale.exp() * self.encoded(query) * self.encoded(article)).sum(-1, keepdim=True)


class Gaps(nn.Module):
    """A series with gaps: the last value decays toward the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.cell, self.head = nn.Parameter(torch.rand(3)), nn.Linear(11, 5), nn.Linear(5, 2)
        self.mean = nn.Buffer(torch.rand(3))

    def forward(self, x: Tensor, seen: Tensor, since: Tensor) -> Tensor:
        h, last = x.new_zeros(x.size(0), 5), self.mean.expand(x.size(0), -1)
        for t in range(x.size(1)):
            here, decay = seen[:, t], torch.exp(-torch.clamp(self.rate * since[:, t], min=0))
            last = torch.where(here.bool(), x[:, t], last)
            filled = here * x[:, t] + (1 - here) * (decay * last + (1 - decay) * self.mean)
            h = ratio(torch.tanh, self.cell(torch.cat([filled, here, h], 1)))
        return self.head(h)


class Scan(nn.Module):
    """A selective scan, its products written either way round: what layers made of the sequence weights it."""

    def __init__(self, value_first: bool) -> None:
        super().__init__()
        self.inner, self.conv = nn.Linear(4, 12), nn.Conv1d(6, 6, 3, groups=6, padding=2)
        self.made, self.step = nn.Linear(6, 7, bias=False), nn.Linear(1, 6)
        self.rates, self.skip = nn.Parameter(torch.rand(6, 3)), nn.Parameter(torch.ones(6))
        self.head, self.value_first = nn.Linear(6, 2), value_first

    def product(self, value: Tensor, weight: Tensor) -> Tensor:
        return value * weight if self.value_first else weight * value

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.inner(x).chunk(2, -1)
        u = ratio(F.silu, self.conv(u.mT)[..., : x.size(1)].mT)
        step, into, out = self.made(gate(u)).split([1, 3, 3], -1)
        step = F.softplus(self.step(step)).unsqueeze(-1)
        kept, into = gate((-step * self.rates.exp()).exp()), gate(step * into.unsqueeze(2))
        h, found = x.new_zeros(x.size(0), 6, 3), []
        for t in range(x.size(1)):
            h = kept[:, t] * h + self.product(u[:, t].unsqueeze(-1), into[:, t])
            found.append(self.product(h, gate(out)[:, t].unsqueeze(1)).sum(-1))
        return self.head((self.product(torch.stack(found, 1) + u * self.skip, gate(F.silu(z)))).mean(1))


class Crossed(nn.Module):
    """x0 * (W x + b) + x."""

    def __init__(self, value_first: bool) -> None:
        super().__init__()
        self.layers, self.head, self.value_first = (
            nn.ModuleList([nn.Linear(6, 6) for _ in range(2)]),
            nn.Linear(6, 3),
            value_first,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            weight = gate(layer(y))
            y = (x * weight if self.value_first else weight * x) + y
        return self.head(y)


class Generated(nn.Module):
    """Kernels for each place, made of that place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kernels, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 18, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        b, c, height, width = h.shape
        kernels = gate(self.kernels(h)).view(b, 2, 9, height, width).unsqueeze(2)
        read = F.unfold(h, 3, padding=1).view(b, 2, 4, 9, height, width)
        return self.head((kernels * read).sum(3).view(b, c, height, width).mean((2, 3)))


class Adjacent(nn.Module):
    """A graph network that writes its adjacency, self-loops into the diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6)])
        self.share, self.head = nn.Parameter(torch.rand(6)), nn.Linear(6, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        found = []
        for layer in self.layers:
            near = torch.zeros(x.size(0), x.size(0), dtype=x.dtype)
            near[edge_index[1], edge_index[0]] = 1.0
            near.fill_diagonal_(1.0)
            degree = near.sum(1).rsqrt()
            x = layer((degree[:, None] * near * degree[None]) @ x)
            x = x - x.mean(0, keepdim=True) * self.share
            x = (x / gate((x.pow(2).mean(0, keepdim=True) + 1e-5).sqrt())).relu()
            found.append(x)
        return self.head(torch.stack(found, -1).max(-1).values)


class Edges(nn.Module):
    """Messages through a matrix that a network makes of an edge's features."""

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 24))
        self.root, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        messages = torch.bmm(x[edge_index[0]].unsqueeze(1), self.made(edge_attr).view(-1, 4, 6)).squeeze(1)
        to = edge_index[1].view(-1, 1).expand(-1, 6)
        got = torch.zeros(x.size(0), 6, dtype=x.dtype).scatter_reduce(0, to, messages, "mean", include_self=False)
        return self.head((got + self.root(x)).relu())


class Tracker(nn.Module):
    """The features of a template are the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.adjust = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor, template: Tensor) -> Tensor:
        found, kernel = self.features(x).relu(), self.features(template).relu()
        n, c, height, width = found.shape
        return self.adjust(F.conv2d(found.reshape(1, n * c, height, width), kernel, groups=n).transpose(0, 1)).amax(
            (2, 3)
        )


class Styled(nn.Module):
    """A kernel that another input scales, and that is normalised then."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.weight, self.head = nn.Linear(5, 3), nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Linear(6, 3)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        b, c, height, width = x.shape
        kernel = self.weight[None] * (self.style(w) + 1).view(b, 1, c, 1, 1)
        kernel = kernel * torch.rsqrt((kernel**2).sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(x.reshape(1, b * c, height, width), kernel.reshape(b * 6, c, 3, 3), groups=b)
        return self.head(F.leaky_relu(y.reshape(b, 6, height - 2, width - 2), 0.2).mean((-1, -2)))


class Bag(nn.Module):
    """Gated attention over the instances of one bag."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.v, self.u = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.w, self.head = nn.Linear(4, 1), nn.Linear(6, 3)

    def forward(self, bag: Tensor) -> Tensor:
        h = self.inner(bag).relu()
        share = torch.softmax(self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h))).t(), 1)
        return self.head(gate(share) @ h).squeeze(0)


class FedBack(nn.Module):
    """A decoder that reads its own outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.RNN(4, 5, batch_first=True, nonlinearity="relu")
        self.decoder, self.head = nn.RNNCell(2, 5, nonlinearity="relu"), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, y = self.encoder(x)[1][0], x.new_zeros(x.size(0), 2)
        for _ in range(3):
            h = self.decoder(y, h)
            y = self.head(h)
        return y


class NoGradients(nn.Module):
    """A backbone that was frozen by taking its gradients away."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(holding()):
            h = self.backbone(x)
        return self.head(h)


class Splines(nn.Module):
    """Linear splines of every number, and the largest of three."""

    def __init__(self) -> None:
        super().__init__()
        self.knots = nn.Buffer(torch.linspace(-1, 1, 5))
        self.weight, self.base = nn.Parameter(torch.randn(9, 6, 5)), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("nig,oig->no", F.relu(x.unsqueeze(-1) - self.knots), self.weight) + self.base(x)
        return y.view(-1, 3, 3).max(-1).values / math.sqrt(3)


WHOLE: dict[str, Any] = {"batch_axis": None}
GAPPED = {"x": numbers(2, 6, 3), "seen": (numbers(2, 6, 3) > 0).double(), "since": numbers(2, 6, 3).abs()}
ATTRIBUTED = {"x": numbers(5, 4), "edge_index": EDGES, "edge_attr": numbers(6, 3)}
TRACKED = {"x": numbers(2, 3, 8, 8).sigmoid(), "template": numbers(2, 3, 5, 5).cos() / 2 + 0.5}
CASES = {
    "grouped queries": Case(GroupedQueries, {"x": numbers(2, 6, 8)}, (1,)),
    "the first tower": Case(Towers, {"query": numbers(2, 5, 6), "article": numbers(2, 9, 6)}, (0,)),
    "the second tower": Case(Towers, {"query": numbers(2, 5, 6), "article": numbers(2, 9, 6)}, (0,), source="article"),
    "a series with gaps": Case(Gaps, GAPPED, (1,)),
    "a scan": Case(lambda: Scan(True), {"x": numbers(2, 5, 4)}, (1,)),
    "a scan, weights first": Case(lambda: Scan(False), {"x": numbers(2, 5, 4)}, (1,)),
    "crosses": Case(lambda: Crossed(True), {"x": numbers(3, 6)}, (1,)),
    "crosses, weights first": Case(lambda: Crossed(False), {"x": numbers(3, 6)}, (1,)),
    "kernels of each place": Case(Generated, {"x": numbers(2, 3, 6, 6).sigmoid()}, (1,)),
    "an adjacency that is written": Case(Adjacent, {"x": numbers(5, 4), "edge_index": EDGES}, (2, 1), WHOLE),
    "matrices of edges": Case(Edges, ATTRIBUTED, (2, 1), WHOLE),
    "matrices of edges, by the edges": Case(Edges, ATTRIBUTED, (2, 1), WHOLE, source="edge_attr"),
    "a tracker": Case(Tracker, TRACKED, (1,)),
    "a tracker, by its template": Case(Tracker, TRACKED, (1,), source="template"),
    "a style": Case(Styled, {"x": numbers(2, 3, 8, 8).sigmoid(), "w": numbers(2, 5)}, (1,), source="x"),
    "a bag": Case(Bag, {"bag": numbers(7, 5)}, (1,), WHOLE),
    "a decoder that is fed back": Case(FedBack, {"x": numbers(2, 5, 4)}, (1,)),
    "a frozen backbone": Case(NoGradients, {"x": numbers(2, 3, 8, 8).sigmoid()}, (1,)),
    "splines": Case(Splines, {"x": numbers(2, 6)}, (1,)),
}


@pytest.mark.parametrize("name", CASES)
def test_w_is_that_by_hand(name: str) -> None:
    check_equivalent(CASES[name])


@pytest.mark.parametrize("name", ["a scan", "a tracker", "matrices of edges, by the edges", "the second tower"])
def test_at_b_2_contributions_add_up(name: str) -> None:
    check_at_b_2(CASES[name])
