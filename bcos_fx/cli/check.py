"""``bcos-fx check``: whether a network can be explained, and whether two networks compute the same function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcos_fx.cli.console import echo, echo_json
from bcos_fx.cli.failure import CHECK_FAILED
from bcos_fx.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from bcos_fx.network import BcosNetwork
    from bcos_fx.verification import Verification

NAME = "check"
_PUBLISHED = "model.safetensors"
_ADVICE = {
    **dict.fromkeys(
        ("state-dict", "nested-checkpoint", "safetensors", "sharded", "pickled-module"),
        "convert it first: bcos-fx convert FILE --arch NAME; check takes --arch too",
    ),
    **dict.fromkeys(
        ("onnx", "torchscript", "exported-program", "hdf5", "gguf"),
        "convert the PyTorch checkpoint that it came from: bcos-fx convert",
    ),
    "image": "name the network first, a file that bcos-fx convert wrote, and then the photographs",
    **dict.fromkeys(("empty", "damaged"), "copy or download the file again"),
}
"""Kind of a file that is no converted network -> what to do."""
EPILOG = """Examples:

bcos-fx check resnet50.bcos.safetensors

bcos-fx check resnet50.pth --arch torchvision:resnet50

bcos-fx check siamese.bcos.safetensors --source before --source after

bcos-fx check graph.bcos.safetensors --batch-axis none

bcos-fx check resnet50.pth resnet50.bcos.safetensors --arch torchvision:resnet50

Exit code 0: equal, and dynamic linear. 1: different, or nothing that was run could have found a difference; or not
dynamic linear, or contributions do not add up. Alone, a network that was fine-tuned since need not be equal.
"""


def check_network(
    first: Annotated[Path, typer.Argument(metavar="A", help="A converted network; or, with B, the original.")],
    second: Annotated[
        Path | None, typer.Argument(metavar="B", help="A converted network, to be compared with A.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="The network that A's weights belong to, as for convert, if A is a checkpoint.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Where in a nested checkpoint A's weights are.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Open A though it is a pickled module. For files of your own only.")
    ] = False,
    output_key: Annotated[
        str | None, typer.Option(help="Which part of A's output B was converted for, as for convert.")
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W",
            help="What A takes, without the batch, where it is checked alone and its layers do not tell.",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What A would be explained by, where it is checked alone: an input or a layer by name. What does not "
            "depend on it is a constant or a weight. Repeatable: by several at once. Left out: the main input.",
        ),
    ] = None,
    batch_axis: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS",
            help="Which dimension of the first input holds the samples, where it is not the first: its number, or none "
            "where an input is one sample as a whole, such as a graph's nodes.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout, and nothing else.")] = False,
) -> None:
    """Check that a network can be explained; with B, that A and B compute the same function.

    Of a converted network alone: that its file is whole, and what was proved of it when it was converted.

    A dynamic linear network computes W(x)·x + constants, so W(x) explains its output. The check names each operation
    that breaks this and each constant that contributes, and measures in float64 whether contributions add up to the
    output. An ordinary network is checked alone with --arch.

    Two networks are compared on made-up inputs in float64: outputs in several batch and image sizes, and input
    gradients. A network that was converted with B > 1 or without biases is another function on purpose: expect
    "different" for it.
    """
    from bcos_fx.cli import values

    asked: dict[str, Any] = {"source": source or None, "batch_axis": values.axis(batch_axis)}
    if second is None:
        reading = {"arch": arch, "key": key, "trust_pickle": trust_pickle}
        if _is_ours(first, arch):
            found, facts = _alone(first, asked, json=json)
        else:
            found, facts = _unconverted(first, reading, asked, input_shape, json=json)
    elif source:
        raise UsageError("--source is for a network that is checked alone", hint="leave it out, or leave B out")
    else:
        reading = {"arch": arch, "key": key, "trust_pickle": trust_pickle, "output_key": output_key}
        found, facts = _against(first, second, reading, asked["batch_axis"], json=json)
    if json:
        echo_json(facts)
    if found != "equal":
        raise typer.Exit(CHECK_FAILED)


def _alone(path: Path, asked: dict[str, Any], *, json: bool) -> tuple[str, dict[str, Any]]:
    network = read_artifact(path)
    from bcos_fx.cli import linear
    from bcos_fx.report.sentences import drift_sentence, verdict

    report = network.report
    found = verdict(report)
    certification = linear.certified(network, **asked)
    if not json:
        echo(f"{path}: whole; its contents fit their checksum")
        echo(f"recipe {report.recipe}, {report.coverage.share:.1%} of the parameters in question are B-cos")
        measured = report.figures.verification
        echo(f"equivalence when it was converted: {measured['detail'] if measured is not None else found}")
        echo(drift_sentence(report))
        linear.show(certification)
        linear.advise(certification)
        if measured is None and not report.figures.trained:
            echo(f"To verify it, compare it with its original: bcos-fx check ORIGINAL {path}")
    # What was proved of other weights says nothing about these.
    proved = "equal" if report.figures.trained else found
    return proved if linear.passes(certification) else "not dynamic linear", {
        "file": str(path),
        "intact": True,
        "verdict": found,
        "recipe": report.recipe,
        "verification": report.figures.verification,
        "certificate": certification.to_dict(),
    }


def _is_ours(path: Path, arch: str | None) -> bool:
    """Return whether to read a file as a converted network: it is one, or nothing tells how else to read it."""
    from bcos_fx.checkpoint import identify

    return arch is None or identify(path).kind in ("bcos-fx", "damaged")


def _unconverted(
    path: Path, reading: dict[str, Any], asked: dict[str, Any], input_shape: str | None, *, json: bool
) -> tuple[str, dict[str, Any]]:
    from bcos_fx.cli import linear, values
    from bcos_fx.cli.network import read_network

    certification = linear.certified(read_network(path, **reading), shape=values.shape(input_shape), **asked)
    if not json:
        linear.show(certification)
    passes = linear.passes(certification)
    return "equal" if passes else "not dynamic linear", {"file": str(path), "certificate": certification.to_dict()}


def read_artifact(path: Path) -> BcosNetwork:
    """Read a converted network; raises as :func:`converted_file`, or ArtifactError for a damaged file."""
    from bcos_fx.artifact import load

    return load(converted_file(path))


def converted_file(path: Path) -> Path:
    """Return the file of a converted network, as :func:`local_file` finds it; UsageError if it is something else."""
    from bcos_fx.checkpoint import identify

    path = local_file(path)
    kind = identify(path)
    if kind.kind == "bcos-fx" or "bcos_fx" in kind.details.get("metadata", ()):  # a damaged one says where it is
        return path
    hint = _ADVICE.get(kind.kind, "give a file that bcos-fx convert wrote, or hf:user/name")
    raise UsageError(f"this is not a converted network but {kind.summary}", where=str(path), hint=hint)


def local_file(path: Path) -> Path:
    """Return the file of a network: of ``hf:user/name`` in the cache, of a folder that is published the one in it."""
    name = path.as_posix()
    if (path / _PUBLISHED).is_file():
        return path / _PUBLISHED
    if not name.startswith("hf:") or path.exists():
        return path
    from bcos_fx.hub import weights_of

    return weights_of(name.removeprefix("hf:"))


def _against(
    first: Path, second: Path, reading: dict[str, Any], batch_axis: int | None, *, json: bool
) -> tuple[str, dict[str, Any]]:
    from bcos_fx.cli import linear
    from bcos_fx.report.sentences import drift_sentence, overall
    from bcos_fx.verification import verify

    network = read_artifact(second)
    original, encoded = _original(first, **reading)
    if batch_axis == 0:
        result = verify(original, network, transform=(lambda x: x) if encoded else None)
    else:
        result = linear.compared_whole(original, network, batch_axis, encoded=encoded)
    found = overall(result.to_dict())
    if not json:
        _show(first, second, result, found)
        if found == "different" and network.report.figures.total_drift is not None:
            echo(f"{second} was converted by rules that change the function. {drift_sentence(network.report)}")
    return found, {"a": str(first), "b": str(second), "verdict": found, "verification": result.to_dict()}


def _original(
    path: Path, arch: str | None, key: str | None, trust_pickle: bool, output_key: str | None
) -> tuple[nn.Module, bool]:
    """Return the network to compare with, and whether it takes images as a converted one does."""
    from bcos_fx.checkpoint import identify
    from bcos_fx.cli import values
    from bcos_fx.cli.network import read_network
    from bcos_fx.verification.original import NormalizedModel

    path = local_file(path)
    if identify(path).kind == "bcos-fx":
        return read_artifact(path), True
    module = read_network(path, arch=arch, key=key, trust_pickle=trust_pickle)
    part = values.key(output_key)
    return (module if part is None else NormalizedModel(module, output_key=part)), False


def _show(first: Path, second: Path, result: Verification, found: str) -> None:
    from rich.text import Text

    from bcos_fx.cli.console import console

    stdout = console()
    stdout.print(Text(f"{first} against {second}, in {str(result.dtype).removeprefix('torch.')}", style="bold cyan"))
    stdout.print(_comparisons(result))
    stdout.print(Text(result.detail, style={"equal": "green", "not tested": "yellow", "different": "red"}[found]))


def _comparisons(result: Verification) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("what was run", "error", "scale", "output varies by", "relative error", "verdict"):
        table.add_column(title)
    for row in result.comparisons:
        figures = (f"{value:.1e}" for value in (row.error, row.scale, row.spread, row.relative))
        table.add_row(row.name, *figures, row.verdict)
    return table
