"""The winner of a sweep, handed to the gate."""

import shlex
from types import ModuleType
from typing import Any

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.orchestration import stages
from slm.orchestration.display import current, showing
from slm.orchestration.outline import summary, took
from slm.run_folder import RunFolder
from slm.storage import hashing_once
from slm.sweeps.folder import SweepFolder
from slm.sweeps.winner import choose, winning_run


@hashing_once()
def promote_winner(sweep: SweepFolder | str, *, steps: ModuleType = stages) -> dict[str, Any]:
    """Report and register the best trial of a sweep, and let the gate decide; train nothing.

    >>> slm.promote_winner("rates")["verdict"]

    Of several seeds it is the run with the fewest bits per byte. Where the winner is not
    distinguishable from others, the gate decides all the same, and the sentence says so.

    Args:
        sweep: its name, its folder or its key's beginning.
        steps: `slm.orchestration.stages`, or `tasks`.

    Returns what `run_pipeline` does, and `trial`, `distinguishable`, `winner` (a sentence).

    Raises UserError where there is no best trial, or its run is gone.
    """
    folder = SweepFolder.open(sweep) if isinstance(sweep, str) else sweep
    winner = choose(folder)
    trial, seed = winning_run(folder, winner)
    home = folder.root.named_run(seed.run)
    run = home.verified_record if home.exists else None
    if run is None or run.key != seed.key:
        given = {**folder.sweep.overrides, **trial.overrides, "train.seed": seed.seed}
        words = shlex.join(w for key, value in given.items() for w in ("--set", f"{key}={value}"))
        raise UserError(
            f"the run of trial {trial.number}, {seed.run}, is gone: `slm run {folder.sweep.recipe} "
            f"{words}` trains it again"
        )
    config = _config(folder, home, trial.overrides)
    stages.check_tracking(config)
    with showing(current()) as display:
        shards = stages.need_shards(home)
        made: list[Any] = [run, evaluation := steps.evaluate(config, run, shards)]
        if config.benchmark.tasks:
            made.append(steps.benchmark(config, run, shards))
        made.append(report := steps.report(config, run, evaluation, shards))
        made.append(version := steps.register(config, run, evaluation, report, shards))
        made.append(steps.promote(config, version))
        return {
            **summary(config, made),
            "trial": trial.number,
            "distinguishable": winner.distinguishable,
            "winner": winner.sentence,
            **took(display),
        }


def _config(folder: SweepFolder, run: RunFolder, overrides: dict[str, Any]) -> PipelineConfig:
    """The settings that a run was trained by, with today's of what comes after training.

    The run may have been made before the sweep, for another model of the registry.
    """
    asked = folder.sweep.config(overrides)
    names = ("recipe", "name", "evaluate", "benchmark", "report", "registry", "retrain")
    return run.config.model_copy(update={name: getattr(asked, name) for name in names})
