"""Counts have their noun in the right number: one function writes them, and nothing prints "1 constants"."""

from __future__ import annotations

import ast
import itertools

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.escaping import amount
from tests.test_architecture import FILES, PACKAGE

NOUNS = "constants images epochs grids classes tensors embeddings gates photographs layers nodes samples".split()


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "constant", "1 constant"),
        (1000, "class", "1,000 classes"),
        (1, "class", "1 class"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(count: int, noun: str, text: str) -> None:
    assert amount(count, noun) == text


def _counts_by_hand(tree: ast.AST) -> list[str]:
    """Texts in f-strings that begin with a plural noun right after the length of something."""
    found = []
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, text in itertools.pairwise(parts):
            length = isinstance(value, ast.FormattedValue) and ast.unparse(value.value).startswith("len(")
            word = text.value.split(maxsplit=1) if isinstance(text, ast.Constant) and str(text.value)[:1] == " " else []
            if length and word and word[0].strip(".,:;)") in NOUNS:
                found.append(f"{ast.unparse(value)}{text.value}"[:80])
    return found


def test_no_length_is_put_before_a_plural_by_hand() -> None:
    found = {path.relative_to(PACKAGE): _counts_by_hand(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES}
    assert {path: texts for path, texts in found.items() if texts} == {}
    assert _counts_by_hand(ast.parse("f'{len(x)} images, {n} rows'"))


def test_one_of_each_is_said_in_the_singular() -> None:
    torch.manual_seed(0)
    network = bcos_fx.bcosify(
        nn.Sequential(nn.Conv2d(3, 2, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)),
        example_inputs=torch.rand(2, 3, 6, 6),
        recipe="equivalent",
    )
    found = bcos_fx.explain(network, torch.rand(1, 3, 6, 6))
    assert "1 constant" in repr(found)
    assert "1 constants" not in f"{found!r} {bcos_fx.certify(network)!r} {bcos_fx.certify(network).to_text()}"
