"""The sweeps that a run is a trial of, read from the records of their trials."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slm import storage
from slm.errors import CorruptionError, NewerFormat
from slm.records import Frozen
from slm.run_folder import RunFolder


class TrialOf(Frozen):
    """That a run is a trial of a sweep, one of its seeds."""

    sweep: str  # name of its folder
    trial: int
    values: dict[str, Any]  # the settings that the sweep chose
    key: str  # of the run, as the trial's record has it

    @property
    def text(self) -> str:
        """`trial 7 of rates-0123456789ab: train.learning_rate=0.003`."""
        values = ", ".join(f"{name}={value}" for name, value in self.values.items())
        return f"trial {self.trial} of {self.sweep}: {values}"


def trials_of(run: RunFolder) -> list[TrialOf]:
    """The trials that a run was trained for or is used by, the earliest first.

    A record that cannot be read is left out.
    """
    pattern, name = "trials/*.json", run.name.encode()
    listed: list[tuple[float, str, TrialOf]] = []
    for sweep in run.root.sweeps():
        for path in sweep.glob(pattern):
            with suppress(OSError, CorruptionError, NewerFormat, ValidationError, KeyError):
                if name in path.read_bytes():
                    trial = _trial_of(path, run.name)
                    if trial:
                        listed.append((path.stat().st_mtime, sweep.name, trial))
    return [trial for _, _, trial in sorted(listed, key=lambda each: (*each[:2], each[2].trial))]


def _trial_of(path: Path, run: str) -> TrialOf | None:
    """What a trial's record says of a run; None where that is not one of its seeds."""
    _, fields = storage.read_versioned(path)
    for seed in fields["seeds"]:
        if seed["run"] == run:
            return TrialOf(
                sweep=path.parents[1].name,
                trial=fields["number"],
                values=fields["values"],
                key=seed["key"],
            )
    return None
