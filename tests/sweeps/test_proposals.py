import random
from collections.abc import Sequence
from typing import Any

import pytest

from slm.sweeps.definition import Sweep
from slm.sweeps.halving import rank_correlations
from slm.sweeps.proposals import Proposal, propose
from slm.sweeps.records import TrialResult
from slm.sweeps.space import identity
from tests.sweeps.sweeping import RATES, score, tiny_sweep

pytestmark = pytest.mark.usefixtures("project")
CONDITIONAL = {
    "train.optimizer": "adamw,muon",
    "train.muon_learning_rate": {"range": "log:1e-3:1e-1", "when": {"train.optimizer": "muon"}},
    "train.learning_rate": "log:1e-3:1e-2",
}


def result_of(sweep: Sweep, proposal: Proposal) -> TrialResult:
    config = sweep.config(proposal.overrides)
    failed = config.train.learning_rate > 8e-3
    return TrialResult(
        number=proposal.number,
        values=proposal.values,
        rung=proposal.rung,
        val_bpb=None if failed else score(config) + 0.01 / (config.train.max_steps or 1),
    )


def play(sweep: Sweep) -> tuple[list[Proposal], list[list[TrialResult]]]:
    """All proposals of a sweep and their results."""
    proposals: list[Proposal] = []
    results: list[list[TrialResult]] = []
    while batch := propose(sweep, results):
        proposals += batch
        results.append([result_of(sweep, proposal) for proposal in batch])
    return proposals, results


def settings(proposals: Sequence[Proposal]) -> list[str]:
    return [identity(proposal.values) for proposal in proposals]


@pytest.mark.parametrize("space", [RATES, CONDITIONAL], ids=["plain", "conditional"])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_proposals_are_a_function_of_seed_and_results(sampler: str, space: dict[str, Any]) -> None:
    sweep = tiny_sweep(space, sampler=sampler, trials=18, batch=4)
    proposals, results = play(sweep)
    assert [p.number for p in proposals] == list(range(18))
    assert [p.batch for p in proposals] == [n // 4 for n in range(18)]
    assert len(set(settings(proposals))) == 18  # none twice
    again = propose(sweep, results[:3])
    assert again == proposals[12:16]
    assert propose(tiny_sweep(space, sampler=sampler, trials=14, batch=4), results[:3]) == again[:2]
    other = play(tiny_sweep(space, sampler=sampler, trials=18, batch=4, seed=8))[0]
    assert settings(other) != settings(proposals)
    for proposal in proposals:
        sweep.config(proposal.overrides)  # which refuses what is out of bounds
        muon = proposal.values.get("train.optimizer") == "muon"
        assert ("train.muon_learning_rate" in proposal.values) == muon


def test_tpe_learns_from_results_and_from_nothing_else() -> None:
    sweep = tiny_sweep(sampler="tpe", trials=40, batch=4)
    proposals, results = play(sweep)
    startup, later = proposals[:12], proposals[20:]
    assert settings(startup)[:10] == settings(play(tiny_sweep(trials=10))[0])

    def mean(chosen: Sequence[Proposal]) -> float:
        return sum(score(sweep.config(p.overrides)) for p in chosen) / len(chosen)

    assert mean(later) < mean(startup)
    worse = [[r.model_copy(update={"val_bpb": 9.0}) for r in batch] for batch in results[:5]]
    assert propose(sweep, worse) != propose(sweep, results[:5])
    shuffled = [random.Random(1).sample(batch, len(batch)) for batch in results[:5]]
    assert propose(sweep, shuffled) == propose(sweep, results[:5])


def test_optuna_is_silent_and_keeps_no_database(
    capfd: pytest.CaptureFixture[str], project: Any
) -> None:
    play(tiny_sweep(sampler="tpe", trials=14))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert [path.name for path in project.iterdir()] == ["pipelines.yaml"]


def test_a_grid_is_every_combination_in_order() -> None:
    sweep = tiny_sweep({"model.n_layer": "1,2,3", "train.optimizer": "adamw,muon"}, sampler="grid",
                       trials=None, batch=4)  # fmt: skip
    assert sweep.trials == 6
    assert [tuple(p.values.values()) for p in play(sweep)[0]] == [
        (1, "adamw"), (1, "muon"), (2, "adamw"), (2, "muon"), (3, "adamw"), (3, "muon"),
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_a_space_that_is_used_up_ends_the_sweep(sampler: str) -> None:
    sweep = tiny_sweep({"model.n_layer": "int:1:12"}, sampler=sampler, trials=30, batch=5)
    values = [p.values["model.n_layer"] for p in play(sweep)[0]]
    assert sorted(values) == list(range(1, 13))


def test_halving_trains_the_best_of_a_rung_again_for_the_whole_limit() -> None:
    sweep = tiny_sweep(
        halving="3:3", trials=26, batch=4, overrides={"train.max_steps": 18, "train.warmup": 0.1}
    )
    proposals, results = play(sweep)
    flat = {r.number: r for batch in results for r in batch}
    steps = {rung: {sweep.config(p.overrides).train.max_steps for p in proposals if p.rung == rung}
             for rung in range(3)}  # fmt: skip
    assert steps == {0: {2}, 1: {6}, 2: {18}}
    assert all(p.overrides == p.values for p in proposals if p.rung == 2)
    first = [p for p in proposals if p.rung == 0]
    assert len(set(settings(first))) == len(first)
    for proposal in proposals:
        assert (proposal.promoted_from is None) == (proposal.rung == 0)
        if proposal.rung:
            below = flat[proposal.promoted_from or 0]
            earlier = [r for r in flat.values() if r.rung == below.rung
                       and proposals[r.number].batch < proposal.batch]  # fmt: skip
            ranked = sorted(r.val_bpb for r in earlier if r.val_bpb is not None)
            assert below.val_bpb is not None
            assert ranked.index(below.val_bpb) < len(earlier) // 3
            assert below.values == proposal.values
    assert sum(p.rung == 2 for p in proposals) >= 1
    longer = tiny_sweep(
        halving="3:3", trials=31, batch=4, overrides={"train.max_steps": 18, "train.warmup": 0.1}
    )
    assert play(longer)[0][:26] == proposals  # more trials continue the same sweep


def test_the_rank_correlation_between_rungs() -> None:
    halving = tiny_sweep(halving=2, trials=6).halving
    assert halving is not None

    def results(lower: list[float], upper: list[float]) -> list[TrialResult]:
        return [
            TrialResult(number=n, values={"model.n_layer": n}, rung=rung, val_bpb=value)
            for rung, values in enumerate((lower, upper))
            for n, value in enumerate(values)
        ]

    [same] = rank_correlations(halving, results([1, 2, 3, 4], [5, 6, 7, 8]))
    [opposite] = rank_correlations(halving, results([1, 2, 3, 4], [8, 7, 6, 5]))
    [few] = rank_correlations(halving, results([1, 2, 3], [5, 6]))
    assert (same.spearman, opposite.spearman, few.spearman) == (
        pytest.approx(1), pytest.approx(-1), None,
    )  # fmt: skip
    assert (same.trials, few.trials) == (4, 2)
