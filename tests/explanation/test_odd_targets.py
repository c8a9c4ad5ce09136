"""Targets and inputs that nearly fit: each is taken for what it says, in one piece and in parts, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.explanation import difference
from tests.explanation.networks import converted, images
from tests.small_networks import Pair


@pytest.fixture(scope="module")
def network() -> Any:
    return converted()


@pytest.mark.parametrize(("pair", "wrong"), [((0, 99), "99"), ((99, 0), "99"), ((0, -1), "-1")])
def test_a_difference_names_the_class_that_is_not_there(pair: tuple[int, int], wrong: str, network: Any) -> None:
    with pytest.raises(UsageError) as caught:
        bcos_fx.explain(network, images(), difference(*pair))
    assert caught.value.what == f"the target {wrong} is not an output of the network, which has 5"
    assert caught.value.hint == "outputs are counted from 0 to 4"


def test_a_difference_is_one_of_classes(network: Any) -> None:
    with pytest.raises(UsageError, match=r"outputs of shape \(8, 12, 12\) have no classes to compare"):
        bcos_fx.explain(network, images(), difference(0, 1), output="stem")


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_tuple_is_one_unit_however_the_batch_is_cut(batch_size: int | None, network: Any) -> None:
    """Also of a row of scores: a batch that happens to be as long as the tuple changes nothing."""
    found = bcos_fx.explain(network, images(), (2,), batch_size=batch_size)
    expected = bcos_fx.explain(network, images(), 2)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-10, atol=1e-12)
    with pytest.raises(UsageError) as caught:
        bcos_fx.explain(network, images(3), (0, 1, 2), batch_size=batch_size)
    assert caught.value.what == "no unit (0, 1, 2) in a layer of shape (5,)"
    assert "give a list" in str(caught.value.hint)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("target", [[0, 4, 2], [[0, 1], [4, 3], [2, 2]], torch.tensor([0, 4, 2]), "top2", (1,)])
def test_targets_are_cut_with_their_samples(batch_size: int, target: Any, network: Any) -> None:
    whole = bcos_fx.explain(network, images(), target)
    parts = bcos_fx.explain(network, images(), target, batch_size=batch_size)
    torch.testing.assert_close(parts.weights, whole.weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts.output, whole.output, rtol=1e-12, atol=1e-14)
    assert (whole.target is None) == (parts.target is None)
    assert whole.target is None or torch.equal(parts.target, whole.target)


@pytest.mark.parametrize(
    "target", [1.0, True, torch.tensor([True, False, True]), torch.tensor([1j, 0, 0]), torch.zeros(3, 1, 1).long()]
)
@pytest.mark.parametrize("wide", [False, True])
def test_what_is_no_index_is_refused(target: Any, wide: bool, network: Any) -> None:
    if wide and isinstance(target, torch.Tensor) and target.dtype.is_complex:
        target = target.to(torch.complex128)
    with pytest.raises(UsageError, match="holds no indices"):
        bcos_fx.explain(network, images(), target)


def test_too_many_and_too_few_inputs_are_counted(network: Any) -> None:
    with pytest.raises(UsageError) as caught:
        bcos_fx.explain(network, images(), 0, others=[images()])
    assert caught.value.what == "2 inputs given, the network takes 1 (x)"
    assert "others=" in str(caught.value.hint)
    torch.manual_seed(0)
    pair = bcos_fx.bcosify(Pair().double(), example_inputs=[images(2), images(2)], recipe="equivalent")
    with pytest.raises(UsageError, match=r"1 input given, the network takes 2 \(x, y\)"):
        bcos_fx.explain(pair, images(), 0)
    assert bcos_fx.explain(pair, images(), 0, others=[images()]).complete


def test_nan_is_named_in_a_plain_row_of_numbers_too() -> None:
    with pytest.raises(UsageError, match="the first is number 1"):
        bcos_fx.explain(nn.Identity().eval(), torch.tensor([0.0, float("nan")]))


def test_another_number_of_features_is_named_with_that_of_the_example() -> None:
    table = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    network = bcos_fx.bcosify(table, recipe="equivalent", example_inputs=torch.rand(2, 8))
    for call in (network, lambda x: bcos_fx.explain(network, x)):
        with pytest.raises(UsageError, match=r"has shape \(2, 9\), which the network cannot take") as caught:
            call(torch.rand(2, 9))
        assert caught.value.hint == "the example that it was converted with has (N, 8)"


def test_an_error_of_the_callers_own_function_is_not_blamed_on_the_images() -> None:
    table = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    network = bcos_fx.bcosify(table, recipe="equivalent", example_inputs=torch.rand(2, 8))
    with pytest.raises(UsageError, match=r"the target function fails on outputs of shape \(2, 3\): The size") as caught:
        bcos_fx.explain(network, torch.rand(2, 8), lambda outputs: outputs + torch.rand(5))
    assert isinstance(caught.value.__cause__, RuntimeError)
