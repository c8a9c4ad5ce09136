"""The report as text holds everything, at any width, and is honest about what comes next."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from bcos_fx.report.model import Drift, Figures
from bcos_fx.report.sentences import drift_sentence, next_step, verdict
from bcos_fx.report.text import render, render_head
from bcos_fx.rewriting.core.options import Options
from tests.report.made_report import DRIFT, PROVED, made_report


def words(text: str) -> str:
    return " ".join(text.split())


ROW: dict[str, Any] = {"name": "eval", "relative": 1e-15, "spread": 1.0, "verdict": "equal"}
GOLDEN = (
    "recipe bcosification",
    "B 2 in every layer",
    "options scale=raw, bias=strip",
    "input x: (N, 3, 8, 8), an image in [0, 1], encoded inside",
    "normalisation mean 0.5, std 0.25, done inside",
    "coverage 75.0% (30 of 40 linear and convolution parameters on value paths are B-cos)",
    "nodes 7 as traced, 7 now",
    "identity-removed 1 canonical train and eval",
    "image-input-encoded 1 input train and eval",
    "alignment-raised 1 align neither: changes it",
    "own-rule 1",
    "EQUAL worst relative error 3.1e-15 (tolerance 1.0e-09) in float64",
    "eval, batch 2 3.1e-15 5.0e-01 equal",
    "left out: size 40x40 (refused: too large)",
    "moved the output by 98.0% of its size on the test inputs; the highest class stayed the highest on 25% of them.",
    "alignment-raised 1 98.0% 25%",
    "all together 1 98.0% 25%",
    "classifier-before-pool pool has 2 users pool0, pool1, pool2, pool3 and 2 more",
    "sinc odd net.py:9: torch.special.sinc(y)",
    "aux 2 parameters",
    "spare 1 parameter",
    "net.py:8: if x.shape[1] > 3 (branch was False)",
    "the original's train graph is another than its eval graph: net.py:12: the auxiliary head",
    "something [bold]to[/bold] know",
    "answers at chance until it is calibrated and fine-tuned",
)


@pytest.mark.parametrize("said", GOLDEN)
def test_everything_is_said(said: str) -> None:
    assert said in words(render(made_report(), width=160))


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_width_is_kept_and_nothing_is_cut(width: int) -> None:
    text = render(made_report(), nodes=True, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "\x1b" not in text
    assert "…" not in text


def test_nodes_are_listed_when_asked_for() -> None:
    shown = words(render(made_report(), nodes=True, width=200))
    for said in ("conv conv2d -> bcos_conv2d layer-to-bcos, alignment-raised", "encoding new -> input_encoding"):
        assert said in shown
        assert said not in words(render(made_report(), width=200))
    assert "identity identity -> removed identity-removed" in shown


def test_empty_lists_have_no_headings() -> None:
    empty = made_report(near_misses=(), unknown=(), unused=(), guards=(), train_difference=None, notes=())
    shown = render(empty)
    for heading in ("Nearly matched", "no rule knows", "never uses", "Taken from", "Train mode", "Notes"):
        assert heading in render(made_report())
        assert heading not in shown


@pytest.mark.parametrize(
    ("proved", "expected"),
    [
        (None, "not verified"),
        ({**PROVED, "ok": False, "tested": False}, "not tested"),
        ({**PROVED, "ok": False, "comparisons": [{**ROW, "verdict": "not tested"}, ROW]}, "not tested"),
        ({**PROVED, "ok": False, "comparisons": [ROW, {**ROW, "verdict": "different"}]}, "different"),
        (PROVED, "equal"),
    ],
)
def test_verdict(proved: dict[str, Any] | None, expected: str) -> None:
    report = made_report(figures=Figures(proved))
    assert verdict(report) == expected
    assert expected in render(report).lower()
    assert expected in render_head(report, before=[("file", "a")], after=[("ops", "b")])


def with_change(change: float | None, **options: Any) -> Any:
    figures = Figures(PROVED) if change is None else Figures(PROVED, DRIFT, Drift("total", 1, change, None))
    return made_report(options=Options(**options).to_dict(), figures=figures)


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (None, {}, None),
        (0.01, {"b": 2.0}, None),
        (0.9, {"b": 2.0}, "at chance"),
        (0.9, {"b": {"layer4.*": 1.5}}, "at chance"),
        (0.9, {"bias": "strip"}, "at chance"),
        (math.nan, {"b": 2.0}, "at chance"),
        (0.9, {"head": "logit"}, "no longer the original's"),
    ],
)
def test_next_step_is_honest(change: float | None, options: dict[str, Any], expected: str | None) -> None:
    step = next_step(with_change(change, **options))
    assert (step is None) == (expected is None)
    assert (expected or "") in (step or "")


def test_dry_run_says_what_to_expect() -> None:
    planned = made_report().without_figures()
    assert "expect a network at chance" in (next_step(planned) or "")
    assert drift_sentence(planned) == "How far the output moved was not measured."
    assert next_step(dataclasses.replace(planned, options=Options().to_dict())) is None
