"""``bcos-fx export``: a converted network, or its explanation, as a file for ONNX runtimes and ``torch.export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bcos_fx.cli.console import echo, echo_json
from bcos_fx.cli.options import IMAGE_FORMS, Model, Overwrite, option, takes
from bcos_fx.cli.progress import Stages
from bcos_fx.errors import UsageError
from bcos_fx.files import check_target

NAME = "export"
EPILOG = """Examples:

bcos-fx export model.safetensors -o network.onnx

bcos-fx export model.safetensors --explanation -o explanation.onnx

bcos-fx export model.safetensors --explanation --images photos/ -o explanation.pt2

bcos-fx export model.safetensors --page page

Exit code 0: written, and the file computes what the network does. 1: it does not, or the network is not dynamic linear;
nothing is written. 2: bad input, or an operation that cannot be exported; nothing is written.
"""
_CHECKED = 4


@dataclass(frozen=True)
class ExportRequest:
    """One export, as asked for on the command line."""

    model: Model
    out: Path | None = option("--out", "-o", help="The file to write: .onnx, or .pt2 for torch.export.load.")
    page: Path | None = option(
        metavar="FOLDER",
        help="Write a page in place of a file: it explains photographs in the browser, from any static server. "
        "npm fetches what runs it there.",
    )
    explanation: bool = option(
        "--explanation",
        default=False,
        help="Export the explanation: (image, target) to (logits, contributions, constants, weights), for any "
        "target when it runs. Left out: the network.",
    )
    output: str | None = option(help="What is explained: logits (before a final softmax), or a layer by name.")
    source: str | None = option(help="What it is explained by: an input or a layer by name. Left out: the main input.")
    images: Path | None = option(help=f"Photographs to check the file on: {IMAGE_FORMS}. Left out: made-up images.")
    optimize: bool = option(
        "--optimize", default=False, help="Fold batch norms into the layers before them: the same sums, less work."
    )
    force: Overwrite = False
    json: bool = option("--json", default=False, help="What was written as JSON on stdout, and nothing else.")


@takes(ExportRequest)
def export_network(request: ExportRequest) -> None:
    """Write a converted network, or its explanation, as a file that runs without bcos_fx and without PyTorch.

    An explanation is the backward pass of the explanation view, as a graph of ordinary operations: any ONNX runtime
    computes why the network gave an output, and a browser can. The file is run before it is put in its place: its
    numbers are those of bcos-fx explain, and contributions and constants add up to the network's output.
    """
    page, samples = request.page, None
    if (request.out is None) == (page is None):
        raise UsageError("there is one thing to write: a file or a page", hint="name it with -o, or with --page")
    if request.out is not None:
        check_target(request.out, overwrite=request.force)
    with Stages() as stages:
        stages("starting", listed=False)
        from bcos_fx.cli.check import read_artifact
        from bcos_fx.cli.network import some_images
        from bcos_fx.data.stores import open_source
        from bcos_fx.exporting.export import export
        from bcos_fx.exporting.page import check_page, write_page

        if page is not None:
            check_page(page, overwrite=request.force)
        network = read_artifact(request.model)
        # Without photographs the exporter checks the file on made-up images.
        if request.images is not None:
            photographs = some_images(open_source(request.images), network.preprocessing, _CHECKED)
            samples = photographs.to(next(network.parameters()))
        if request.optimize:
            from bcos_fx import folding

            stages("optimizing")
            network = folding.optimize(network, samples)
        stages("exporting")
        if page is not None:
            exported = write_page(network, page, samples, overwrite=request.force)
        elif request.out is not None:
            options = {name: getattr(request, name) for name in ("explanation", "output", "source")}
            exported = export(network, request.out, samples, overwrite=request.force, **options)
    if request.json:
        echo_json(exported.to_dict())
        return
    echo(exported.to_text())
    if page is not None:
        echo(f"Look at it: python -m http.server --bind 127.0.0.1 --directory {page}")
