"""Comparing a text with the one that was read and found good."""

from __future__ import annotations

from pathlib import Path

import pytest


def compare(written: str, path: Path, request: pytest.FixtureRequest) -> None:
    """Compare with the file; with ``pytest --golden`` write it again, to be read before it is committed."""
    if request.config.getoption("--golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(written, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == written
