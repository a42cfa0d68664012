"""The difference in accuracy of two models: its interval covers the truth, and is paired."""

import numpy as np
import pytest

from slm.evaluation.benchmark.difference import task_difference

GROUPS = np.repeat(["a", "b", "c"], [200, 50, 150])


def simulated(seed: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """What two models have right that find the same items hard; the second has `gain` more."""
    draws = np.random.default_rng(seed)
    hard = draws.random(len(GROUPS))
    noise = draws.normal(0, 0.1, (2, len(GROUPS)))
    return hard + noise[0] < 0.6, hard + noise[1] < 0.6 + gain


def test_equal_models_differ_by_nothing() -> None:
    first, _ = simulated(1, 0.0)
    same = task_difference("t", first, first, GROUPS)
    assert (same.difference, same.low, same.high, same.better) == (0, 0, 0, None)
    assert same.items == len(GROUPS)


def test_the_interval_covers_the_difference_as_often_as_it_claims() -> None:
    results = [task_difference("t", *simulated(seed, 0.0), GROUPS) for seed in range(400)]
    covered = sum(result.low <= 0 <= result.high for result in results)
    assert 0.9 * 400 <= covered <= 0.99 * 400
    better = [task_difference("t", *simulated(seed, 0.1), GROUPS).better for seed in range(50)]
    assert better.count(True) >= 48
    assert False not in better


def test_the_interval_is_of_pairs() -> None:
    """What makes an item hard cancels out: it is narrower than of two models on other items."""
    first, second = simulated(3, 0.05)
    paired = task_difference("t", first, second, GROUPS)
    shuffled = np.random.default_rng(0).permutation(second[:200])
    unpaired = task_difference("t", first[:200], shuffled, GROUPS[:200])
    assert paired.high - paired.low < unpaired.high - unpaired.low


def test_every_paradigm_counts_alike() -> None:
    first = np.zeros(len(GROUPS), bool)
    second = GROUPS == "b"
    result = task_difference("t", first, second, GROUPS)
    assert result.difference == pytest.approx(1 / 3)
    assert (result.first, result.second) == (0, pytest.approx(1 / 3))
    other = task_difference("t", second, first, GROUPS)
    assert other.difference == -result.difference


def test_a_paradigm_of_one_item_does_not_make_it_certain() -> None:
    first = np.zeros(3, bool)
    result = task_difference("t", first, np.array([True, False, True]), ["a", "b", "c"])
    assert result.high - result.low > 0.3
