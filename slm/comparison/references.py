"""What a person compares: runs by any name, patterns of names, the runs of a sweep."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from slm.comparison.reading import by_path
from slm.errors import UserError, excerpt
from slm.figures import counted
from slm.registry.opening import Given, open_run, reference_to
from slm.run_folder import DataRoot, RunFolder
from slm.sweeps.folder import SweepFolder
from slm.sweeps.records import ranking

_OF_PATTERN = "*?["


def named_runs(
    references: Sequence[Given], root: Path | None = None
) -> tuple[list[RunFolder], list[str]]:
    """The runs that are meant, in the order in which they are named; of more than two each once.

    And notes of what a sweep has besides: of a sweep they are the runs that its winner is chosen
    from, and those without a score.

    A reference is one of `open_run`, a pattern of names such as `quickstart-*`, or a sweep by its
    folder, its name or the beginning of its key. What names a run is never taken for a sweep.

    Raises UserError where one means no run, and where all of them together mean fewer than two.
    """
    notes: list[str] = []
    runs = [run for each in references for run in _named(reference_to(each), root, notes)]
    if len(runs) != 2:  # two may be a run and itself
        runs = by_path(runs)
    if len(runs) < 2:
        given = " ".join(excerpt(reference_to(each)) for each in references) or "nothing"
        of = f"that is only {runs[0].name}" if runs else "that is no run"
        raise UserError(
            f"slm compare takes two or more runs, and {of} ({given}): `slm runs` lists all"
        )
    return runs, notes


def _named(reference: str, root: Path | None, notes: list[str]) -> list[RunFolder]:
    is_pattern = any(character in reference for character in _OF_PATTERN)
    if not is_pattern or Path(reference).exists():
        return _run_or_sweep(reference, root, notes)
    known = DataRoot(root).runs()
    if not known:
        return [DataRoot(root).run(reference)]  # which reports that there are none
    matching = [run for run in known if fnmatchcase(run.name, reference)]
    if not matching:
        raise UserError(
            f"no run has a name like {excerpt(repr(reference))}: `slm runs` lists the "
            f"{len(known):,} of {DataRoot(root).path / 'runs'}"
        )
    return matching


def _run_or_sweep(reference: str, root: Path | None, notes: list[str]) -> list[RunFolder]:
    try:
        return [open_run(reference, root)]
    except UserError as no_run:
        try:
            sweep = SweepFolder.open(reference, root)
        except UserError:
            raise _with_hint(no_run, reference, root) from no_run
    names = _compared(sweep)
    if left := len(sweep.runs) - len(names):
        notes.append(
            f"{counted(left, 'run')} of {sweep.name} left out: of a shorter limit, or of a trial "
            "that failed with another seed"
        )
    runs = [DataRoot(root).named_run(name) for name in names]
    present = [run for run in runs if run.exists]
    if not present:
        raise UserError(
            f"the sweep {sweep.name} has no runs here: `slm sweep` makes them, and `slm gc` may "
            "have deleted some"
        )
    return present


def _compared(sweep: SweepFolder) -> list[str]:
    """The runs of the trials among which the winner is chosen, and those that have no score."""
    trials = sweep.trials
    ranked = {trial.number for trial in ranking(trials)}
    runs = (
        seed.run
        for trial in trials
        for seed in trial.seeds
        if seed.run and (trial.number in ranked or seed.val_bpb is None)
    )
    return list(dict.fromkeys(runs))


def _with_hint(error: UserError, reference: str, root: Path | None) -> UserError:
    """The error, with the pattern where the reference is the beginning of runs' names."""
    number = sum(run.name.startswith(reference) for run in DataRoot(root).runs())
    if not number:
        return error
    return UserError(f"{error}; the names of {number:,} runs begin so: '{reference}*'")
