"""What a reader has to follow: which files a call runs through, and how often it climbs to a later room."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from tests.small_networks import cnn, images
from tests.test_architecture import PACKAGE, ROOMS, room_of

# The façade's loader; and the layers, whose own forward is what a call explains or rewrites.
PASSED_OVER = {"lazy", "nn"}


@dataclass
class Way:
    """The files of bcos_fx that a call ran through, and its calls from a room to a later one."""

    files: set[Path] = field(default_factory=set)
    climbs: Counter[str] = field(default_factory=Counter)

    @property
    def rooms(self) -> set[str]:
        return {room_of(path) for path in self.files}

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call, as the profiler shows it."""
        called = _own_file(frame)
        if event != "call" or called is None or frame.f_code.co_name == "<module>":
            return
        if room_of(called) not in PASSED_OVER:
            self.files.add(called)
        caller = frame.f_back
        while caller is not None and _own_file(caller) is None:
            caller = caller.f_back
        if caller is None:
            return
        source = _own_file(caller)
        assert source is not None
        if ROOMS.index(room_of(called)) > ROOMS.index(room_of(source)):
            self.climbs[f"{source.name}:{caller.f_code.co_name} -> {called.name}:{frame.f_code.co_name}"] += 1


def _own_file(frame: FrameType) -> Path | None:
    path = Path(frame.f_code.co_filename)
    return path if PACKAGE in path.parents else None


def followed(call: Callable[[], object]) -> Way:
    found = Way()
    sys.setprofile(found.note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return bcos_fx.bcosify(cnn(), images=images())


def test_explaining_stays_in_few_files_and_never_climbs(network: nn.Module) -> None:
    given: Tensor = images()[:2]
    first = followed(lambda: bcos_fx.explain(network, given))
    again = followed(lambda: bcos_fx.explain(network, given))
    assert not first.climbs
    assert not again.climbs
    assert again.rooms <= {"explanation", "network", "tracing"}
    assert len(again.files) <= 9, sorted(path.name for path in again.files)
    # Building the view is a rewrite; nothing that verifies, converts or calibrates has a part in it.
    assert first.rooms <= {"explanation", "network", "tracing", "rewriting", "budgets", "errors"}


def test_converting_climbs_at_most_three_times() -> None:
    module = cnn().eval()
    found = followed(lambda: bcos_fx.bcosify(module))
    assert found.climbs.total() <= 3, found.climbs


def test_explaining_another_module_never_climbs() -> None:
    module = cnn().eval()
    found = followed(lambda: bcos_fx.explain(module, images()))
    assert not found.climbs


def test_the_way_of_a_call_is_seen() -> None:
    torch.manual_seed(0)
    found = followed(lambda: bcos_fx.certify(nn.Linear(3, 2).eval(), torch.rand(2, 3)))
    assert {"explanation", "rewriting", "tracing", "validation"} <= found.rooms
