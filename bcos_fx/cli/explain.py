"""``bcos-fx explain``: why a converted network gives its answer for photographs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bcos_fx.cli.console import echo_json
from bcos_fx.cli.explain_request import ExplainRequest
from bcos_fx.cli.failure import CHECK_FAILED, list_skipped
from bcos_fx.cli.options import takes
from bcos_fx.cli.text_options import TextOptions
from bcos_fx.cli.values import index_or_name
from bcos_fx.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from bcos_fx.data.preprocessing import Preprocessing
    from bcos_fx.data.sources import ImageSource
    from bcos_fx.explanation import Explanation
    from bcos_fx.explanation.render.saving import Collector
    from bcos_fx.explanation.render.style import Style
    from bcos_fx.network import BcosNetwork

NAME = "explain"
EPILOG = """Examples:

bcos-fx explain model.safetensors cat.jpg

bcos-fx explain model.safetensors cat.jpg --target tabby --classes imagenet.txt -o cat.png

bcos-fx explain model.safetensors photos/ more/*.jpg --target top3 -o gallery.html

bcos-fx explain model.safetensors cat.jpg --target 281 --against 285 -o why_tabby.png

bcos-fx explain model.safetensors cat.jpg --against others -o what_sets_it_apart.png

bcos-fx explain segmentation.safetensors street.jpg --target 3,120,88

bcos-fx explain model.safetensors cat.jpg --source layer3 --target tabby

bcos-fx explain clip.safetensors bird.jpg --text "a green bird" --text sky --text-tower open_clip:RN50-quickgelu@openai

Exit code 0: all explained. 1: an image could not be read, or contributions do not add up. 2: bad input.
NOT TESTED stands where hardly anything of an output comes from the image, so that the sum says nothing.
"""
_BATCH, _IN_A_FIGURE = 16, 8
_OTHERS = "others"


@dataclass(frozen=True)
class Question:
    """What is asked of each image.

    Attributes:
        target: as for ``bcos_fx.explain``, or a function for a difference of classes.
        output: what is explained.
        names: class names, or None.
        options: further arguments of ``bcos_fx.explain``.
        sources: names of what it is explained by; empty: the main input.
        batch_axis: the dimension of the input that holds the samples; None: a photograph is the whole input.
        blocks: side of the blocks of pixels that pictures show the mean of.
    """

    target: Any
    output: str | None
    names: tuple[str, ...] | None
    options: dict[str, Any]
    sources: tuple[str, ...] = ()
    batch_axis: int | None = 0
    blocks: int = 1


@takes(ExplainRequest)
def explain_images(request: ExplainRequest) -> None:
    """Explain what a converted network says of photographs, and show that the parts add up.

    An output is W(x)·x plus constants. The picture shows W(x) in its own colors, opaque where it speaks for the
    output, beside the contributions in red (for) and blue (against). Images are resized and cropped to the network's
    size; one that cannot be read is skipped, and listed at the end.

    A network that was not fine-tuned after conversion is explained as faithfully, but its pictures are noisy.
    """
    from bcos_fx.cli.sums import tell
    from bcos_fx.data.stores import open_source
    from bcos_fx.explanation.render.saving import Collector

    network = _network(request)
    question = _question(request, network)
    data = open_source(request.images)
    place = request.out
    if place is None and not request.json:
        place = Path("explanation.png" if len(data) <= _IN_A_FIGURE else "explanation.html")
    places = {} if place is None else _places(place, question)
    collectors = {name: Collector(path, _style(request), overwrite=request.force) for name, path in places.items()}
    found, skipped = _explain_all(network, data, question, collectors, quiet=request.json)
    if request.json:
        written = {name or "": str(path) for name, path in places.items()}
        files_written = {"files": written} if len(written) > 1 else {"file": next(iter(written.values()), None)}
        facts = {**files_written, "images": [row for row, _ in found], "skipped": skipped}
        echo_json(facts)
    else:
        tell(found, places.values(), len(data))
    list_skipped(skipped)
    if not all(complete for _, complete in found):
        raise typer.Exit(CHECK_FAILED)


def _style(request: ExplainRequest) -> Style:
    """Return how the figure is drawn."""
    from bcos_fx.explanation.render.style import Style

    panels = None if request.panels is None else tuple(name.strip() for name in request.panels.split(","))
    chosen = {name: getattr(request, name) for name in ("overlay", "cmap", "size", "font", "font_size")}
    return Style(panels=panels, **chosen)


def _question(request: ExplainRequest, network: BcosNetwork) -> Question:
    """Return what is asked of each image."""
    from bcos_fx.cli import values
    from bcos_fx.data.classes import read_classes

    options = {"channel_axis": request.channel_axis, "allow_incomplete": request.allow_incomplete}
    texts = TextOptions(tuple(request.text or ()), request.text_tower, request.text_embeddings, request.templates)
    target, against, output = request.target, request.against, request.output
    if texts != TextOptions():
        if target is not None or against is not None or request.classes is not None:
            raise UsageError("classes and texts were asked for", hint="leave --target, --against and --classes out")
        question = _asked_by_text(texts, request.power, request.location, output, options)
    else:
        names = None if request.classes is None else read_classes(request.classes)
        own = network.record.classes if output in (None, "logits") else ()  # an inner layer's channels are not classes
        question = _read_question(target, against, names or own or None, output, options)
    sources, axis = tuple(request.source or ()), values.axis(request.batch_axis)
    return replace(question, sources=sources, batch_axis=axis, blocks=request.blocks)


def _network(request: ExplainRequest) -> BcosNetwork:
    """Read a converted network; or a published checkpoint, which is converted as it is.

    Raises:
        UsageError: a recipe beside a converted network, or a checkpoint of no B-cos network.
    """
    from bcos_fx.cli.check import read_artifact
    from bcos_fx.cli.network import device_of

    model, arch, recipe, device = request.model, request.arch, request.recipe, device_of(request.device)
    if recipe is not None:
        from bcos_fx.rewriting.core.recipe import find_recipe

        find_recipe(recipe)
    if arch is None:
        if recipe is not None:
            raise UsageError(
                "--recipe was given for a converted network", hint="--arch names the network of a checkpoint"
            )
        return read_artifact(model).to(device)
    from bcos_fx.checkpoint.published import origin_of
    from bcos_fx.cli.network import read_network
    from bcos_fx.convert import bcosify
    from bcos_fx.rewriting.core.recipe import DEFAULT_RECIPE

    module = read_network(model, arch=arch, key=None, trust_pickle=False)
    if origin_of(module) is None:
        raise UsageError(
            "the checkpoint holds no B-cos network, and an unconverted one explains nothing",
            where=str(model),
            hint="bcos-fx convert it first, and fine-tune it",
        )
    return bcosify(module, recipe=recipe or DEFAULT_RECIPE).to(device)


def _read_question(
    target: str | None,
    against: str | None,
    names: tuple[str, ...] | None,
    output: str | None,
    options: dict[str, Any],
) -> Question:
    from bcos_fx.explanation.targets import difference, named

    wanted = None if target is None else named(_number(target), names)
    if against == _OTHERS and against not in (names or ()):
        if not isinstance(wanted, int | None):
            raise UsageError(
                f"--against {_OTHERS} is of one class", hint="name it with --target, or leave --target out"
            )
        wanted = difference(wanted)
    elif against is not None:
        other = named(_number(against), names, (_OTHERS,))
        if not isinstance(wanted, int) or not isinstance(other, int):
            raise UsageError(
                "--against compares two classes",
                hint=f"name one class with --target and one with --against, or give --against {_OTHERS}",
            )
        wanted = difference(wanted, other)
    return Question(wanted, output, names, options)


def _asked_by_text(
    texts: TextOptions, power: float, location: str | None, output: str | None, options: dict[str, Any]
) -> Question:
    from bcos_fx.cli.texts import text_target

    return Question(text_target(texts, power=power, location=location), output, None, options)


def _number(text: str) -> int | str | tuple[int, ...]:
    """Parse an index, the place of one unit such as 3,120,88 (class, row, column), or a name."""
    parts = text.split(",")
    if len(parts) > 1 and all(part.strip().isdecimal() for part in parts):
        return tuple(int(part) for part in parts)
    return index_or_name(text)


def _explain_all(
    network: BcosNetwork,
    data: ImageSource,
    question: Question,
    collectors: Mapping[str | None, Collector],
    *,
    quiet: bool,
) -> tuple[list[tuple[dict[str, Any], bool]], dict[str, str]]:
    """Explain in batches; a gallery keeps the pictures only, so thousands of images fit into memory."""
    from bcos_fx.cli.progress import counted
    from bcos_fx.cli.sums import row_of
    from bcos_fx.data.batches import Batches, note_enlarged

    found: list[tuple[dict[str, Any], bool]] = []
    preprocessing = _preprocessing(network, question.batch_axis)
    note_enlarged(data, preprocessing)
    batches = Batches(data, preprocessing, _BATCH)
    for part in counted(batches.parts, [len(part) for part in batches.parts], "explaining", quiet=quiet):
        batch = batches.read(part)
        if batch is None:
            continue
        parts = _explain_by_sources(network, batch.images.to(next(network.parameters())), question)
        for name, explanation in parts.items():
            if name not in collectors:
                continue
            collectors[name].add(
                explanation.in_blocks(question.blocks) if question.blocks > 1 else explanation,
                [Path(data.name(index)).name for index in batch.indices],
            )
        found += [
            row_of({name: part[i] for name, part in parts.items()}, data.where(index))
            for i, index in enumerate(batch.indices)
        ]
    batches.check_readable()
    for collector in collectors.values():
        collector.close()
    return found, batches.skipped


def _places(place: Path, question: Question) -> dict[str | None, Path]:
    """Name of a source -> its file; None stands for the main input. Several have a file each, with their name in it."""
    if len(question.sources) < 2:
        return {name: place for name in question.sources or (None,)}
    return {
        name: place.with_name(f"{place.stem}.{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}{place.suffix}")
        for name in question.sources
    }


def _preprocessing(network: BcosNetwork, batch_axis: int | None) -> Preprocessing:
    """Return how images become what the network takes.

    Raises:
        UsageError: it takes something else than one photograph, or has no such batch axis.
    """
    from bcos_fx.cli import values

    inputs = network.record.inputs
    if len(inputs) > 1:
        raise UsageError(
            f"the network takes {len(inputs)} inputs ({', '.join(spec.name for spec in inputs)}), and a photograph is "
            "one of them",
            hint="give all of them by name to bcos_fx.explain from Python",
        )
    shape = list(inputs[0].shape)
    if batch_axis is not None:
        values.in_range(batch_axis, len(shape))
        del shape[batch_axis]
    return inputs[0].preprocessing(tuple(shape))


def _explain_by_sources(network: BcosNetwork, images: Tensor, question: Question) -> dict[str | None, Explanation]:
    """Name of a source -> the explanation of images (N, C, H, W) by it; None stands for the main input."""
    from bcos_fx.explanation.explain import explain
    from bcos_fx.explanation.explanation import Explanation

    axis, sources = question.batch_axis, question.sources
    shared: dict[str, Any] = {"output": question.output, "names": question.names, **question.options}
    if axis is None:  # a photograph is the whole input
        each = [explain(network, image, question.target, batch_axis=None, **_by(sources), **shared) for image in images]
        parts = [_by_source(found, sources) for found in each]
        return {name: Explanation.joined([part[name] for part in parts]) for name in parts[0]}
    given = images.movedim(0, axis)
    return _by_source(explain(network, given, question.target, batch_axis=axis, **_by(sources), **shared), sources)


def _by_source(found: Any, sources: tuple[str, ...]) -> dict[str | None, Explanation]:
    from bcos_fx.explanation.explanation import Explanation

    return {sources[0] if sources else None: found} if isinstance(found, Explanation) else dict(found)


def _by(sources: tuple[str, ...]) -> dict[str, Any]:
    return {"source": sources[0] if len(sources) == 1 else list(sources)} if sources else {}
