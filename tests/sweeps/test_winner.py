"""The winner of a sweep: what is said of it, and what is not."""

import shutil
from pathlib import Path

import pytest
from swept import RATE, documents, run_trials, tiny_sweep

from slm.errors import UserError
from slm.sweeps.winner import choose, winning_run

pytestmark = pytest.mark.usefixtures("project")
APART = [(0.90, 0.901), (0.80, 0.802), (0.95, 0.951), (0.93, 0.929), (0.97, 0.971)]
TOGETHER = [(0.802, 0.81), (0.80, 0.808), (0.806, 0.80), (0.93, 0.929), (0.81, 0.801)]


def test_a_winner_that_is_better_than_all_others(data_root: Path) -> None:
    folder = run_trials(data_root, tiny_sweep(trials=5, seeds=2), APART)
    winner = choose(folder)
    assert (winner.best, winner.distinguishable) == (1, True)
    assert winner.standing is not None
    assert winner.standing.best.val_bpb == pytest.approx(0.801)
    assert winner.sentence.startswith("trial 1: 0.8010 bits per byte (95 %: 0.")
    assert winner.sentence.endswith("), as settings better than all 4 others")
    assert not winner.advice
    trial, seed = winning_run(folder, winner)
    assert (trial.number, seed.val_bpb) == (1, pytest.approx(0.80))


def test_a_winner_that_is_not_distinguishable_from_others(data_root: Path) -> None:
    winner = choose(run_trials(data_root, tiny_sweep(trials=5, seeds=2), TOGETHER))
    assert not winner.distinguishable
    assert winner.sentence.endswith("), as settings not distinguishable from 3 others: 1, 4, 0")
    assert winner.standing is not None
    for place in winner.standing.places[1:]:
        assert place.difference_low is not None
        assert place.close == (place.difference_low <= 0)


def test_one_seed_never_distinguishes(data_root: Path) -> None:
    """A seed may change more than the trials differ by, however sure the documents are."""
    scores = [pair[:1] for pair in APART]
    winner = choose(run_trials(data_root, tiny_sweep(trials=5), scores))
    assert (winner.best, winner.distinguishable) == (1, False)
    assert winner.sentence.endswith(
        "), as a model better than all 4 others; as settings not known: one seed each"
    )
    assert winner.advice.startswith("--seeds 3 shows it: 2 trainings more of each trial, about 1 m")


def test_a_failed_trial_is_named_and_not_ranked(data_root: Path) -> None:
    winner = choose(run_trials(data_root, tiny_sweep(trials=5, seeds=2), [*APART[:4], ()]))
    assert winner.failed == (4,)
    assert winner.standing is not None
    assert len(winner.standing.places) == 4


def test_no_trial_that_succeeded(data_root: Path) -> None:
    folder = run_trials(data_root, tiny_sweep(trials=2), [(), ()])
    winner = choose(folder)
    assert (winner.best, winner.sentence) == (None, "no trial has a score")
    with pytest.raises(UserError, match="has no best trial: no trial has a score"):
        winning_run(folder, winner)


def test_trials_scored_on_other_documents_are_never_ranked_together(data_root: Path) -> None:
    sweep = tiny_sweep(trials=5, seeds=2)
    texts = [documents(), documents(seed=1)]
    folder = run_trials(data_root, sweep, APART, held_out=texts)
    winner = choose(folder)
    assert (winner.best, winner.distinguishable, winner.effects) == (None, False, ())
    assert [[p.trial for p in s.places] for s in winner.standings] == [[0, 2, 4], [1, 3]]
    assert winner.sentence.startswith("trials were scored on 2 sets of held-out documents")
    with pytest.raises(UserError, match="promote one of them"):
        winning_run(folder, winner)


def test_few_documents_and_scores_that_are_gone_say_so(data_root: Path) -> None:
    sweep = tiny_sweep(trials=5, seeds=2)
    few = run_trials(data_root, sweep, APART, held_out=[documents(8)])
    winner = choose(few)
    assert (winner.best, winner.distinguishable) == (1, False)
    assert winner.sentence.endswith("is not known: 8 held-out documents are too few")
    shutil.rmtree(data_root / "runs")
    winner = choose(few)
    assert winner.best == 1
    assert winner.sentence.endswith("the scores of the documents are gone from the runs' folders")


def test_of_halving_the_longest_limit_counts(data_root: Path) -> None:
    sweep = tiny_sweep(trials=5, batch=4, seeds=2, halving="2:2")
    folder = run_trials(data_root, sweep, [*TOGETHER[:4], (0.85, 0.851)])
    winner = choose(folder)
    assert winner.best == 4  # of the full limit, though shorter ones have fewer bits per byte
    assert winner.shorter == (0, 1, 2, 3)
    assert winner.sentence.endswith(", the only one that was scored")


def test_the_effect_of_the_setting(data_root: Path) -> None:
    sweep = tiny_sweep(trials=12, batch=12)
    folder = run_trials(data_root, sweep, [(0.9,)] * 12)
    rates = [trial.values[RATE] for trial in folder.trials]
    shutil.rmtree(folder.path)
    shutil.rmtree(data_root / "runs")
    scores = [(0.8 + 10 * rate + 0.001 * (i % 3),) for i, rate in enumerate(rates)]
    (effect,) = choose(run_trials(data_root, sweep, scores)).effects
    assert (effect.setting, effect.trials) == (RATE, 12)
    assert [level.better for level in effect.levels] == [True, False]


def test_the_same_sweep_has_the_same_winner(data_root: Path) -> None:
    folder = run_trials(data_root, tiny_sweep(trials=5, seeds=2), TOGETHER)
    assert choose(folder) == choose(folder)
