"""``bcos-fx calibrate``: statistics and gains that fit a converted network again, from photographs without labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bcos_fx.cli.console import console, echo, echo_json
from bcos_fx.cli.failure import list_skipped
from bcos_fx.cli.options import IMAGE_FORMS, Device, Model, Overwrite, option, takes
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


@dataclass(frozen=True)
class CalibrationRequest:
    """One calibration, as asked for on the command line."""

    model: Model
    data: Path = option(
        default=...,
        help="Photographs like those that the network is for; a few hundred are enough. They are "
        f"{IMAGE_FORMS}. With labels, the accuracy before and after is reported too.",
    )
    classes: Path | None = option(
        help="Names of the network's classes, one on a line, where images lie in folders of such names."
    )
    count: int | None = option(min=1, help="So many of the images; of labeled ones evenly spread. (default: all)")
    original: Path | None = option(
        help="The checkpoint that MODEL was converted from: outputs are then matched to its own."
    )
    arch: str | None = option(
        help="The network that the original's weights belong to, as for convert; alone: with its own."
    )
    key: str | None = option(help="Where in a nested original the weights are.")
    trust_pickle: bool = option(
        "--trust-pickle", default=False, help="Open a pickled original, which runs code that the file carries."
    )
    output_key: str | None = option(help="Which part of the original's output to take, as for convert.")
    out: Path | None = option(
        "--out", "-o", help="The file to write. (default: MODEL's name with .calibrated.safetensors)"
    )
    device: Device = "cpu"
    force: Overwrite = False
    json: bool = option("--json", default=False, help="What changed as JSON on stdout, and nothing else.")


@takes(CalibrationRequest)
def calibrate_network(request: CalibrationRequest) -> None:
    """Set a converted network's norm statistics and gains again, from photographs without labels.

    Raising B shrinks activations, and the statistics that the original was trained with no longer fit. Every batch
    norm measures its input again; layers that none follows are scaled to the original's outputs. The original itself is
    needed where there is no batch norm and biases were removed, and to say how often both agree; it helps everywhere.

    A network that was calibrated is where fine-tuning begins; it is not the original.
    """
    target = request.out or Path(request.model.stem + ".calibrated.safetensors")
    check_target(target, overwrite=request.force)
    with Stages() as stages:
        stages("starting", listed=False)
        from bcos_fx.artifact import save
        from bcos_fx.calibration import calibrate_
        from bcos_fx.cli import values
        from bcos_fx.cli.check import read_artifact
        from bcos_fx.cli.network import calibration_images, device_of, read_original
        from bcos_fx.data.classes import check_class_count, read_classes

        network = read_artifact(request.model).to(device_of(request.device))
        names = None if request.classes is None else read_classes(request.classes)
        if names is not None:
            check_class_count(names, network.class_count())
        images = calibration_images(network, request.data, names, request.count)
        original = None
        # --arch alone: the network as its library builds it, with the library's weights.
        if request.original is not None or request.arch is not None:
            original = read_original(
                request.original, arch=request.arch, key=request.key, trust_pickle=request.trust_pickle
            )
        output_key = values.key(request.output_key)
        calibrate_(network, images, original, output_key=output_key, measured=True, progress=stages.passing)
        stages("writing")
        save(network, target, overwrite=request.force)
    _print_result(network, target, images.skipped, json=request.json)


def _print_result(network: BcosNetwork, target: Path, skipped: dict[str, str], *, json: bool) -> None:
    from bcos_fx.report.text import show_calibration

    calibration = network.report.figures.calibration
    if json:
        facts: dict[str, object] = {"output": str(target), "skipped": skipped}
        facts["calibration"] = None if calibration is None else asdict(calibration)
        echo_json(facts)
    else:
        show_calibration(network.report, console())
        echo(f"Wrote {target}. Look at what it says now: bcos-fx explain {target} IMAGE")
        echo(f"Explanations get clear by fine-tuning: bcos-fx finetune {target} --data DIR -o OUT")
    list_skipped(skipped)
