"""What `convert` and `plan` are asked for: their arguments, each with a help text that teaches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bcos_fx.cli.options import IMAGE_FORMS, Overwrite, argument, option
from bcos_fx.rewriting.core.location import rules_directory

_file_option = partial(option, rich_help_panel="The file")
_rewrite_option = partial(option, rich_help_panel="The rewrite")
_input_option = partial(option, rich_help_panel="The input")
_out_option = partial(option, rich_help_panel="The result")


def recipes(incomplete: str) -> list[str]:
    """Complete the name of a shipped recipe."""
    names = sorted(path.stem for path in (rules_directory() / "recipes").glob("*.toml"))
    return [name for name in names if name.startswith(incomplete)]


@dataclass(frozen=True)
class Request:
    """One conversion, as asked for on the command line."""

    model: Path | None = argument(
        metavar="MODEL",
        help="A checkpoint: a state dict (bare, nested or prefixed) or .safetensors, which need --arch; or a "
        "pickled module, which needs --trust-pickle. Left out: the network that --arch builds, as it comes.",
    )
    arch: str | None = _file_option(
        help="The network that the weights belong to: torchvision:resnet50, torchvision:resnet50@IMAGENET1K_V2 "
        "(with its weights), timm:NAME.TAG or timm:NAME@pretrained, transformers:CLASS[@eager|@sdpa], "
        "open_clip:NAME[@TAG] "
        "(its image tower, with the weights of a tag), package.module:factory or file.py:factory."
    )
    key: str | None = _file_option(
        help="Where in a nested checkpoint the weights are, such as ema.model; or which part of a larger network, "
        "such as visual in a checkpoint of CLIP."
    )
    trust_pickle: bool = _file_option(
        "--trust-pickle",
        default=False,
        help="Open a pickled module or .pt2, which runs code that the file carries. For files of your own only.",
    )
    recipe: str | None = _rewrite_option(
        help="Which rules, with which options: a shipped recipe or a TOML file; `bcos-fx rules` lists them. "
        "equivalent only rewrites what keeps the function. (default: bcosification)",
        autocompletion=recipes,
    )
    rules: list[Path] = _rewrite_option(default=[], help="A rule file of your own, after the recipe's. Repeatable.")
    b: list[str] = _rewrite_option(
        "--b",
        default=[],
        help="Alignment pressure B >= 1: one number for all layers, 'layer4.*=2.5' for the layers whose name "
        "fits, or depthwise=1 for a family (depthwise, grouped, pointwise); repeatable, the first "
        "that fits wins. 1 is the ordinary linear unit. (default, also of layers that nothing fits: the recipe's)",
    )
    head: str = _rewrite_option(
        default="keep",
        metavar="keep|subset",
        help="keep; or subset: keep the classifier's rows for the classes that the folders of --data name, by "
        "ImageNet index, WordNet id or name.",
    )
    data: Path | None = _rewrite_option(
        help="For --head subset: a folder with a folder per class, or an .npz with class names. Images are not read."
    )
    classes: Path | None = _rewrite_option(
        help="Names of the network's classes, in order: one a line, or JSON. They are kept in the file, and every "
        "command uses them. (default: those that the weights come with)"
    )
    scale: str | None = _rewrite_option(
        metavar="cosine|raw|unit",
        help="How the weight's norm enters: cosine, raw (as the published B-cosified networks) or unit (as B-cos "
        "v2). All are the same at B = 1.",
    )
    eps: str | None = _rewrite_option(
        help="What is added to |x|: published (1e-6 under the root of convolutions, 1e-12 beside that of linear "
        "layers), or a number under every root."
    )
    projections: str | None = _rewrite_option(
        metavar="output|value-and-output",
        help="Which projections of attention become B-cos: output (as published; none in an attention pool) or "
        "value-and-output.",
    )
    bias: str | None = _rewrite_option(
        metavar="keep|strip|strip-all",
        help="What becomes of biases: keep, strip (those on value paths, which explanations would list) or "
        "strip-all (those of queries, keys and gates too, as published).",
    )
    classifier: str | None = _rewrite_option(
        metavar="per-token|pooled",
        help="Where a vision transformer classifies: per-token (before the mean of tokens, as published), pooled.",
    )
    positions: str | None = _rewrite_option(
        metavar="keep|strip|strip-in-pool",
        help="What becomes of positional embeddings: keep (they are listed as constants), strip, or strip-in-pool "
        "(those of attention pools, as published for CLIP).",
    )
    leaf_modules: list[str] = _rewrite_option(
        "--leaf-module",
        default=[],
        help="Leave a module as it is, as one operation: its name, or a pattern such as 'blocks.*.attn'. For what "
        "cannot be traced; no certificate covers it. Repeatable.",
    )
    train: str | None = _rewrite_option(
        metavar="refuse|eval-graph",
        help="eval-graph: let a network train in its eval graph where its train graph is another one (auxiliary "
        "heads); else .train() refuses.",
    )
    output_key: str | None = _rewrite_option(
        help="Which part of the output to take, where the network returns several: a key, an attribute or a "
        "position, such as out or 0."
    )
    input: str | None = _input_option(
        "--input",
        metavar="normalised|folded|none",
        help="What becomes of an image: normalised (encoded as x beside 1-x, then a fixed map), folded (that map "
        "inside the first kernel) or none (taken as it is).",
    )
    mean: str | None = _input_option(
        help="The mean that the network's images were normalized with, per channel: 0.485,0.456,0.406 for most "
        "ImageNet networks; auto takes it and --std from what the library of --arch records. (default: auto where "
        "it records them, else 0 and 1) The result takes images in [0, 1] and normalizes inside."
    )
    std: str | None = _input_option(help="The standard deviation in the same form: 0.229,0.224,0.225.")
    pixel_max: float | None = _input_option(
        help="The value of white in the units of --mean and --std: 1, or 255. (default: 1)"
    )
    channels: str | None = _input_option(
        metavar="rgb|bgr",
        help="Order of the colors that the network was trained with: rgb, or bgr (Caffe, OpenCV). The result "
        "takes RGB.",
    )
    input_shape: str | None = _input_option(
        help="Shape of one sample, such as 3,32,32. Left out: images of 224, 64 or 32 pixels, whichever runs."
    )
    batch_axis: str | None = _input_option(
        metavar="AXIS",
        help="Which dimension of the network's input holds the samples, where it is not the first: its number, or "
        "none where an input is one sample as a whole, such as a graph's nodes. The proof then runs on whole "
        "inputs of --input-shape.",
    )
    images: Path | None = _input_option(
        help=f"Photographs to verify and measure on instead of made-up images ({IMAGE_FORMS}); resized and cropped "
        "to --input-shape, or 224 pixels."
    )
    calibrate: Path | None = _out_option(
        help=f"A few hundred photographs ({IMAGE_FORMS}); labels are not needed. Set the converted network's norm "
        "statistics and gains again on them, as `bcos-fx calibrate` does. `plan` leaves them unread."
    )
    verified: bool = _out_option(
        " /--no-verify",
        default=True,
        show_default=False,
        help="Do not prove the equivalence, nor measure how far the output moved.",
    )
    verify: str | None = _out_option(
        metavar="full|blocks|float32",
        help="How the equivalence is proved: `full` (both networks as a whole in float64), `blocks` (in float64 "
        "block by block, so that large networks fit) or `float32`. (default: blocks from 100 million parameters "
        "on, else full)",
    )
    license: str | None = _out_option(
        "--license",
        help="License of the weights, such as apache-2.0; it is kept in the file. (default: that of weights named "
        "in --arch, where their library records it)",
    )
    out: Path | None = _out_option(
        "-o", "--out", help="The file to write. (default: the model's name with .bcos.safetensors, here)"
    )
    force: Overwrite = False
    picture: Path | None = _out_option(help="Draw the graph before and after: .png, .svg or .pdf.")
    nodes: bool = _out_option("--nodes", default=False, help="List every node: what it was, what it is, why.")
    json: bool = _out_option("--json", default=False, help="The report as JSON on stdout, and nothing else.")

    @property
    def output(self) -> Path:
        """The file to write: as asked for, or named after the model or the architecture."""
        if self.out is not None:
            return self.out
        named = self.model.stem if self.model is not None else (self.arch or "network").rpartition(":")[2]
        return Path(named.partition("@")[0] + ".bcos.safetensors")
