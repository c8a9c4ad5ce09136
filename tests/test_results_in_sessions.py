"""How results look in a session: a few lines each, and in a notebook text, pictures and nothing of Python's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.evaluation import evaluate, fair, gridpg
from bcos_fx.evaluation.deletion import Curves
from bcos_fx.evaluation.measured import Measured
from bcos_fx.evaluation.sanity import Randomised
from bcos_fx.training.finetune import FineTuned
from bcos_fx.training.recording import Epoch
from tests.evaluation.toy import Colours, images

SETTINGS: dict[str, Any] = {"mean": (0.5,) * 3, "std": (1.0,) * 3, "example_inputs": torch.rand(2, 3, 8, 8)}
EVIL = "<b>evil</b>\x1b[2J"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """One of every kind of result."""
    original = Colours(centred=True).eval()
    model = bcos_fx.bcosify(original, recipe="equivalent", **SETTINGS)
    pixels = images(24).tensors[0]
    broken = bcos_fx.bcosify(nn.Sequential(original, nn.Softmax(1)), recipe="equivalent", **SETTINGS)
    epoch = Epoch(1, 8, 0.1, 0.5, None, 0.25, 1.0, None, None)
    maps = torch.rand(3, 2, 1)
    found = {
        "report": model.report,
        "report of B = 2": bcos_fx.bcosify(original, **SETTINGS).report,
        "plan": bcos_fx.plan(original, **SETTINGS),
        "certificate": bcos_fx.certify(model),
        "certification": bcos_fx.certify(model, pixels[:2]),
        "broken certificate": bcos_fx.certify(broken),
        "verification": bcos_fx.verify(original, original, pixels[:4]),
        "different": bcos_fx.verify(original, Colours().eval(), pixels[:4]),
        "explanation": bcos_fx.explain(model, pixels[:9], names=(EVIL,) * 6),
        "several targets": bcos_fx.explain(model, pixels[:2], "all"),
        "by sources": bcos_fx.explain(model, pixels[:1], source=["conv", "x"]),
        "curves": Curves("B-cos", torch.linspace(0, 1, 3), torch.rand(4, 1, 3)),
        "measured": Measured("pointing", "B-cos", torch.rand(4, 1)),
        "randomised": Randomised("B-cos", ("fc", "conv", EVIL), {"SSIM of absolute values": maps}),
        "fine-tuned": FineTuned(model, (epoch, epoch), None, ()),
    }
    pytest.importorskip("torchmetrics")
    measured = evaluate(model, images(24), metrics="accuracy,deletion", original=original)
    return found | {
        "evaluation": measured,
        "accuracy": measured.accuracy,
        "curve set": measured.curves[0],
        "gridpg": gridpg(model, images(24), protocol=fair(side=2, grids=4)),
    }


KINDS = """report;report of B = 2;plan;certificate;certification;broken certificate;verification;different;explanation;
several targets;by sources;curves;measured;randomised;fine-tuned;evaluation;accuracy;curve set;gridpg"""


@pytest.mark.parametrize("kind", [kind.strip() for kind in KINDS.split(";")])
def test_a_result_shows_a_few_lines(kind: str, results: dict[str, Any]) -> None:
    result = results[kind]
    shown, page = repr(result), result._repr_html_()
    assert 1 <= len(shown.splitlines()) <= 12
    assert len(shown) < 1500
    for python in ("tensor(", "namespace(", "Comparison(", "NodeRow(", " object at 0x", "\x1b"):
        assert python not in shown
        assert python not in page
    assert page.startswith(("<pre", "<div"))
    assert "<b>evil" not in page


def test_what_a_session_shows_first_is_the_verdict(results: dict[str, Any]) -> None:
    for kind, words in {
        "report": ("recipe 'equivalent'", "equal, worst relative error", "explaining the original as it is"),
        "report of B = 2": ("before the rules that change the function", "answers at chance", "recipe equivalent"),
        "plan": ("not verified", "fine-tuning"),
        "certificate": ("dynamic linear: output = W(x)",),
        "certification": ("contributions complete",),
        "broken certificate": ("not dynamic linear", "softmax"),
        "verification": ("equal",),
        "different": ("differ",),
        "evaluation": ("top-1 accuracy, network: ", "agreement with the original", "deletion"),
        "accuracy": ("top-1", "agreement", "24 images"),
        "fine-tuned": ("accuracy 25.00%",),
    }.items():
        for word in words:
            assert word in repr(results[kind]), kind


def test_the_whole_text_is_behind_a_click(results: dict[str, Any]) -> None:
    page = results["report"]._repr_html_()
    assert page.index("made for") < page.index("<details>") < page.index("Rules applied")
    assert "<details>" not in results["measured"]._repr_html_()
    assert "relative error" in results["verification"]._repr_html_()


def test_a_report_is_text_in_a_notebook_too(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = results["report"].to_text()
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert results["report"].to_text() == text
    assert len(text) > 500


def test_a_report_s_repr_holds_no_node(results: dict[str, Any]) -> None:
    many = dataclasses.replace(results["report"], nodes=results["report"].nodes * 1000)
    assert len(repr(many)) == len(repr(results["report"]))


def test_figures_show_themselves(results: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    drawn = [results["explanation"][:1].plot(), results["gridpg"].plot(), results["measured"].plot()]
    for figure in drawn:
        assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_notebook_shows_results_and_figures(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    cells = (
        "import torch, bcos_fx\nfrom tests.evaluation.toy import Colours, images\n"
        "model = bcos_fx.bcosify(Colours().eval(), recipe='equivalent', example_inputs=torch.rand(2, 3, 8, 8))\n"
        "len(model.report.to_text())",
        "model.report",
        "bcos_fx.certify(model)",
        "e = bcos_fx.explain(model, images(1).tensors[0]); e",
        "e.plot()",
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    resources = {"metadata": {"path": str(Path(__file__).resolve().parent.parent)}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = [cell["outputs"][-1]["data"] for cell in book["cells"]]
    assert int(shown[0]["text/plain"]) > 500
    assert "made for" in shown[1]["text/html"]
    assert "dynamic linear" in shown[2]["text/html"]
    assert "<img" in shown[3]["text/html"]
    assert len(shown[4]["image/png"]) > 5_000
