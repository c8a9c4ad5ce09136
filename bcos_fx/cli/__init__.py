"""The command line. Nothing here imports torch until a command runs, so that help comes at once."""

from __future__ import annotations

from bcos_fx.cli.app import app, main

__all__ = ["app", "main"]
