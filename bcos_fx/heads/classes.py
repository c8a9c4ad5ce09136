"""Which outputs of a network are meant by class names, WordNet ids or indices."""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bcos_fx.data.classes import check_class_count
from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.escaping import amount

_IMAGENET = 1000
_WORDNET = re.compile(r"n[0-9]{8}")
_LISTED = 10


def find_classes(wanted: Sequence[int | str], outputs: int, names: Sequence[str] | None = None) -> list[int]:
    """Return the index of each wanted class among a network's outputs.

    Args:
        wanted: indices (digits count as one), WordNet ids such as ``n01440764``, or names. A name fits in any case,
            with ``_`` or ``-`` for spaces, and by any of several that commas separate.
        outputs: number of the network's classes.
        names: theirs, in order. None: those of ImageNet-1k, for a network of 1,000 classes.

    Raises:
        UsageError: a class is unknown or ambiguous, all of them with the nearest names; two are the same one; or there
            are fewer than two.
        MissingExtraError: names or WordNet ids of ImageNet are needed, and timm is not installed.
    """
    if names is not None:
        check_class_count(names, outputs)
    if len(wanted) < 2:
        raise UsageError(f"{len(wanted)} of the network's classes cannot be told apart", hint="keep at least two")
    classes = _KnownClasses(outputs, names)
    by_position = {position: classes.indices(item) for position, item in enumerate(wanted)}
    wrong = [classes.refusal(wanted[position], hits) for position, hits in by_position.items() if len(hits) != 1]
    if wrong:
        more = f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise UsageError(
            f"{len(wrong)} of {amount(len(wanted), 'class')} are not found among the network's {outputs}: "
            f"{'; '.join(wrong[:_LISTED])}{more}",
            hint="name classes by index, by WordNet id or as the network's classes are named (class_names= lists them)",
        )
    by_index: dict[int, int | str] = {}
    for position, (index,) in by_position.items():
        # Two names of one class would give two equal outputs.
        if index in by_index:
            raise UsageError(f"{by_index[index]!r} and {wanted[position]!r} are one class of the network, {index}")
        by_index[index] = wanted[position]
    return list(by_index)


class _KnownClasses:
    """The classes of a network by every word for them."""

    def __init__(self, outputs: int, names: Sequence[str] | None) -> None:
        self._outputs, self._names = outputs, names

    @functools.cached_property
    def _by_word(self) -> Mapping[str, list[int]]:
        if self._names is None and self._outputs != _IMAGENET:
            return {}
        by_word: dict[str, list[int]] = {}
        for index, name in enumerate(self._names if self._names is not None else _imagenet()[1]):
            for word in dict.fromkeys(map(_plain_words, (name, *name.split(",")))):
                by_word.setdefault(word, []).append(index)
        return by_word

    def indices(self, item: int | str) -> list[int]:
        """Return the outputs that an index, an id or a name may mean."""
        if isinstance(item, str) and not item.strip().isdecimal():
            if _WORDNET.fullmatch(item.strip()) and self._outputs == _IMAGENET:
                ids = _imagenet()[0]
                return [ids.index(item.strip())] if item.strip() in ids else []
            return self._by_word.get(_plain_words(item), [])
        return [int(item)] if not isinstance(item, bool) and 0 <= int(item) < self._outputs else []

    def refusal(self, item: int | str, hits: Sequence[int]) -> str:
        """Return why something is not one class."""
        if hits:
            return f"{item!r} may be any of {', '.join(map(str, hits))}"
        if not isinstance(item, str) or item.strip().isdecimal():
            return f"{item!r} is not in 0 to {self._outputs - 1}"
        words = [] if _WORDNET.fullmatch(item.strip()) else list(self._by_word)
        if not words:
            return f"{item!r} (the network's classes have no such names)"
        close = difflib.get_close_matches(_plain_words(item), words, n=1, cutoff=0.0)
        return f"{item!r} (nearest: {close[0]!r})"


def check_same_names(network: Sequence[str], original: Sequence[str]) -> None:
    """Check that a network and the original that it is compared with name the same classes in the same order.

    Names are the same where one of those between commas is, or the words of one are among the other's: ``crane`` is
    called ``crane bird`` elsewhere. Where one side has no names, there is nothing to compare.

    Raises:
        UsageError: they do not; names the first class that differs.
    """
    for index, (ours, theirs) in enumerate(zip(network, original, strict=False)):
        if not _same_class(ours, theirs):
            raise UsageError(
                f"the network and the original have other classes, or the same in another order: class {index} is "
                f"{ours!r} in the network and {theirs!r} in the original",
                hint="give the original that was converted",
            )


def _same_class(name: str, other: str) -> bool:
    synonyms = [{_plain_words(part) for part in (text, *text.split(","))} for text in (name, other)]
    words = [set(_plain_words(text.replace(",", " ")).split()) for text in (name, other)]
    return bool(synonyms[0] & synonyms[1]) or words[0] <= words[1] or words[1] <= words[0]


def _plain_words(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


@functools.cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the WordNet ids and names of ImageNet-1k's classes, in their order."""
    try:
        data: Any = importlib.import_module("timm.data")
    except ImportError as error:
        raise MissingExtraError("timm", "timm", "naming the classes of ImageNet") from error
    info = data.ImageNetInfo()
    return tuple(info.label_names()), tuple(info.label_descriptions())
