"""Shards for a person: which a name means, and what cleaning dropped of their source."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from slm.errors import UserError, unknown
from slm.inspection.texts import Origins, origins_of, shards_of
from slm.records import Shards
from slm.registry.opening import open_run
from slm.run_folder import DataRoot
from slm.tokens.exclusions import NO_EXCLUSIONS, Excluded, has_exclusions, read_excluded
from slm.tokens.shards.reading import read_shards


def open_shards(reference: "str | Path | Shards", root: Path | None = None) -> Shards:
    """Shards by their folder or its name, a recipe's name (its newest), or a run; not verified.

    Raises UserError where there are none, with the nearest name.
    """
    if isinstance(reference, Shards):
        return reference
    data, name = DataRoot(root), str(reference)
    for folder in (Path(name), data.path / "shards" / name):
        if folder.is_dir() and (any(folder.glob("train_*.bin")) or folder.parent.name == "shards"):
            return read_shards(folder, verify=False)
    if folders := data.results("shards", name):
        newest = max(folders, key=lambda folder: folder.stat().st_mtime)
        return read_shards(newest, verify=False)
    with suppress(UserError):
        return shards_of(open_run(name, root))
    known = [folder.name for folder in data.results("shards")]
    if not known:
        raise UserError(f"no shards {name!r}: there are none yet; `slm encode RECIPE` makes them")
    raise unknown("shards", name, known)


def dropped(shards: Shards, root: DataRoot, reason: str | None = None) -> Iterator[Excluded]:
    """Every document that cleaning dropped, of a mixture those of each source in turn.

    Raises UserError where that is not known of one of them, and for a reason that there is not.
    """
    origins = origins_of(shards, root)
    for name, origin in origins.items():
        check_exclusions(name, origin)
    counts = Counter[str]()
    for origin in origins.values():
        counts.update(origin.shards.dropped if origin.shards else {})
    if reason is not None and reason not in counts:
        raise unknown("reason", reason, counts) if counts else UserError("nothing was dropped")
    for origin in origins.values():
        assert origin.shards is not None, "it was checked"
        yield from read_excluded(origin.shards, reason)


def check_exclusions(part: str | None, origin: Origins) -> None:
    """Raises UserError where it is not known which documents cleaning dropped."""
    of = f" of {part}" if part else ""
    if origin.shards is None:
        raise UserError(
            f"the shards{of} that were joined are gone, and what was dropped with them: "
            "`slm encode RECIPE` makes them again"
        )
    if not has_exclusions(origin.shards):
        raise UserError(f"which documents were dropped{of} is not known: {NO_EXCLUSIONS}")
