"""What the benchmarks share: the setting they ran in, timing side by side, and a page to print or write.

Imports nothing but the standard library, so that a benchmark of start-up can use it too.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import platform
import re
import resource
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Times = dict[str, list[float]]
ROOT = Path(__file__).resolve().parent.parent
_DIGEST = re.compile(r"^- Code: ([0-9a-f]{12}) ", re.MULTILINE)


@dataclass(frozen=True)
class MeasuredPage:
    """A page of docs/results, as benchmarks/pages.toml describes it.

    Attributes:
        name: of the page and of its script.
        measures: files and folders of the code that it measures.
        data: whether the script takes the folder of data.
        options: further words for the script.
    """

    name: str
    measures: tuple[str, ...]
    data: bool = False
    options: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a digest of the code that is measured and of the script; comments and docstrings do not count."""
        found = hashlib.sha256()
        for place in (f"benchmarks/{self.name}.py", *self.measures):
            path = ROOT / place
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".py", ".toml"))
            for file in files:
                found.update(f"{file.relative_to(ROOT)}\n{_code(file)}\n".encode())
        return found.hexdigest()[:12]


def _code(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return ast.dump(tree)


def measured_pages() -> list[MeasuredPage]:
    """Return the pages in the order in which they are made."""
    described = tomllib.loads((ROOT / "benchmarks" / "pages.toml").read_text(encoding="utf-8"))
    return [
        MeasuredPage(name, tuple(given["measures"]), given.get("data", False), tuple(given.get("options", ())))
        for name, given in described.items()
    ]


def digest_in(page: str) -> str | None:
    """Return the digest that a page names, or None."""
    found = _DIGEST.search(page)
    return None if found is None else found[1]


def _own_page() -> MeasuredPage | None:
    """Return the page of the script that is running."""
    name = Path(sys.argv[0]).stem
    return next((page for page in measured_pages() if page.name == name), None)


def own_digest() -> str | None:
    """Return the digest of the code that the running script measures, for rows of results to name; None without one."""
    own = _own_page()
    return None if own is None else own.digest()


def parsed(description: str | None) -> argparse.Namespace:
    """Read the options that all benchmarks take."""
    return parser(description).parse_args()


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return what reads these options, for a benchmark to add its own to."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="write the page to this Markdown file too")
    made.add_argument("--quick", action="store_true", help="tiny settings: shows that it runs, measures nothing")
    return made


def interleaved(
    tasks: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Time tasks in turn, A B C A B C ..., so that whatever else the machine does falls on all of them alike.

    Each task runs once before the rounds begin.
    """
    for task in tasks.values():
        task()
    times: Times = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            start = clock()
            task()
            times[name].append(clock() - start)
    return times


def ratio(times: Times, name: str, reference: str) -> float:
    """Median of the ratios within each round: neighbours in time are compared with each other."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))


def rise(task: Callable[[], object]) -> int:
    """Return by how many bytes a task lifts this process's resident memory at its peak above what it was before."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # from here on, the peak is that of what follows
    before = _resident(peak=False)
    task()
    return _resident(peak=True) - before


def _resident(*, peak: bool) -> int:
    """Return this process's resident bytes: now, or the most there were."""
    status = Path("/proc/self/status")
    if not status.exists():  # getrusage knows the peak only, which is no less than what is resident now
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Not getrusage, whose peak on Linux includes that of the process this one was started from.
    field = "VmHWM:" if peak else "VmRSS:"
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def processor() -> str:
    """Return the processor's name, as far as the system tells."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in ("torch", "torchvision", "bcos-fx", "bcos"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


class Page:
    """A page of results in Markdown, printed as it grows.

    Args:
        title: its heading.
        options: those of :func:`parsed`.
        current: whether everything on it was measured with the code as it is. Only then it names the digest of that
            code, and not with ``--page``, which measures nothing.
    """

    def __init__(self, title: str, options: argparse.Namespace, *, current: bool = True) -> None:
        self._lines: list[str] = []
        self._out: Path | None = options.out
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.text(f"# {title}")
        if options.quick:
            self.text("**Tiny settings, to show that the script runs: these figures say nothing.**")
        self.text(f"- Machine: {processor()}, {cores} cores, {platform.system()}\n- Versions: {_versions()}")
        current = current and not getattr(options, "page", False)
        if current and (own := _own_page()) is not None:
            self.text(f"- Code: {own.digest()} (a digest of {', '.join(own.measures)}; `make bench` compares it)")
        elif not current:
            self.text("- Code: rows are kept from earlier runs, some or all of them of an earlier state of the code")

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._add([*paragraph.splitlines(), ""])

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table."""
        self._add([*_aligned([head, *rows]), ""])

    def _add(self, lines: list[str]) -> None:
        print("\n".join(lines), flush=True)
        self._lines += lines

    def close(self) -> None:
        """Write the page, if a file was asked for."""
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._out.write_text("\n".join(self._lines).rstrip() + "\n", encoding="utf-8")
