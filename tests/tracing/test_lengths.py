"""``len(x)`` of a tensor is a size that follows the input, as ``x.shape[0]`` is."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.tracing import trace


class Lengths(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.body = nn.Linear(6, 8), body

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        seen.append(len(h))
        return self.body(h)


seen: list[object] = []
BODIES: dict[str, Callable[[Tensor], Tensor]] = {
    "reshaped": lambda h: h.reshape(len(h), -1, 2),
    "filled": lambda h: h + torch.zeros(len(h), 1),
    "counted": lambda h: h[torch.arange(len(h))],
    "computed": lambda h: h.reshape(2 * len(h), -1),
    "asked": lambda h: h.flatten(1) if len(h) else h,
    "averaged": lambda h: h.sum(0, keepdim=True).expand(len(h), 8) / len(h),
    "of a list": lambda h: h * len([h, h, h]),
    "of its shape": lambda h: h * len(h.shape),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_graph_holds_for_another_number_of_samples(name: str) -> None:
    module = Lengths(BODIES[name]).eval()
    found = trace(module, torch.randn(2, 6))
    for samples in (1, 2, 5):
        x = torch.randn(samples, 6)
        torch.testing.assert_close(found.graph_module(x), module(x))
    assert not any(guard.kind == "len" for guard in found.guards)


def test_len_is_put_back() -> None:
    module = Lengths(lambda h: h.missing).eval()  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="missing"):
        trace(module, torch.randn(2, 6))
    assert "len" not in globals()


def test_another_thread_reads_plain_numbers() -> None:
    """The file's ``len`` is everybody's while a module of it is recorded."""
    found: list[object] = []

    def elsewhere(h: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: found.append(len(torch.zeros(3, 2))))
        thread.start()
        thread.join()
        return h

    trace(Lengths(elsewhere).eval(), torch.randn(2, 6))
    assert found
    assert all(type(each) is int for each in found)


def test_a_loop_over_samples_still_holds_for_the_example_alone() -> None:
    found = trace(Lengths(lambda h: torch.stack([h[n] for n in range(len(h))])).eval(), torch.randn(2, 6))
    assert any("2" in str(guard) for guard in found.guards)
