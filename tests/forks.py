"""Runs scripts in processes of their own that need not import PyTorch again.

A server process imports the libraries once and forks for each script, so a script starts in milliseconds where
`python script.py` takes seconds. A script cannot change what a later one sees.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

# A module that is missing is passed over by the server.
PRELOADED = [
    "torch",
    "torchvision",
    "bcos_fx.artifact",
    "bcos_fx.checkpoint",
    "bcos_fx.cli",
    "bcos_fx.convert",
    "bcos_fx.explanation.explain",
    "bcos_fx.training.checkpoints",
]


@dataclass(frozen=True)
class Done:
    """What a script left: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@cache
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_script(script: Path, folder: Path, *arguments: str, timeout: float = 240, strict: bool = False) -> Done:
    """Run a file as `python script arguments` in a folder, beside which its output is kept meanwhile.

    One that takes longer than timeout seconds is ended; with strict, a warning is an error.
    """
    out, err = (folder.with_name(f"{folder.name}.{name}") for name in ("stdout", "stderr"))
    process = server().Process(target=_child, args=(str(script), arguments, str(folder), str(out), str(err), strict))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    texts = [path.read_text(encoding="utf-8") for path in (out, err)]
    for path in (out, err):
        path.unlink()
    return Done(code, *texts)


def run_code(code: str, folder: Path, *arguments: str, timeout: float = 240) -> Done:
    """Run Python source as a script of a folder of its own, beside the folder that it runs in."""
    script = folder.with_name(f"{folder.name}.script.py")
    script.write_text(code, encoding="utf-8")
    return run_script(script, folder, *arguments, timeout=timeout)


def _child(script: str, arguments: Sequence[str], folder: str, out: str, err: str, strict: bool) -> None:
    for name, stream in ((out, sys.stdout), (err, sys.stderr)):
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(target, stream.fileno())
        os.close(target)
    os.chdir(folder)
    sys.argv = [script, *arguments]
    sys.path[0] = folder
    if strict:
        warnings.simplefilter("error")
    runpy.run_path(script, run_name="__main__")
