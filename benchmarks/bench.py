"""Make the pages of docs/results again whose code has changed since; what `make bench` runs.

python benchmarks/bench.py [--list] [--only PAGE ...] [--data DIR] [--results DIR]

A page that names the digest of the code as it is now is left alone, so a run that was stopped continues with the pages
that are left. Scripts run one after another, for they measure time. Without --data pages of real data are left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from measuring import ROOT, MeasuredPage, digest_in, measured_pages


@dataclass(frozen=True)
class State:
    """A page, and whether it must be made again.

    Attributes:
        page: which.
        reason: why it must; None where it is as old as its code.
    """

    page: MeasuredPage
    reason: str | None


def parsed() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--list", action="store_true", help="say which pages are older than their code, and stop")
    made.add_argument("--only", nargs="+", metavar="PAGE", help="these pages alone, whatever their age")
    made.add_argument("--data", type=Path, help="the folder of real data")
    made.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    options = made.parse_args()
    known = {page.name for page in measured_pages()}
    if unknown := sorted(set(options.only or ()) - known):
        made.error(f"--only: no page is named {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if options.data is not None and not options.data.is_dir():
        made.error(f"--data: there is no folder {options.data}")
    return options


def state_of(page: MeasuredPage, results: Path) -> State:
    path = results / f"{page.name}.md"
    if not path.exists():
        return State(page, "not made yet")
    written = digest_in(path.read_text(encoding="utf-8"))
    if written is None:
        return State(page, "names no digest of its code")
    return State(page, None if written == page.digest() else "older than the code it measures")


def make(page: MeasuredPage, data: Path | None, results: Path) -> bool:
    """Run a page's script, which writes the page once it has ended; return whether it did."""
    given = [] if data is None or not page.data else [str(data)]
    command = [sys.executable, str(ROOT / "benchmarks" / f"{page.name}.py"), *given, *page.options]
    return subprocess.run([*command, "--out", str(results / f"{page.name}.md")], cwd=ROOT, check=False).returncode == 0


def main() -> None:
    options = parsed()
    states = [state_of(page, options.results) for page in measured_pages()]
    for state in states:
        print(f"{state.page.name:20} {state.reason or 'as old as its code'}", flush=True)
    if options.list:
        return
    due = [s.page for s in states if (s.reason if options.only is None else s.page.name in options.only)]
    left_out = [page.name for page in due if page.data and options.data is None]
    if left_out:
        print(f"left out without --data: {', '.join(left_out)}", flush=True)
    failed = [page.name for page in due if page.name not in left_out and not make(page, options.data, options.results)]
    if failed:
        raise SystemExit(f"no page was written by {', '.join(failed)}; the pages there were are as they were")


if __name__ == "__main__":
    main()
