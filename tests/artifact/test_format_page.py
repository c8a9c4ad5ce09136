"""docs/format.md describes what is written: a reader that was made from the page alone reads it."""

from __future__ import annotations

import pytest

from bcos_fx.artifact import to_bytes
from bcos_fx.artifact.container import DTYPES
from bcos_fx.artifact.graph import _META
from tests.artifact import second_reader
from tests.artifact.making import everything, tampered
from tests.attack.test_format_fuzz import corpus


def test_a_second_reader_reads_what_is_written() -> None:
    for data in (to_bytes(everything()), *corpus()):
        document = second_reader.read(data)
        assert {tensor["key"] for module in document["modules"] for tensor in module.get("parameters", ())} >= {
            key for key in document["tensors"] if key.endswith("weight")
        }


def test_the_second_reader_knows_all_that_may_be_written() -> None:
    assert set(_META) == second_reader.META
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == second_reader.WIDTHS


def test_the_second_reader_notices_what_breaks_the_grammar() -> None:
    data = to_bytes(everything())
    for change in (
        lambda d: d.update(more=1),
        lambda d: d["nodes"].pop(),
        lambda d: d["nodes"][-1].update(args=[{"node": "nowhere"}]),
        lambda d: d["modules"].pop(1),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            second_reader.read(tampered(data, change))
    with pytest.raises(ValueError, match="checksum"):
        second_reader.read(tampered(data, lambda d: d["versions"].update(torch="9"), sealed=False))
