"""What a report says of the network alone: what it is, what was proved, and its certificate."""

from __future__ import annotations

from collections.abc import Iterator

from bcos_fx.audit.section import Section
from bcos_fx.escaping import amount
from bcos_fx.explanation.certify import Certification
from bcos_fx.network import BcosNetwork
from bcos_fx.network.facts import describe_facts
from bcos_fx.report.sentences import drift_sentence, next_step, verdict
from bcos_fx.report.text import head_rows

_LISTED = 20


def network_sections(
    network: BcosNetwork, certification: Certification, file: list[tuple[str, str]]
) -> Iterator[Section]:
    """Yield the sections of a report that describe the network."""
    record = network.record
    count = sum(parameter.numel() for parameter in network.parameters())
    rows = [*file, *describe_facts(record.classes, record.training, record.origin), ("parameters", f"{count:,}")]
    rows += [*head_rows(network.report), ("images", str(network.preprocessing))]
    yield Section("The network", rows=tuple(rows), alert=next_step(network.report) or "" if not record.training else "")
    yield _proof(network)
    yield _certificate(certification)
    if network.report.notes:
        yield Section("Notes of the conversion", rows=tuple(("", note) for note in network.report.notes))


def _proof(network: BcosNetwork) -> Section:
    report, found = network.report, network.report.figures.verification
    about = (
        "The network was made from an ordinary trained network by rewriting its graph. Before any rule that changes "
        "the function, the rewritten graph was run beside the original on the same inputs. "
    ) + drift_sentence(report)
    if network.record.training:
        about += " It was fine-tuned afterwards: the proof is of the conversion, and the weights are others since."
    if found is None:
        return Section("Equivalence with the original", about, alert="NOT VERIFIED: the conversion was not compared.")
    rows = tuple(
        (row["name"], _scientific(row["relative"]), _scientific(row["spread"]), row["verdict"])
        for row in found["comparisons"]
    )
    line = (
        f"{verdict(report).upper()}: worst relative error {_scientific(found['error'])} in {found['dtype']}, at most "
        f"{_scientific(found['tolerance'])} allowed."
    )
    head = ("what was run", "relative error", "output varies by", "verdict")
    passed = verdict(report) == "equal"
    return Section(
        "Equivalence with the original",
        f"{line if passed else ''} {about}".strip(),
        head,
        rows,
        alert="" if passed else line,
    )


def _certificate(found: Certification) -> Section:
    if not found.ok:
        reasons = "; ".join(map(str, found.breaks[:_LISTED]))
        return Section("Certificate", alert=f"NOT DYNAMIC LINEAR: {found.explained} breaks at {reasons}")
    sources = list(dict.fromkeys(constant.source for constant in found.constants))
    text = (
        f"DYNAMIC LINEAR: every operation on the way from the image to the {found.explained} is linear in what it "
        f"carries, once its gates are held at their values for this image. So each score is W(x)·x plus "
        f"{amount(len(sources), 'constant')}, and the sums in this report are what the network computed, "
        "no estimate of it. This is read off the "
        "graph, for every image."
    )
    rows = [("gate chosen", f"{choice.gate} in {choice.node}: {choice.why}") for choice in found.choices[:_LISTED]]
    if len(found.choices) > _LISTED:
        rows.append(("", f"and {len(found.choices) - _LISTED} more gates"))
    return Section("Certificate", text, rows=tuple(rows))


def _scientific(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.1e}"
