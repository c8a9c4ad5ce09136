"""``bcos-fx report``: one decision of a network, with all that an auditor needs to check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bcos_fx.cli.console import echo, echo_json
from bcos_fx.cli.failure import CHECK_FAILED
from bcos_fx.cli.options import Classifier, Overwrite
from bcos_fx.cli.values import index_or_name
from bcos_fx.errors import UsageError
from bcos_fx.files import check_target, replacing

NAME = "report"
EPILOG = """Examples:

bcos-fx report model.safetensors photo.jpg -o report.html --date 2026-11-30

bcos-fx report model.safetensors photo.jpg -o report.pdf --against cat --against lynx

Exit code 0: written. 1: written, and contributions do not add up. 2: bad input.
"""


def write_report(
    model: Classifier,
    image: Annotated[Path, typer.Argument(metavar="PHOTO", help="The photograph that was decided about.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to: .html (one file, needs no network) or .pdf.")],
    target: Annotated[
        str | None,
        typer.Option(help="The class that is compared with others, by name or index. (default: the predicted one)"),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Explain why not this class, by name or index; repeatable. (default: the next in order)"),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=20, help="How many of the highest classes are explained.")] = 3,
    classes: Annotated[Path | None, typer.Option(help="Class names, as for explain. (default: those in MODEL)")] = None,
    date: Annotated[
        str,
        typer.Option(
            help="The date for the report, such as 2026-11-30 (ISO 8601); the clock is not read.", show_default=False
        ),
    ] = "",
    confidence: Annotated[
        str,
        typer.Option(
            metavar="softmax|sigmoid",
            help="How scores become probabilities: softmax or sigmoid. (default: by the loss of the last training that "
            "MODEL records, else softmax)",
            show_default=False,
        ),
    ] = "",
    force: Overwrite = False,
    json: Annotated[bool, typer.Option("--json", help="The outcome as JSON on stdout, and nothing else.")] = False,
) -> None:
    """Report on one decision: the network, its proof and certificate, and why it decided so and not otherwise.

    The report is one file: what the network is and how it was trained, the equivalence proof and the certificate, the
    answer with probabilities, explanations of the highest classes, why not another class, all constants, whether the
    sums add up, and the SHA-256 of both files. The same files and date give the same bytes.
    """
    suffix = out.suffix.lower()
    if suffix not in (".html", ".pdf"):
        form = suffix or "a file without suffix"
        raise UsageError(f"a report cannot be written as {form}", hint="-o NAME.html, or -o NAME.pdf")
    check_target(out, overwrite=force)
    from bcos_fx.audit import audit
    from bcos_fx.cli.check import converted_file
    from bcos_fx.data.classes import read_classes

    # matplotlib is needed for PDF alone.
    if suffix == ".pdf":
        from bcos_fx.audit.pdf import pdf as write
    else:
        from bcos_fx.audit.page import page as write
    names = None if classes is None else read_classes(classes)
    report = audit(
        converted_file(model),
        image,
        target=None if target is None else index_or_name(target),
        against=[index_or_name(other) for other in against or ()],
        top=top,
        names=names,
        date=date,
        confidence=confidence,
    )
    contents = write(report)
    with replacing(out, "the report", overwrite=force) as stream:
        stream.write(contents)
    if json:
        facts = {"file": str(out), "complete": report.complete, "prediction": report.prediction}
        echo_json(facts | {"probabilities": report.probabilities})
    else:
        listed = ", ".join(f"{name} {share:.1%}" for name, share in report.probabilities.items())
        echo(f"Wrote {out}: {listed}.")
    if not report.complete:
        raise typer.Exit(CHECK_FAILED)
