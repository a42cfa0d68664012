"""Where a sweep is: `data/sweeps/<name>-<key>/`.

    sweep.json        what was asked for, and the libraries that it was proposed with
    trials/0007.json  what came of a trial, written once, when all its seeds are done
    result.json       the best trial, once the sweep is complete
    lock              held while its driver runs

The runs of the trials are in `data/runs/` like all others. A trial's record is enough without them.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from slm import storage
from slm.errors import CorruptionError, InUse, first_invalid
from slm.records import Frozen
from slm.run_folder import LOCK, SWEEP, DataRoot
from slm.sweeps.definition import Sweep
from slm.sweeps.records import SweepResult, Trial

logger = logging.getLogger(__name__)

SWEEPS, TRIALS, RESULT = "sweeps", "trials", "result.json"
F = TypeVar("F", bound=Frozen)


@dataclass(frozen=True)
class SweepFolder:
    """A sweep and what has come of it so far; every access reads the files as they are now."""

    path: Path

    @classmethod
    def of(cls, sweep: Sweep, root: DataRoot | Path | None = None) -> "SweepFolder":
        """Where a sweep belongs; one of the same key that has another name stays where it is."""
        return cls(DataRoot(root).folder(SWEEPS, sweep.name, sweep.key))

    @classmethod
    def open(cls, reference: str, root: DataRoot | Path | None = None) -> "SweepFolder":
        """A sweep by its folder, its name or the beginning of its key. Raises UserError."""
        return cls(DataRoot(root).sweep(reference))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def root(self) -> DataRoot:
        """The data folder that the sweep is in."""
        return DataRoot(self.path.parents[1])

    # ---- reading ----

    @property
    def exists(self) -> bool:
        return (self.path / SWEEP).is_file()

    @property
    def sweep(self) -> Sweep:
        """What was asked for. Raises CorruptionError, NewerFormat, and FileNotFoundError."""
        return _parsed(self.path / SWEEP, Sweep, self._fields["sweep"])

    @property
    def key(self) -> str:
        """As it was when the sweep began. Raises as `sweep` does."""
        return str(self._fields["key"])

    @property
    def versions(self) -> dict[str, str]:
        """The libraries that its trials were proposed with."""
        return dict(self._fields["versions"])

    @property
    def _fields(self) -> dict[str, Any]:
        _, fields = storage.read_versioned(self.path / SWEEP, sealed=True)
        if not {"sweep", "key", "versions"} <= fields.keys():
            raise CorruptionError(f"{self.path / SWEEP} cannot be read: it is no sweep")
        return fields

    @property
    def trials(self) -> list[Trial]:
        """The trials that are done, finished or failed, by their numbers.

        One whose record is damaged is left out, with a warning: its runs are still there, so that
        the sweep makes it again without training. Raises NewerFormat.
        """
        trials = []
        for path in sorted((self.path / TRIALS).glob("*.json")):
            try:
                trials.append(_parsed(path, Trial, storage.read_versioned(path, sealed=True)[1]))
            except CorruptionError as error:
                logger.warning("%s; the trial is run again", error)
        return sorted(trials, key=lambda trial: trial.number)

    @property
    def result(self) -> SweepResult | None:
        """What came of it, with its trials; None where the sweep is not complete.

        Raises NewerFormat.
        """
        with suppress(FileNotFoundError, CorruptionError):
            _, fields = storage.read_versioned(self.path / RESULT, sealed=True)
            result = _parsed(self.path / RESULT, SweepResult, fields)
            return result.model_copy(update={"trials": tuple(self.trials)})
        return None

    @property
    def runs(self) -> list[str]:
        """The names of the runs of its trials so far."""
        names = (seed.run for trial in self.trials for seed in trial.seeds if seed.run)
        return list(dict.fromkeys(names))

    @property
    def is_running(self) -> bool:
        """Whether a driver runs this sweep now."""
        return storage.is_held(self.path / LOCK)

    # ---- writing, by the driver ----

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held by the driver. Raises InUse where another one runs this sweep."""
        storage.make_folder(self.path / TRIALS)
        try:
            lock = storage.lock(self.path / LOCK, wait=False)
            lock.__enter__()
        except InUse as error:
            raise InUse(
                f"the sweep {self.name} is in use: another process runs it; its trials are in "
                f"{self.path / TRIALS}"
            ) from error
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def write_sweep(self, sweep: Sweep, versions: Mapping[str, str]) -> None:
        """Write what was asked for: more trials or another budget replace the former."""
        fields = {"sweep": sweep.model_dump(mode="json"), "key": sweep.key}
        with suppress(FileNotFoundError, CorruptionError):
            versions = self.versions
            if self.sweep == sweep:
                return
        _write(self.path / SWEEP, {**fields, "versions": dict(versions)})

    def write_trial(self, trial: Trial) -> None:
        """Write a trial's record, durably."""
        _write(self.path / TRIALS / f"{trial.number:04}.json", trial.model_dump(mode="json"))

    def write_result(self, result: SweepResult) -> None:
        _write(self.path / RESULT, result.model_dump(mode="json", exclude={"trials"}))

    def unmark_complete(self) -> None:
        """Remove the result, before more trials are run."""
        (self.path / RESULT).unlink(missing_ok=True)


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a file with the format number and its own sha256, whole or not at all, durably."""
    versioned = storage.finite({"format": storage.FORMAT, **fields})
    storage.write_json(path, {**versioned, "sha256": storage.sha256_json(versioned)})


def _parsed(path: Path, kind: type[F], fields: Any) -> F:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise CorruptionError(f"{path} cannot be read: {first_invalid(error)}") from error
