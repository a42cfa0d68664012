"""Where a sweep is: `data/sweeps/<name>-<key>/`.

sweep.json        what was asked for
trials/0007.json  what came of a trial, written once, when all its seeds are done
result.json       the best trial, once the sweep is complete
lock              held while its driver runs
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slm import storage
from slm.run_folder import LOCK, SWEEP, DataRoot
from slm.sweeps.definition import Sweep
from slm.sweeps.records import SweepResult, Trial

SWEEPS, TRIALS, RESULT = "sweeps", "trials", "result.json"


@dataclass(frozen=True)
class SweepFolder:
    """A sweep and what has come of it so far; every access reads the files as they are now."""

    path: Path

    @classmethod
    def of(cls, sweep: Sweep, root: DataRoot | Path | None = None) -> "SweepFolder":
        """Where a sweep belongs; one of the same key that has another name stays where it is."""
        data = DataRoot(root)
        return cls(data.folder(SWEEPS, sweep.name, sweep.key))

    @classmethod
    def open(cls, reference: str, root: DataRoot | Path | None = None) -> "SweepFolder":
        """A sweep by its folder, its name or the beginning of its key. Raises UserError."""
        return cls(DataRoot(root).sweep(reference))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def root(self) -> DataRoot:
        return DataRoot(self.path.parents[1])

    @property
    def exists(self) -> bool:
        return (self.path / SWEEP).is_file()

    @property
    def sweep(self) -> Sweep:
        """What was asked for. Raises CorruptionError, NewerFormat."""
        raise NotImplementedError

    @property
    def trials(self) -> list[Trial]:
        """The finished and failed trials so far, by their numbers."""
        raise NotImplementedError

    @property
    def result(self) -> SweepResult | None:
        """None where the sweep is not complete."""
        raise NotImplementedError

    @property
    def is_running(self) -> bool:
        """Whether a driver runs this sweep now."""
        return storage.is_held(self.path / LOCK)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held by the driver. Raises InUse where another one runs this sweep."""
        with storage.lock(self.path / LOCK, wait=False):
            yield

    def write_sweep(self, sweep: Sweep) -> None:
        raise NotImplementedError

    def write_trial(self, trial: Trial) -> None:
        """Write a trial's record, durably; one that is there stays."""
        raise NotImplementedError

    def write_result(self, result: SweepResult) -> None:
        raise NotImplementedError
