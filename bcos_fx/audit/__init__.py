"""A report for an auditor: one network, one photograph, and why the network decided as it did."""

from __future__ import annotations

from bcos_fx.audit.audit import Audit, audit
from bcos_fx.audit.section import Section

__all__ = ["Audit", "Section", "audit"]
