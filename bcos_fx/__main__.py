"""``python -m bcos_fx`` is the command line."""

from __future__ import annotations

from bcos_fx.cli import main

if __name__ == "__main__":  # processes of `bcos-fx zoo` import this file once more, under another name
    main()
