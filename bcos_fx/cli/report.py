"""``bcos-fx report``: one decision of a network, with all that an auditor needs to check it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from bcos_fx.cli.console import echo, echo_json
from bcos_fx.cli.failure import CHECK_FAILED
from bcos_fx.cli.options import Classifier, Overwrite, argument, option, takes
from bcos_fx.cli.values import index_or_name
from bcos_fx.errors import UsageError
from bcos_fx.files import check_target, replacing

NAME = "report"
EPILOG = """Examples:

bcos-fx report model.safetensors photo.jpg -o report.html --date 2026-11-30

bcos-fx report model.safetensors photo.jpg -o report.pdf --against cat --against lynx

Exit code 0: written. 1: written, and contributions do not add up. 2: bad input.
"""


@dataclass(frozen=True)
class ReportRequest:
    """One report, as asked for on the command line."""

    model: Classifier
    image: Path = argument(default=..., metavar="PHOTO", help="The photograph that was decided about.")
    out: Path = option("-o", "--out", default=..., help="Where to: .html (one file, needs no network) or .pdf.")
    target: str | None = option(
        help="The class that is compared with others, by name or index. (default: the predicted one)"
    )
    against: list[str] | None = option(
        help="Explain why not this class, by name or index; repeatable. (default: the next in order)"
    )
    top: int = option(default=3, min=1, max=20, help="How many of the highest classes are explained.")
    classes: Path | None = option(help="Class names, as for explain. (default: those in MODEL)")
    date: str = option(
        default="",
        help="The date for the report, such as 2026-11-30 (ISO 8601); the clock is not read.",
        show_default=False,
    )
    confidence: str = option(
        default="",
        metavar="softmax|sigmoid",
        help="How scores become probabilities: softmax or sigmoid. (default: by the loss of the last training that "
        "MODEL records, else softmax)",
        show_default=False,
    )
    force: Overwrite = False
    json: bool = option("--json", default=False, help="The outcome as JSON on stdout, and nothing else.")


@takes(ReportRequest)
def write_report(request: ReportRequest) -> None:
    """Report on one decision: the network, its proof and certificate, and why it decided so and not otherwise.

    The report is one file: what the network is and how it was trained, the equivalence proof and the certificate, the
    answer with probabilities, explanations of the highest classes, why not another class, all constants, whether the
    sums add up, and the SHA-256 of both files. The same files and date give the same bytes.
    """
    out, suffix = request.out, request.out.suffix.lower()
    if suffix not in (".html", ".pdf"):
        form = suffix or "a file without suffix"
        raise UsageError(f"a report cannot be written as {form}", hint="-o NAME.html, or -o NAME.pdf")
    check_target(out, overwrite=request.force)
    from bcos_fx.audit import audit
    from bcos_fx.cli.check import converted_file
    from bcos_fx.data.classes import read_classes

    # matplotlib is needed for PDF alone.
    if suffix == ".pdf":
        from bcos_fx.audit.pdf import pdf as write
    else:
        from bcos_fx.audit.page import page as write
    report = audit(
        converted_file(request.model),
        request.image,
        target=None if request.target is None else index_or_name(request.target),
        against=[index_or_name(other) for other in request.against or ()],
        top=request.top,
        names=None if request.classes is None else read_classes(request.classes),
        date=request.date,
        confidence=request.confidence,
    )
    contents = write(report)
    with replacing(out, "the report", overwrite=request.force) as stream:
        stream.write(contents)
    if request.json:
        facts = {"file": str(out), "complete": report.complete, "prediction": report.prediction}
        echo_json(facts | {"probabilities": report.probabilities})
    else:
        listed = ", ".join(f"{name} {share:.1%}" for name, share in report.probabilities.items())
        echo(f"Wrote {out}: {listed}.")
    if not report.complete:
        raise typer.Exit(CHECK_FAILED)
