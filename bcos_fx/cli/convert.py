"""``bcos-fx convert``: from a checkpoint to a verified B-cos network in a file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from bcos_fx.cli.console import console, echo, echo_json
from bcos_fx.cli.failure import CHECK_FAILED, list_skipped
from bcos_fx.cli.options import takes
from bcos_fx.cli.progress import Stages
from bcos_fx.cli.request import Request
from bcos_fx.errors import UsageError
from bcos_fx.files import check_target

if TYPE_CHECKING:
    from torch import nn

    from bcos_fx.network import BcosNetwork

NAME = "convert"
EPILOG = """Examples:

bcos-fx convert resnet50.pth --arch torchvision:resnet50 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

bcos-fx convert --arch torchvision:resnet50@IMAGENET1K_V2 --mean auto --recipe equivalent -o resnet50.safetensors

bcos-fx convert --arch open_clip:RN50-quickgelu@openai --recipe clip --mean auto -o clip.safetensors

bcos-fx convert last.ckpt --arch net.py:build --key ema.model --input-shape 3,32,32 --b 1 --b 'layer4.*=2'
"""


@takes(Request)
def convert_network(request: Request) -> None:
    """Convert a trained network into a B-cos network, prove what was kept, and write it to a file.

    The network is traced and rewritten by the recipe's rules. What the preserving rules made is compared with the
    original; if it differs nothing is written, and the message names the rule and the node. How far the other rules
    moved the output is measured. The report goes to stdout, progress to stderr.
    """
    check_targets(request)
    with Stages() as stages:
        network, original = converted(request, stages)
        skipped = _calibrated(request, network, original, stages)
        from bcos_fx.artifact import save

        stages("writing")
        save(network, request.output, overwrite=request.force)
        if request.picture is not None:
            stages("drawing")
            network.report.draw(request.picture)
    _print_result(request, network)
    list_skipped(skipped)


def check_targets(request: Request) -> None:
    """Check the files to write before the work begins.

    Raises:
        UsageError: as :func:`bcos_fx.files.check_target`, or a file is the input itself.
        MissingExtraError: a picture is wanted, and matplotlib is not installed.
    """
    if request.picture is not None:
        from bcos_fx.report.picture import check_drawable

        check_drawable(request.picture)
    # All files are checked before hours of work, and not when they are written.
    for path in filter(None, (request.output, request.picture)):
        check_target(path, overwrite=request.force)
        if request.model is not None and path.resolve() == request.model.resolve():
            raise UsageError(f"{path} is the file to convert", hint="choose another name with -o")


def converted(request: Request, stages: Stages) -> tuple[BcosNetwork, nn.Module]:
    """Read the network that a request names, and convert it; the original comes back too."""
    stages("starting", listed=False)
    from bcos_fx.cli.network import arguments_for, conversion_arguments, origin_of, random_weights, read_network
    from bcos_fx.convert import bcosify
    from bcos_fx.explanation.certify import explainable

    arguments = conversion_arguments(request)
    stages("reading")
    original = read_network(request.model, arch=request.arch, key=request.key, trust_pickle=request.trust_pickle)
    # Printed before the work, and kept in the report: a converted network of random weights looks like any other.
    random = random_weights(request.model, request.arch)
    if random is not None:
        echo(f"warning: {random}", err=True)
    network = bcosify(original, progress=stages, **arguments | arguments_for(original, request))
    stages("certifying")
    report = network.report
    certified = explainable(network, batch_axis=arguments.get("batch_axis", 0))
    figures = dataclasses.replace(report.figures, explainable=certified)
    notes = report.notes if random is None else (random, *report.notes)
    network.with_report(dataclasses.replace(report, notes=notes, figures=figures))
    return network.with_record(origin=origin_of(request, network, original)), original


def _calibrated(request: Request, network: BcosNetwork, original: nn.Module, stages: Stages) -> dict[str, str]:
    """Calibrate the network if that was asked for; return the photographs that could not be read."""
    if request.calibrate is None:
        return {}
    from bcos_fx.calibration import calibrate_
    from bcos_fx.cli.network import calibration_images, output_key_of

    images = calibration_images(network, request.calibrate)
    output_key = output_key_of(original, request)
    calibrate_(network, images, original, output_key=output_key, measured=True, progress=stages.passing)
    return images.skipped


def _print_result(request: Request, network: BcosNetwork) -> None:
    from bcos_fx.report.sentences import drift_sentence, verdict
    from bcos_fx.report.text import show

    path, size = request.output, request.output.stat().st_size
    outcome = verdict(network.report)
    if request.json:
        facts = {"output": str(path), "bytes": size, "verdict": outcome, "report": network.report.to_dict()}
        echo_json(facts)
    else:
        show(network.report, console(), nodes=request.nodes)
        echo(f"Wrote {path} ({size / 1e6:,.1f} MB). {drift_sentence(network.report)}")
        if request.picture is not None:
            echo(f"Drew {request.picture}.")
    certified = network.report.figures.explainable
    if certified is not None and certified.output is None:
        echo(f"warning: the file was written, but the network is NOT EXPLAINABLE: {certified}", err=True)
        raise typer.Exit(CHECK_FAILED)
    if outcome == "not tested":
        echo(
            "warning: the file was written, but its equivalence is NOT TESTED: the network answers nearly the same to "
            "every test input, which proves nothing. Give --images with photographs that it tells apart.",
            err=True,
        )
        raise typer.Exit(CHECK_FAILED)
