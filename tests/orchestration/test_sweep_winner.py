"""The winner of a sweep goes to the gate as it is: nothing is trained for it."""

import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from finished import finish_evaluation, finish_run, finish_shards, finish_source
from swept import RATE, tiny_sweep

import slm
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.orchestration.sweep_winner import promote_winner
from slm.records import Evaluation, Report, Run, Shards, Version
from slm.run_folder import RunFolder
from slm.sweeps.definition import Sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.proposals import propose
from slm.sweeps.records import SeedRun, Trial

pytestmark = pytest.mark.usefixtures("project")
OWN = {"registry.model": "tales"}
SCORES = [(1.3, 1.2), (1.1, 1.0)]  # of two trials of two seeds


class Stages:
    """The stages after training, which note what they are called with."""

    def __init__(self) -> None:
        self.called: list[tuple[str, PipelineConfig]] = []

    @property
    def module(self) -> ModuleType:
        names = ("evaluate", "report", "register", "promote")
        return cast(ModuleType, SimpleNamespace(**{name: getattr(self, name) for name in names}))

    def evaluate(self, config: PipelineConfig, run: Run, shards: Shards) -> Evaluation:
        self.called.append(("evaluate", config))
        evaluation = RunFolder.of(run).evaluation
        assert evaluation is not None
        return evaluation

    def report(self, config: PipelineConfig, run: Run, *_: Any) -> Report:
        self.called.append(("report", config))
        return Report(key="r" * 64, run=run.name, path=run.path / "report")

    def register(self, config: PipelineConfig, run: Run, *_: Any) -> Version:
        self.called.append(("register", config))
        return Version(
            key="v" * 64, model=config.model_name, version="1", aliases=[], run_id="",
            tracking_uri="",
        )  # fmt: skip

    def promote(self, config: PipelineConfig, version: Version) -> None:
        self.called.append(("promote", config))


def done(root: Path, sweep: Sweep) -> SweepFolder:
    """The sweep, with a finished run for each seed of its two trials."""
    folder = SweepFolder.of(sweep, root)
    with folder.locked():
        folder.write_sweep(sweep, {})
        for proposal, scores in zip(propose(sweep, []), SCORES, strict=True):
            seeds = tuple(
                trained(root, sweep.config_of(proposal.overrides, i), bpb)
                for i, bpb in enumerate(scores)
            )
            folder.write_trial(Trial(**proposal.model_dump(), seeds=seeds))
    return folder


def trained(root: Path, config: PipelineConfig, bpb: float) -> SeedRun:
    shards = finish_shards(root, config, finish_source(root, config))
    run = finish_run(root, config, shards).record
    assert run is not None
    finish_evaluation(config, run, shards)
    return SeedRun(
        seed=config.train.seed, state="finished", run=run.name, key=run.key, val_bpb=bpb,
        documents=1, bytes=1, weights_sha256=run.weights_sha256,
    )  # fmt: skip


def test_the_best_seed_of_the_best_trial_is_handed_to_the_gate(data_root: Path) -> None:
    sweep = tiny_sweep(
        trials=2, seeds=2, overrides={"registry.max_bpb": 3.5, "registry.model": "tales"}
    )
    folder, stages = done(data_root, sweep), Stages()
    result = promote_winner(folder, steps=stages.module)
    best = folder.trials[1]
    assert [name for name, _ in stages.called] == ["evaluate", "report", "register", "promote"]
    for _, config in stages.called:
        assert (config.train.learning_rate, config.train.seed) == (best.values[RATE], 1338)
        assert config.registry.max_bpb == 3.5
    assert result["run"] == str(data_root / "runs" / best.seeds[1].run)
    assert (result["trial"], result["version"], result["champion"]) == (1, "models:/tales/1", True)
    assert result["distinguishable"] is False
    assert result["winner"].startswith("trial 1: 1.0500 bits per byte")


def test_what_comes_after_training_is_of_the_sweep_not_of_an_older_run(data_root: Path) -> None:
    """A run that another recipe had trained is reused, and goes to the sweep's own model."""
    folder, stages = done(data_root, tiny_sweep(trials=2, seeds=2, overrides=OWN)), Stages()
    run = RunFolder(data_root / "runs" / folder.trials[1].seeds[1].run)
    other = run.config.model_copy(update={"recipe": "other", "name": "other"})
    settings = run.settings
    (run.path / "config.json").unlink()
    run.write_settings(type(settings)(**{**vars(settings), "config": other}))
    assert promote_winner(folder, steps=stages.module)["version"] == "models:/tales/1"


def test_a_run_that_is_gone_is_named_with_the_command_that_trains_it(data_root: Path) -> None:
    folder = done(data_root, tiny_sweep(trials=2, seeds=2))
    shutil.rmtree(data_root / "runs" / folder.trials[1].seeds[1].run)
    message = rf"is gone: `slm run tiny --set {RATE}=\S+ --set train.seed=1338` trains it again"
    with pytest.raises(UserError, match=message):
        slm.promote_winner(folder.name)
