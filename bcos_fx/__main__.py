"""``python -m bcos_fx`` is the command line."""

from __future__ import annotations

from bcos_fx.cli import main

if __name__ == "__main__":  # processes that a command starts import this file again, under another name
    main()
