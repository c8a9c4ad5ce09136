"""``bcos-fx publish``: a converted network as a folder for the Hugging Face hub, or on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bcos_fx.cli.console import echo
from bcos_fx.cli.options import Model, Overwrite
from bcos_fx.errors import UsageError
from bcos_fx.files import check_target

NAME = "publish"
EPILOG = """Examples:

bcos-fx publish model.safetensors folder/ --example photo.jpg --measured evaluation/results.json

bcos-fx publish model.safetensors hf:user/name --example photo.jpg --private

Exit code 0: written or uploaded. 2: bad input, or the hub cannot be reached.
"""


def publish_network(
    model: Model,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A folder to write, or hf:user/name to upload to.")],
    example: Annotated[Path | None, typer.Option(help="A photograph whose explanation is shown in the card.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="results.json of bcos-fx evaluate: accuracy and GridPG for the card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository a private one.")] = False,
    force: Overwrite = False,
) -> None:
    """Write a network with a model card as a folder for the hub, or upload it.

    The card states the certificate, the equivalence proof, accuracy and localization, how the network was trained, its
    classes and its license, and shows an explanation.
    """
    from bcos_fx.cli.check import read_artifact
    from bcos_fx.hub import push_to_hub, save_pretrained
    from bcos_fx.hub.repository import CARD, PICTURE, PREFIX, WEIGHTS

    # Before the network is read and explained: what is there is replaced only with --overwrite.
    for path in (Path(target) / name for name in (WEIGHTS, CARD, PICTURE)):
        if path.exists() and not target.startswith(PREFIX):
            check_target(path, overwrite=force)
    network, figures = read_artifact(model), {} if measured is None else _figures(measured)
    if target.startswith(PREFIX):
        name = target.removeprefix(PREFIX)
        echo(f"Uploaded to {push_to_hub(network, name, private=private, example=example, measured=figures)}.")
    else:
        echo(f"Wrote {save_pretrained(network, target, example=example, measured=figures)}.")


def _figures(path: Path) -> dict[str, float | str]:
    """Return accuracy and localization out of the results of an evaluation."""
    from bcos_fx.budgets import TEXT_BYTES, parse_json, read_text

    try:
        results: Any = parse_json(read_text(path, TEXT_BYTES, "the results", UsageError), "the results", UsageError)
        figures = {} if results["accuracy"] is None else {"top-1 accuracy": float(results["accuracy"]["top1"])}
        for result in results["gridpg"]:
            side = result["protocol"]["side"]
            figures[f"GridPG {side}x{side}, {result['method']} (chance {float(result['chance']):.3f})"] = float(
                result["mean"]
            )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        hint = "give results.json out of the folder of bcos-fx evaluate"
        raise UsageError("these are not results of an evaluation", where=str(path), hint=hint) from error
    return dict(figures)
