"""The report of a conversion: its data, how they are read off a graph, and how they are shown."""

from __future__ import annotations

from bcos_fx.report.report import Report

__all__ = ["Report"]
