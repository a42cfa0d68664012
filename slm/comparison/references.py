"""What a person compares: runs by any name, patterns of names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from slm.comparison.reading import by_path
from slm.errors import UserError, excerpt
from slm.registry.opening import Given, open_run, reference_to
from slm.run_folder import DataRoot, RunFolder

_OF_PATTERN = "*?["


def named_runs(references: Sequence[Given], root: Path | None = None) -> list[RunFolder]:
    """The runs that are meant, each once, in the order in which they are named.

    A reference is one of `open_run`, or a pattern of names such as `quickstart-*`.

    Raises UserError where one means no run, and where all of them together mean fewer than two.
    """
    runs = by_path([run for each in references for run in _named(reference_to(each), root)])
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
        return [open_run(reference, root)]
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
