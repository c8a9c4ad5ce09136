"""What ``bcos-fx evaluate`` is asked for: its arguments, each with its help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bcos_fx.cli.request import IMAGE_FORMS
from bcos_fx.cli.text_options import TEMPLATES, TOWERS

_TEXT = "Image-text models"
_DATA, _GAME, _OUT = "The images", "The Grid Pointing Game", "The result"


@dataclass(frozen=True)
class EvaluationRequest:
    """One evaluation, as asked for on the command line."""

    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A converted network, from bcos-fx convert.")]
    data: Annotated[
        Path,
        typer.Option(
            help=f"Labeled images: {IMAGE_FORMS}.",
            rich_help_panel=_DATA,
        ),
    ]
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
            "need --original.",
            show_default=False,
        ),
    ] = None
    original: Annotated[
        str | None,
        typer.Option(
            help="The network that MODEL was converted from: torchvision:resnet50@IMAGENET1K_V2, ARCH+FILE, such as "
            "torchvision:resnet50+checkpoint.pth, or a converted file of it (--recipe equivalent). It needs the same "
            "classes in the same order. Agreement with it is measured too.",
            show_default=False,
        ),
    ] = None
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Names of the network's classes, as for explain: folders are then found by name. (default: those in "
            "the file)",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None
    text_tower: Annotated[
        str | None,
        typer.Option(
            help=f"MODEL is an image tower, and its classes are texts: what embeds the names of --classes: {TOWERS}.",
            rich_help_panel=_TEXT,
            show_default=False,
        ),
    ] = None
    text_embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Embeddings of the classes, from bcos-fx embed, in place of a tower.",
            rich_help_panel=_TEXT,
            show_default=False,
        ),
    ] = None
    templates: Annotated[
        str | None,
        typer.Option(
            help=f"Sentences that class names are put into: {TEMPLATES}.", rich_help_panel=_TEXT, show_default=False
        ),
    ] = None
    location: Annotated[
        str | None,
        typer.Option(
            help="Where the tower gives an embedding for each place: max or mean.",
            rich_help_panel=_TEXT,
            show_default=False,
        ),
    ] = None
    train_data: Annotated[
        Path | None,
        typer.Option(
            help="For linear-probe: labeled images that the probe is fitted to, in any form of --data.",
            rich_help_panel=_TEXT,
            show_default=False,
        ),
    ] = None
    batch_size: Annotated[
        int, typer.Option(help="Images at once in the pass over all of them.", rich_help_panel=_DATA)
    ] = 32
    grid: Annotated[
        list[str] | None,
        typer.Option(help="Size of grids: 2x2, 3x3. Repeatable. (default: 3x3)", rich_help_panel=_GAME),
    ] = None
    grids: Annotated[int, typer.Option(help="How many grids at most.", rich_help_panel=_GAME)] = 500
    protocol: Annotated[
        str,
        typer.Option(
            help="published: exactly as in the papers (sigmoid, seed 42, one image skipped between grids). fair: "
            "nothing skipped, and the choices below.",
            rich_help_panel=_GAME,
        ),
    ] = "fair"
    seed: Annotated[
        int | None,
        typer.Option(help="Of the drawing of classes. (default: 42)", rich_help_panel=_GAME, show_default=False),
    ] = None
    confidence: Annotated[
        str | None,
        typer.Option(
            help="softmax, or sigmoid for networks trained with binary cross-entropy: which images the network is sure "
            "of, and its calibration. (default: softmax; published: sigmoid)",
            rich_help_panel=_GAME,
            show_default=False,
        ),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Images that are not more confident are left out. (default: 0.5)",
            rich_help_panel=_GAME,
            show_default=False,
        ),
    ] = None
    smooth: Annotated[
        int | None,
        typer.Option(
            help="Contributions are averaged over boxes of this width in pixels, odd. (default: 15, which is published "
            "for cells of 224 pixels)",
            rich_help_panel=_GAME,
            show_default=False,
        ),
    ] = None
    rescale: Annotated[
        bool, typer.Option("--rescale", help="Shrink the images: a grid is as large as one.", rich_help_panel=_GAME)
    ] = False
    windows: Annotated[
        bool,
        typer.Option(
            "--windows",
            help="Explain a grid in windows of one image's size, as published for vision transformers.",
            rich_help_panel=_GAME,
        ),
    ] = False
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.", rich_help_panel=_OUT)] = "cpu"
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write results to.", rich_help_panel=_OUT)] = (
        Path("evaluation")
    )
    force: Annotated[
        bool,
        typer.Option(
            "-f",
            "--force",
            "--overwrite",
            help="Begin again: remove results that are in the folder.",
            rich_help_panel=_OUT,
        ),
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="All figures as JSON on stdout, and nothing else.", rich_help_panel=_OUT)
    ] = False
