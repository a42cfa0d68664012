"""How sure figures are: many models resampled together, seeds, and both combined."""

import math

import numpy as np
import pytest

from slm.evaluation.intervals import (
    combined,
    paired_interval,
    percentiles,
    resampled_scores,
    seed_reach,
    student_quantile,
)


def test_models_resampled_together_have_the_interval_of_each_pair() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(50, 500, 60)
    nats = generator.normal(1, 0.1, (3, 60)) * sizes
    resampled = resampled_scores(nats.T / math.log(2), sizes)
    for a, b in ((0, 1), (2, 0)):
        _, low, high = paired_interval(nats[a], nats[b], sizes)
        both = percentiles(resampled[:, a] - resampled[:, b], 0.025)
        assert both == pytest.approx((low, high), abs=1e-12)


def test_ends_far_out_are_those_of_a_normal_distribution() -> None:
    resampled = np.random.default_rng(0).normal(2, 0.5, 4000)
    low, high = percentiles(resampled, 1e-5)
    assert (low, high) == pytest.approx((2 - 4.265 * 0.5, 2 + 4.265 * 0.5), abs=0.05)


@pytest.mark.parametrize(
    ("freedom", "tail", "expected"),  # of any table of Student's t
    [(1, 0.025, 12.7062), (2, 0.025, 4.30265), (3, 0.005, 5.84091), (10, 0.025, 2.22814),
     (101, 0.025, 1.98373)],
)  # fmt: skip
def test_students_quantiles(freedom: int, tail: float, expected: float) -> None:
    assert student_quantile(freedom, tail) == pytest.approx(expected, rel=1e-5)


def test_seeds_show_their_spread_only_where_there_are_several() -> None:
    assert seed_reach([0.8], tail=0.025) is None
    assert seed_reach([0.8], [0.9], tail=0.025) is None
    # Two seeds of standard deviation s: t with one degree of freedom, times s / sqrt(2).
    spread = 0.02 / math.sqrt(2)
    assert seed_reach([0.8, 0.82], tail=0.025) == pytest.approx(12.7062 * spread / math.sqrt(2))
    # A group of one seed next to it is taken to spread as that does: s * sqrt(1 / 2 + 1).
    both = seed_reach([0.8, 0.82], [0.9], tail=0.025)
    assert both == pytest.approx(12.7062 * spread * math.sqrt(1.5))


def test_reaches_add_up_as_squares_on_either_side() -> None:
    assert combined(1.0, (0.7, 1.0), 0.4) == pytest.approx((0.5, 1.4))
    assert combined(1.0, (0.7, 1.2), None) == pytest.approx((0.7, 1.2))
