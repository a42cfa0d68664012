"""The best of several candidates: what is claimed of it holds as often as it says."""

from collections.abc import Sequence

import numpy as np
import pytest

from slm.evaluation.ranking import Ranking, rank

SWEEPS = 200
CLOSE = 0.8 + 0.003 * np.arange(8)  # the true bits per byte of eight trials


def simulated(
    number: int,
    truth: Sequence[float] | np.ndarray,
    seeds: int,
    *,
    documents: int = 150,
    seed_sd: float = 0.004,
    own_sd: float = 0.03,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Bits of each trial, seed and document, and bytes of the documents.

    Documents differ by far more than trials, and alike for all trials, as in real ones.
    """
    draws = np.random.default_rng(number)
    sizes = draws.integers(200, 2000, documents)
    hard = draws.normal(0, 0.15, documents)
    bits = []
    for bpb in truth:
        own = draws.normal(0, own_sd, documents)  # what suits this trial
        by_seed = draws.normal(0, seed_sd, (seeds, 1))
        bits.append((bpb + hard + own + by_seed) * sizes)
    return bits, sizes


def ranked(truth: Sequence[float] | np.ndarray, seeds: int, **options: float) -> list[Ranking]:
    return [
        rank(*simulated(number, truth, seeds, **options), draws=500)  # type: ignore[arg-type]
        for number in range(SWEEPS)
    ]


@pytest.mark.parametrize("truth", [CLOSE, np.full(8, 0.8)], ids=["close", "equal"])
@pytest.mark.parametrize("seeds", [2, 3])
def test_the_truly_best_is_the_best_or_not_distinguishable_from_it(
    truth: np.ndarray, seeds: int
) -> None:
    results = ranked(truth, seeds)
    kept = sum(0 in (result.best, *result.close) for result in results)
    assert kept >= 0.93 * SWEEPS
    false = sum(not result.close and result.best != 0 for result in results)
    assert false <= 0.07 * SWEEPS


def test_the_interval_of_the_best_holds_although_it_was_chosen() -> None:
    truth = np.full(8, 0.8)
    results = ranked(truth, 2)
    lucky = np.mean([result.mean[result.best] for result in results])
    assert lucky < 0.797  # the best of eight is lower than any of them is expected to be
    covered = sum(r.low[r.best] <= 0.8 <= r.high[r.best] for r in results)
    assert covered >= 0.93 * SWEEPS


def test_a_clear_winner_is_distinguishable() -> None:
    results = ranked([0.85, 0.8, 0.85, 0.86], 2)
    assert all(result.best == 1 for result in results)
    assert sum(not result.close for result in results) >= 0.95 * SWEEPS


def test_one_seed_shows_the_documents_alone() -> None:
    """By the documents alone it claims too much: the caller must not call that distinguishable."""
    results = ranked(np.full(8, 0.8), 1, own_sd=0.01)
    assert all(result.seed_sd is None for result in results)
    kept = sum(0 in (result.best, *result.close) for result in results)
    assert kept < 0.8 * SWEEPS
    without_luck = ranked(np.full(8, 0.8), 1, own_sd=0.01, seed_sd=0)
    kept = sum(0 in (result.best, *result.close) for result in without_luck)
    assert kept >= 0.93 * SWEEPS


def test_trials_that_nearly_diverged_do_not_blur_the_others() -> None:
    draws = np.random.default_rng(0)
    bits, sizes = simulated(1, [0.8, 0.85, 0.86, 0.87, 0.88], 2)
    wild = [(2 + draws.normal(0, 1, (2, 1))) * sizes * np.ones(2)[:, None] for _ in range(5)]
    alone, together = rank(bits, sizes), rank([*bits, *wild], sizes)
    assert alone.seed_sd == pytest.approx(together.seed_sd)
    assert not together.close


@pytest.mark.parametrize("truth", [CLOSE, np.full(8, 0.8)], ids=["close", "equal"])
def test_the_differences_of_all_pairs_hold_together(truth: np.ndarray) -> None:
    between = truth[:, None] - truth
    results = ranked(truth, 2)
    held = [(abs(r.mean[:, None] - r.mean - between) <= r.reach).all() for r in results]
    assert sum(held) >= 0.92 * SWEEPS
    assert all((r.reach == r.reach.T).all() for r in results)
    assert all((r.reach[r.best] >= r.difference - r.difference_low).all() for r in results)


def test_the_same_candidates_have_the_same_result_in_any_order() -> None:
    bits, sizes = simulated(3, CLOSE, 2)
    first = rank(bits, sizes)
    order = np.random.default_rng(0).permutation(len(bits))
    second = rank([bits[i] for i in order], sizes)
    assert order[second.best] == first.best
    assert (first.low[order] == second.low).all()
    assert (first.difference_low[order] == second.difference_low).all()
    assert (first.reach[np.ix_(order, order)] == second.reach).all()


def test_what_hardly_differs_widens_no_interval() -> None:
    """Two models that are nearly the same are compared as exactly as any others."""
    bits, sizes = simulated(6, [0.8, 0.82], 1)
    jiggle = np.random.default_rng(0).normal(0, 1e-6, len(sizes))
    result = rank([bits[0], bits[0] + jiggle * sizes, bits[1]], sizes)
    alone = rank([bits[0], bits[1]], sizes)
    width, narrow = result.difference - result.difference_low, alone.reach[0, 1]
    assert width[2 if result.best < 2 else 0] < 1.4 * narrow
    spread = jiggle.std() * np.sqrt((sizes.astype(float) ** 2).sum()) / sizes.sum()
    assert result.reach[0, 1] < 4 * spread


def test_the_documents_are_paired() -> None:
    """What makes a document hard cancels out of a difference, not of a trial's own figure."""
    bits, sizes = simulated(4, CLOSE, 2)
    result = rank(bits, sizes)
    own = result.high - result.low
    between = result.difference_high - result.difference_low
    assert own[result.best] > between[result.best - 1]


def test_identical_trials_are_not_distinguishable() -> None:
    bits, sizes = simulated(5, [0.8, 0.9], 1)
    result = rank([bits[0], bits[0], bits[1]], sizes)
    assert (result.best, result.close) == (0, (1,))
    assert result.difference[1] == result.difference_low[1] == result.difference_high[1] == 0


def test_two_documents_are_compared_as_in_the_worked_example() -> None:
    """A difference that is the same on both documents, a byte each counted alike, is certain."""
    bits = [np.array([[2.0, 2.0]]), np.array([[3.0, 5.0]])]
    result = rank(bits, np.array([1, 3]))
    assert (result.mean == [1, 2]).all()
    assert result.difference_low[1] == pytest.approx(1)


def test_a_single_trial_is_the_best() -> None:
    bits, sizes = simulated(7, [0.8], 2)
    result = rank(bits, sizes)
    assert (result.best, result.close) == (0, ())
    assert result.low[0] < result.mean[0] < result.high[0]
