"""A sweep compared as runs: what `slm sweep` and `slm compare` say of it is the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from many_runs import make_run
from test_compare_many import config

import slm
from slm.comparison.page import headline
from slm.run_folder import RunFolder
from slm.sweeps.definition import define_sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SeedRun, Trial
from slm.sweeps.winner import choose

LAYERS = (8, 2, 6, 4)  # of the trials, in their order
CLOSE = [[0.802, 0.81, 0.80], [0.80, 0.808, 0.81], [0.806, 0.80, 0.81], [0.93, 0.94, 0.93]]


def sweep_of(
    root: Path,
    scores: Sequence[Sequence[float]],
    shorter: Sequence[float] = (),
    texts: Sequence[float] = (1.5,),
    **options: Any,
) -> SweepFolder:
    """A sweep over depths, with the scores of each trial by seed; a score of 0 has failed.

    Args:
        shorter: scores of trials of a shorter limit.
        texts: the fingerprint of the held-out text of each trial, in turn.
    """
    sweep = define_sweep("quickstart", {"model.n_layer": "2,4,6,8"}, name="depths", sampler="grid")
    folder = SweepFolder.of(sweep, root)
    rungs = [(0, 20, [score]) for score in shorter] + [(1, 60, each) for each in scores]
    with folder.locked():
        folder.write_sweep(sweep, {})
        for number, (rung, steps, bpb) in enumerate(rungs):
            values = {"model.n_layer": LAYERS[number % 4]}
            setting = {"model__n_layer": LAYERS[number % 4], "train__max_steps": steps}
            options["fingerprint"] = texts[number % len(texts)]
            seeds = [
                seed_run(make_run(root, config(**setting, train__seed=i + 1), each, **options))
                if each
                else SeedRun(seed=i + 1, state="failed", reason="step 3: train_loss is nan")
                for i, each in enumerate(bpb)
            ]
            folder.write_trial(
                Trial(number=number, batch=0, rung=rung, values=values, overrides=values,
                      seeds=tuple(seeds))
            )  # fmt: skip
    return folder


def seed_run(run: RunFolder) -> SeedRun:
    scored = run.evaluation
    assert scored is not None
    return SeedRun(
        seed=run.config.train.seed, state="finished", run=run.name, key=run.settings.key,
        val_bpb=scored.val_bpb, documents=scored.documents, bytes=scored.bytes,
        weights_sha256=scored.weights_sha256,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "options"),
    [
        ([each[:1] for each in CLOSE], {}),
        ([each[:2] for each in CLOSE], {}),
        (CLOSE, {"noise": 0.002}),
        ([[0.9, 0.9], [0.8, 0.802], [0.95]], {}),
        ([[0.8], [0.8], [0.9]], {"noise": 0.0}),  # the same on every document
        ([[0.8], [0.7], [0.9]], {"sizes": [100] * 19}),
        ([[0.8, 0.81], [0.5, 0.0], [0.82, 0.8]], {}),  # the best seed is of a trial that failed
        ([[0.8], [0.9]], {}),
    ],
    ids=["one seed", "two", "three", "some", "equal", "few documents", "failed", "two runs"],
)
def test_both_commands_choose_the_same_best_with_the_same_intervals(
    tmp_path: Path, scores: Sequence[Sequence[float]], options: dict[str, Any]
) -> None:
    assert_alike(sweep_of(tmp_path, scores, **options), tmp_path)


def test_trials_of_a_shorter_limit_are_not_compared(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, [[0.8], [0.82]], shorter=[0.7, 0.75, 0.9])
    assert_alike(folder, tmp_path)
    assert slm.compare(folder.name, root=tmp_path).notes == [
        f"3 runs of {folder.name} left out: of a shorter limit, or of a trial that failed with "
        "another seed"
    ]


def test_both_keep_apart_what_was_scored_on_other_text(tmp_path: Path) -> None:
    """Of the same lengths: two texts are told apart by what xz makes of them."""
    folder = sweep_of(tmp_path, [[0.8], [0.5], [0.82]], texts=(1.5, 1.6, 1.5))
    winner = choose(folder)
    assert [[place.trial for place in s.places] for s in winner.standings] == [[0, 2], [1]]
    assert winner.best is None
    runs = [trial.seeds[0].run for trial in folder.trials]
    rankings = slm.compare(folder.name, root=tmp_path).rankings
    assert [[g.runs[0] for g in r.groups] for r in rankings] == [[runs[0], runs[2]], [runs[1]]]


def assert_alike(folder: SweepFolder, root: Path) -> None:
    standing = choose(folder).standing
    compared = slm.compare(folder.name, root=root)
    (ranking,) = compared.rankings
    assert standing is not None
    assert ranking.documents == standing.documents
    assert alike(ranking.seed_sd) == (standing.seed_sd,)
    assert ranking.distinguishable == standing.distinguishable
    trials = {trial.number: trial for trial in folder.trials}
    for place, group in zip(standing.places, ranking.groups, strict=True):
        assert group.runs == [seed.run for seed in trials[place.trial].seeds]
        assert (group.val_bpb,) == alike(place.val_bpb)
        assert (group.low, group.high) == alike(place.low, place.high)
        if (to_best := group.to_best) is None:
            assert place == standing.best
            continue
        ends = (place.difference_low, place.difference_high)
        assert (to_best.difference, to_best.low, to_best.high) == alike(place.difference, *ends)
        assert group.is_distinguishable != place.close
    assert ranking.verdict == standing.verdict
    assert headline(compared).endswith(standing.verdict.text())


def alike(*values: float | None) -> tuple[Any, ...]:
    """The same up to the rounding of sums."""
    return tuple(v if v is None else pytest.approx(v, abs=1e-12) for v in values)
