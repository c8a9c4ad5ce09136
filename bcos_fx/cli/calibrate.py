"""``bcos-fx calibrate``: statistics and gains that fit a converted network again, from photographs without labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcos_fx.cli.console import console, echo, echo_json
from bcos_fx.cli.failure import list_skipped
from bcos_fx.cli.options import IMAGE_FORMS, Device, Model, Overwrite
from bcos_fx.cli.progress import Stages
from bcos_fx.files import check_target

if TYPE_CHECKING:
    from bcos_fx.network import BcosNetwork

NAME = "calibrate"
EPILOG = """Examples:

bcos-fx calibrate model.safetensors --data photos/ -o calibrated.safetensors

bcos-fx calibrate model.safetensors --data photos/ --original resnet50.pth --arch torchvision:resnet50

bcos-fx calibrate model.safetensors --data labeled.npz --count 500

Exit code 0: written. 1: written, but some images could not be read. 2: bad input, nothing written.
"""


def calibrate_network(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            help="Photographs like those that the network is for; a few hundred are enough. They are "
            f"{IMAGE_FORMS}. With labels, the accuracy before and after is reported too."
        ),
    ],
    classes: Annotated[
        Path | None,
        typer.Option(help="Names of the network's classes, one on a line, where images lie in folders of such names."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="So many of the images; of labeled ones evenly spread. (default: all)")
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(help="The checkpoint that MODEL was converted from: outputs are then matched to its own."),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="The network that the original's weights belong to, as for convert; alone: with its own."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Where in a nested original the weights are.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Open a pickled original, which runs code that the file carries.")
    ] = False,
    output_key: Annotated[
        str | None, typer.Option(help="Which part of the original's output to take, as for convert.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write. (default: MODEL's name with .calibrated.safetensors)"),
    ] = None,
    device: Device = "cpu",
    force: Overwrite = False,
    json: Annotated[bool, typer.Option("--json", help="What changed as JSON on stdout, and nothing else.")] = False,
) -> None:
    """Set a converted network's norm statistics and gains again, from photographs without labels.

    Raising B shrinks activations, and the statistics that the original was trained with no longer fit. Every batch
    norm measures its input again; layers that none follows are scaled to the original's outputs. The original itself is
    needed where there is no batch norm and biases were removed, and to say how often both agree; it helps everywhere.

    A network that was calibrated is where fine-tuning begins; it is not the original.
    """
    target = out if out is not None else Path(model.stem + ".calibrated.safetensors")
    check_target(target, overwrite=force)
    with Stages() as stages:
        stages("starting", listed=False)
        from bcos_fx.artifact import save
        from bcos_fx.calibration import calibrate_
        from bcos_fx.cli import values
        from bcos_fx.cli.check import read_artifact
        from bcos_fx.cli.network import calibration_images, device_of, read_original
        from bcos_fx.data.classes import check_class_count, read_classes

        network = read_artifact(model).to(device_of(device))
        names = None if classes is None else read_classes(classes)
        if names is not None:
            check_class_count(names, network.class_count())
        images = calibration_images(network, data, names, count)
        module = None
        # --arch alone: the network as its library builds it, with the library's weights.
        if original is not None or arch is not None:
            module = read_original(original, arch=arch, key=key, trust_pickle=trust_pickle)
        calibrate_(network, images, module, output_key=values.key(output_key), measured=True, progress=stages.passing)
        stages("writing")
        save(network, target, overwrite=force)
    _print_result(network, target, images.skipped, json=json)


def _print_result(network: BcosNetwork, target: Path, skipped: dict[str, str], *, json: bool) -> None:
    import dataclasses

    from bcos_fx.report.text import show_calibration

    calibration = network.report.figures.calibration
    if json:
        facts: dict[str, Any] = {"output": str(target), "skipped": skipped}
        facts["calibration"] = None if calibration is None else dataclasses.asdict(calibration)
        echo_json(facts)
    else:
        show_calibration(network.report, console())
        echo(f"Wrote {target}. Look at what it says now: bcos-fx explain {target} IMAGE")
        echo(f"Explanations get clear by fine-tuning: bcos-fx finetune {target} --data DIR -o OUT")
    list_skipped(skipped)
