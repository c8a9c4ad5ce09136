"""From texts on the command line to their embeddings. Imports torch: load it inside commands."""

from __future__ import annotations

from bcos_fx.cli.text_options import TOWERS, TextOptions
from bcos_fx.errors import UsageError, nearest
from bcos_fx.explanation.similarity import Cosine, cosine
from bcos_fx.text.cache import TextCache
from bcos_fx.text.embedding import TextEmbeddings, class_embeddings
from bcos_fx.text.loading import load_text_tower
from bcos_fx.text.templates import PLACE, read_templates


def embedded(asked: TextOptions) -> TextEmbeddings:
    """Return the embeddings of what was named, from a text tower or from a file; of a file without names all.

    Raises:
        UsageError: neither or both of tower and file were named, or the file does not hold a name.
        BcosFxError: the tower or file is not available.
    """
    if asked.stored is None:
        if asked.tower is None:
            raise UsageError(
                "texts need a text tower", hint=f"--text-tower {TOWERS}; or --text-embeddings from bcos-fx embed"
            )
        forms = (PLACE,) if asked.templates is None else read_templates(asked.templates)
        return class_embeddings(load_text_tower(asked.tower), asked.names, forms, cache=TextCache())
    if asked.tower is not None or asked.templates is not None:
        raise UsageError(
            "--text-embeddings were made by a text tower with its templates already",
            hint="leave --text-tower and --templates out",
        )
    stored = TextEmbeddings.load(asked.stored)
    for name in asked.names:
        if name not in stored.names:
            hint = nearest(name, stored.names)
            raise UsageError(f"there is no embedding of {name!r}", where=str(asked.stored), hint=hint)
    places = [stored.names.index(name) for name in asked.names]
    return TextEmbeddings(asked.names, stored.vectors[places], stored.tower, stored.templates) if places else stored


def text_target(asked: TextOptions, *, power: float, location: str | None) -> Cosine:
    """Return the target that explains how much an image is like texts; raises as :func:`embedded`."""
    embeddings = embedded(asked)
    if len(embeddings.names) == 1:  # one number for each image, and a larger picture
        return cosine(embeddings.vectors[0], names=embeddings.names, power=power, location=location)
    return cosine(embeddings, power=power, location=location)
