"""``python -m bcos_fx`` is the command line."""

from __future__ import annotations

from bcos_fx.cli import main

main()
