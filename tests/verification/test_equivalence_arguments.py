from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError
from bcos_fx.verification import verify
from tests.verification.subject import After, Subject, made, some_photos


@pytest.fixture
def subject() -> Subject:
    return made()


@pytest.fixture
def photos() -> Tensor:
    return some_photos()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[1.0]], "expected a tensor, got list"),
        ("photo", "expected a tensor, got str"),
        ((), "inputs are empty"),
        (torch.rand(0, 3, 12, 10), "no samples"),
        (torch.tensor(1.0), "no samples"),
        (torch.rand(2, 4, 12, 10), "cannot run"),
        (torch.full((2, 3, 12, 10), math.nan), "NaN"),
        (torch.rand(2, 3, 12, 10).to_sparse(), "dense"),
        (torch.rand(2, 3, 12, 10, dtype=torch.complex64), "complex64"),
        (torch.randint(0, 255, (2, 3, 12, 10), dtype=torch.uint8), r"images.float\(\) / 255"),
        (torch.rand(2, 3, 12, 10, device="meta"), "meta"),
    ],
)
def test_unusable_inputs_are_explained(subject: Subject, inputs: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        verify(subject, copy.deepcopy(subject), inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float16}, "cannot compare in torch.float16"),
        ({"tolerance": 1.0}, "would judge nothing"),
        ({"tolerance": 0.0}, "would judge nothing"),
        ({"tolerance": math.nan}, "would judge nothing"),
        ({"batch_sizes": ()}, "batch_sizes"),
        ({"batch_sizes": (0, 2)}, "batch_sizes"),
        ({"sizes": [(8,)]}, "do not fit"),
    ],
)
def test_senseless_options_are_refused(
    subject: Subject, photos: Tensor, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        verify(subject, copy.deepcopy(subject), photos, **options)  # type: ignore[arg-type]


def test_without_inputs_or_a_shape_it_asks() -> None:
    with pytest.raises(UsageError, match="what inputs it takes"):
        verify(nn.Linear(3, 2), nn.Linear(3, 2))


def test_network_without_tensors_in_its_output(subject: Subject, photos: Tensor) -> None:
    with pytest.raises(UsageError, match="returns no tensors"):
        verify(After(subject, lambda y: None), subject, photos)
