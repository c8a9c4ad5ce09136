"""The words of the package: one name has one meaning."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

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
