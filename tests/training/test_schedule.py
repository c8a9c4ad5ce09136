"""Schedules: what they are at every moment, and what they refuse."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcos_fx.errors import UsageError
from bcos_fx.training.schedule import SHAPES, BiasDecay, BSchedule, Course

SHARES = st.floats(0, 1)


def test_courses_by_hand() -> None:
    assert [Course(start=0.5).at(x) for x in (0, 0.49, 0.5, 1)] == [0, 0, 1, 1]
    linear = Course("linear", start=0.2, end=0.6)
    assert [linear.at(x) for x in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([0, 0, 0.5, 1, 1])
    cosine = Course("cosine", end=0.5)
    assert [cosine.at(x) for x in (0, 0.125, 0.25, 0.5)] == pytest.approx([0, (1 - math.sqrt(0.5)) / 2, 0.5, 1])
    stairs = Course("steps", end=0.8, steps=4)
    assert [stairs.at(x) for x in (0, 0.19, 0.21, 0.41, 0.61, 0.79, 0.8)] == [0, 0, 0.25, 0.5, 0.75, 0.75, 1]


@given(shape=st.sampled_from(SHAPES), first=SHARES, second=SHARES, steps=st.integers(1, 9))
def test_courses_never_go_back_and_end_at_exactly_one(shape: str, first: float, second: float, steps: int) -> None:
    course = Course(shape, start=0.1, end=0.9, steps=steps)
    low, high = sorted((first, second))
    assert 0 <= course.at(low) <= course.at(high) <= 1
    assert course.at(0.9) == course.at(1.0) == 1
    assert course.at(0.0) == 0


def test_b_rises_from_what_it_was() -> None:
    rise = BSchedule(to=2.5, course=Course("linear", end=0.5))
    assert [rise.at(1.5, x) for x in (0, 0.25, 0.5, 1)] == [1.5, 2.0, 2.5, 2.5]


@given(shape=st.sampled_from(SHAPES), steps=st.integers(1, 40))
def test_factors_of_a_fade_multiply_to_what_is_left(shape: str, steps: int) -> None:
    fade = BiasDecay(course=Course(shape, start=0.05, end=0.7))
    product = fade.left(0.0)
    for step in range(steps):
        product *= fade.factor(step / steps, (step + 1) / steps, lr=0.1)
        assert product == pytest.approx(fade.left((step + 1) / steps), abs=1e-12)
    assert product == 0


def test_decay_is_that_of_decoupled_weight_decay() -> None:
    fade = BiasDecay(decay=0.5)
    assert fade.factor(0.3, 0.4, lr=0.1) == 0.95
    assert fade.left(1.0) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Course("linaer"), "did you mean 'linear'"),
        (lambda: Course("linear", start=0.5, end=0.5), "has no length"),
        (lambda: Course("linear", end=1.5), "shares of training"),
        (lambda: Course("steps", steps=0), "at least 1"),
        (lambda: BSchedule(to=0.5), "B is a finite number >= 1"),
        (lambda: BSchedule(learned="layers"), "did you mean 'layer'"),
        (lambda: BSchedule(drift=0.1), "drift is for a B that is learned"),
        (lambda: BSchedule(learned="layer", drift=-1), "drift is -1"),
        (lambda: BiasDecay(decay=float("nan")), "decay is nan"),
    ],
)
def test_senseless_schedules_are_refused(make: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()  # type: ignore[operator]
