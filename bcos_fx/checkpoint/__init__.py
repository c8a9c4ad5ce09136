"""Other people's files: what they are, what they hold, and the networks and weights in them."""

from __future__ import annotations

from bcos_fx.checkpoint.architecture import (
    architecture_names,
    build_architecture,
    guess_architecture,
    has_random_weights,
    load_into,
)
from bcos_fx.checkpoint.folders import digest_of_weights
from bcos_fx.checkpoint.hugging_face import classifies_images
from bcos_fx.checkpoint.identify import FileKind, identify
from bcos_fx.checkpoint.inspection import Inspection, TensorRow, inspect
from bcos_fx.checkpoint.libraries import open_clip_choice, open_clip_model
from bcos_fx.checkpoint.model import read_model
from bcos_fx.checkpoint.peer import load_peer_state, peer_state
from bcos_fx.checkpoint.reading import StateDict, read_state_dict

__all__ = [
    "FileKind",
    "Inspection",
    "StateDict",
    "TensorRow",
    "architecture_names",
    "build_architecture",
    "classifies_images",
    "digest_of_weights",
    "guess_architecture",
    "has_random_weights",
    "identify",
    "inspect",
    "load_into",
    "load_peer_state",
    "open_clip_choice",
    "open_clip_model",
    "peer_state",
    "read_model",
    "read_state_dict",
]
