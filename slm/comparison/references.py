"""What a person compares: runs by any name, patterns of names, the runs of a sweep."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from slm.comparison.reading import by_path
from slm.errors import UserError, excerpt
from slm.registry.opening import Given, open_run, reference_to
from slm.run_folder import DataRoot, RunFolder
from slm.sweeps.folder import SweepFolder

_OF_PATTERN = "*?["


def named_runs(references: Sequence[Given], root: Path | None = None) -> list[RunFolder]:
    """The runs that are meant, in the order in which they are named; of more than two each once.

    A reference is one of `open_run`, a pattern of names such as `quickstart-*`, or a sweep by its
    folder, its name or the beginning of its key. What names a run is never taken for a sweep.

    Raises UserError where one means no run, and where all of them together mean fewer than two.
    """
    runs = [run for each in references for run in _named(reference_to(each), root)]
    if len(runs) != 2:  # two may be a run and itself
        runs = by_path(runs)
    if len(runs) < 2:
        given = " ".join(excerpt(reference_to(each)) for each in references) or "nothing"
        of = f"that is only {runs[0].name}" if runs else "that is no run"
        raise UserError(
            f"slm compare takes two or more runs, and {of} ({given}): `slm runs` lists all"
        )
    return runs


def _named(reference: str, root: Path | None) -> list[RunFolder]:
    is_pattern = any(character in reference for character in _OF_PATTERN)
    if not is_pattern or Path(reference).exists():
        return _run_or_sweep(reference, root)
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


def _run_or_sweep(reference: str, root: Path | None) -> list[RunFolder]:
    try:
        return [open_run(reference, root)]
    except UserError as no_run:
        try:
            sweep = SweepFolder.open(reference, root)
        except UserError:
            raise _with_hint(no_run, reference, root) from no_run
    runs = [DataRoot(root).named_run(name) for name in sweep.runs]
    present = [run for run in runs if run.exists]
    if not present:
        raise UserError(
            f"the sweep {sweep.name} has no runs here: `slm sweep` makes them, and `slm gc` may "
            "have deleted some"
        )
    return present


def _with_hint(error: UserError, reference: str, root: Path | None) -> UserError:
    """The error, with the pattern where the reference is the beginning of runs' names."""
    number = sum(run.name.startswith(reference) for run in DataRoot(root).runs())
    if not number:
        return error
    return UserError(f"{error}; the names of {number:,} runs begin so: '{reference}*'")
