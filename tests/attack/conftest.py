"""The command line's fixtures."""

from __future__ import annotations

from tests.cli.conftest import artifact, folder, run, weights

__all__ = ["artifact", "folder", "run", "weights"]
