"""Thousands of mutated artifacts: each is a network that runs and explains itself, or an error of the project."""

from __future__ import annotations

import functools
import resource
import sys
import time
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.errors import BcosFxError
from bcos_fx.network import BcosNetwork
from tests.attack.mutations import mutated

CHUNK = 125
MOST_SECONDS = 5.0
MOST_MEMORY = 2**30


class _Attention(nn.Module):
    """Tokens, a class token, an attention layer, a norm, sizes read in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], dim=1)
        normed = self.norm(y)
        y = y + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head(nn.functional.gelu(y[:, 0]))


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.rows = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        return self.head((self.rows(features) * torch.sigmoid(self.words(words).mean(1))).relu())


def _cnn() -> nn.Module:
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(6, 6, 3, groups=6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


@functools.cache
def corpus() -> tuple[bytes, ...]:
    torch.manual_seed(0)
    image = {"mean": (0.4,) * 3, "std": (0.2,) * 3}
    networks = [
        bcos_fx.bcosify(_cnn().eval(), example_inputs=torch.rand(2, 3, 12, 12), **image),
        bcos_fx.bcosify(_Attention().eval(), recipe="equivalent", example_inputs=torch.rand(2, 3, 8, 8), **image),
        bcos_fx.bcosify(
            _TwoInputs().eval(),
            recipe="equivalent",
            example_inputs=(torch.rand(2, 5), torch.randint(0, 11, (2, 4))),
        ),
    ]
    return tuple(to_bytes(network) for network in networks)


def example(model: BcosNetwork) -> list[Tensor]:
    """Inputs of the recorded shapes and dtypes."""
    torch.manual_seed(1)
    like = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    given = [node for node in model.graph.nodes if node.op == "placeholder"]
    dtypes = [node.meta.get("dtype") or like for node in given]
    return [
        torch.rand(spec.shape, dtype=like) if dtype.is_floating_point else torch.zeros(spec.shape, dtype=dtype)
        for spec, dtype in zip(model.record.inputs, dtypes, strict=True)
    ]


def outcome(data: bytes) -> str:
    """Load, run and explain; raises what is no error of the project's own, and AssertionError for a wrong sum."""
    try:
        model = from_bytes(data)
    except BcosFxError:
        return "refused"
    inputs = example(model)
    with torch.no_grad():
        model.eval()
        value = model(*inputs)
    str(model.report)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values beyond [0, 1]
            found = bcos_fx.explain(model, inputs[0], others=inputs[1:])
    except BcosFxError:
        return "runs"
    if not found.complete:
        return "incomplete"
    with torch.no_grad():
        again = model(*inputs)
    assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(again)), "two runs differ"
    added = (found.weights * found.encoded).flatten(1).double().sum(1)
    constants = sum(found.constants.values(), torch.zeros(len(added))).double()
    scale = (found.weights * found.encoded).flatten(1).double().abs().sum(1)
    scale = scale + sum(part.double().abs() for part in found.constants.values())
    expected = value.flatten(1).gather(1, found.target.unsqueeze(1)).squeeze(1).double()
    gap = (added + constants - expected).abs()
    eps = torch.finfo(value.dtype).eps
    assert bool((gap <= 1e3 * eps * scale.clamp_min(1e-30)).all()), f"the sum misses the output by {gap.max():.2e}"
    return "explained"


@pytest.fixture
def memory_limit() -> Iterator[None]:
    """Memory for one gigabyte more than there is in use now."""
    with open("/proc/self/statm") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _seeds(chunks: range) -> list[range]:
    return [range(chunk * CHUNK, (chunk + 1) * CHUNK) for chunk in chunks]


def _run(seeds: range) -> dict[str, int]:
    files, counts = corpus(), dict.fromkeys(["refused", "runs", "incomplete", "explained"], 0)
    for seed in seeds:
        data = mutated(files[seed % len(files)], seed)
        start = time.process_time()
        try:
            counts[outcome(data)] += 1
        except Exception as error:
            raise AssertionError(f"mutation {seed}: {type(error).__name__}: {error}") from error
        assert time.process_time() - start < MOST_SECONDS, f"mutation {seed} takes too long"
    return counts


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by Linux's own means")
@pytest.mark.parametrize("seeds", _seeds(range(16)), ids=str)
def test_a_mutated_file_is_a_network_or_an_error(seeds: range, memory_limit: None) -> None:
    counts = _run(seeds)
    assert counts["refused"] > CHUNK // 4
    assert counts["explained"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", _seeds(range(16, 400)), ids=str)
def test_fifty_thousand_mutated_files(seeds: range, memory_limit: None) -> None:
    _run(seeds)


def test_unchanged_files_are_explained() -> None:
    assert {outcome(data) for data in corpus()} == {"explained"}
