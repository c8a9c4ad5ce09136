"""What ``bcos-fx evaluate`` is asked for: its arguments, each with its help text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bcos_fx.cli.request import IMAGE_FORMS
from bcos_fx.cli.text_options import TEMPLATES, TOWERS

_text_option = partial(typer.Option, rich_help_panel="Image-text models")
_data_option = partial(typer.Option, rich_help_panel="The images")
_game_option = partial(typer.Option, rich_help_panel="The Grid Pointing Game")
_out_option = partial(typer.Option, rich_help_panel="The result")


@dataclass(frozen=True)
class EvaluationRequest:
    """One evaluation, as asked for on the command line."""

    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A converted network, from bcos-fx convert.")]
    data: Annotated[Path, _data_option(help=f"Labeled images: {IMAGE_FORMS}.")]
    metric: Annotated[
        str,
        typer.Option(
            help="What is measured: accuracy, gridpg, deletion, insertion, several with commas between, or all of "
            "these; of image towers also zeroshot and linear-probe."
        ),
    ] = "all"
    baselines: Annotated[
        str | None,
        typer.Option(
            help="Post-hoc methods on the original network to compare with: all, or names with commas between. They "
            "need --original."
        ),
    ] = None
    original: Annotated[
        str | None,
        typer.Option(
            help="The network that MODEL was converted from: torchvision:resnet50@IMAGENET1K_V2, ARCH+FILE, such as "
            "torchvision:resnet50+checkpoint.pth, or a converted file of it (--recipe equivalent). It needs the same "
            "classes in the same order. Agreement with it is measured too."
        ),
    ] = None
    classes: Annotated[
        Path | None,
        _data_option(
            help="Names of the network's classes, as for explain: folders are then found by name. (default: those in "
            "the file)"
        ),
    ] = None
    text_tower: Annotated[
        str | None,
        _text_option(
            help=f"MODEL is an image tower, and its classes are texts: what embeds the names of --classes: {TOWERS}."
        ),
    ] = None
    text_embeddings: Annotated[
        Path | None, _text_option(help="Embeddings of the classes, from bcos-fx embed, in place of a tower.")
    ] = None
    templates: Annotated[str | None, _text_option(help=f"Sentences that class names are put into: {TEMPLATES}.")] = None
    location: Annotated[
        str | None,
        _text_option(metavar="max|mean", help="Where the tower gives an embedding for each place: max or mean."),
    ] = None
    train_data: Annotated[
        Path | None,
        _text_option(help="For linear-probe: labeled images that the probe is fitted to, in any form of --data."),
    ] = None
    batch_size: Annotated[int, _data_option(help="Images at once in the pass over all of them.")] = 32
    grid: Annotated[list[str] | None, _game_option(help="Size of grids: 2x2, 3x3. Repeatable. (default: 3x3)")] = None
    grids: Annotated[int, _game_option(help="How many grids at most.")] = 500
    protocol: Annotated[
        str,
        _game_option(
            metavar="published|fair",
            help="published: exactly as in the papers (sigmoid, seed 42, one image skipped between grids). fair: "
            "nothing skipped, and the choices below.",
        ),
    ] = "fair"
    seed: Annotated[int | None, _game_option(help="Of the drawing of classes. (default: 42)")] = None
    confidence: Annotated[
        str | None,
        _game_option(
            metavar="softmax|sigmoid",
            help="softmax, or sigmoid for networks trained with binary cross-entropy: which images the network is sure "
            "of, and its calibration. (default: softmax; published: sigmoid)",
        ),
    ] = None
    threshold: Annotated[
        float | None, _game_option(help="Images that are not more confident are left out. (default: 0.5)")
    ] = None
    smooth: Annotated[
        int | None,
        _game_option(
            help="Contributions are averaged over boxes of this width in pixels, odd. (default: 15, which is published "
            "for cells of 224 pixels)"
        ),
    ] = None
    rescale: Annotated[bool, _game_option("--rescale", help="Shrink the images: a grid is as large as one.")] = False
    windows: Annotated[
        bool,
        _game_option(
            "--windows", help="Explain a grid in windows of one image's size, as published for vision transformers."
        ),
    ] = False
    device: Annotated[str, _out_option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu"
    out: Annotated[Path, _out_option("-o", "--out", help="The folder to write results to.")] = Path("evaluation")
    force: Annotated[
        bool, _out_option("-f", "--force", "--overwrite", help="Begin again: remove results that are in the folder.")
    ] = False
    json: Annotated[bool, _out_option("--json", help="All figures as JSON on stdout, and nothing else.")] = False
