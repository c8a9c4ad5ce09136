"""``bcos-fx embed``: texts or class names to a file of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bcos_fx.cli.console import echo
from bcos_fx.cli.options import Overwrite
from bcos_fx.cli.text_options import TEMPLATES, TOWERS, TextOptions
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.files import check_target

NAME = "embed"
EPILOG = """Examples:

bcos-fx embed classes.txt --text-tower open_clip:RN50-quickgelu@openai --templates imagenet -o classes.safetensors

bcos-fx embed --text "a green bird" --text sky --text-tower minilm -o texts.safetensors

Exit code 0: written. 2: bad input.
"""


def embed_texts(
    classes: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CLASSES]", help="Class names: one a line, a JSON list, or a JSON object from index to name."
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; repeatable.")] = None,
    text_tower: Annotated[str | None, typer.Option(help=f"What embeds them: {TOWERS}.")] = None,
    templates: Annotated[
        str | None,
        typer.Option(help=f"Sentences that names are put into: {TEMPLATES}. Left out: names are taken as they are."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")] = Path("texts.safetensors"),
    force: Overwrite = False,
) -> None:
    """Embed texts or class names with a frozen text tower, for explain --text-embeddings and evaluate.

    Each class is the normalized mean of its prompts' normalized embeddings. What was embedded before is taken from a
    cache in the user's cache folder (XDG_CACHE_HOME).
    """
    from bcos_fx.cli.texts import embedded
    from bcos_fx.data.classes import read_classes

    if classes is None and not text:
        hint = 'name a file of class names, such as classes.txt, or give texts, such as --text "a green bird"'
        raise UsageError("there is nothing to embed", hint=hint)
    if classes is not None and text:
        raise UsageError("a file of class names and --text were both given", hint="leave one of them out")
    check_target(out, overwrite=force)
    names = read_classes(classes) if classes is not None else tuple(text or ())
    texts = embedded(TextOptions(names, text_tower, None, templates))
    texts.save(out)
    echo(f"Wrote {out}: {amount(len(texts.names), 'embedding')} of {texts.width} numbers by {texts.tower}.")
