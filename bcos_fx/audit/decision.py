"""What a report says of one decision: scores, explanations, why not another class, constants, sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image
from torch import Tensor

from bcos_fx.audit.section import Section
from bcos_fx.explanation import Explanation
from bcos_fx.explanation.render.color import images, planes, portrait, signed, to_image

_LISTED = 20


def decision_section(
    image: str, date: str, seen: Explanation, order: Sequence[int], shares: Tensor, how: str
) -> Section:
    """Return the section on what the network answered.

    Args:
        image: name of the photograph.
        date: as given; empty for none.
        seen: an explanation of the photograph, with all scores.
        order: indices of the classes that are listed, highest first.
        shares: (classes,) their probabilities.
        how: they were made of scores, ``softmax`` or ``sigmoid``.
    """
    given, title = portrait(seen, 0)
    scores = seen.scores
    assert scores is not None
    rows = tuple((seen.name(index), f"{float(scores[0, index]):.4g}", f"{float(shares[index]):.2%}") for index in order)
    dated = f"Date: {date}. " if date else "No date was given. "
    text = (
        f"{dated}The network was shown {image}, brought to the size that it takes as below, and answered "
        f"“{seen.name(order[0])}”. Probabilities are the {how} of the scores; they are as good as the network's "
        "calibration."
    )
    pictures = ((f"what the network sees ({title})", given),) if given is not None else ()
    return Section("The decision", text, ("class", "score", "probability"), rows, pictures)


def explained_section(part: Explanation, share: Tensor) -> Section:
    """Return the section on one class, of probability ``share``."""
    text = f"Probability {float(share):.2%}. {equation(part)}"
    return Section(f"Why {part.target_name()}", text, pictures=tuple(_pictures(part)), alert=part.warning)


def compared_section(part: Explanation) -> Section:
    """Return the section on the difference of two classes' scores."""
    text = (
        f"The difference of the two scores, explained by itself. {equation(part)} Red speaks for the first class and "
        "against the second, blue the other way."
    )
    given, title = portrait(part, 0)
    pictures = [(title, given)] if given is not None else []
    pictures.append((f"contributions to {part.target_name()}", to_image(signed(planes(part))[0])))
    title = f"Why this and not the other: {part.target_name()}"
    return Section(title, text, pictures=tuple(pictures), alert=part.warning)


def _pictures(part: Explanation) -> Iterator[tuple[str, Image.Image]]:
    given, title = portrait(part, 0)
    if given is not None:
        yield title, given
    if part.colors:
        yield f"W(x) for {part.target_name()}", images(part)[0]
    yield "contributions: red for, blue against", to_image(signed(planes(part))[0])


def terms(part: Explanation) -> tuple[float, float, float, float]:
    """Return score, contributions, constants and rounding of the first sample and target."""
    sums = part.sums
    tensors = (sums.output, sums.contributions, sums.total_of_constants, sums.residual)
    output, image, constants, residual = (float(values.flatten()[0]) for values in tensors)
    return output, image, constants, residual


def equation(part: Explanation) -> str:
    """Return a score as the sum that it is."""
    output, image, constants, residual = terms(part)
    parts = f"{image:.4g} from the image {'-' if constants < 0 else '+'} {abs(constants):.4g} from constants"
    return f"Score {output:.4g} = {parts} (rounding {residual:+.1e})."


def constants_section(part: Explanation) -> Section:
    """Return the section on what constants contribute to a score, the largest first."""
    shares = part.constants.shares()
    constants = [
        (source, float(values.flatten()[0]), float(shares[source].flatten()[0]))
        for source, values in part.constants.items()
    ]
    constants.sort(key=lambda row: -abs(row[1]))
    rows = [(source, f"{value:+.4g}", f"{share:.1%}") for source, value, share in constants[:_LISTED]]
    if more := constants[_LISTED:]:
        totals = (f"{sum(value for _, value, _ in more):+.4g}", f"{sum(share for *_, share in more):.1%}")
        rows.append((f"{len(more)} more, together", *totals))
    text = (
        f"What of the score of “{part.target_name()}” does not come from the image: biases, shifts of norms, "
        "embeddings. It is the same kind of number as a contribution of the image, and is listed so that nothing is "
        "hidden."
    )
    return Section(
        "Constants",
        text if rows else "No constant contributes.",
        ("constant", "contribution", "share of constants"),
        tuple(rows),
    )


def sums_section(parts: Sequence[Explanation]) -> Section:
    """Return the section on whether contributions add up."""
    rows = []
    for part in parts:
        output, image, constants, residual = terms(part)
        gap = float(part.sums.relative_gap.flatten()[0])
        numbers = (f"{output:.6g}", f"{image:.6g}", f"{constants:.6g}", f"{residual:.1e}", f"{gap:.1e}")
        rows.append((part.target_name(), *numbers, part.verdict))
    text = (
        "Each score as the network itself returns it, beside the sum of what contributes to it. Their gap is rounding."
    )
    head = ("score of", "score", "image", "constants", "gap", "relative gap", "verdict")
    return Section("Completeness", text, head, tuple(rows))
