"""A user of a notebook wants an explanation of an own picture, in five lines and without magic commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vision
ROOT = Path(__file__).resolve().parents[2]
FIRST_MINUTE = """\
import bcos_fx
from PIL import Image
model = bcos_fx.example_network()
picture = Image.open("photo.jpg")
bcos_fx.explain(model, model.preprocess(picture))"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The outputs of a notebook's cells: the first minute, a figure, a mistake, a network of one's own."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    from PIL import Image

    folder = tmp_path_factory.mktemp("notebook")
    Image.effect_noise((300, 200), 80).convert("RGB").save(folder / "photo.jpg")
    cells = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})",
        FIRST_MINUTE,
        "bcos_fx.explain(model, model.preprocess(picture)).plot()",
        "try:\n    bcos_fx.explain(model, picture)\nexcept bcos_fx.BcosFxError as error:\n    print(error)",
        "from torch import nn\n"
        "own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
        "same = bcos_fx.bcosify(own.eval(), recipe='equivalent', mean=[0.5] * 3, std=[0.5] * 3)\n"
        "same.report",
        "bcos_fx.explain(same, same.preprocess(picture))",
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    return [cell["outputs"] for cell in book["cells"]]


def test_five_lines_display_an_explanation(shown: list[Any]) -> None:
    assert len(FIRST_MINUTE.splitlines()) <= 5
    assert "%" not in FIRST_MINUTE
    (output,) = shown[1]
    page = output["data"]["text/html"]
    assert page.count("<img") >= 2
    assert "data:image/png;base64," in page
    assert any(name in page for name in ("tench", "church", "golf ball", "parachute", "gas pump", "chain saw"))


def test_a_figure_is_displayed_without_a_magic_command(shown: list[Any]) -> None:
    (output,) = shown[2]
    assert len(output["data"]["image/png"]) > 10_000


def test_a_picture_given_as_it_is_is_answered_with_the_way(shown: list[Any]) -> None:
    (output,) = shown[3]
    assert "images is a JpegImageFile" in output["text"]
    assert "model.preprocess(images)" in output["text"]


def test_a_network_of_one_s_own_shows_its_report_and_explains(shown: list[Any]) -> None:
    assert "equal, worst relative error" in shown[4][-1]["data"]["text/html"]
    assert "the size of the images was guessed: 224x224" in shown[4][-1]["data"]["text/html"]
    assert "<img" in shown[5][-1]["data"]["text/html"]
