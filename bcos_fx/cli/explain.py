"""``bcos-fx explain``: why a converted network gives its answer for photographs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bcos_fx.cli import values
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


@takes(ExplainRequest)
def explain_images(request: ExplainRequest) -> None:
    """Explain what a converted network says of photographs, and show that the parts add up.

    An output is W(x)·x plus constants. The picture shows W(x) in its own colors, opaque where it speaks for the
    output, beside the contributions in red (for) and blue (against). Images are resized and cropped to the network's
    size; one that cannot be read is skipped, and listed at the end.

    A network that was not fine-tuned after conversion is explained as faithfully, but its pictures are noisy.
    """
    from bcos_fx.cli.sums import print_sums
    from bcos_fx.data.stores import open_source
    from bcos_fx.explanation.render.saving import Collector

    network = _read_network(request)
    arguments = _explain_arguments(request, network)
    data = open_source(request.images)
    place = request.out
    if place is None and not request.json:
        place = Path("explanation.png" if len(data) <= _IN_A_FIGURE else "explanation.html")
    files = {} if place is None else _files(place, request.source or [])
    collectors = {name: Collector(path, _style(request), overwrite=request.force) for name, path in files.items()}
    rows, skipped = _explain_all(network, data, arguments, collectors, request)
    if request.json:
        written = {name or "": str(path) for name, path in files.items()}
        files_written = {"files": written} if len(written) > 1 else {"file": next(iter(written.values()), None)}
        echo_json({**files_written, "images": [row for row, _ in rows], "skipped": skipped})
    else:
        print_sums(rows, files.values(), len(data))
    list_skipped(skipped)
    if not all(complete for _, complete in rows):
        raise typer.Exit(CHECK_FAILED)


def _style(request: ExplainRequest) -> Style:
    from bcos_fx.explanation.render.style import Style

    panels = None if request.panels is None else tuple(name.strip() for name in request.panels.split(","))
    chosen = {name: getattr(request, name) for name in ("overlay", "cmap", "size", "font", "font_size")}
    return Style(panels=panels, **chosen)


def _explain_arguments(request: ExplainRequest, network: BcosNetwork) -> dict[str, Any]:
    """Return the keyword arguments of :func:`bcos_fx.explain`."""
    from bcos_fx.data.classes import read_classes

    names: tuple[str, ...] | None = None
    texts = TextOptions(tuple(request.text or ()), request.text_tower, request.text_embeddings, request.templates)
    if texts != TextOptions():
        if request.target is not None or request.against is not None or request.classes is not None:
            raise UsageError("classes and texts were asked for", hint="leave --target, --against and --classes out")
        from bcos_fx.cli.texts import text_target

        target: object = text_target(texts, power=request.power, location=request.location)
    else:
        names = None if request.classes is None else read_classes(request.classes)
        # Only the network's own outputs are its classes: the channels of an inner layer are not.
        recorded = network.record.classes if request.output in (None, "logits") else ()
        names = names or recorded or None
        target = _read_target(request.target, request.against, names)
    return {
        "target": target,
        "names": names,
        "output": request.output,
        "source": request.source or None,
        "batch_axis": values.axis(request.batch_axis),
        "channel_axis": request.channel_axis,
        "allow_incomplete": request.allow_incomplete,
    }


def _read_network(request: ExplainRequest) -> BcosNetwork:
    """Read a converted network; or a published checkpoint, which is converted as it is."""
    from bcos_fx.cli.check import read_artifact
    from bcos_fx.cli.network import device_of
    from bcos_fx.rewriting.core.recipe import DEFAULT_RECIPE, find_recipe

    model, arch, recipe, device = request.model, request.arch, request.recipe, device_of(request.device)
    if recipe is not None:
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

    module = read_network(model, arch=arch)
    if origin_of(module) is None:
        raise UsageError(
            "the checkpoint holds no B-cos network, and an unconverted one explains nothing",
            where=str(model),
            hint="bcos-fx convert it first, and fine-tune it",
        )
    return bcosify(module, recipe=recipe or DEFAULT_RECIPE).to(device)


def _read_target(target: str | None, against: str | None, names: tuple[str, ...] | None) -> object:
    from bcos_fx.explanation.targets import difference, named

    index = None if target is None else named(_number(target), names)
    # A class may be called so itself.
    if against == _OTHERS and against not in (names or ()):
        if not isinstance(index, int | None):
            raise UsageError(
                f"--against {_OTHERS} is of one class", hint="name it with --target, or leave --target out"
            )
        return difference(index)
    if against is None:
        return index
    other = named(_number(against), names, (_OTHERS,))
    if not isinstance(index, int) or not isinstance(other, int):
        raise UsageError(
            "--against compares two classes",
            hint=f"name one class with --target and one with --against, or give --against {_OTHERS}",
        )
    return difference(index, other)


def _number(text: str) -> int | str | tuple[int, ...]:
    """Parse an index, the place of one unit such as 3,120,88 (class, row, column), or a name."""
    parts = text.split(",")
    if len(parts) > 1 and all(part.strip().isdecimal() for part in parts):
        return tuple(int(part) for part in parts)
    return index_or_name(text)


def _explain_all(
    network: BcosNetwork,
    data: ImageSource,
    arguments: dict[str, Any],
    collectors: Mapping[str | None, Collector],
    request: ExplainRequest,
) -> tuple[list[tuple[dict[str, Any], bool]], dict[str, str]]:
    """Explain in batches; a gallery keeps the pictures only, so thousands of images fit into memory."""
    from bcos_fx.cli.progress import counted
    from bcos_fx.cli.sums import row_of
    from bcos_fx.data.batches import Batches, note_enlarged

    rows: list[tuple[dict[str, Any], bool]] = []
    preprocessing = _preprocessing(network, arguments["batch_axis"])
    note_enlarged(data, preprocessing)
    batches = Batches(data, preprocessing, _BATCH)
    for indices in counted(batches.parts, [len(part) for part in batches.parts], "explaining", quiet=request.json):
        batch = batches.read(indices)
        if batch is None:
            continue
        by_source = _explain_by_sources(network, batch.images.to(next(network.parameters())), arguments)
        files = [Path(data.name(index)).name for index in batch.indices]
        # Blocks change pictures alone; the sums below are those of single pixels.
        for name, explanation in by_source.items():
            if name in collectors:
                drawn = explanation.in_blocks(request.blocks) if request.blocks > 1 else explanation
                collectors[name].add(drawn, files)
        for place, index in enumerate(batch.indices):
            rows.append(row_of({name: whole[place] for name, whole in by_source.items()}, data.where(index)))
    # Some unreadable images are listed at the end; without a readable one there is nothing to write.
    batches.check_readable()
    for collector in collectors.values():
        collector.close()
    return rows, batches.skipped


def _files(place: Path, sources: list[str]) -> dict[str | None, Path]:
    """Name of a source -> its file; None stands for the main input. Several have a file each, with their name in it."""
    if len(sources) < 2:
        return {name: place for name in sources or (None,)}
    return {
        name: place.with_name(f"{place.stem}.{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}{place.suffix}") for name in sources
    }


def _preprocessing(network: BcosNetwork, batch_axis: int | None) -> Preprocessing:
    """Return how images become what the network takes."""
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


def _explain_by_sources(
    network: BcosNetwork, images: Tensor, arguments: dict[str, Any]
) -> dict[str | None, Explanation]:
    """Name of a source -> the explanation of images (N, C, H, W) by it; None stands for the main input."""
    from bcos_fx.explanation.explain import explain
    from bcos_fx.explanation.explanation import Explanation

    axis = arguments["batch_axis"]
    # Where a photograph is the whole input, the network takes one at a time.
    inputs = list(images) if axis is None else [images.movedim(0, axis)]
    by_input: list[dict[str | None, Explanation]] = []
    for given in inputs:
        explained: Any = explain(network, given, **arguments)
        by_input.append({None: explained} if isinstance(explained, Explanation) else dict(explained))
    if axis is not None:
        return by_input[0]
    return {name: Explanation.joined([parts[name] for parts in by_input]) for name in by_input[0]}
