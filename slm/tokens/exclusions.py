"""Where every row of a source went: into train, into val, or out, and why.

Next to the token shards of an encoding are

    excluded.jsonl   one line per document that was dropped, in the order of the source
    train.rows       for each document of train, in order, the number of its row; uint32
    val.rows         the same of val

Rows are numbered from 0 over the files of the source, those of val before those of train. So each
row is in exactly one of the three; but where the end of every document is held out, the two parts
of a document are of the same row.

The files are recorded and verified like the shards, and no key depends on them: a training reads
tokens. Their bytes depend on the source and the config alone, like those of the shards.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from slm.errors import CorruptionError
from slm.records import EXCLUDED, ROWS, Shards, Source
from slm.tokens.cleaning import Places
from slm.tokens.units import Drop, Unit

MAX_ROWS = 2**32
NO_PLACES: Places = np.empty(0, np.uint32)
NO_EXCLUSIONS = (
    "these shards were made before that was recorded; move their folder away and encode again "
    "(`slm encode RECIPE`): the tokens are the same bytes, and no run has to be trained again"
)


@dataclass(frozen=True)
class Excluded:
    """A document that was dropped, and where it is in the source."""

    split: str  # that it would have been in
    file: str  # of the source
    row: int  # of that file
    reason: str
    bytes: int  # UTF-8 bytes, after repairs
    text: str  # how it begins
    of: dict[str, Any] | None = None  # `file` and `row` of the document that it is a copy of

    def to_json(self) -> str:
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(fields, ensure_ascii=False)


class ExclusionWriter:
    """Writes the three files to a staging folder, a unit at a time, in the units' order."""

    def __init__(self, folder: Path, units: Sequence[Unit], source: Source) -> None:
        assert source.documents < MAX_ROWS, "rows are numbered by uint32"
        self._folder, self._units, self._names = folder, units, own_names(source)
        self._starts = [unit.start for unit in units]
        for name in (EXCLUDED, *ROWS.values()):
            (folder / name).touch()

    def exclude(self, drops: Sequence[Drop]) -> None:
        """Append a line for each, in the order of their rows."""
        if not drops:
            return
        lines = (self._line(drop) for drop in sorted(drops, key=lambda drop: drop.place))
        text = "".join(f"{line}\n" for line in lines)
        with (self._folder / EXCLUDED).open("ab") as file:
            file.write(text.encode("utf-8", "replace"))

    def keep(self, split: str, places: Places) -> None:
        """Append the rows of the next documents of a split."""
        with (self._folder / ROWS[split]).open("ab") as file:
            file.write(places.astype("<u4", copy=False).data)

    def _line(self, drop: Drop) -> str:
        file, row = self._place(drop.place)
        of = None
        if drop.original >= 0:
            of = dict(zip(("file", "row"), self._place(drop.original), strict=True))
        split = "val" if drop.is_val else "train"
        return Excluded(split, file, row, drop.reason, drop.bytes, drop.text, of).to_json()

    def _place(self, place: int) -> tuple[str, int]:
        unit = self._units[int(np.searchsorted(self._starts, place, "right")) - 1]
        return self._names[unit.source.name], unit.first_row + place - unit.start


def own_names(source: Source) -> dict[str, str]:
    """The name of each file of a source in that source's own folder, those of val first.

    In the folder of a mixture that has the source it begins with the source's name there. Shards do
    not depend on where they were made from.
    """
    files = [
        name
        for split in ("val", "train")
        for name in (source.splits[split].files if split in source.splits else ())
    ]
    return {file: _own_name(file, source) for file in files}


def _own_name(file: str, source: Source) -> str:
    if file in source.files:
        return file
    return next((name for name in source.files if file.endswith(f"-{name}")), file)


# ---- reading ----------------------------------------------------------------------------------


def has_exclusions(shards: Shards) -> bool:
    """Whether shards have these files: older ones do not."""
    return EXCLUDED in shards.files


def read_excluded(shards: Shards, reason: str | None = None) -> Iterator[Excluded]:
    """What cleaning dropped, in order; of one reason, or all. Raises CorruptionError."""
    path = shards.path / EXCLUDED
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                fields = json.loads(line)
                if reason is None or fields["reason"] == reason:
                    yield Excluded(**fields)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from error


def excluded_rows(shards: Shards) -> Iterator[tuple[tuple[str, int], Excluded]]:
    """What was dropped, by the file and the row of the source that each is in."""
    return (((each.file, each.row), each) for each in read_excluded(shards))


def document_rows(shards: Shards, split: str) -> Places | None:
    """The row of each document of a split, mapped into memory; (N,). None where none is known."""
    path = shards.path / ROWS[split]
    if ROWS[split] not in shards.files or not path.is_file():
        return None
    if not path.stat().st_size:
        return NO_PLACES
    return np.asarray(np.memmap(path, "<u4", mode="r"))


class SourceRows:
    """The files of a source with the numbers of their rows."""

    def __init__(self, source: Source) -> None:
        self.paths = {own: source.path / name for name, own in own_names(source).items()}
        self.files = list(self.paths)
        try:
            counts = [pq.read_metadata(path).num_rows for path in self.paths.values()]
        except (ArrowException, OSError) as error:
            raise CorruptionError(f"{source.path} cannot be read: {error}") from error
        self._starts: npt.NDArray[np.int64] = np.cumsum([0, *counts])

    def __call__(self, place: int) -> tuple[str, int]:
        """The file of a row, and the row's number in it."""
        which = int(np.searchsorted(self._starts, place, "right")) - 1
        return self.files[which], place - int(self._starts[which])

    def ranges(self) -> Mapping[str, range]:
        """The numbers of the rows of each file."""
        ends = pairwise(self._starts.tolist())
        return {name: range(*end) for name, end in zip(self.files, ends, strict=True)}
