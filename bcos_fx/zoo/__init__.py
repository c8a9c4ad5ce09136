"""The zoo: many networks, each converted, verified and certified in a process of its own, and a table of results."""

from __future__ import annotations

from bcos_fx.zoo.running import Limits, examine_all
from bcos_fx.zoo.selection import select
from bcos_fx.zoo.table import cause, coverage_page, dates, passed, totals, versions

__all__ = ["Limits", "cause", "coverage_page", "dates", "examine_all", "passed", "select", "totals", "versions"]
