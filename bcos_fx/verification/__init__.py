"""What a rewritten network is worth: proofs by running it and by reading its graph."""

from __future__ import annotations

from bcos_fx.verification.divergence import Divergence, first_divergence
from bcos_fx.verification.equivalence import Verification, verify
from bcos_fx.verification.judging import Comparison

__all__ = ["Comparison", "Divergence", "Verification", "first_divergence", "verify"]
