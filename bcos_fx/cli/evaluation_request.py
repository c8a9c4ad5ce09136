"""What ``bcos-fx evaluate`` is asked for: its arguments, each with its help text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bcos_fx.cli.options import IMAGE_FORMS, Model, option
from bcos_fx.cli.text_options import TEMPLATES, TOWERS

_text_option = partial(option, rich_help_panel="Image-text models")
_data_option = partial(option, rich_help_panel="The images")
_game_option = partial(option, rich_help_panel="The Grid Pointing Game")
_out_option = partial(option, rich_help_panel="The result")


@dataclass(frozen=True)
class EvaluationRequest:
    """One evaluation, as asked for on the command line."""

    model: Model
    data: Path = _data_option(default=..., help=f"Labeled images: {IMAGE_FORMS}.")
    metric: str = option(
        default="all",
        help="What is measured: accuracy, gridpg, deletion, insertion, several with commas between, or all of "
        "these; of image towers also zeroshot and linear-probe.",
    )
    baselines: str | None = option(
        help="Post-hoc methods on the original network to compare with: all, or names with commas between. They "
        "need --original."
    )
    original: str | None = option(
        help="The network that MODEL was converted from: torchvision:resnet50@IMAGENET1K_V2, ARCH+FILE, such as "
        "torchvision:resnet50+checkpoint.pth, or a converted file of it (--recipe equivalent). It needs the same "
        "classes in the same order. Agreement with it is measured too."
    )
    classes: Path | None = _data_option(
        help="Names of the network's classes, as for explain: folders are then found by name. (default: those in "
        "the file)"
    )
    text_tower: str | None = _text_option(
        help=f"MODEL is an image tower, and its classes are texts: what embeds the names of --classes: {TOWERS}."
    )
    text_embeddings: Path | None = _text_option(
        help="Embeddings of the classes, from bcos-fx embed, in place of a tower."
    )
    templates: str | None = _text_option(help=f"Sentences that class names are put into: {TEMPLATES}.")
    location: str | None = _text_option(
        metavar="max|mean", help="Where the tower gives an embedding for each place: max or mean."
    )
    train_data: Path | None = _text_option(
        help="For linear-probe: labeled images that the probe is fitted to, in any form of --data."
    )
    batch_size: int = _data_option(default=32, help="Images at once in the pass over all of them.")
    grid: list[str] | None = _game_option(help="Size of grids: 2x2, 3x3. Repeatable. (default: 3x3)")
    grids: int = _game_option(default=500, help="How many grids at most.")
    protocol: str = _game_option(
        default="fair",
        metavar="published|fair",
        help="published: exactly as in the papers (sigmoid, seed 42, one image skipped between grids). fair: "
        "nothing skipped, and the choices below.",
    )
    seed: int | None = _game_option(help="Of the drawing of classes. (default: 42)")
    confidence: str | None = _game_option(
        metavar="softmax|sigmoid",
        help="softmax, or sigmoid for networks trained with binary cross-entropy: which images the network is sure "
        "of, and its calibration. (default: softmax; published: sigmoid)",
    )
    threshold: float | None = _game_option(help="Images that are not more confident are left out. (default: 0.5)")
    smooth: int | None = _game_option(
        help="Contributions are averaged over boxes of this width in pixels, odd. (default: 15, which is published "
        "for cells of 224 pixels)"
    )
    rescale: bool = _game_option("--rescale", default=False, help="Shrink the images: a grid is as large as one.")
    windows: bool = _game_option(
        "--windows",
        default=False,
        help="Explain a grid in windows of one image's size, as published for vision transformers.",
    )
    device: str = _out_option(default="cpu", help="Where to compute: cpu, cuda, cuda:1.")
    out: Path = _out_option("-o", "--out", default=Path("evaluation"), help="The folder to write results to.")
    force: bool = _out_option(
        "-f", "--force", "--overwrite", default=False, help="Begin again: remove results that are in the folder."
    )
    json: bool = _out_option("--json", default=False, help="All figures as JSON on stdout, and nothing else.")
