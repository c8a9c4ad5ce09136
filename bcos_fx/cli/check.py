"""``bcos-fx check``: whether a network can be explained, and whether two networks compute the same function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from bcos_fx.cli import values
from bcos_fx.cli.console import console, echo, echo_json
from bcos_fx.cli.failure import CHECK_FAILED
from bcos_fx.cli.options import argument, option, takes
from bcos_fx.errors import UsageError

if TYPE_CHECKING:
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
"""Kind of a file that is not a converted network -> what to do."""
EPILOG = """Examples:

bcos-fx check resnet50.bcos.safetensors

bcos-fx check resnet50.pth --arch torchvision:resnet50

bcos-fx check siamese.bcos.safetensors --source before --source after

bcos-fx check graph.bcos.safetensors --batch-axis none

bcos-fx check resnet50.pth resnet50.bcos.safetensors --arch torchvision:resnet50

Exit code 0: equal, and dynamic linear. 1: different, or nothing that was run could have found a difference; or not
dynamic linear, or contributions do not add up. Alone, a network that was fine-tuned since need not be equal.
"""


@dataclass(frozen=True)
class CheckRequest:
    """One check, as asked for on the command line."""

    first: Path = argument(default=..., metavar="A", help="A converted network; or, with B, the original.")
    second: Path | None = argument(metavar="B", help="A converted network, to be compared with A.")
    arch: str | None = option(help="The network that A's weights belong to, as for convert, if A is a checkpoint.")
    key: str | None = option(help="Where in a nested checkpoint A's weights are.")
    trust_pickle: bool = option(
        "--trust-pickle", default=False, help="Open A though it is a pickled module. For files of your own only."
    )
    output_key: str | None = option(help="Which part of A's output B was converted for, as for convert.")
    input_shape: str | None = option(
        metavar="C,H,W", help="What A takes, without the batch, where it is checked alone and its layers do not tell."
    )
    source: list[str] | None = option(
        metavar="NAME",
        help="What A would be explained by, where it is checked alone: an input or a layer by name. What does not "
        "depend on it is a constant or a weight. Repeatable: by several at once. Left out: the main input.",
    )
    batch_axis: str | None = option(
        metavar="AXIS",
        help="Which dimension of the first input holds the samples, where it is not the first: its number, or none "
        "where an input is one sample as a whole, such as a graph's nodes.",
    )
    json: bool = option("--json", default=False, help="The result as JSON on stdout, and nothing else.")


@takes(CheckRequest)
def check_network(request: CheckRequest) -> None:
    """Check that a network can be explained; with B, that A and B compute the same function.

    Of a converted network alone: that its file is whole, and what was proved of it when it was converted.

    A dynamic linear network computes W(x)·x + constants, so W(x) explains its output. The check names each operation
    that breaks this and each constant that contributes, and measures in float64 whether contributions add up to the
    output. An ordinary network is checked alone with --arch.

    Two networks are compared on made-up inputs in float64: outputs in several batch and image sizes, and input
    gradients. A network that was converted with B > 1 or without biases is another function on purpose: expect
    "different" for it.
    """
    from bcos_fx.checkpoint import identify

    axis = values.axis(request.batch_axis)
    if request.second is not None:
        if request.source:
            raise UsageError("--source is for a network that is checked alone", hint="leave it out, or leave B out")
        outcome, facts = _compare(request, request.second, axis)
    # A damaged file may be one of ours, and our reader's error names the damaged part.
    elif request.arch is None or identify(request.first).kind in ("bcos-fx", "damaged"):
        outcome, facts = _check_converted(request, axis)
    else:
        outcome, facts = _check_unconverted(request, axis)
    if request.json:
        echo_json(facts)
    if outcome != "equal":
        raise typer.Exit(CHECK_FAILED)


def _check_converted(request: CheckRequest, batch_axis: int | None) -> tuple[str, dict[str, object]]:
    path = request.first
    network = read_artifact(path)
    from bcos_fx.cli import linear
    from bcos_fx.report.sentences import drift_sentence, verdict

    report = network.report
    proved = verdict(report)
    certification = linear.certified(network, source=request.source or None, batch_axis=batch_axis)
    if not request.json:
        echo(f"{path}: whole; its contents fit their checksum")
        echo(f"recipe {report.recipe}, {report.coverage.share:.1%} of the parameters in question are B-cos")
        verification = report.figures.verification
        echo(f"equivalence when it was converted: {verification['detail'] if verification is not None else proved}")
        echo(drift_sentence(report))
        linear.show(certification)
        linear.advise(certification)
        if verification is None and not report.figures.trained:
            echo(f"To verify it, compare it with its original: bcos-fx check ORIGINAL {path}")
    # A proof holds for the weights that it was run with, which training has changed since.
    equivalence = "equal" if report.figures.trained else proved
    return equivalence if linear.passes(certification) else "not dynamic linear", {
        "file": str(path),
        "intact": True,
        "verdict": proved,
        "recipe": report.recipe,
        "verification": report.figures.verification,
        "certificate": certification.to_dict(),
    }


def _check_unconverted(request: CheckRequest, batch_axis: int | None) -> tuple[str, dict[str, object]]:
    from bcos_fx.cli import linear
    from bcos_fx.cli.network import read_network

    module = read_network(request.first, arch=request.arch, key=request.key, trust_pickle=request.trust_pickle)
    shape = values.shape(request.input_shape)
    certification = linear.certified(module, shape=shape, source=request.source or None, batch_axis=batch_axis)
    if not request.json:
        linear.show(certification)
    facts: dict[str, object] = {"file": str(request.first), "certificate": certification.to_dict()}
    return "equal" if linear.passes(certification) else "not dynamic linear", facts


def read_artifact(path: Path) -> BcosNetwork:
    """Read a converted network; raises as :func:`converted_file`, or ArtifactError for a damaged file."""
    from bcos_fx.artifact import load

    return load(converted_file(path))


def converted_file(path: Path) -> Path:
    """Return the file of a converted network, as :func:`local_file` finds it; UsageError if it is something else."""
    from bcos_fx.checkpoint import identify

    path = local_file(path)
    kind = identify(path)
    if kind.kind == "bcos-fx" or "bcos_fx" in kind.details.get("metadata", ()):  # load() names the damaged part
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


def _compare(request: CheckRequest, second: Path, batch_axis: int | None) -> tuple[str, dict[str, object]]:
    from bcos_fx.cli import linear
    from bcos_fx.report.sentences import drift_sentence, overall
    from bcos_fx.verification import verify

    network = read_artifact(second)
    original, encoded = _read_original(request)
    # Two converted networks take the same images; an ordinary original takes normalized ones, as verify() makes them.
    if batch_axis == 0:
        result = verify(original, network, transform=(lambda x: x) if encoded else None)
    else:
        result = linear.compared_whole(original, network, batch_axis, encoded=encoded)
    outcome = overall(result.to_dict())
    if not request.json:
        _show(request.first, second, result, outcome)
        if outcome == "different" and network.report.figures.total_drift is not None:
            echo(f"{second} was converted by rules that change the function. {drift_sentence(network.report)}")
    return outcome, {
        "a": str(request.first),
        "b": str(second),
        "verdict": outcome,
        "verification": result.to_dict(),
    }


def _read_original(request: CheckRequest) -> tuple[nn.Module, bool]:
    """Return the network to compare with, and whether it takes images as a converted one does."""
    from bcos_fx.checkpoint import identify
    from bcos_fx.cli.network import read_network
    from bcos_fx.verification.original import NormalizedModel

    path = local_file(request.first)
    if identify(path).kind == "bcos-fx":
        return read_artifact(path), True
    module = read_network(path, arch=request.arch, key=request.key, trust_pickle=request.trust_pickle)
    part = values.key(request.output_key)
    return (module if part is None else NormalizedModel(module, output_key=part)), False


def _show(first: Path, second: Path, result: Verification, outcome: str) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("what was run", "error", "scale", "output varies by", "relative error", "verdict"):
        table.add_column(title)
    for row in result.comparisons:
        figures = (f"{value:.1e}" for value in (row.error, row.scale, row.spread, row.relative))
        table.add_row(row.name, *figures, row.verdict)
    stdout = console()
    stdout.print(Text(f"{first} against {second}, in {str(result.dtype).removeprefix('torch.')}", style="bold cyan"))
    stdout.print(table)
    stdout.print(Text(result.detail, style={"equal": "green", "not tested": "yellow", "different": "red"}[outcome]))
