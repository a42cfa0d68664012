"""A sweep whose only trial is a run that is there: for tests of what is said of its runs."""

from pathlib import Path

from slm.run_folder import RunFolder
from slm.sweeps.definition import Sweep
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import SeedRun, Trial
from slm.sweeps.space import Dimension

VALUES = {"train.learning_rate": 0.003}


def write_trial(run: Path, name: str = "rates", number: int = 7) -> SweepFolder:
    """The folder of a sweep of this name, which has the run as a trial."""
    folder = SweepFolder(run.parents[1] / "sweeps" / f"{name}-{'5' * 12}")
    sweep = Sweep(name=name, recipe="quickstart", space={"train.learning_rate": RATES})
    seed = SeedRun(
        seed=1337, state="finished", run=run.name, key=RunFolder(run).settings.key, val_bpb=1.0
    )
    with folder.locked():
        folder.write_sweep(sweep, {})
        folder.write_trial(
            Trial(number=number, batch=0, values=VALUES, overrides=VALUES, seeds=(seed,))
        )
    return folder


RATES = Dimension(choices=(0.003, 0.006))
