"""Names and numbers that files cannot hold as they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.data.classes import read_classes
from bcos_fx.errors import UsageError
from bcos_fx.explanation import Explanation
from bcos_fx.explanation.render.saving import Collector


def explained(dtype: torch.dtype = torch.float32) -> Explanation:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype).eval()
    return bcos_fx.explain(model, torch.randn(2, 4).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_precision_is_written_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    found = explained(dtype)
    with np.load(found.save(tmp_path / "e.npz"), allow_pickle=False) as read:
        for name in ("inputs", "weights", "output", "contributions", "residual"):
            assert np.array_equal(read[name], getattr(found, name).double().numpy()), name


def test_a_file_name_that_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "gallery.html")
    collector.add(explained(), [os.fsdecode(b"caf\xe9.jpg"), "cafe.jpg"])
    collector.close()
    text = (tmp_path / "gallery.html").read_bytes().decode("utf-8")
    assert r"caf\udce9.jpg" in text
    assert "cafe.jpg" in text


@pytest.mark.parametrize("text", ["fish\ndog\n", '["fish", "dog"]'])
def test_a_byte_order_mark_is_no_part_of_a_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes"
    path.write_text(text, encoding="utf-8-sig")
    assert read_classes(path) == ("fish", "dog")


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 5000 + "]"], ids=["too deep", "too long"])
def test_json_that_python_cannot_hold_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="class names are no JSON") as caught:
        read_classes(path)
    assert str(path) in str(caught.value.where)


def test_a_file_that_is_there_is_not_offered_as_its_own_correction(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8 text") as caught:
        read_classes(path)
    assert "did you mean" not in str(caught.value.hint)
