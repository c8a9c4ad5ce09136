"""The shape of the code itself: imports go one way, files stay small and are named for what they do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bcos_fx"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = """
    version escaping display drawing terminal errors deprecation files budgets lazy locking user_code seeding identity
    data nn tracing rewriting rules report network verification validation calibration artifact checkpoint text example
    heads folding conversion convert explanation exporting diagnosis audit hub methods app evaluation training cli
""".split()
# These stand beside the line of rooms: what each may import, at the most.
BESIDE = {
    "testing": {*ROOMS[: ROOMS.index("convert") + 1], "testing"},
}
SHAPELESS_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed_rooms(room: str) -> set[str]:
    """The rooms that ``room`` may import from."""
    return BESIDE[room] if room in BESIDE else set(ROOMS[: ROOMS.index(room) + 1])


def imported_rooms(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and room of every import of bcos_fx in a file, wherever in the file it stands."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "bcos_fx":
            names = [f"bcos_fx.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.startswith("bcos_fx."):
                yield node.lineno, name.split(".")[1]


def imports_of(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, those for types and inside functions too."""
    names = {path: ".".join(path.relative_to(package.parent).with_suffix("").parts) for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__") for name in names.values()}
    found: dict[str, set[str]] = {}
    for path, name in names.items():
        imported = found.setdefault(name.removesuffix(".__init__"), set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names} & modules
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                inner = parts & modules
                imported |= inner | ({node.module} & modules if parts - inner else set())
    return found


def import_cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, however indirectly."""
    graph = nx.DiGraph([(name, other) for name, others in imports.items() for other in others])
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1] + [
        [name] for name in nx.nodes_with_selfloops(graph)
    ]


def called_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.lineno, node.func.id


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != PACKAGE or f.stem != "__init__"], ids=str)
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    room = room_of(path)
    assert room in {*ROOMS, *BESIDE, "__main__"}, f"{path} is in no room of the design"
    allowed = set(ROOMS) if room == "__main__" else allowed_rooms(room)
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in imported_rooms(ast.parse(path.read_text()))
        if name not in allowed
    ]
    assert not wrong


def test_the_import_check_sees_every_form() -> None:
    source = "import bcos_fx.cli\nfrom bcos_fx import verification\ndef f():\n    from bcos_fx.nn.conv import X\n"
    assert list(imported_rooms(ast.parse(source))) == [(1, "cli"), (2, "verification"), (4, "nn")]
    assert "verification" not in allowed_rooms("nn")
    assert "nn" in allowed_rooms("verification")


def test_no_modules_import_each_other() -> None:
    assert not import_cycles(imports_of(PACKAGE))


def test_the_cycle_check_sees_types_and_functions(tmp_path: Path) -> None:
    sources = {
        "__init__": "",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.b import B\n",
        "b": "def f():\n    from made import c\n",
        "c": "import made.a\n",
        "d": "from made.c import C\n",
    }
    package = tmp_path / "made"
    package.mkdir()
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
    assert import_cycles(imports_of(package)) == [["made.a", "made.b", "made.c"]]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_are_small_named_and_quiet(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert path.stem not in SHAPELESS_NAMES
    calls = [
        f"{path}:{line} calls {name}"
        for line, name in called_names(ast.parse(text))
        if name in {"print", "exec", "eval"}
    ]
    assert not calls


@pytest.mark.parametrize("module", ["bcos_fx", "bcos_fx.cli"])
def test_start_up_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; raise SystemExit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"importing {module} imports torch"


def test_a_conversion_does_not_import_the_compiler() -> None:
    """It takes seconds. The network has layers whose shapes rules compute: a head, its pool, norms, an encoding."""
    code = """if True:
        import sys, torch, bcos_fx
        from torch import nn
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.GELU()
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        bcos_fx.bcosify(network.eval(), example_inputs=torch.rand(2, 3, 16, 16), mean=[0.5] * 3, std=[0.5] * 3)
        raise SystemExit("torch._dynamo" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "it imports torch._dynamo"
