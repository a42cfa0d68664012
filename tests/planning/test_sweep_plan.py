"""The plan of a sweep: what it says is what the sweep would do, and nothing is done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished import finish_evaluation, finish_run, finish_shards, finish_source, save, start_run
from swept import RATE, run_trials, tiny_sweep
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.planning.sweep import SweepPlan, plan_of_sweep, proposals
from slm.sweeps.definition import Sweep
from slm.sweeps.proposals import propose
from slm.sweeps.records import TrialResult

pytestmark = pytest.mark.usefixtures("project")
LAYERS = {"model.n_layer": "1,2,3"}


def actions(plan: SweepPlan) -> list[str]:
    return [trial.action for trial in plan.trials]


def carried_out(sweep: Sweep, score: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """The settings of each trial, by a sweep whose trials have these scores."""
    batches: list[list[TrialResult]] = []
    while batch := propose(sweep, batches):
        batches.append(
            [
                TrialResult(number=p.number, values=p.values, rung=p.rung, val_bpb=score(p.values))
                for p in batch
            ]
        )
    return [result.values for batch in batches for result in batch]


# ---- what will be tried -----------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_the_plan_has_the_trials_that_the_sweep_will_have(sampler: str) -> None:
    sweep = tiny_sweep(space={**LAYERS, "model.dropout": "0,0.1"}, sampler=sampler, trials=6)
    planned = list(proposals(sweep, []))
    assert all(known for _, known in planned)
    assert [p.values for p, _ in planned] == carried_out(sweep, lambda values: 1.0)
    assert [p.batch for p, _ in planned] == [0, 0, 0, 0, 1, 1]


def test_tpe_is_known_as_far_as_no_result_counts() -> None:
    pytest.importorskip("optuna")
    sweep = tiny_sweep(sampler="tpe", trials=14, batch=4)
    planned = list(proposals(sweep, []))
    assert [known for _, known in planned] == [True] * 10 + [False] * 4
    tried = carried_out(sweep, lambda values: values[RATE])
    assert [p.values for p, known in planned if known] == tried[:10]


def test_tpe_is_known_one_batch_further_than_its_results(data_root: Path) -> None:
    pytest.importorskip("optuna")
    sweep = tiny_sweep(sampler="tpe", trials=18, batch=4)
    folder = run_trials(data_root, sweep, [(0.8 + i / 100,) for i in range(12)])
    trials = plan_of_sweep(sweep).trials
    assert [trial.action for trial in trials[:12]] == ["recorded"] * 12
    assert [trial.values is None for trial in trials] == [False] * 16 + [True] * 2
    results = [trial.result for trial in folder.trials]
    batches = [results[i : i + 4] for i in range(0, 12, 4)]
    assert [t.values for t in trials[12:16]] == [p.values for p in propose(sweep, batches)]


def test_who_is_trained_again_by_halving_is_not_known_yet() -> None:
    sweep = tiny_sweep(trials=6, batch=4, halving="2:2")
    planned = list(proposals(sweep, []))
    assert [(p.rung, known) for p, known in planned] == [(0, True)] * 4 + [(1, False)] * 2
    trials = plan_of_sweep(sweep).trials
    assert [trial.values is None for trial in trials] == [False] * 4 + [True] * 2


# ---- what is reused ---------------------------------------------------------------------------


def finished(root: Path, sweep: Sweep, number: int, index: int = 0) -> PipelineConfig:
    """Put the finished run of a trial into a data folder, as another recipe may have left it."""
    proposal = list(proposals(sweep, []))[number][0]
    config = sweep.config_of(proposal.overrides, index)
    shards = finish_shards(root, config, finish_source(root, config))
    record = finish_run(root, config, shards).record
    assert record is not None
    finish_evaluation(config, record, shards)
    return config


def test_an_empty_data_folder_has_everything_to_run(data_root: Path) -> None:
    plan = plan_of_sweep(tiny_sweep(trials=5, seeds=2))
    assert actions(plan) == ["to run"] * 5
    assert [stage.stage for stage in plan.shared] == ["download", "encode"]
    assert plan.tokens == 5 * 2 * 4 * 128  # trials, seeds, steps, tokens per step
    assert plan.unknown[:2] == ("download", "encode")
    assert not data_root.exists()


def test_runs_that_are_there_are_reused_seed_by_seed(data_root: Path) -> None:
    sweep = tiny_sweep(trials=3, seeds=2)
    finished(data_root, sweep, 1)
    finished(data_root, sweep, 1, index=1)
    finished(data_root, sweep, 2)
    plan = plan_of_sweep(sweep)
    assert actions(plan) == ["to run", "reused", "to run"]
    assert [len(trial.runs) for trial in plan.trials] == [0, 2, 1]
    assert [stage.action for stage in plan.shared] == ["reused", "reused"]
    assert plan.counts == {"reused": 1, "to run": 2}


def test_an_interrupted_run_is_resumed(data_root: Path) -> None:
    sweep = tiny_sweep(trials=2)
    proposal = next(iter(proposals(sweep, [])))[0]
    config = sweep.config_of(proposal.overrides, 0)
    shards = finish_shards(data_root, config, finish_source(data_root, config))
    save(start_run(data_root, config, shards), 250)
    assert actions(plan_of_sweep(sweep)) == ["resumed", "to run"]


def test_settings_that_are_refused_say_why() -> None:
    sweep = tiny_sweep(space={"model.n_embd": "int:32:36"}, trials=5)  # of two heads
    reasons = {trial.values["model.n_embd"]: trial.reason for trial in plan_of_sweep(sweep).trials
               if trial.values}  # fmt: skip
    assert [value for value, reason in sorted(reasons.items()) if not reason] == [32, 36]
    assert "model.n_embd=33 is not a multiple of model.n_head=2" in reasons[33]
    assert "even head width" in reasons[34]


# ---- what it costs ----------------------------------------------------------------------------


def test_the_budget_cuts_at_a_batch(data_root: Path) -> None:
    sweep = tiny_sweep(trials=10, batch=2, overrides={"train.max_steps": None,
                                                      "train.max_seconds": 30})  # fmt: skip
    plan = plan_of_sweep(sweep.model_copy(update={"budget": "100s"}))
    assert [trial.begins for trial in plan.trials] == [True] * 4 + [False] * 6
    assert (plan.ends, plan.seconds) == ("budget", 120)
    whole = plan_of_sweep(sweep)
    assert (whole.ends, whole.seconds) == ("trials", 300)
    tokens = tiny_sweep(trials=10, batch=2, budget="1000 tokens")  # 512 a trial
    assert [trial.begins for trial in plan_of_sweep(tokens).trials].count(True) == 2


def test_trials_that_are_not_known_yet_cost_the_mean(data_root: Path) -> None:
    pytest.importorskip("optuna")
    limit = {"train.max_steps": None, "train.max_seconds": 30}
    plan = plan_of_sweep(tiny_sweep(sampler="tpe", trials=14, overrides=limit))
    assert [trial.seconds for trial in plan.trials] == [30] * 14
    halved = plan_of_sweep(tiny_sweep(trials=6, batch=4, halving="3:2", overrides=limit))
    assert [trial.seconds for trial in halved.trials] == pytest.approx([10] * 4 + [30] * 1 + [10])


# ---- the command ------------------------------------------------------------------------------


def output(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


SPACE = ("--space", "train.learning_rate=log:1e-3:1e-2", "--space", "model.n_layer=1,2")


def test_the_command_and_a_dry_run_print_the_same(data_root: Path) -> None:
    text = output("plan", "tiny", *SPACE, "--trials", "3")
    assert text == output("sweep", "tiny", *SPACE, "--trials", "3", "--dry-run")
    assert "trials    3 trials: 3 to run" in text
    assert "n_layer=1" in text
    made = json.loads(output("plan", "tiny", *SPACE, "--trials", "3", "--json"))
    assert [trial["number"] for trial in made["trials"]] == [0, 1, 2]
    assert made["counts"] == {"to run": 3}
    assert not data_root.exists()


def test_a_sweep_that_was_begun_is_planned_by_its_folder(data_root: Path) -> None:
    folder = run_trials(data_root, tiny_sweep(trials=4), [(0.8,)] * 4)
    made = json.loads(output("plan", folder.name, "--trials", "6", "--json"))
    assert made["counts"] == {"recorded": 4, "to run": 2}
    with pytest.raises(UserError, match="keeps its settings"):
        output("plan", folder.name, "--seeds", "2")


def test_the_same_from_python() -> None:
    plan = slm.plan_sweep("tiny", {RATE: "log:1e-3:1e-2"}, trials=3)
    assert plan == plan_of_sweep(tiny_sweep(trials=3))


def test_options_of_a_sweep_need_one() -> None:
    with pytest.raises(UserError, match="--trials is of a sweep, and tiny is none"):
        output("plan", "tiny", "--trials", "3")
