"""Wrappers around networks and their parts, in memory and in the names of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.tracing.wrappers import unwrap, without_wrappers


class Net(nn.Module):
    """Two blocks, of which one is used twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.block(self.stem(x))).mean((2, 3)))


def plain() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def parts(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Net], nn.Module]:
    def change(net: Net) -> nn.Module:
        net.stem[0] = wrap(net.stem[0])
        net.block = wrap(net.block)
        return net

    return change


WAYS: dict[str, Callable[[Net], nn.Module]] = {
    "parallel": nn.DataParallel,
    "compiled": compiled,
    "compiled in place": in_place,
    "averaged": lambda net: AveragedModel(net).eval(),
    "compiled, parallel": lambda net: nn.DataParallel(compiled(net)),
    "parallel, compiled": lambda net: compiled(nn.DataParallel(net)),
    "compiled parts": parts(compiled),
    "parallel parts": parts(nn.DataParallel),
    "parts compiled in place": parts(in_place),
    "compiled parts, averaged": lambda net: AveragedModel(parts(compiled)(net)).eval(),
}


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that is called breaks the test: nothing of ours runs through it."""
    torch._dynamo.reset()
    monkeypatch.setattr("torch._dynamo.eval_frame.OptimizedModule.__call__", _broken)
    yield
    torch._dynamo.reset()


def _broken(*given: object) -> None:
    raise AssertionError("the compiler ran")


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize("way", WAYS)
def test_a_wrapped_network_is_converted_under_its_own_names(way: str) -> None:
    net = plain()
    with torch.no_grad():
        x = torch.rand(2, 3, 8, 8)
        wanted = net(x)
    wrapped = WAYS[way](net)
    before = {name: type(part) for name, part in wrapped.named_modules()}
    made = bcos_fx.bcosify(wrapped, example_inputs=x, recipe="equivalent", input="none")
    layers = {name.rpartition(".")[0] for name, _ in made.named_parameters()}
    assert {"stem.0", "block.0", "fc"} <= layers
    torch.testing.assert_close(made(x), wanted, rtol=1e-4, atol=1e-5)
    found = bcos_fx.explain(wrapped, x, 1)
    assert found.complete
    torch.testing.assert_close(found.output, wanted[:, 1], rtol=1e-4, atol=1e-5)
    assert {name: type(part) for name, part in wrapped.named_modules()} == before, "the caller's module is as it was"


def test_what_is_taken_off_shares_all_tensors_and_a_plain_network_is_itself() -> None:
    net = plain()
    assert unwrap(net) is net
    wrapped = parts(compiled)(plain())
    bare = unwrap(wrapped)
    assert [id(p) for p in bare.parameters()] == [id(p) for p in wrapped.parameters()]
    assert bare.block is not wrapped.block
    assert type(bare) is Net


@pytest.mark.parametrize("way", [way for way in WAYS if "place" not in way])
def test_a_checkpoint_of_a_wrapped_network_is_read_by_its_architecture(way: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Net().eval()
    wanted = {name: value.clone() for name, value in net.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": WAYS[way](net).state_dict()}, path)
    read = read_model(path, arch=f"{__name__}:plain")
    for name, value in read.state_dict().items():
        assert torch.equal(value, wanted[name])


def test_names_lose_wrappers_wherever_they_stand() -> None:
    assert without_wrappers("0._orig_mod.weight") == "0.weight"
    assert without_wrappers("_fsdp_wrapped_module.a._checkpoint_wrapped_module.b") == "a.b"
    assert without_wrappers("module.module_list.0") == "module.module_list.0"


class Named(nn.Module):
    """A network with a part that is called module."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.fc = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.module(x))


def test_a_part_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    net = Named()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    read = read_model(tmp_path / "weights.pt", arch=f"{__name__}:Named")
    assert torch.equal(read.state_dict()["module.weight"], net.module.weight)


def test_a_module_that_contains_itself_is_refused() -> None:
    net = plain()
    net.stem.add_module("again", net)
    with pytest.raises(bcos_fx.errors.UsageError, match="contains itself"):
        bcos_fx.bcosify(net, example_inputs=torch.rand(2, 3, 8, 8))
