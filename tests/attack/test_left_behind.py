"""What a conversion leaves in the process when its results are gone."""

from __future__ import annotations

import gc
import linecache
import weakref

import torch
from torch import nn
from torch.fx import graph_module as fx_graph_module

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes


def _kept() -> int:
    """How many generated sources torch.fx and Python's line cache hold."""
    return len(fx_graph_module._loader.eval_cache) + len(linecache.cache)


def test_no_source_is_kept_for_a_conversion() -> None:
    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval(), torch.rand(2, 3, 6, 6)

    def used() -> weakref.ref[nn.Module]:
        model = from_bytes(to_bytes(bcos_fx.bcosify(module, example_inputs=x, mean=(0.5,) * 3, std=(0.2,) * 3)))
        bcos_fx.explain(model, x)
        return weakref.ref(model)

    used()
    before = _kept()
    references = [used() for _ in range(3)]
    assert _kept() == before
    gc.collect()
    assert not [reference for reference in references if reference() is not None]
