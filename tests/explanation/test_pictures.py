"""Colors against a slow reference, results, and the files that explanations are written to."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import bcos_fx
from bcos_fx.data.classes import read_classes
from bcos_fx.explanation import Constants, Explanation
from bcos_fx.explanation.render.color import colored, overlaid, pictures, signed, to_image
from bcos_fx.explanation.render.html import cards, page
from bcos_fx.explanation.render.saving import Collector
from tests.explanation.networks import converted, images, slow_colours

EVIL = '<script>alert("1")</script>.jpg'


@pytest.fixture(scope="module")
def found() -> Explanation:
    return bcos_fx.explain(converted(), images(), names=("fish", "dog", "tabby, tabby cat", "car", "cup"))


@pytest.fixture(scope="module")
def several() -> Explanation:
    return bcos_fx.explain(converted(), images(), [[0, 1]] * 3)


@pytest.mark.parametrize(("channels", "smooth", "percentile"), [(6, 3, 99.5), (6, 1, 90.0), (2, 5, 100.0)])
def test_colors_equal_the_slow_reference(channels: int, smooth: int, percentile: float) -> None:
    weights = torch.randn(3, channels, 7, 9, dtype=torch.float64)
    weights[0, :, 2, 3] = 0
    weights[1] = -weights[1].abs()
    contributions = torch.randn(3, 7, 9, dtype=torch.float64)
    made = colored(weights, contributions, smooth=smooth, percentile=percentile)
    assert made.shape == (3, 4, 7, 9)
    for n in range(3):
        torch.testing.assert_close(made[n], slow_colours(weights[n], contributions[n], smooth, percentile))


def test_nothing_gives_no_color_and_no_nan() -> None:
    made = colored(torch.zeros(1, 6, 5, 5), torch.zeros(1, 5, 5))
    assert made.abs().max() == 0
    assert signed(torch.zeros(1, 5, 5)).min() == 1


def test_signed_colors_mirror() -> None:
    values = torch.tensor([[[-2.0, 0.0, 2.0]]])
    made = signed(values, percentile=100)[0, :3, 0]
    assert made[:, 1].tolist() == [1, 1, 1]
    assert made[0, 2] > made[2, 2], "for is red"
    assert made[2, 0] > made[0, 0], "against is blue"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"smooth": 4}, "odd"),
        ({"smooth": 99}, "smaller"),
        ({"smooth": 3.0}, "odd"),
        ({"percentile": 0}, "above 0"),
        ({"percentile": "99"}, "above 0"),
    ],
)
def test_senseless_options_of_colors_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(bcos_fx.BcosFxError, match=words):
        colored(torch.zeros(1, 6, 5, 5), torch.zeros(1, 5, 5), **change)
    with pytest.raises(bcos_fx.BcosFxError, match="no colors"):
        colored(torch.zeros(1, 5, 5, 5), torch.zeros(1, 5, 5))


def test_without_mean_and_std_there_are_signed_contributions_only(found: Explanation) -> None:
    plain = bcos_fx.explain(converted(mean=None, std=None), images())
    assert found.colors
    assert not plain.colors
    torch.testing.assert_close(pictures(plain), signed(plain.contributions.float()))
    text = " ".join(t.get_text() for t in plain.plot().texts) + str(plain.plot()._supxlabel.get_text())
    assert "no color" in text


def test_images_come_one_a_sample_and_target(found: Explanation, several: Explanation) -> None:
    assert found[0].image().size == (12, 12)
    assert found[0].image().mode == "RGBA"
    assert len(found.image()) == 3
    assert len(several.image()) == 6


def test_a_result_can_be_taken_apart_and_joined(several: Explanation) -> None:
    again = Explanation.joined([several[0], several[1:]])
    assert torch.equal(again.weights, several.weights)
    assert torch.equal(again.residual, several.residual)
    assert list(again.constants) == list(several.constants)
    assert several[-1].output.tolist() == several.output[2:].tolist()
    assert len(several[0]) == 1
    assert several.to("cpu").output.equal(several.output)


def test_constants_know_their_sum_and_shares(several: Explanation) -> None:
    constants = several.constants
    total = sum(constants.values())
    assert torch.equal(constants.total(), total)
    shares = sum(constants.shares().values())
    torch.testing.assert_close(shares, torch.ones_like(shares))
    largest = constants.largest(2)
    assert abs(constants[largest[0][0]].mean() - largest[0][1]) < 1e-12
    assert "Constants(" in repr(constants)
    none = Constants({}, torch.zeros(3))
    assert (none.total().tolist(), none.shares(), none.largest()) == ([0, 0, 0], {}, [])


def test_texts_say_the_sum(found: Explanation) -> None:
    text = repr(found)
    first = re.search(r": ([-\d.e]+) = ([-\d.e]+) from the input ([-+\d.e]+) constants", text)
    assert first is not None
    output, own, constants = (float(number) for number in first.groups())
    assert abs(output - own - constants) < 1e-3 * max(1, abs(output))
    assert "tabby" in found._repr_html_() or "dog" in found._repr_html_() or "fish" in found._repr_html_()


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".html"])
def test_pictures_are_written_whole(suffix: str, found: Explanation, tmp_path: Path) -> None:
    path = found.save(tmp_path / f"e{suffix}")
    assert path.stat().st_size > 5_000
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    if suffix == ".png":
        with Image.open(path) as picture:
            assert picture.width > 600


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png"])
def test_pictures_are_the_same_bytes_whoever_writes_them(suffix: str, found: Explanation, tmp_path: Path) -> None:
    found.save(tmp_path / f"a{suffix}")
    found[:].plot().savefig(tmp_path / f"b{suffix}", dpi=110)
    written = [(tmp_path / f"{name}{suffix}").read_bytes() for name in "ab"]
    assert written[0] == written[1]
    assert b"/Type3" not in written[0].replace(b" ", b"")
    assert re.search(rb"20\d\d-\d\d-\d\d|CreationDate", written[0]) is None


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_numbers_come_back_as_they_were(suffix: str, several: Explanation, tmp_path: Path) -> None:
    path = several.save(tmp_path / f"e{suffix}")
    if suffix == ".npz":
        read = dict(np.load(path, allow_pickle=False))
        facts = json.loads(str(read["facts"]))
    else:
        with safe_open(path, "np") as file:
            read = {name: file.get_tensor(name) for name in file.keys()}
            facts = json.loads(file.metadata()["explanation"])
    assert np.array_equal(read["weights"], several.weights.numpy())
    assert np.array_equal(read["contributions"], several.contributions.numpy())
    source = next(iter(several.constants))
    assert np.array_equal(read[f"constants.{source}"], several.constants[source].numpy())
    assert facts["where"] == "output"


def test_bad_places_are_refused_and_leave_nothing(found: Explanation, tmp_path: Path) -> None:
    with pytest.raises(bcos_fx.BcosFxError, match=r"\.png, \.pdf, \.svg, \.html"):
        found.save(tmp_path / "e.gif")
    with pytest.raises(bcos_fx.BcosFxError, match="cannot be written"):
        found.save(tmp_path / "missing" / "e.npz")
    with pytest.raises(bcos_fx.BcosFxError, match="no folder"):
        Collector(tmp_path / "missing" / "e.html")
    assert not list(tmp_path.iterdir())


def test_a_figure_needs_matplotlib(found: Explanation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(bcos_fx.errors.MissingExtraError, match=r"bcos-fx\[plot\]"):
        found.save(tmp_path / "e.png")
    assert not list(tmp_path.iterdir())
    with pytest.raises(bcos_fx.BcosFxError):
        found.plot(top=0)


def test_sequences_and_features_are_drawn_as_bars() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3)).double().eval()
    found = bcos_fx.explain(model, torch.randn(2, 4).double())
    assert found.plot().axes
    with pytest.raises(bcos_fx.BcosFxError, match="not a picture"):
        found.image()
    assert "highest outputs" in page(cards(found))


# ---------------------------------------------------------------- the gallery


@pytest.fixture(scope="module")
def chromium() -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed, so nothing can render the page")
    return program


def browse(program: str, folder: Path, address: str, *words: str) -> str:
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags = [*quiet.split(), "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    command = [program, *flags, "--virtual-time-budget=3000", *words, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Asks the page, once it is drawn, what it shows: written into the document's title, which --dump-dom prints.
_ASK = """<script>addEventListener("load", () => {
  const pictures = Array.from(document.images);
  const decoded = pictures.filter(p => p.complete && p.naturalWidth > 0).length;
  const shown = () => Array.from(document.querySelectorAll(".card")).filter(c => c.offsetHeight > 0).length;
  const before = shown();
  const search = document.getElementById("search");
  search.value = "second"; search.dispatchEvent(new Event("input"));
  const after = shown(), orders = {};
  for (const way of ["down", "class", "given"]) {
    order.value = way; order.dispatchEvent(new Event("change"));
    orders[way] = Array.from(document.querySelectorAll(".card b")).map(b => b.textContent);
  }
  document.title = JSON.stringify({decoded, pictures: pictures.length, before, after, orders});
});</script></body>"""


def test_a_gallery_is_rendered_searched_and_ordered(chromium: str, tmp_path: Path) -> None:
    found = bcos_fx.explain(converted(), images(), [0, 1, 4], names=("fish", "dog", "tabby, tabby cat", "car", "cup"))
    text = page(cards(found, [EVIL, "second.jpg", "third.jpg"]))
    assert EVIL not in text
    assert html.escape(EVIL) in text
    assert not re.search(r"https?:", text), "the page asks the network for something"
    path = tmp_path / "gallery.html"
    path.write_text(text.replace("</body>", _ASK), encoding="utf-8")
    seen = browse(chromium, tmp_path, path.as_uri(), "--dump-dom")
    told = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", seen)[1]))  # type: ignore[index]
    orders = told.pop("orders")
    assert told == {"decoded": 9, "pictures": 9, "before": 3, "after": 1}
    named = {label: (found[i].target_name(0), -float(found[i].output)) for i, label in enumerate(orders["given"])}
    assert orders["given"] == [EVIL, "second.jpg", "third.jpg"]
    assert orders["class"] == sorted(named, key=lambda label: named[label])
    assert orders["down"] == sorted(named, key=lambda label: named[label][1])
    assert orders["class"] != orders["down"]


def test_a_gallery_shows_the_pictures_on_the_screen(chromium: str, found: Explanation, tmp_path: Path) -> None:
    red = torch.zeros(1, 3, 12, 12, dtype=torch.float64)
    red[:, 0] = 1
    shown = Explanation.joined([found[0]])
    painted = page(cards(Explanation(**{**vars(shown), "inputs": red})))
    path = tmp_path / "gallery.html"
    path.write_text(painted, encoding="utf-8")
    picture = tmp_path / "shot.png"
    browse(chromium, tmp_path, path.as_uri(), "--window-size=900,900", f"--screenshot={picture}")
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=int)
    pure = (pixels[..., 0] > 240) & (pixels[..., 1] < 20) & (pixels[..., 2] < 20)
    assert 0.8 * 224 * 224 < pure.sum() < 1.2 * 224 * 224, "the input, all red, is to fill its square"


# ---------------------------------------------------------------- class names


@pytest.mark.parametrize(
    "text",
    ["fish\ndog\n\n", '["fish", "dog"]', '{"1": "dog", "0": "fish"}', '{"0": ["n01", "fish"], "1": ["n02", "dog"]}'],
)
def test_class_names_are_read_in_every_form(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes"
    path.write_text(text, encoding="utf-8")
    assert read_classes(path) == ("fish", "dog")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fish\n\ndog", ":2"),
        ("", "no class names"),
        ('["fish", 3]', "class 1 is 3"),
        ('["fish",', ":1"),
        ('{"0": "fish", "2": "dog"}', "class 1 is not among them"),
    ],
)
def test_wrong_class_names_are_pointed_at(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "classes"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(bcos_fx.BcosFxError) as caught:
        read_classes(path)
    assert words in str(caught.value)


def test_a_mistyped_file_of_class_names_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("fish", encoding="utf-8")
    with pytest.raises(bcos_fx.BcosFxError, match=r"classes\.txt"):
        read_classes(tmp_path / "clases.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(bcos_fx.BcosFxError, match="UTF-8"):
        read_classes(tmp_path / "binary")


# ---------------------------------------------------------------- style


def test_single_panels_are_drawn_in_the_order_asked_for(found: Explanation) -> None:
    figure = found[0].plot(panels=("contributions", "input"), font="DejaVu Serif", font_size=12, size=3)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert [title.split()[0] for title in titles] == ["contributions", "input"]
    assert figure.axes[0].title.get_fontfamily() == ["DejaVu Serif"]
    assert figure.axes[0].title.get_fontsize() == 12
    assert figure.get_figwidth() == 6


def test_long_names_of_a_difference_are_both_in_the_figure() -> None:
    names = ("first class of all, the one", "second class, which is not the first", "c", "d", "e")
    found = bcos_fx.explain(converted(), images()[:1], bcos_fx.explanation.difference(0, 1), names=names)
    figure = found.plot(panels=["weights"], size=6)
    assert " ".join(figure.axes[0].get_title().split()) == f"W(x) for {names[0]} - {names[1]}"


def test_an_overlay_shows_the_photograph_where_nothing_contributes() -> None:
    contributions = torch.tensor([[[0.0, 2.0], [-2.0, 0.0]]])
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    pixels = np.asarray(overlaid(to_image(signed(contributions, percentile=100, opaque=False)[0]), grey))
    assert pixels[0, 0].tolist() == pixels[1, 1].tolist() == [158, 158, 158, 255]
    assert pixels[0, 1, 0] > pixels[0, 1, 2]
    assert pixels[1, 0, 2] > pixels[1, 0, 0]


def test_an_image_over_its_photograph_is_opaque_and_another_one(found: Explanation) -> None:
    plain, over = found[0].image(), found[0].image(overlay=True)
    assert isinstance(plain, Image.Image)
    assert isinstance(over, Image.Image)
    assert over.size == plain.size
    assert np.asarray(over)[..., 3].min() == 255
    assert np.asarray(plain)[..., 3].min() < 255
    coarse = Image.new("RGBA", (2, 2), (255, 0, 0, 255))
    assert overlaid(coarse, Image.new("L", (6, 4))).size == (6, 4)


def test_a_gallery_draws_maps_over_the_photograph_too(found: Explanation, tmp_path: Path) -> None:
    plain, over = (found[:1].save(tmp_path / f"{overlay}.html", overlay=overlay) for overlay in (False, True))
    shown = [re.findall(r"base64,([^\"]+)", path.read_text()) for path in (plain, over)]
    assert len(shown[0]) == len(shown[1]) == 3
    assert [one == other for one, other in zip(*shown, strict=True)] == [True, False, False]


def test_a_color_map_colors_contributions_from_against_to_for() -> None:
    mpl = pytest.importorskip("matplotlib")
    values = torch.tensor([[[-1.0, 0.0, 1.0]]])
    made = signed(values, percentile=100, colors=mpl.colormaps["seismic"])[0, :3, 0]
    wanted = np.asarray(mpl.colormaps["seismic"]([0.0, 0.5, 1.0]))[:, :3]
    np.testing.assert_allclose(made.T.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ({"panels": ["maps"]}, "panels is 'maps'"),
        ({"panels": "input"}, "give a list"),
        ({"panels": ()}, "no panel"),
        ({"cmap": "seismik"}, "did you mean 'seismic'"),
        ({"font": "No such font"}, "font is"),
        ({"size": 0}, "size is 0"),
        ({"font_size": "9"}, "font_size is '9'"),
        ({"color": 1}, "has no 'color'"),
    ],
)
def test_a_style_that_makes_no_sense_is_refused(
    style: dict[str, Any], words: str, found: Explanation, tmp_path: Path
) -> None:
    with pytest.raises(bcos_fx.BcosFxError, match=words):
        found.save(tmp_path / "e.png", **style)
    with pytest.raises(bcos_fx.BcosFxError, match="no panels, colors or fonts"):
        found.save(tmp_path / "e.npz", overlay=True)
    assert not list(tmp_path.iterdir())
