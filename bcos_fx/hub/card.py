"""The model card: what a network is, what was proved of it and how it is used, in Markdown with the hub's metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bcos_fx.data.preprocessing import is_photograph
from bcos_fx.escaping import amount, shown_in_a_line
from bcos_fx.explanation.certify import certify
from bcos_fx.network import BcosNetwork
from bcos_fx.network.facts import describe_facts
from bcos_fx.report.sentences import drift_sentence, next_step, verdict
from bcos_fx.report.text import head_rows

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")
_OBEYED = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
_MOST_NAMES = 1000


def card(
    network: BcosNetwork, name: str, *, picture: str | None = None, measured: Mapping[str, float | str] | None = None
) -> str:
    """Return the model card of a network; the same network gives the same text.

    Args:
        network: converted; it is not changed.
        name: of the repository, ``user/name``.
        picture: file beside the card that is shown in it.
        measured: name -> figure, such as ``{"GridPG 3x3": 0.81}``.
    """
    return "\n".join([*_metadata(network), *_body(network, name, picture, measured or {})]) + "\n"


def _metadata(network: BcosNetwork) -> Iterator[str]:
    """Yield the YAML at the top; its texts are written as JSON, which is YAML too."""
    fields: dict[str, Any] = {"library_name": "bcos_fx", "tags": ["b-cos", "explainability", "interpretability"]}
    license = network.record.origin.license if network.record.origin is not None else ""
    if license:
        identifier = _IDENTIFIER.fullmatch(license.lower())
        fields |= {"license": license.lower()} if identifier else {"license": "other", "license_name": license}
    if network.record.classes and is_photograph(network.input_shape):
        fields["pipeline_tag"] = "image-classification"
    yield "---"
    yield from (f"{key}: {json.dumps(value)}" for key, value in fields.items())
    yield "---"


def _body(network: BcosNetwork, name: str, picture: str | None, measured: Mapping[str, float | str]) -> Iterator[str]:
    record, report = network.record, network.report
    yield f"\n# {_text(name)}\n"
    yield (
        "A B-cos network: each output is a dynamic linear function of the image, W(x)·x plus listed constants, so W(x) "
        "explains the output by what the network computed. Converted by bcos\\_fx from an ordinary trained network.\n"
    )
    if picture is not None:
        yield f"![An explanation]({picture})\n"
    step = None if record.training else next_step(report)
    if step is not None:
        yield f"> **{_text(step)}**\n"
    yield "## Use\n"
    yield "```sh\npip install '.[hub]'  # in a clone of the repository of bcos_fx\n"
    yield f"bcos-fx explain {json.dumps(f'hf:{name}')} photo.jpg\n```\n"
    yield "```python\nimport bcos_fx\n"
    yield f"network = bcos_fx.from_pretrained({json.dumps(name)})"
    yield 'e = bcos_fx.explain(network, network.preprocess("photo.jpg"))\ne.plot()\n```\n'
    yield "## What was proved\n"
    yield from _table(_proofs(network))
    figures = [(label, f"{value:.4g}" if isinstance(value, float) else str(value)) for label, value in measured.items()]
    if record.training and record.training[-1].accuracy is not None:
        run = record.training[-1]
        figures.append((f"accuracy on {run.tested_on or 'test images'}", f"{run.accuracy:.2%}"))
    if figures:
        yield "\n## What was measured\n"
        yield from _table(figures)
    yield "\n## The network\n"
    rows = [*describe_facts(record.classes, record.training, record.origin), *head_rows(report)]
    yield from _table(rows)
    if record.classes:
        listed = ", ".join(map(_text, record.classes[:_MOST_NAMES]))
        yield f"\n<details><summary>{amount(len(record.classes), 'class')}</summary>\n\n{listed}\n\n</details>"
    yield (
        "\nThe file is data: reading it runs no code. Its checksum detects damage and is not a signature. An "
        "explanation shows how an answer came about, and not that it is right."
    )


def _proofs(network: BcosNetwork) -> Iterator[tuple[str, str]]:
    report, proof = network.report, network.report.figures.verification
    certificate = certify(network)
    sources = len({constant.source for constant in certificate.constants})
    linear = f"dynamic linear: {certificate.explained} = W(x)·x + {amount(sources, 'constant')}"
    reasons = "; ".join(map(str, certificate.breaks[:3]))
    yield "certificate", linear if certificate.ok else f"not dynamic linear: {reasons}"
    line = verdict(report)
    if proof is not None and proof["error"] is not None:
        line += f", worst relative error {proof['error']:.1e} in {proof['dtype']}"
    since = "; fine-tuned since" if network.record.training else ""
    yield "equivalence with the original, when it was converted", line + since
    yield "change of the function", drift_sentence(report)


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield "| | |\n|---|---|"
    yield from (f"| {_text(label)} | {_text(value)} |" for label, value in rows)


def _text(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    # HTML in a name would be rendered by the hub, so it is escaped before Markdown is.
    plain = shown_in_a_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _OBEYED.sub(r"\\\1", plain)
