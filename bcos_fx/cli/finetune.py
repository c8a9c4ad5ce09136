"""``bcos-fx finetune``: train a converted network as a B-cos network."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bcos_fx.cli.console import echo, echo_json
from bcos_fx.cli.options import IMAGE_FORMS, Model, Overwrite, option, takes
from bcos_fx.cli.request import recipes
from bcos_fx.escaping import amount
from bcos_fx.files import check_target

if TYPE_CHECKING:
    from bcos_fx.training.finetune import FineTuned

NAME = "finetune"
EPILOG = """Examples:

bcos-fx convert resnet50.pth --arch torchvision:resnet50 --mean auto --recipe gradual -o start.safetensors

bcos-fx finetune start.safetensors --data train/ --val val/ -o bcos.safetensors

bcos-fx finetune start.safetensors --data train/ --val val/ -o bcos.safetensors --resume

bcos-fx finetune matched.safetensors --data train/ --recipe matched --original original.safetensors -o bcos.safetensors

bcos-fx finetune start.safetensors --data train.npz --recipe my.toml --epochs 5 --lr 3e-4 -o bcos.safetensors

Exit code 0: trained and written. 2: bad input, or training could not go on. 130: stopped by Ctrl-C; --resume goes on.
"""

_training_option = partial(option, rich_help_panel="The training")
_data_option = partial(option, rich_help_panel="The images")
_run_option = partial(option, rich_help_panel="The run")


@dataclass(frozen=True)
class FineTuneRequest:
    """One training, as asked for on the command line."""

    model: Model
    data: Path = _data_option(
        default=...,
        help=f"Images to train on: {IMAGE_FORMS}. Images without labels will do for a recipe that only distils.",
    )
    out: Path = _run_option("-o", "--out", default=..., help="The file to write.")
    val: Path | None = _data_option(help="Images to test on after every epoch, in the same form.")
    augment: str | None = _data_option(
        metavar="none|flip|flip-and-shift|crop-and-flip|trivial|rand",
        help="How training images are varied. (default: the recipe's)",
    )
    workers: int = _data_option(default=0, min=0, help="Processes that read images.")
    recipe: str | None = _training_option(
        help="How to train: a shipped recipe (bcosification as published, gradual, matched, bcos-v2, clip, "
        "equivalent) or a TOML file with a [training] table. (default: the recipe that MODEL was converted by)",
        autocompletion=recipes,
    )
    epochs: int | None = _training_option(
        min=1, help="Passes over the images. (default: the recipe's; more where it has too few steps)"
    )
    batch_size: int | None = _training_option(
        min=1, help="Images per step and process. (default: the recipe's; fewer where there are few images)"
    )
    lr: float | None = _training_option(help="Highest learning rate. (default: the recipe's)")
    seed: int | None = _training_option(min=0, help="Of everything random. (default: the recipe's)")
    precision: str | None = _training_option(metavar="32|bf16|fp16", help="bf16 and fp16 are mixed precision.")
    from_scratch: bool = _training_option("--from-scratch", default=False, help="Begin with random weights.")
    head: str = _training_option(
        default="keep",
        metavar="keep|new|subset",
        help="keep; new: a new last layer for the classes of --data; or subset: keep MODEL's own rows for the "
        "classes of --data, which are named by ImageNet index, WordNet id or name.",
    )
    classes: Path | None = _training_option(
        help="For --head subset: the names of MODEL's classes, in order: one a line, or JSON. (default: those of "
        "ImageNet-1k, for 1,000 classes)"
    )
    original: Path | None = _training_option(
        help="For recipes that distil: the original, converted with --recipe equivalent."
    )
    run: Path | None = _run_option(help="Folder for checkpoint, history, gallery and logs. (default: OUT with .run)")
    resume: bool = _run_option(
        "--resume",
        default=False,
        help="Go on from the run's last checkpoint: the result is that of a run that was never stopped.",
    )
    checkpoint_steps: int = _run_option(
        default=0, min=0, help="Save every this many steps too, not only after epochs; 0 for never."
    )
    logger: list[str] = _run_option(default=[], help="Log to csv, tensorboard, wandb, mlflow, ...; repeatable.")
    accelerator: str = _run_option(default="auto", help="auto, cpu, gpu, mps, ...")
    devices: int = _run_option(default=1, min=1, help="Processes on this machine.")
    nodes: int = _run_option(default=1, min=1, help="Machines, as Lightning's DDP counts them.")
    force: Overwrite = False
    json: bool = _run_option("--json", default=False, help="The history as JSON on stdout, and nothing else.")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run if self.run is not None else self.out.with_name(self.out.name + ".run")


@takes(FineTuneRequest)
def finetune_network(request: FineTuneRequest) -> None:
    """Train a converted network as a B-cos network, and write it to a file.

    The recipe says how B rises and biases fade, and with which loss. After every epoch the accuracy, the mean B and the
    share of constants in the explained outputs are printed; a gallery of explanations of the same few images and a
    checkpoint are written. A run that is stopped, by whatever, goes on with --resume.
    """
    check_target(request.out, overwrite=request.force)
    tuned = _trained(request)
    from bcos_fx.artifact import save

    save(tuned.network, request.out, overwrite=request.force)  # type: ignore[arg-type]
    _print_result(request, tuned)


def _trained(request: FineTuneRequest) -> FineTuned:
    from bcos_fx.cli.check import read_artifact
    from bcos_fx.data.classes import read_classes
    from bcos_fx.training.finetune import finetune
    from bcos_fx.training.settings import RunSettings

    return finetune(
        read_artifact(request.model),
        request.data,
        recipe=request.recipe,
        validation=request.val,
        original=None if request.original is None else read_artifact(request.original),
        head=request.head,
        class_names=None if request.classes is None else read_classes(request.classes),
        from_scratch=request.from_scratch,
        run=RunSettings(
            folder=request.folder,
            resume=request.resume,
            checkpoint_steps=request.checkpoint_steps,
            loggers=request.logger,
            workers=request.workers,
            accelerator=request.accelerator,
            devices=request.devices,
            nodes=request.nodes,
            # A bar in a log file would be one line of thousands.
            progress=sys.stderr.isatty() and not request.json,
            on_epoch=lambda row: echo(str(row), err=True),
            log=lambda line: echo(line, err=True),
        ),
        **{name: getattr(request, name) for name in ("epochs", "batch_size", "lr", "seed", "augment", "precision")},
    )


def _print_result(request: FineTuneRequest, tuned: FineTuned) -> None:
    rows: list[dict[str, object]] = [asdict(row) for row in tuned.history]
    if request.json:
        facts = {"output": str(request.out), "run": str(request.folder), "history": rows}
        echo_json(facts)
        return
    first, last = tuned.history[0], tuned.history[-1]
    size = request.out.stat().st_size / 1e6
    echo(f"Wrote {request.out} ({size:,.1f} MB); history and gallery are in {request.folder}.")
    epochs = amount(last.epoch, "epoch")
    if last.accuracy is not None and first.accuracy is not None:
        echo(f"Accuracy {first.accuracy:.2%} before, {last.accuracy:.2%} after {epochs}.")
    if last.cosine is not None and first.cosine is not None:
        echo(f"Cosine to the original's embeddings {first.cosine:.4f} before, {last.cosine:.4f} after {epochs}.")
    if last.bias_share:
        echo(f"Constants make up {last.bias_share:.1%} of the explained outputs: kept biases, embeddings, tokens.")
