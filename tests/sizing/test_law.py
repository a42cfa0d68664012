import math

import numpy as np
import pytest
from simulated import LAW, SHAPES, UNIQUE, noisy, points, shape

from slm.errors import UserError
from slm.sizing.fit import fit
from slm.sizing.law import DATA_REPEATS, Law


@pytest.fixture(scope="module")
def fitted():
    return fit(points(0), resamples=60)


def test_a_fit_recovers_the_law_that_made_the_runs(fitted):
    for name in ("E", "A", "alpha", "B", "beta"):
        interval = fitted.intervals[name]
        assert interval.low <= getattr(LAW, name) <= interval.high
    assert abs(fitted.law.alpha - LAW.alpha) < 0.05
    assert abs(fitted.law.beta - LAW.beta) < 0.05
    assert 0.002 < fitted.scatter < 0.006


def test_n_is_the_count_of_parameters_that_fits_better(fitted):
    assert fitted.counted == "non-embedding"
    assert fitted.compared["non-embedding"] < fitted.compared["total"]


def test_the_same_runs_give_the_same_fit():
    few = points(1)
    assert fit(few, resamples=3) == fit(few, resamples=3)


def test_a_run_beyond_the_ladder_is_in_the_band(fitted):
    """At four times the compute of the largest run."""
    largest = shape("14M", *SHAPES["14M"])
    n, tokens = largest.parameters["non-embedding"], 128e6
    run, law = fitted.predict(n, tokens, UNIQUE), fitted.predict(n, tokens, UNIQUE, run=False)
    truth = float(LAW.bpb(n, tokens, UNIQUE))
    assert run.low <= truth <= run.high
    assert run.value == law.value
    assert law.low <= law.value <= law.high
    assert abs(run.value / truth - 1) < 0.02


def test_what_two_amounts_of_data_do_not_determine_is_said_and_is_in_the_band():
    few = fit(points(2, tokens=(2e6, 8e6)), resamples=30)
    assert set(few.assumed) == {"beta", "repeats"}
    assert few.intervals["beta"].low < 0.3 < LAW.beta < few.intervals["beta"].high
    n = shape("14M", *SHAPES["14M"]).parameters["non-embedding"]
    band = few.predict(n, 32e6, UNIQUE)
    assert band.low <= float(LAW.bpb(n, 32e6, UNIQUE)) <= band.high


def test_runs_of_one_size_are_refused():
    with pytest.raises(UserError, match="at least two sizes"):
        fit(points(0, shapes={"3M": (256, 4)}))


# ---- repeated data ----------------------------------------------------------------------------

DATA_ALONE = Law(E=1e-9, A=1e-9, alpha=0.3, B=1.0, beta=1.0)


def effective(tokens: float, unique: float) -> float:
    """With B = beta = 1 and nothing else, a law is 1 over the tokens that count."""
    return 1 / float(DATA_ALONE.bpb(1, tokens, unique))


def test_repeated_tokens_count_for_less():
    assert effective(5, 5) == pytest.approx(5)
    assert effective(3, 5) == pytest.approx(3)
    worth = 5 + 5 * DATA_REPEATS * (1 - math.exp(-3 / DATA_REPEATS))
    assert effective(20, 5) == pytest.approx(worth)
    assert effective(5e9, 5) == pytest.approx(5 + 5 * DATA_REPEATS)


def test_excess_parameters_count_for_less_where_that_is_asked_for():
    plain = Law(E=0.1, A=1.0, alpha=0.5, B=1.0, beta=0.5)
    decaying = plain.model_copy(update={"excess": 5.31})
    assert decaying.bpb(50, 100, 100) == pytest.approx(plain.bpb(50, 100, 100))
    worth = 100 + 100 * 5.31 * (1 - math.exp(-9 / 5.31))  # 100 are optimal for 100 tokens
    assert decaying.bpb(1000, 100, 100) == pytest.approx(plain.bpb(worth, 100, 100))


def test_the_worth_of_repetitions_is_fitted_where_there_are_many():
    truth = LAW.model_copy(update={"repeats": 4.0})
    many = fit(points(3, law=truth, unique=500_000), resamples=20)
    assert "repeats" not in many.assumed
    assert many.intervals["repeats"].low <= 4.0 <= many.intervals["repeats"].high
    assert many.intervals["repeats"].high < DATA_REPEATS


# ---- coverage ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("unique", [10**12, 8_000_000])
def test_the_band_has_a_held_out_run_in_nine_of_ten_simulations(unique):
    """At four times the compute of the largest run, of 40 ladders with noise of their own."""
    made, inside = shape("14M", *SHAPES["14M"]), 0
    for seed in range(40):
        law = fit(points(seed, unique=unique), resamples=60)
        band = law.predict(made.parameters[law.counted], 128e6, unique)
        run = noisy(LAW, made, 128e6, unique, np.random.default_rng(1000 + seed))
        inside += band.low <= run <= band.high
    assert inside >= 36
