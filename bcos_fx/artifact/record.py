"""The record of a network that was read from a file: whether everything that reads it finds what it expects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bcos_fx.artifact.values import decode, fits
from bcos_fx.data.preprocessing import INTERPOLATIONS
from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.network import Record
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.rule import PHASES, PRESERVES

_TRAIN = ("refuse", "eval-graph")
_COMPARISON = {"name": str, "relative": float | None, "spread": float | None, "verdict": str}
_VERIFICATION = {
    "ok": bool,
    "error": float | None,
    "tolerance": float | None,
    "dtype": str,
    "detail": str,
    "comparisons": Any,
}


def read_record(value: object) -> Record:
    """Return the record that a file holds; options that its version did not have take their defaults.

    Raises:
        ArtifactError: it is not a record, or holds what no conversion writes.
    """
    record = decode(value, "record")
    if not isinstance(record, Record):
        raise ArtifactError("the file's record of the conversion is damaged")
    if record.train not in _TRAIN:
        raise ArtifactError(f"the record's mode of training is {record.train!r}", hint=f"known: {', '.join(_TRAIN)}")
    for spec in record.inputs:
        known = spec.interpolation is None or spec.interpolation in INTERPOLATIONS
        if not known or not (spec.crop_pct is None or 0 < spec.crop_pct <= 1):
            raise ArtifactError("the record's preprocessing makes no sense", where=f"input {spec.name!r}")
    report = record.report
    # Reports look these words up in tables, so an unknown one would fail where it is printed.
    for rule, use in report.rules.items():
        if use.phase not in PHASES or use.preserves not in PRESERVES:
            raise ArtifactError("the report holds an unknown phase", where=f"rule {rule!r}")
    if report.figures.verification is not None:
        _check_verification(report.figures.verification)
    options = _options(report.options)
    return dataclasses.replace(record, report=dataclasses.replace(report, options=options))


def _options(recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        plain = {name: tuple(item) if isinstance(item, list) else item for name, item in recorded.items()}
        options = Options().with_changes(plain)
    except UsageError as error:
        raise ArtifactError(f"the report's options make no sense: {error.what}", hint=error.hint) from error
    if not all(isinstance(pattern, str) for pattern in options.leaf_modules):
        raise ArtifactError("the report's options make no sense: leaf_modules holds texts")
    return {**{name: item for name, item in options.to_dict().items() if name not in recorded}, **recorded}


def _check_verification(verification: Mapping[str, Any]) -> None:
    _check_fields(verification, _VERIFICATION, "verification")
    if not isinstance(verification["comparisons"], list | tuple):
        raise ArtifactError("the report's verification lists no comparisons")
    for row in verification["comparisons"]:
        _check_fields(row, _COMPARISON, "a comparison")


def _check_fields(entry: object, wanted: Mapping[str, Any], where: str) -> None:
    for name, kind in wanted.items():
        if not isinstance(entry, dict) or name not in entry or not fits(entry[name], kind):
            raise ArtifactError(f"the report's {name!r} is not what a conversion writes", where=where)
