"""How long `bcos-fx --help` (that is `python -m bcos_fx --help`) takes beyond starting Python.

python benchmarks/start_up.py [--out FILE.md] [--quick]
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from measuring import Page, interleaved, parsed

RUNS = 10
TARGET = 0.5
COMMANDS = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "python -m bcos_fx --help": (sys.executable, "-m", "bcos_fx", "--help"),
}


def main() -> None:
    options = parsed(__doc__)
    page = Page("Start-up", options)
    runs = 2 if options.quick else RUNS

    def start(command: tuple[str, ...]) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    times = interleaved({name: lambda c=command: start(c) for name, command in COMMANDS.items()}, runs)
    plain, ours = (statistics.median(times[name]) for name in COMMANDS)
    page.text(f"Medians of {runs} runs each, in turn, after one that fills the file cache. Wall time.")
    rows = [(name, f"{statistics.median(taken):.3f} s") for name, taken in times.items()]
    page.table(("command", "time"), [*rows, ("difference", f"{ours - plain:.3f} s (target ≤ {TARGET} s)")])
    page.close()


if __name__ == "__main__":
    main()
