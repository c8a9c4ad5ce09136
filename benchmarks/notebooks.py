"""Run the notebooks of docs/notebooks again, in place: ``make notebooks``, or with names of some of them.

Outputs are kept in the repository, so that a site is built, and a notebook read, without minutes of computing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "notebooks"


def executed(path: Path, folder: Path) -> Any:
    """Return a notebook with new outputs, run in a folder; CellExecutionError where a cell fails."""
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(book, timeout=3000, kernel_name="python3", resources=resources, record_timing=False)
    client.execute()
    for cell in book.cells:
        if cell.cell_type == "code":  # what libraries write to stderr names folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    book.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return book


def main(names: list[str]) -> None:
    import tempfile

    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
