"""The files about the project itself: what they say of the code holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_architecture import BESIDE, PACKAGE, ROOMS

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_architecture_lists_every_room_in_its_order() -> None:
    table = ARCHITECTURE.split("## The rooms")[1].split("##")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    listed = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    beside = [name for name in BESIDE if name != "cli"]
    assert listed == [*ROOMS, *beside]


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_paths_that_are_named_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    paths = [path for path in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if not path.endswith("*")]
    inside = [path for path in paths if not (ROOT / path).exists() and not (PACKAGE / path).exists()]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert inside == []


@pytest.mark.parametrize("target", re.findall(r"`?make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
def test_targets_that_are_named_are_in_the_makefile(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_forms_are_read_as_yaml(path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        assert {"name", "description", "body"} <= set(found)
        identifiers = [field["id"] for field in found["body"]]
        assert len(set(identifiers)) == len(identifiers)


def test_the_workflow_runs_what_a_change_must_pass() -> None:
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_nothing_is_installed_by_a_name_that_no_index_has() -> None:
    """Until the package is published, a clone is the only place to install it from: ``pip install '.[extra]'``."""
    texts = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").rglob("*.ipynb"),
        *ROOT.glob("*.md"),
    ]
    by_name = re.compile(r"pip install (?:-\S+ )*[\"']?bcos[-_]fx")
    assert [path for path in texts if by_name.search(path.read_text(encoding="utf-8"))] == []
    assert by_name.search("pip install -U 'bcos-fx[plot]'")
