"""A page of explanations: one HTML file that needs nothing else, no network and no server."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from importlib import resources

from PIL import Image

from bcos_fx.explanation.colour import images, photograph, signed, to_image
from bcos_fx.explanation.result import Explanation
from bcos_fx.explanation.tokens import spans

_TOP, _LARGEST, _SIDE = 5, 5, 224


def page(cards: Sequence[str], *, title: str = "Explanations", above: str = "") -> str:
    """Return an HTML document of cards, as :func:`cards` makes them.

    All texts are escaped, so file and class names may hold anything.

    Args:
        cards: HTML.
        title: text.
        above: HTML that comes before the cards.
    """
    template = resources.files("bcos_fx.explanation").joinpath("gallery.html").read_text(encoding="utf-8")
    before, after = template.split("{{cards}}")
    facts = {"{{title}}": html.escape(title), "{{count}}": str(len(cards)), "{{above}}": above}
    for name, text in facts.items():
        before, after = before.replace(name, text), after.replace(name, text)
    return "\n".join([before, *cards, after])


def fragment(explanation: Explanation) -> str:
    """Return the first samples' cards for a notebook, without a document around them."""
    style = "display:flex;flex-wrap:wrap;gap:12px;font-family:sans-serif;font-size:13px"
    shown = explanation[: min(len(explanation), _TOP)]
    return f'<div style="{style}">{"".join(cards(shown))}</div>'


def cards(explanation: Explanation, labels: Sequence[str] = ()) -> list[str]:
    """Return a card for each sample.

    Args:
        explanation: of images, or of anything else, which is then told in numbers.
        labels: what each sample is called, a file's name say.
    """
    return [
        _card(explanation[sample], labels[sample] if sample < len(labels) else f"sample {sample}")
        for sample in range(len(explanation))
    ]


def _card(sample: Explanation, label: str) -> str:
    target = sample.target_name(0)
    pieces = [f"<figcaption><b>{html.escape(label)}</b></figcaption>", _views(sample, label)]
    if not sample.complete:
        pieces.append('<p class="wrong">INCOMPLETE: contributions do not add up to the output</p>')
    pieces += [_sums(sample), _constants(sample), _scores(sample)]
    pieces += [f'<p class="note">{html.escape(note)}</p>' for note in sample.notes]
    words = html.escape(f"{label} {target}".lower(), quote=True)
    confidence = float(sample.output.flatten()[0])
    data = f'data-words="{words}" data-target="{html.escape(target, quote=True)}" data-output="{confidence:.6g}"'
    return f'<figure class="card" {data}>{"".join(pieces)}</figure>'


def _views(sample: Explanation, label: str) -> str:
    """The input, and each target's picture; or its tokens."""
    if sample.tokens is not None:
        return spans(sample)
    if sample.encoded.dim() != 4:
        return ""
    given = photograph(sample, 0)
    shown = [("input", given)] if given is not None else []
    shown += [(sample.target_name(place), picture) for place, picture in enumerate(images(sample))]
    if sample.colours and not sample.several:
        shown.append(("contributions", to_image(signed(sample.contributions.float().cpu())[0])))
    tags = [
        f'<div class="view"><img src="{data_uri(picture)}" alt="{html.escape(f"{name}: {label}", quote=True)}" '
        f'width="{_SIDE}"><span>{html.escape(name)}</span></div>'
        for name, picture in shown
    ]
    return f'<div class="views">{"".join(tags)}</div>'


def data_uri(picture: Image.Image) -> str:
    """Return a picture as text that a page can hold in place of an address; small ones are enlarged."""
    if max(picture.size) < _SIDE:  # a browser would blur small images
        factor = -(-_SIDE // max(picture.size))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sums(sample: Explanation) -> str:
    output, constants, residual = sample.output.flatten(), sample.constants.total().flatten(), sample.residual.flatten()
    rows = []
    for place in range(len(output)):
        own = float(output[place] - constants[place] - residual[place])
        numbers = (float(output[place]), own, float(constants[place]))
        cells = "".join(f"<td>{number:.4g}</td>" for number in numbers)
        rows.append(
            f"<tr><th>{html.escape(sample.target_name(place))}</th>{cells}<td>{float(residual[place]):.1e}</td></tr>"
        )
    head = "<tr><th></th><th>output</th><th>input</th><th>constants</th><th>residual</th></tr>"
    return f'<table class="sums">{head}{"".join(rows)}</table>'


def _constants(sample: Explanation) -> str:
    largest = sample.constants.largest(_LARGEST)
    if not largest:
        return "<p>No constant contributes.</p>"
    items = "".join(f"<li>{html.escape(source)}: {value:+.3g}</li>" for source, value in largest)
    return f"<details><summary>{len(sample.constants)} constants</summary><ul>{items}</ul></details>"


def _scores(sample: Explanation) -> str:
    if sample.scores is None:
        return ""
    values, classes = sample.scores[0].float().cpu().topk(min(_TOP, sample.scores.shape[1]))
    rows = "".join(
        f"<tr><th>{html.escape(sample.name(int(index)))}</th><td>{float(value):.4g}</td></tr>"
        for value, index in zip(values, classes, strict=True)
    )
    return f"<details open><summary>highest outputs</summary><table>{rows}</table></details>"
