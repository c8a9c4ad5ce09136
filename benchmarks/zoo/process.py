"""Examines one network: what the process that :mod:`benchmarks.zoo.running` starts for each network does."""

from __future__ import annotations

import json
import os
import traceback
import warnings
from pathlib import Path

import torch

from bcos_fx.errors import BcosFxError
from bcos_fx.files import replacing
from bcos_fx.rewriting.core.location import rules_directory
from benchmarks.zoo.examination import Examination, Row


def examine(name: str, kept: Path, printed: Path, side: int | None, threads: int) -> None:
    """Examine a network, and keep its row in a file, whatever happens.

    Args:
        name: of the network.
        kept: the file of the row, written whenever there is more in it.
        printed: the file that takes what the process prints, also what is printed below Python.
        side: of the images in pixels, where the network takes that; None: its own.
        threads: that PyTorch may use.
    """
    os.setpgrp()  # the interrupt of a terminal is the starter's to handle, and must not become a row
    _redirect(printed)
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # other people's networks warn of this and that

    def note(row: Row) -> None:
        with replacing(kept) as stream:
            stream.write(json.dumps(row).encode())

    examination = Examination(name, side, note)
    try:
        examination.run()
    except BcosFxError as error:
        # Where the shipped rules lie on this machine is nothing to those who read the table.
        examination.row["failure"] = str(error).replace(f"{rules_directory().parent}{os.sep}", "")
    except Exception as error:  # a table of many networks names what went wrong with one and goes on
        examination.row["failure"] = f"{type(error).__name__}: {error}"
        examination.row["traceback"] = traceback.format_exc()
    note(examination.row)


def _redirect(printed: Path) -> None:
    with printed.open("wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
