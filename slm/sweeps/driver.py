"""The driver of a sweep: it runs what is proposed until enough is done, from wherever it was."""

from collections.abc import Callable
from pathlib import Path

from slm.config import PipelineConfig
from slm.progress import Progress, silent
from slm.records import Evaluation, Run
from slm.run_folder import DataRoot
from slm.sweeps.definition import Sweep
from slm.sweeps.records import SweepResult, Trial

RunTrial = Callable[[PipelineConfig], tuple[Run, Evaluation]]


def run_sweep(
    sweep: Sweep,
    root: DataRoot | Path | None,
    *,
    run_trial: RunTrial,
    workers: int = 1,
    progress: Progress = silent,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> SweepResult:
    """Run the trials of a sweep that have no record yet, batch by batch; return what came of all.

    Args:
        run_trial: trains and evaluates a config, or reuses what is complete.
        workers: trials of a batch that run at a time. The trials are the same for any number.
        on_trial: called with each trial that this call has run, as it ends.

    Raises InUse where another process runs this sweep, and whatever stops it: interrupted, it
    resumes.
    """
    raise NotImplementedError
