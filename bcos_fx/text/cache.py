"""Embeddings on the disk, so that no text is embedded twice by the same tower."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bcos_fx.errors import UsageError


def default_path() -> Path:
    """Return the default place of embeddings: below the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "bcos_fx" / "text.sqlite"


class TextCache:
    """Vectors of texts in one SQLite file, which several processes may use at a time.

    Args:
        path: of the file, which is made with its folder when something is put in; None: :func:`default_path`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()

    def get(self, tower: str, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the vectors (D,), float32, that the cache holds.

        Args:
            tower: a tower's fingerprint.
            texts: to look up.

        Raises:
            UsageError: the file is not a cache.
        """
        if not self.path.exists():
            return {}
        vectors: dict[str, Tensor] = {}
        with closing(self._open_database()) as database:
            for text in texts:
                row = database.execute("SELECT vector FROM texts WHERE key = ?", (_key(tower, text),)).fetchone()
                if row is not None:
                    vectors[text] = torch.from_numpy(np.frombuffer(row[0], dtype="<f4").copy())
        return vectors

    def put(self, tower: str, vectors: Mapping[str, Tensor]) -> None:
        """Add vectors (D,) of texts; they are kept as float32.

        Raises:
            UsageError: the file is not a cache, or cannot be written.
        """
        rows = [(_key(tower, t), v.detach().cpu().numpy().astype("<f4").tobytes()) for t, v in vectors.items()]
        with closing(self._open_database()) as database, database:
            database.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", rows)

    def _open_database(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=60)
            database.execute("CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"the cache of text embeddings cannot be used: {error}",
                where=str(self.path),
                hint="remove the file, or set XDG_CACHE_HOME to a folder in which you may write",
            ) from error
        return database


def _key(tower: str, text: str) -> str:
    return hashlib.sha256(f"{tower}\0{text}".encode("utf-8", errors="surrogatepass")).hexdigest()
