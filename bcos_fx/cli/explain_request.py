"""What ``bcos-fx explain`` is asked for: its arguments, each with its help text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bcos_fx.cli.request import Overwrite
from bcos_fx.cli.text_options import TEMPLATES, TOWERS

_text_option = partial(typer.Option, rich_help_panel="Texts, of image-text models")
_picture_option = partial(typer.Option, rich_help_panel="The picture")


@dataclass(frozen=True)
class ExplainRequest:
    """What to explain, by what, and where to write it, from the command line."""

    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A converted network, from bcos-fx convert, or hf:user/name of the Hugging Face hub; or with --arch a "
            "checkpoint, converted first.",
        ),
    ]
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="Photographs, folders of them, or images in any form that evaluate takes: .npy, .npz, shards.",
        ),
    ]
    target: Annotated[
        str | None,
        typer.Option(
            help="What is explained: a class name, its index, topK, all, or one pixel of a segmentation as "
            "class,row,column. Left out: the predicted class."
        ),
    ] = None
    against: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS|others",
            help="Explain why the target's output is larger than this class's, by name or index; others: than those of "
            "all other classes on average.",
        ),
    ] = None
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Class names: one a line, a JSON list, or a JSON object from index to name. (default: those in MODEL)"
        ),
    ] = None
    output: Annotated[
        str | None, typer.Option(help="Explain another value: logits (before a final softmax), or a layer by name.")
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What outputs are explained by: an input or a layer by name, whose activations then take the place of "
            "the image. Repeatable: by several at once, which share one sum and have a file each. "
            "Left out: the main input.",
        ),
    ] = None
    channel_axis: Annotated[
        int | None,
        typer.Option(
            metavar="AXIS",
            help="Which dimension of what outputs are explained by holds its channels, over which contributions are "
            "summed, counted in (N, ...). Left out: the one that the first layer sums over.",
        ),
    ] = None
    batch_axis: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS",
            help="Which dimension of the network's input holds the samples, where it is not the first: its number, or "
            "none where it takes one photograph (C, H, W) as a whole.",
        ),
    ] = None
    text: Annotated[
        list[str] | None,
        _text_option(help="Explain how much the image is like this text: the cosine of their embeddings. Repeatable."),
    ] = None
    text_tower: Annotated[
        str | None, _text_option(help=f"What embeds the texts; it has to belong to MODEL: {TOWERS}.")
    ] = None
    text_embeddings: Annotated[
        Path | None, _text_option(help="Embeddings from bcos-fx embed in place of a tower; without --text all of them.")
    ] = None
    templates: Annotated[
        str | None, _text_option(help=f"Sentences that each text is put into, and averaged over: {TEMPLATES}.")
    ] = None
    power: Annotated[float, _text_option(help="p >= 1: the score is |cos|^(p-1) cos.")] = 1.0
    location: Annotated[
        str | None,
        _text_option(
            metavar="max|mean",
            help="Where the network gives an embedding for each place: max (the place that is most like the text) or "
            "mean.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Where to: .png .pdf .svg (a figure), .html (a gallery), .safetensors .npz (numbers)."
        ),
    ] = None
    blocks: Annotated[
        int,
        _picture_option(
            min=1,
            help="Draw blocks of this many pixels a side, each with its sum: 2 takes away the dotted grid that strided "
            "first layers leave. Numbers do not change.",
        ),
    ] = 1
    arch: Annotated[
        str | None, typer.Option(help="The plain network that a published B-cos checkpoint belongs to, as for convert.")
    ] = None
    recipe: Annotated[str | None, typer.Option(help="How such a checkpoint is converted. (default: bcosification)")] = (
        None
    )
    panels: Annotated[
        str | None,
        _picture_option(
            help="Panels of a figure, with commas between: input, weights, contributions, outputs. (default: all)"
        ),
    ] = None
    overlay: Annotated[bool, _picture_option("--overlay", help="Draw maps over the photograph, in gray.")] = False
    cmap: Annotated[
        str | None,
        _picture_option(
            help="Colors of contributions: a color map of matplotlib, such as seismic; its low end speaks against. "
            "(default: blue to red)"
        ),
    ] = None
    size: Annotated[float, _picture_option(help="Width of a figure's panel, in inches.")] = 2.6
    font: Annotated[str | None, _picture_option(help="Font of a figure's texts: a family's name.")] = None
    font_size: Annotated[float, _picture_option(help="Size of a figure's titles, in points; other texts follow.")] = 9.0
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu"
    force: Overwrite = False
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Explain a network that is not dynamic linear too, and say so.")
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="The sums as JSON on stdout, and nothing else; no file without --out.")
    ] = False
