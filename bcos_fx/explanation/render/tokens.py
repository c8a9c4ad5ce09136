"""Explanations of sequences in words: what each token contributed."""

from __future__ import annotations

from collections.abc import Sequence

from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount, shown_in_html
from bcos_fx.explanation.result import Result

Tokens = tuple[tuple[str, ...], ...]


def checked(explanation: Result, tokens: Sequence[str] | Sequence[Sequence[str]]) -> Tokens:
    """Return the tokens of each sample; those of a single sample may come without a list around them.

    Raises:
        UsageError: the source is not a sequence, or the tokens do not fit its samples and positions.
    """
    if len(explanation.axes) != 1:
        raise UsageError(
            f"the source has shape {tuple(explanation.encoded.shape)}, which is not a sequence of tokens",
            hint="give the embeddings (N, L, E) as input, or an embedding layer as source=",
        )
    single = all(isinstance(token, str) for token in tokens)
    rows: Tokens = tuple(tuple(row) for row in ([tokens] if single else tokens))  # type: ignore[arg-type]
    if len(rows) != len(explanation):
        raise UsageError(f"there are tokens of {amount(len(rows), 'sample')}, and {len(explanation)} were explained")
    positions = explanation.contributions.shape[-1]
    for number, row in enumerate(rows):
        if len(row) > positions or not all(isinstance(token, str) for token in row):
            raise UsageError(
                f"sample {number} has {len(row)} tokens, the network was given {positions} positions",
                hint="give one text for each position; padding at the end may be left out",
            )
    return rows


def text(explanation: Result) -> str:
    """Return the contributions of every token and of the constants, sample by sample, as text for people.

    Raises:
        UsageError: the source is an image.
    """
    if len(explanation.axes) > 1:
        raise UsageError("an image has no tokens", hint="look at it: explanation.plot(), explanation.image()")
    samples = range(len(explanation))
    return "\n".join(line for number in samples for line in _sample(explanation[number], number))


def _sample(sample: Result, number: int) -> list[str]:
    lines = []
    for place, output in enumerate(sample.output.flatten().tolist()):
        lines.append(f"sample {number}, {sample.target_name(place)}: {output:.6g}")
        constants = float(sample.constants.total().flatten()[place])
        rows = [*contributions(sample, place), (f"{amount(len(sample.constants), 'constant')}", constants)]
        lines += [f"  {value:+.6g}  {name}" for name, value in rows]
    return lines


def contributions(sample: Result, place: int = 0) -> list[tuple[str, float]]:
    """Return what each token of the first sample contributed to one of its explained numbers.

    Positions (of a table: features) past the last token are named by their number, as all are where no tokens are
    known; there each counts only where it contributes.
    """
    values = sample.contributions[0]
    numbers = (values[place] if sample.several else values).tolist()
    tokens = sample.tokens[0] if sample.tokens else ()
    rows = list(zip(tokens, numbers, strict=False))
    later = list(enumerate(numbers))[len(tokens) :]
    # Padding contributes nothing, and would hide the tokens in a long list.
    return rows + [(f"{sample.axes[0]} {at}", value) for at, value in later if value or not tokens]


def spans(sample: Result) -> str:
    """Return the first sample's tokens as HTML, red where they count for its target and blue where against it."""
    shown = []
    for place in range(sample.output.numel()):
        rows = contributions(sample, place)
        largest = max((abs(value) for _, value in rows), default=0) or 1
        words = " ".join(_span(name, value, abs(value) / largest) for name, value in rows)
        shown.append(f'<p class="tokens"><b>{shown_in_html(sample.target_name(place))}</b> {words}</p>')
    return "".join(shown)


def _span(name: str, value: float, strength: float) -> str:
    color = "200,30,30" if value > 0 else "30,60,200"
    style = f"background:rgba({color},{0.7 * strength:.2f})"
    return f'<span style="{style}" title="{value:+.4g}">{shown_in_html(name)}</span>'
