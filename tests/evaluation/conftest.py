"""A converted toy network, right by construction."""

from __future__ import annotations

import pytest
import torch

import bcos_fx
from bcos_fx.network import BcosNetwork
from tests.evaluation.toy import Colours


@pytest.fixture(scope="session")
def network() -> BcosNetwork:
    return bcos_fx.bcosify(Colours().eval(), recipe="equivalent", example_inputs=torch.rand(2, 3, 8, 8))
