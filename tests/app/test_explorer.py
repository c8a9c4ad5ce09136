"""What the page shows for which choice: the numbers are those of explain, and every file is answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import bcos_fx
from bcos_fx.app.explorer import LISTED, OWN, WAYS, Explorer, Region
from bcos_fx.cli.commands import app
from bcos_fx.data.decoding import Unreadable
from bcos_fx.errors import BcosFxError, UsageError
from tests.app import hostile
from tests.small_networks import Pair, cnn, images

SIDE = 8
NAMES = ("tabby cat", "${dog}", "{{<b>fish</b>}}", "car", "cup", *(f"thing {index}" for index in range(8)))


def write_network(path: Path) -> Path:
    torch.manual_seed(0)
    body = cnn()
    with torch.no_grad():
        body[0].weight.mul_(20)  # so that the image counts for more than 1 % beside the constants
    module = nn.Sequential(body, nn.Linear(5, len(NAMES))).eval()
    given = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "recipe": "equivalent", "example_inputs": images(4)}
    return bcos_fx.save(bcos_fx.bcosify(module, class_names=NAMES, **given), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("app")
    write_network(place / "model.safetensors")
    hostile.picture().save(place / "photo.png")
    return place


@pytest.fixture(scope="module")
def explorer(folder: Path) -> Explorer:
    (folder / "kept").mkdir()
    return Explorer(folder / "model.safetensors", folder / "kept")


@pytest.fixture(scope="module")
def photo(explorer: Explorer, folder: Path) -> str:
    return explorer.add(folder / "photo.png")


def test_the_highest_classes_have_the_network_s_probabilities(explorer: Explorer, photo: str, folder: Path) -> None:
    with torch.no_grad():
        shares = explorer.network(explorer.network.preprocess(folder / "photo.png"))[0].softmax(0)
    order = shares.argsort(descending=True).tolist()
    listed = explorer.listed(photo)
    assert [index for index, *_ in listed] == order[:LISTED]
    assert [name for _, name, _ in listed] == [NAMES[index] for index in order[:LISTED]]
    assert [share for *_, share in listed] == pytest.approx(
        [float(shares[index]) for index in order[:LISTED]], rel=1e-5
    )
    lowest = order[-1]
    assert [index for index, *_ in explorer.listed(photo, (order[0], lowest))] == [*order[:LISTED], lowest]


@pytest.mark.parametrize("classes", [(), (3,), (3, 1)])
def test_sums_are_those_of_explain_and_add_up(explorer: Explorer, photo: str, classes: tuple[int, ...]) -> None:
    answer, constants = explorer.answer(photo, classes)
    rows = dict(answer.rows)  # type: ignore[arg-type]
    score = float(explorer.explained(photo, classes).output[0])
    assert float(rows["score"]) == pytest.approx(score, rel=1e-5)
    whole = float(rows["from the image"]) + float(rows["from constants"]) + float(rows["rounding"])
    assert whole == pytest.approx(score, rel=1e-4, abs=1e-5)
    assert sum(float(row[1]) for row in constants.rows) == pytest.approx(float(rows["from constants"]), rel=1e-2)


def test_a_difference_is_that_of_the_two_scores(explorer: Explorer, photo: str) -> None:
    one, other, both = (explorer.explained(photo, classes) for classes in ((3,), (1,), (3, 1)))
    assert float(both.output) == pytest.approx(float(one.output - other.output), abs=1e-5)
    torch.testing.assert_close(both.contributions, one.contributions - other.contributions, atol=1e-5, rtol=1e-4)
    assert both.target_name() == f"{NAMES[3]} - {NAMES[1]}"


def test_regions_divide_what_comes_from_the_image(explorer: Explorer, photo: str) -> None:
    tiles = [Region(row, column, 4) for row in (2, 6) for column in (2, 6)]
    own = [float(explorer.region(photo, (3,), tile).text.split()[0]) for tile in tiles]
    whole = float(explorer.explained(photo, (3,)).contributions.sum())
    assert sum(own) == pytest.approx(whole, rel=1e-2)
    table = explorer.region(photo, (3,), tiles[0]).rows
    values = [float(value) for _, value in table]
    assert values == sorted(values, reverse=True)
    assert dict(table)[NAMES[3]] == f"{own[0]:+.4g}"  # type: ignore[arg-type]
    assert len(table) >= LISTED


@pytest.mark.parametrize("row", [-100, -1, 0, 3, 7, 8, 100])
@pytest.mark.parametrize("side", [1, 2, 3, 8, 100])
def test_a_region_lies_in_the_image(row: int, side: int) -> None:
    for found in Region(row, row, side).within(SIDE, SIDE):
        assert 0 <= found.start < found.stop <= SIDE
        if side <= row < SIDE - side:
            assert found.start <= row < found.stop
            assert found.stop - found.start == side


def test_the_strongest_region_is_first_shown(explorer: Explorer, photo: str) -> None:
    found = explorer.strongest(photo, (3,), 2)
    every = [Region(row, column, 2) for row in range(1, SIDE) for column in range(1, SIDE)]
    own = {region: float(explorer.region(photo, (3,), region).text.split()[0]) for region in every}
    assert own[found] == max(own.values())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("classes", [(), (3, 1)])
def test_every_way_shows_a_picture(explorer: Explorer, photo: str, way: str, classes: tuple[int, ...]) -> None:
    if way not in OWN:
        pytest.importorskip("captum")
    seen, drawn = explorer.pictures(photo, classes, way, None)
    assert seen.size == drawn.size == (SIDE * explorer.enlargement,) * 2
    assert len(drawn.getcolors(maxcolors=1 << 20)) > 2


def test_the_region_is_outlined_where_it_is(explorer: Explorer, photo: str) -> None:
    plain, outlined = (explorer.pictures(photo, (), OWN[1], region)[0] for region in (None, Region(2, 5, 2)))
    changed = np.argwhere((np.asarray(plain) != np.asarray(outlined)).any(-1))
    low, high = changed.min(0) / explorer.enlargement, changed.max(0) / explorer.enlargement
    assert low == pytest.approx([1, 4], abs=0.1)
    assert high == pytest.approx([3, 6], abs=0.1)


def test_the_report_is_that_of_the_command(explorer: Explorer, photo: str, folder: Path) -> None:
    paths = [str(folder / name) for name in ("model.safetensors", "photo.png")]
    out = folder / "report.html"
    done = CliRunner().invoke(app, ["report", *paths, "-o", str(out), "--target", "3", "--against", "1"])
    assert done.exit_code == 0, done.output
    assert explorer.report(photo, (3, 1)) == out.read_bytes()


@pytest.mark.parametrize("kind", hostile.FILES)
def test_every_file_is_answered(explorer: Explorer, photo: str, tmp_path: Path, kind: str) -> None:
    name, content, wrong = hostile.FILES[kind]
    file = tmp_path / name
    file.write_bytes(content)
    if wrong is None:
        found = explorer.add(file)
        assert explorer.listed(found)
        assert explorer.pictures(found, (), OWN[0], Region(0, 0, 3))
        assert "name" not in kind or b"<script" not in explorer.report(found, ())
    else:
        with pytest.raises((UsageError, Unreadable)) as error:
            explorer.add(file)
        assert wrong.lower() in error.value.what.lower()
    assert explorer.listed(photo)


def test_what_was_not_shown_is_not_there(explorer: Explorer, photo: str) -> None:
    for path in ("0" * 64, "../model.safetensors", ""):
        with pytest.raises(UsageError, match="was not shown"):
            explorer.report(path, ())
    for classes in ((99,), (-1,), (0, 99)):
        with pytest.raises(UsageError, match="is no"):
            explorer.answer(photo, classes)
    with pytest.raises(UsageError, match="nothing is shown as"):
        explorer.pictures(photo, (), "tea leaves", None)


def test_a_network_of_something_else_is_refused(tmp_path: Path) -> None:
    pair = bcos_fx.bcosify(Pair(), example_inputs=(images(), images()), recipe="equivalent")
    maps = bcos_fx.bcosify(nn.Conv2d(3, 4, 3), recipe="equivalent", example_inputs=images(), verified=False)
    for network, why in ((pair, "2 inputs"), (maps, "no row of scores")):
        path = bcos_fx.save(network, tmp_path / "other.safetensors", overwrite=True)
        with pytest.raises(BcosFxError, match=why):
            Explorer(path, tmp_path)


def test_a_photograph_is_kept_once_and_upright(explorer: Explorer, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(hostile.rotated())
    first, second = (explorer.add(tmp_path / name) for name in ("a.jpg", "b.jpg"))
    assert first == second
    with Image.open(explorer.path(first)) as opened:
        assert opened.width > opened.height, "the file is kept as it came"
    assert len(list(explorer.path(first).parent.iterdir())) == 1
