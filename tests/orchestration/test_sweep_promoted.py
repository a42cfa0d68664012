"""A real sweep, from its trials to the gate."""

from pathlib import Path

import pytest

import slm
from slm.run_folder import DataRoot
from slm.sweeps.folder import SweepFolder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("project")]


def test_the_winner_is_a_champion_and_nothing_was_trained_for_it(data_root: Path) -> None:
    easy = {"data.documents": 300, "registry.max_bpb": 9, "registry.beat_baselines": False,
            "registry.max_degenerate": 1, "registry.max_memorised": 1}  # fmt: skip
    space = {"train.learning_rate": "1e-3,5e-2"}
    result = slm.sweep("tiny", space, sampler="grid", overrides=easy, name="rates")
    runs = {run.name for run in DataRoot().runs()}
    winner = slm.choose_winner("rates")
    assert winner.best == result.best == 1  # four steps at the higher rate
    assert not winner.distinguishable  # of one seed each
    promoted = slm.promote_winner("rates")
    assert promoted["champion"]
    assert Path(promoted["run"]).name == result.trials[1].seeds[0].run
    assert {run.name for run in DataRoot().runs()} == runs
    assert "evaluate" in promoted["reused"]
    again = slm.promote_winner(SweepFolder.open("rates"))
    assert (again["version"], again["verdict"]) == (
        promoted["version"],
        "it is the champion already",
    )
    planned = slm.plan_sweep("tiny", space, sampler="grid", overrides=easy, name="rates", trials=2)
    assert planned.counts == {"recorded": 2}
