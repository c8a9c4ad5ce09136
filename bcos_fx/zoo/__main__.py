"""Examines one network: the process that :mod:`bcos_fx.zoo.running` starts for each."""

from __future__ import annotations

import argparse
import json
import traceback
import warnings
from pathlib import Path

import torch

from bcos_fx.errors import BcosFxError
from bcos_fx.files import replacing
from bcos_fx.zoo.examination import Examination, Row


def main() -> None:
    """Examine the network that the command line names, and keep its row in a file, whatever happens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("row", type=Path)
    parser.add_argument("--side", type=int)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # other people's networks warn of this and that

    def note(row: Row) -> None:
        with replacing(options.row) as stream:
            stream.write(json.dumps(row).encode())

    examination = Examination(options.name, options.side, note)
    try:
        examination.run()
    except BcosFxError as error:
        examination.row["failure"] = str(error)
    except Exception as error:  # a table of many networks names what went wrong with one and goes on
        examination.row["failure"] = f"{type(error).__name__}: {error}"
        examination.row["traceback"] = traceback.format_exc()
    note(examination.row)


if __name__ == "__main__":
    main()
