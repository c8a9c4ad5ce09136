"""Files in half precision: half the size, float32 again when read, and refused where values would be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bcos_fx
from bcos_fx.artifact.document import HALF_NOTE
from bcos_fx.errors import ArtifactError
from tests.small_networks import cnn, images


@pytest.fixture(scope="module")
def network() -> bcos_fx.BcosNetwork:
    return bcos_fx.bcosify(cnn(), example_inputs=images(), b=2.0, verified=False)


def test_it_is_float32_again_and_rounded(network: bcos_fx.BcosNetwork, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.st", tmp_path / "half.st"
    bcos_fx.save(network, whole)
    assert bcos_fx.save(network, half, half=True) == half
    found = bcos_fx.load(half)
    for name, tensor in network.state_dict().items():
        read = found.state_dict()[name]
        assert read.dtype == tensor.dtype
        torch.testing.assert_close(read, tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor)
    assert HALF_NOTE in found.report.notes
    assert HALF_NOTE not in network.report.notes
    explained = bcos_fx.explain(found, images(), 0)
    assert explained.complete
    saved = sum(t.numel() * 2 for t in network.state_dict().values() if t.dtype == torch.float32)
    assert whole.stat().st_size - half.stat().st_size > 0.9 * saved


def test_a_file_that_was_read_is_written_whole_again(network: bcos_fx.BcosNetwork, tmp_path: Path) -> None:
    found = bcos_fx.load(bcos_fx.save(network, tmp_path / "half.st", half=True))
    again = bcos_fx.load(bcos_fx.save(found, tmp_path / "whole.st"))
    for name, tensor in found.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert again.report.notes.count(HALF_NOTE) == 1


def test_what_half_precision_cannot_hold_is_refused(network: bcos_fx.BcosNetwork, tmp_path: Path) -> None:
    large = bcos_fx.load(bcos_fx.save(network, tmp_path / "a.st"))
    with torch.no_grad():
        next(large.parameters()).fill_(1e6)
    with pytest.raises(ArtifactError, match="values up to 1e\\+06 do not fit into half precision"):
        bcos_fx.save(large, tmp_path / "half.st", half=True)
    with pytest.raises(ArtifactError, match="a float16 tensor would come back as float32"):
        bcos_fx.save(network_in_half(large), tmp_path / "half.st", half=True)
    assert not (tmp_path / "half.st").exists()


def network_in_half(network: bcos_fx.BcosNetwork) -> bcos_fx.BcosNetwork:
    with torch.no_grad():
        next(network.parameters()).fill_(1.0)
    return network.half()
