"""Everything that rules of your own need from Python: builders and predicates, under the names that rule files use.

>>> from bcos_fx.rules import Build, builder
"""

from __future__ import annotations

from bcos_fx.rewriting.core.build import Build, Part, Refused, Rewired
from bcos_fx.rewriting.core.registry import builder, predicate

__all__ = ["Build", "Part", "Refused", "Rewired", "builder", "predicate"]
