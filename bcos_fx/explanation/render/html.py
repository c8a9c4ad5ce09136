"""A page of explanations: one HTML file that needs nothing else, no network and no server."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources

import torch
from PIL import Image

from bcos_fx.escaping import amount, shown_in_html
from bcos_fx.explanation.render.color import background, images, overlaid, planes, portrait, signed, to_image
from bcos_fx.explanation.render.tokens import spans
from bcos_fx.explanation.result import Result

_TOP, _LARGEST, _SIDE, _SPANS = 5, 5, 224, 256


def page(cards: Sequence[str], *, title: str = "Explanations", above: str = "") -> str:
    """Return an HTML document of cards, as :func:`cards` makes them.

    All texts are escaped, so file and class names may hold anything.

    Args:
        cards: HTML.
        title: text.
        above: HTML that comes before the cards.
    """
    template = resources.files("bcos_fx.explanation.render").joinpath("gallery.html").read_text(encoding="utf-8")
    # Split first: cards may hold the words that are replaced in the template.
    before, after = template.split("{{cards}}")
    facts = {"{{title}}": shown_in_html(title), "{{count}}": str(len(cards)), "{{above}}": above}
    for name, text in facts.items():
        before, after = before.replace(name, text), after.replace(name, text)
    return "\n".join([before, *cards, after])


def fragment(explanation: Result) -> str:
    """Return the first samples' cards for a notebook, without a document around them."""
    style = "display:flex;flex-wrap:wrap;gap:12px;font-family:sans-serif;font-size:13px"
    shown = explanation[: min(len(explanation), _TOP)]
    return f'<div style="{style}">{"".join(cards(shown))}</div>'


def cards(explanation: Result, labels: Sequence[str] = (), *, overlay: bool = False) -> list[str]:
    """Return a card for each sample and each of its targets.

    Args:
        explanation: of images; explanations of anything else are shown as numbers.
        labels: a name for each sample, such as its file's.
        overlay: draw maps over the photograph, which is drawn in gray.

    Raises:
        UsageError: an overlay is wanted, and the input is not a photograph.
    """
    targets = explanation.output.shape[1] if explanation.several else 1
    return [
        _card(explanation[sample].of_target(place), _label(sample, labels, len(explanation)), overlay)
        for sample in range(len(explanation))
        for place in range(targets)
    ]


def _label(sample: int, labels: Sequence[str], samples: int) -> str:
    """Return the name of a sample; a single sample needs no number."""
    return labels[sample] if sample < len(labels) else f"sample {sample}" if samples > 1 else ""


def _card(sample: Result, label: str, overlay: bool) -> str:
    target = sample.target_name()
    heading = f"<b>{shown_in_html(label)}</b> {shown_in_html(target)}" if label else f"<b>{shown_in_html(target)}</b>"
    pieces = [f"<figcaption>{heading}</figcaption>", _views(sample, label, overlay)]
    if sample.warning:
        pieces.append(f'<p class="wrong">{shown_in_html(sample.warning)}</p>')
    pieces += [_sums(sample), _constants(sample), _scores(sample)]
    pieces += [f'<p class="note">{shown_in_html(note)}</p>' for note in sample.notes]
    words = shown_in_html(f"{label} {target}".strip().lower())
    confidence = float(sample.output.flatten()[0])
    data = f'data-words="{words}" data-target="{shown_in_html(target)}" data-output="{confidence:.6g}"'
    return f'<figure class="card" {data}>{"".join(pieces)}</figure>'


def _views(sample: Result, label: str, overlay: bool) -> str:
    """Render the input, the target's picture and its contributions in one row, or the tokens."""
    if sample.tokens is not None or (len(sample.axes) == 1 and sample.contributions.shape[-1] <= _SPANS):
        return spans(sample)
    tags = [
        f'<div class="view" style="flex:0 1 {_SIDE}px;min-width:0"><img src="{data_uri(picture)}" '
        f'alt="{shown_in_html(f"{name}: {label}")}" width="{_SIDE}" style="max-width:100%;height:auto">'
        f"<span>{shown_in_html(name)}</span></div>"
        for name, picture in _pictures(sample, overlay)
    ]
    return f'<div class="views" style="display:flex;gap:.6rem">{"".join(tags)}</div>'


def _pictures(sample: Result, overlay: bool) -> list[tuple[str, Image.Image]]:
    if len(sample.axes) == 1:  # a strip as high as an eighth of its length
        values = sample.contributions[0].flatten().float().cpu()
        return [("contributions", to_image(signed(values.expand(1, max(1, len(values) // 8), -1))[0]))]
    if len(sample.axes) not in (2, 3):
        return []
    given, title = portrait(sample, 0)
    shown = [(title, given)] if given is not None else []
    shown += [(sample.target_name(), images(sample, overlay=overlay)[0])]
    if sample.colors:
        map_ = to_image(signed(planes(sample), opaque=not overlay)[0])
        shown.append(("contributions", overlaid(map_, background(sample, 0)) if overlay else map_))
    return shown


def data_uri(picture: Image.Image) -> str:
    """Return a picture as text that a page can hold in place of an address; small ones are enlarged."""
    if max(picture.size) < _SIDE:  # a browser would blur small images
        # Rounded up, by whole pixels: a fraction would draw some pixels wider than others.
        factor = -(-_SIDE // max(picture.size))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    # Photographs of a camera: optimize=True takes twenty times as long and saves a seventh of the size.
    picture.save(buffer, format="PNG", compress_level=4)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sums(sample: Result) -> str:
    terms = torch.stack([values.flatten() for values in (sample.output, sample.constants.total(), sample.residual)], 1)
    rows = []
    for place, (output, constants, residual) in enumerate(terms):
        cells = "".join(f"<td>{float(n):.4g}</td>" for n in (output, output - constants - residual, constants))
        name = shown_in_html(sample.target_name(place))
        rows.append(f"<tr><th>{name}</th>{cells}<td>{float(residual):.1e}</td></tr>")
    head = "<tr><th></th><th>output</th><th>input</th><th>constants</th><th>residual</th></tr>"
    return f'<table class="sums">{head}{"".join(rows)}</table>'


def _constants(sample: Result) -> str:
    largest = sample.constants.largest(_LARGEST)
    if not largest:
        return "<p>No constant contributes.</p>"
    items = "".join(f"<li>{shown_in_html(source)}: {value:+.3g}</li>" for source, value in largest)
    return f"<details><summary>{amount(len(sample.constants), 'constant')}</summary><ul>{items}</ul></details>"


def _scores(sample: Result) -> str:
    if sample.scores is None:
        return ""
    values, classes = sample.scores[0].float().cpu().topk(min(_TOP, sample.scores.shape[1]))
    rows = "".join(
        f"<tr><th>{shown_in_html(sample.name(int(index)))}</th><td>{float(value):.4g}</td></tr>"
        for value, index in zip(values, classes, strict=True)
    )
    return f"<details open><summary>highest outputs</summary><table>{rows}</table></details>"
