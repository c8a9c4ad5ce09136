"""The words of the package: one name has one meaning, and the spelling is American."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bcos_fx"


def defined(source: str) -> Iterator[str]:
    """The classes and the aliases of types at the top of a module, private ones too; T and P are type variables."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            yield from (name for name in names if name.strip("_")[:1].isupper() and not name.isupper())


def repeated(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """name -> the modules that define it, where there are several; a leading underscore makes no other name."""
    modules = defaultdict(list)
    for path, source in sources:
        for name in set(defined(source)):
            modules[name.strip("_")].append(path)
    return {name: paths for name, paths in modules.items() if len(paths) > 1}


def test_one_name_means_one_thing() -> None:
    files = ((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py")))
    assert repeated(files) == {}


def test_the_check_of_names_sees_classes_and_aliases() -> None:
    one = "class Batch: ...\nT = TypeVar('T')\n_SHOWN = 3\n"
    two = "_Batch = tuple[int, ...]\nT = TypeVar('T')\n_SHOWN = 4\nclass Box:\n    class Batch: ...\n"
    assert repeated([("one", one), ("two", two)]) == {"Batch": ["one", "two"]}


ENDINGS = r"(?=e[drs]?\b|es\b|ing|ation|able|ers?\b|ed_|e_)"
STEMS = """
    amort categor character custom discret emphas equal factor final general harmon initial linear local material memor
    minim maxim modular neutral normal optim organ parameter penal polar prior quant random raster recogn regular serial
    special stabil standard summar symbol synchron synthes token util vector visual
""".split()
BRITISH = re.compile(
    rf"\w*(?:(?:{'|'.join(STEMS)})is{ENDINGS}|analys(?=e[drs]?\b|ing)|colour|grey|(?:label|model|cancel|travel|signal)l"
    r"(?=ed|ing)|centr(?=e\b|es\b|ed|ing)|neighbour|licence|catalogue|behaviour|favour|honour|artefact|programme\b"
    r"|defence|towards\b|learnt|judgement|fulfil\b|whilst|amongst|sceptic)\w*",
    re.IGNORECASE,
)
STORED = {
    "Layers and their options, by name in every stored network": """
        BatchNormUncentred1d BatchNormUncentred2d BatchNormUncentred3d _BatchNormUncentred
        InputNormalisation FrozenL2Normalisation centred
    """,
    "Ops, rules, builders and pattern nodes of rule files, node names of stored graphs, and the linearity class": """
        normalisation input_normalisation l2_normalise normalise quantised batch_norm_uncentred1d batch_norm_uncentred2d
        batch_norm_uncentred3d uncentred
    """,
    "The value of an option that recipes and stored networks hold": "normalised",
    "Functions, results and a page of the public interface": """
        randomise_ weight_randomisation Randomised Localisation localisation localisations
    """,
    "A key of files of results, and a label of a network's facts": "colours licence",
    "Former names, which warn": "optimiser",
}
"""Why these words stay -> the words."""


def british(text: str) -> list[str]:
    """The words that American English spells otherwise, those apart that stay."""
    kept = {word for words in STORED.values() for word in words.split()}
    return [found[0] for found in BRITISH.finditer(text) if found[0] not in kept]


def prose() -> list[Path]:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "rules").rglob("*.toml")]
    return sorted({*PACKAGE.rglob("*.py"), *pages} - {ROOT / "CHANGELOG.md"})


def test_words_are_spelled_as_in_american_english() -> None:
    found = {str(path.relative_to(ROOT)): british(path.read_text(encoding="utf-8")) for path in prose()}
    assert {path: words for path, words in found.items() if words} == {}


def test_every_word_that_stays_is_still_there() -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in prose())
    words = [word for words in STORED.values() for word in words.split()]
    assert [word for word in words if not re.search(rf"\b{word}\b", everything)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Colours are normalised.", ["Colours"]),
        ("initialises, optimisers and _neighbours", ["initialises", "optimisers", "_neighbours"]),
        ("centres, centred, labelled, analysed, towards", ["centres", "labelled", "analysed", "towards"]),
        ("promise, precise, raise, analysis, likewise, realistic, central, exercise, labels", []),
    ],
)
def test_the_check_of_spelling_sees_british_words(text: str, words: list[str]) -> None:
    assert british(text) == words
