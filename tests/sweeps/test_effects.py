"""What each setting does: the intervals hold, and what the trials do not show is not claimed."""

from typing import Any

import numpy as np
import pytest

from slm.sweeps.effects import Effect, Tried, effects

RATE, LAYERS, DROPOUT = "train.learning_rate", "model.n_layer", "model.dropout"
MUON, OPTIMIZER = "train.muon_learning_rate", "train.optimizer"


def tried(
    name: str, values: Any, is_range: bool, *, log: bool = False, present: Any = None
) -> Tried:
    values = values.tolist()
    has = np.ones(len(values), bool) if present is None else present
    return Tried(name, values, has, is_range, log)


def simulated(number: int, trials: int = 20, sd: float = 0.003) -> tuple[list[Tried], np.ndarray]:
    """A sweep whose rate has its best value inside the range, and whose layers help."""
    draws = np.random.default_rng(number)
    rate = 10 ** draws.uniform(-3, -2, trials)
    layers = draws.permutation(np.resize([2, 4, 6], trials))
    dropout = draws.uniform(0, 0.2, trials)
    settings = [
        tried(RATE, rate, True, log=True),
        tried(LAYERS, layers, False),
        tried(DROPOUT, dropout, True),
    ]
    noise = draws.normal(0, sd, trials)
    truth = np.array([true_bpb(*each) for each in zip(rate, layers, dropout, strict=True)])
    return settings, truth + noise


def true_bpb(rate: float, layers: int, dropout: float) -> float:
    of_layers = {2: 0.0, 4: -0.01, 6: -0.02}[layers]
    return float(0.8 + 0.1 * (np.log10(rate) + 2.5) ** 2 + of_layers + 0.05 * dropout)


def by_name(results: tuple[Effect, ...]) -> dict[str, Effect]:
    return {effect.setting: effect for effect in results}


def test_the_intervals_cover_the_truth_with_twenty_trials() -> None:
    covered: dict[str, list[bool]] = {RATE: [], LAYERS: [], DROPOUT: []}
    base: dict[str, Any] = {RATE: 3e-3, LAYERS: 2, DROPOUT: 0.0}
    for number in range(100):
        for effect in effects(*simulated(number)):
            for level in effect.levels:
                values = [
                    true_bpb(*({**base, effect.setting: value}.values()))
                    for value in (level.value, effect.reference)
                ]
                assert level.low is not None
                assert level.high is not None
                truth = values[0] - values[1]
                covered[effect.setting].append(level.low <= truth <= level.high)
    assert all(np.mean(each) >= 0.93 for each in covered.values())


def test_a_range_with_its_best_value_inside_is_worse_on_both_sides() -> None:
    rate = by_name(effects(*simulated(3, 40)))[RATE]
    assert [level.better for level in rate.levels] == [False, False]
    assert rate.levels[0].value < rate.reference < rate.levels[1].value


def test_a_choice_is_compared_with_the_one_of_the_most_trials() -> None:
    settings, bpb = simulated(1, 20)
    layers = by_name(effects(settings, bpb))[LAYERS]
    assert layers.reference in (2, 4)  # of which there are seven each
    assert {layers.reference, *(level.value for level in layers.levels)} == {2, 4, 6}


def test_a_setting_that_only_some_trials_have() -> None:
    draws = np.random.default_rng(1)
    optimizer = np.resize(["adamw", "muon"], 24)
    has = optimizer == "muon"
    rate = 10 ** draws.uniform(-3, -1, 24)
    bpb = 0.8 - np.where(has, 0.05 - 0.01 * np.log10(rate), 0) + draws.normal(0, 1e-3, 24)
    settings = [tried(OPTIMIZER, optimizer, False), tried(MUON, rate, True, log=True, present=has)]
    results = by_name(effects(settings, bpb))
    assert results[MUON].trials == 12
    assert [level.better for level in results[MUON].levels] == [True, False]
    assert results[OPTIMIZER].levels[0].better


def test_one_trial_that_diverged_does_not_decide_everything() -> None:
    settings, bpb = simulated(5, 30)
    bpb[4] = 7.5
    layers = by_name(effects(settings, bpb))[LAYERS]
    assert all(abs(level.difference or 9) < 0.1 for level in layers.levels)


def test_too_few_trials_say_so() -> None:
    settings, bpb = simulated(2, 6)
    results = effects(settings, bpb)
    assert not any(effect.levels for effect in results)
    assert results[0].note == "6 trials are too few for these settings: at least 10 are needed"


def test_a_setting_of_one_value_has_no_effect_to_show() -> None:
    settings, bpb = simulated(2)
    results = effects([*settings, tried("model.n_head", np.full(20, 4), False)], bpb)
    assert results[-1].note == "every trial that has it has the same value"
    assert results[0].levels


def test_settings_that_always_change_together_are_not_told_apart() -> None:
    layers = np.resize([2, 4], 20)
    settings = [tried(LAYERS, layers, False), tried("model.n_head", layers * 2, False)]
    bpb = 0.8 + 0.01 * (layers == 4) + np.random.default_rng(0).normal(0, 1e-3, 20)
    for effect in effects(settings, bpb):
        assert [level.difference for level in effect.levels] == [None]


def test_a_value_of_one_trial_has_no_interval() -> None:
    layers = np.array([2] * 10 + [4] * 9 + [6])
    bpb = 0.8 + np.random.default_rng(0).normal(0, 1e-3, 20)
    (effect,) = effects([tried(LAYERS, layers, False)], bpb)
    of_six = next(level for level in effect.levels if level.value == 6)
    assert of_six.low is of_six.better is None
    assert of_six.difference == pytest.approx(bpb[-1] - bpb[:10].mean())
