"""Random networks and inputs for property tests of rules, layers and whole pipelines.

Needs hypothesis: ``pip install ".[testing]"`` in a clone of the project.
"""

from __future__ import annotations

from importlib.util import find_spec

from bcos_fx.errors import MissingExtraError

if find_spec("hypothesis") is None:
    raise MissingExtraError("hypothesis", "testing", "drawing random networks")

from bcos_fx.testing.batch_axes import SamplesElsewhere, networks_with_samples_elsewhere
from bcos_fx.testing.networks import images, networks, specifications, variation
from bcos_fx.testing.several_inputs import JointNetwork, JointSpecification, joint_inputs, joint_networks
from bcos_fx.testing.specification import Block, Network, Specification, Window
from bcos_fx.testing.statistics import norm_statistics_from_data_, randomise_, unit_gain_from_data_

__all__ = [
    "Block",
    "JointNetwork",
    "JointSpecification",
    "Network",
    "SamplesElsewhere",
    "Specification",
    "Window",
    "images",
    "joint_inputs",
    "joint_networks",
    "networks",
    "networks_with_samples_elsewhere",
    "norm_statistics_from_data_",
    "randomise_",
    "specifications",
    "unit_gain_from_data_",
    "variation",
]
