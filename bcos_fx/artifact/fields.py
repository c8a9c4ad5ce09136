"""Typed access to JSON objects from untrusted files."""

from __future__ import annotations

from typing import Any

from bcos_fx.errors import ArtifactError


class Fields:
    """A JSON object whose keys are asked for with the type that they must have."""

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise ArtifactError("the file's description of the network is damaged: no JSON object here", where=where)
        self._fields = value

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def within(self, where: str) -> Fields:
        """Return the same object under another name for errors."""
        return Fields(self._fields, where)

    def value(self, key: str) -> Any:
        """Return whatever stands under a key.

        Raises:
            ArtifactError: nothing does; the other methods also raise it for a value of another type.
        """
        if key not in self._fields:
            raise ArtifactError(f"the file's description of the network lacks {key!r}", where=self.where)
        return self._fields[key]

    def text(self, key: str) -> str:
        """Return a text."""
        return self.word(self.value(key), self.where)

    def truth(self, key: str) -> bool:
        """Return true or false."""
        return bool(self._typed(key, bool))

    def integer(self, key: str) -> int:
        """Return an integer."""
        return int(self._typed(key, int))

    def items(self, key: str) -> list[Any]:
        """Return a list."""
        return list(self._typed(key, list))

    def below(self, key: str) -> list[Fields]:
        """Return a list of objects."""
        return [Fields(item, f"{self.where}, {key} {number}") for number, item in enumerate(self.items(key))]

    def pairs(self, key: str) -> list[list[Any]]:
        """Return a list of lists of two."""
        pairs = self.items(key)
        if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
            raise ArtifactError(f"{key!r} is not a list of pairs", where=self.where)
        return pairs

    def finish(self, *known: str) -> None:
        """Refuse keys that are not known."""
        odd = sorted(set(self._fields) - set(known))
        if odd:
            raise ArtifactError(f"the key {odd[0]!r} means nothing here", where=self.where)

    @staticmethod
    def word(value: object, where: str) -> str:
        """Return a value that must be a text."""
        if not isinstance(value, str):
            raise ArtifactError(f"a text is wanted, not {str(value)[:40]!r}", where=where)
        return value

    def _typed(self, key: str, kind: type) -> Any:
        value = self.value(key)
        if type(value) is not kind:
            raise ArtifactError(f"{key!r} must be a {kind.__name__}, not {str(value)[:40]!r}", where=self.where)
        return value
