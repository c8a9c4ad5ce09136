"""A report made by hand, with one of everything that a report can hold."""

from __future__ import annotations

from typing import Any

from bcos_fx.report import Report
from bcos_fx.report.model import Coverage, Drift, Figures, NodeRow, RuleUse
from bcos_fx.rewriting.core.match import NearMiss
from bcos_fx.rewriting.core.options import Options

BEFORE = (
    NodeRow("x", "input", was="input"),
    NodeRow("conv", "conv2d", ("x",), "conv2d", module="conv", source="net.py:7: y = self.conv(x)"),
    NodeRow("relu", "relu", ("conv",), "relu"),
    NodeRow("odd", "sinc", ("relu",), "sinc", source="net.py:9: torch.special.sinc(y)"),
    NodeRow("identity", "identity", ("odd",), "identity"),
    NodeRow("add", "add", ("relu", "identity"), "add"),
    NodeRow("output", "output", ("add",), "output"),
)
AFTER = (
    BEFORE[0],
    NodeRow("encoding", "input_encoding", ("x",), None, ("image-input-encoded",), "encoding"),
    NodeRow("conv", "bcos_conv2d", ("encoding",), "conv2d", ("layer-to-bcos", "alignment-raised"), "conv"),
    NodeRow("relu", "relu", ("conv",), "relu"),
    NodeRow("odd", "sinc", ("relu",), "sinc", source="net.py:9: torch.special.sinc(y)"),
    NodeRow("add", "add", ("relu", "odd"), "add", ("own-rule",)),
    BEFORE[-1],
)
PROVED = {
    "ok": True,
    "tested": True,
    "error": 3.1e-15,
    "tolerance": 1e-9,
    "dtype": "float64",
    "comparisons": [
        {"name": "eval, batch 2", "error": 1e-15, "scale": 1.0, "spread": 0.5, "relative": 3.1e-15, "verdict": "equal"}
    ],
    "node": None,
    "detail": "equal: worst relative error 3.1e-15; left out: size 40x40 (refused: too large)",
}
RULES = {
    "identity-removed": RuleUse("canonical", "always"),
    "image-input-encoded": RuleUse("input", "always"),
    "layer-to-bcos": RuleUse("linear", "always"),
    "alignment-raised": RuleUse("align", "never"),
    "own-rule": RuleUse("linear", "always"),
}
DRIFT = (Drift("alignment-raised", 1, 0.98, 0.25),)


def made_report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "recipe": "bcosification",
        "options": Options(b=2.0, scale="raw", bias="strip", mean=(0.5,), std=(0.25,)).to_dict(),
        "rule_hashes": {"linear.toml": "0" * 64},
        "rules": RULES,
        "before": BEFORE,
        "nodes": AFTER,
        "removed": {"identity": "identity-removed"},
        "near_misses": tuple(NearMiss("classifier-before-pool", f"pool{i}", "pool has 2 users") for i in range(6)),
        "unknown": (AFTER[4],),
        "unused": ("aux.fc.weight", "aux.fc.bias", "spare.weight"),
        "guards": ("net.py:8: if x.shape[1] > 3 (branch was False)",),
        "train_difference": "net.py:12: the auxiliary head",
        "inputs": {"x": "(N, 3, 8, 8), an image in [0, 1], encoded inside"},
        "coverage": Coverage(30, 40),
        "notes": ("something [bold]to[/bold] know",),
        "figures": Figures(PROVED, DRIFT, Drift("total", 1, 0.98, 0.25)),
    }
    return Report(**fields | changes)
