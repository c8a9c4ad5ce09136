"""What ``bcos-fx explain`` is asked for: its arguments, each with its help text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bcos_fx.cli.options import Device, Overwrite, argument, option
from bcos_fx.cli.text_options import TEMPLATES, TOWERS

_text_option = partial(option, rich_help_panel="Texts, of image-text models")
_picture_option = partial(option, rich_help_panel="The picture")


@dataclass(frozen=True)
class ExplainRequest:
    """What to explain, by what, and where to write it, from the command line."""

    model: Path = argument(
        default=...,
        metavar="MODEL",
        help="A converted network, from bcos-fx convert, or hf:user/name of the Hugging Face hub; or with --arch a "
        "checkpoint, converted first.",
    )
    images: list[Path] = argument(
        default=...,
        metavar="IMAGE...",
        help="Photographs, folders of them, or images in any form that evaluate takes: .npy, .npz, shards.",
    )
    target: str | None = option(
        help="What is explained: a class name, its index, topK, all, or one pixel of a segmentation as "
        "class,row,column. Left out: the predicted class."
    )
    against: str | None = option(
        metavar="CLASS|others",
        help="Explain why the target's output is larger than this class's, by name or index; others: than those of "
        "all other classes on average.",
    )
    classes: Path | None = option(
        help="Class names: one a line, a JSON list, or a JSON object from index to name. (default: those in MODEL)"
    )
    output: str | None = option(help="Explain another value: logits (before a final softmax), or a layer by name.")
    source: list[str] | None = option(
        metavar="NAME",
        help="What outputs are explained by: an input or a layer by name, whose activations then take the place of "
        "the image. Repeatable: by several at once, which share one sum and have a file each. "
        "Left out: the main input.",
    )
    channel_axis: int | None = option(
        metavar="AXIS",
        help="Which dimension of what outputs are explained by holds its channels, over which contributions are "
        "summed, counted in (N, ...). Left out: the one that the first layer sums over.",
    )
    batch_axis: str | None = option(
        metavar="AXIS",
        help="Which dimension of the network's input holds the samples, where it is not the first: its number, or "
        "none where it takes one photograph (C, H, W) as a whole.",
    )
    text: list[str] | None = _text_option(
        help="Explain how much the image is like this text: the cosine of their embeddings. Repeatable."
    )
    text_tower: str | None = _text_option(help=f"What embeds the texts; it has to belong to MODEL: {TOWERS}.")
    text_embeddings: Path | None = _text_option(
        help="Embeddings from bcos-fx embed in place of a tower; without --text all of them."
    )
    templates: str | None = _text_option(help=f"Sentences that each text is put into, and averaged over: {TEMPLATES}.")
    power: float = _text_option(default=1.0, help="p >= 1: the score is |cos|^(p-1) cos.")
    location: str | None = _text_option(
        metavar="max|mean",
        help="Where the network gives an embedding for each place: max (the place that is most like the text) or mean.",
    )
    out: Path | None = option(
        "--out", "-o", help="Where to: .png .pdf .svg (a figure), .html (a gallery), .safetensors .npz (numbers)."
    )
    blocks: int = _picture_option(
        default=1,
        min=1,
        help="Draw blocks of this many pixels a side, each with its sum: 2 takes away the dotted grid that strided "
        "first layers leave. Numbers do not change.",
    )
    arch: str | None = option(help="The plain network that a published B-cos checkpoint belongs to, as for convert.")
    recipe: str | None = option(help="How such a checkpoint is converted. (default: bcosification)")
    panels: str | None = _picture_option(
        help="Panels of a figure, with commas between: input, weights, contributions, outputs. (default: all)"
    )
    overlay: bool = _picture_option("--overlay", default=False, help="Draw maps over the photograph, in gray.")
    cmap: str | None = _picture_option(
        help="Colors of contributions: a color map of matplotlib, such as seismic; its low end speaks against. "
        "(default: blue to red)"
    )
    size: float = _picture_option(default=2.6, help="Width of a figure's panel, in inches.")
    font: str | None = _picture_option(help="Font of a figure's texts: a family's name.")
    font_size: float = _picture_option(default=9.0, help="Size of a figure's titles, in points; other texts follow.")
    device: Device = "cpu"
    force: Overwrite = False
    allow_incomplete: bool = option(
        "--allow-incomplete", default=False, help="Explain a network that is not dynamic linear too, and say so."
    )
    json: bool = option(
        "--json", default=False, help="The sums as JSON on stdout, and nothing else; no file without --out."
    )
