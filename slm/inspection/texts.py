"""The training tokens of shards, by source, with the documents that they are of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.errors import UserError
from slm.records import Shards, Source
from slm.run_folder import DataRoot, RunFolder
from slm.source.mixture import part_of_source
from slm.source.reading import columns_of
from slm.tokens.exclusions import SourceRows, document_rows
from slm.tokens.mixture.exclusions import TRAIN_REASONS, VAL_AGAIN, Val
from slm.tokens.mixture.reading import part_of_val
from slm.tokens.shards.layout import Tokens
from slm.tokens.shards.reading import excluded, read_tokens, token_chunks

I64 = npt.NDArray[np.int64]
NEAR = 4096  # tokens that are read to find the end of a document


@dataclass(frozen=True)
class Segment:
    """Tokens of a source that follow each other in one file."""

    path: Path
    offset: int  # in the file
    tokens: Tokens
    documents_before: int  # of the same source, in the files before this one
    reason: str | None = None  # why a mixture leaves it out


@dataclass(frozen=True)
class Place:
    """A document that is in a range of tokens, as far as it is."""

    number: int  # of the document, in the train or val of its source
    begin: int  # the range of its tokens, the first of which is end-of-text
    end: int
    length: int


class PartText:
    """The tokens of one source of train, or of its held-out documents, in order.

    `name`: of the source in a mixture; None without one.
    """

    def __init__(self, name: str | None, segments: Sequence[Segment], eot: int) -> None:
        self.name, self.segments, self._eot = name, segments, eot
        self.starts: I64 = np.cumsum([0, *(len(segment.tokens) for segment in segments)])

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int]]:
        """The pieces of a range of tokens: segment, and begin and end in its file."""
        for segment, first in zip(self.segments, self.starts.tolist(), strict=False):
            begin, end = max(start, first), min(stop, first + len(segment.tokens))
            if begin < end:
                yield segment, begin - first + segment.offset, end - first + segment.offset

    def documents(self, ranges: Sequence[tuple[int, int]]) -> list[list[tuple[int, Place]]]:
        """The documents of each range of tokens, with the place of each in it.

        With end-of-text 9, the tokens 9 1 2 9 3 4 5 9 6 have three documents. The range 2 to 6 has
        (0, document 0, its tokens 2 to 3 of 3) and (1, document 1, its tokens 0 to 3 of 4).
        """
        pieces = [
            (number, segment, begin, end)
            for number, (start, stop) in enumerate(ranges)
            for segment, begin, end in self.pieces(start, stop)
        ]
        by_file: dict[Path, list[int]] = {}
        for i, (_, segment, *_) in enumerate(pieces):
            by_file.setdefault(segment.path, []).append(i)
        placed: list[list[Place]] = [[] for _ in pieces]
        for path, indices in by_file.items():
            tokens = read_tokens(path)
            firsts = np.array([pieces[i][2] for i in indices])
            for i, (index, opened) in zip(
                indices, _documents_at(tokens, self._eot, firsts), strict=True
            ):
                _, segment, begin, end = pieces[i]
                placed[i] = list(
                    _cut(tokens, self._eot, index + segment.documents_before, opened, begin, end)
                )
        rows: list[list[tuple[int, Place]]] = [[] for _ in ranges]
        for (number, *_), places in zip(pieces, placed, strict=True):
            at = sum(place.end - place.begin for _, place in rows[number])
            for place in places:
                rows[number].append((at, place))
                at += place.end - place.begin
        return rows


def _documents_at(tokens: Tokens, eot: int, positions: I64) -> list[tuple[int, int]]:
    """The number of the document at each position of a file, and where it begins."""
    order = np.argsort(positions, kind="stable")
    results = [(0, 0)] * len(positions)
    count, last, at = 0, 0, 0
    for first, chunk in token_chunks(tokens):
        if at == len(order):
            break
        borders = np.flatnonzero(chunk == eot) + first
        while at < len(order) and positions[order[at]] < first + len(chunk):
            before = int(np.searchsorted(borders, positions[order[at]], "right"))
            opened = int(borders[before - 1]) if before else last
            results[int(order[at])] = (count + before - 1, opened)
            at += 1
        count += len(borders)
        last = int(borders[-1]) if len(borders) else last
    return results


def _cut(
    tokens: Tokens, eot: int, number: int, opened: int, begin: int, end: int
) -> Iterator[Place]:
    """The documents from `begin` to `end` of a file, the first of which opens at `opened`."""
    borders = (np.flatnonzero(tokens[begin + 1 : end] == eot) + begin + 1).tolist()
    edges = [begin, *borders, end]
    for i, (start, stop) in enumerate(pairwise(edges)):
        first = opened if i == 0 else start
        last = stop if i < len(borders) else _end(tokens, eot, stop)
        yield Place(number + i, start - first, stop - first, last - first)


def _end(tokens: Tokens, eot: int, position: int) -> int:
    """Where the document ends that is open at a position."""
    for start in range(position, len(tokens), NEAR):
        borders = np.flatnonzero(tokens[start : start + NEAR] == eot)
        if len(borders):
            return start + int(borders[0])
    return len(tokens)


class Origins:
    """Where in their source the documents of some shards are.

    Args:
        shards: of one source: of a mixture those of a part, before they were joined with others.
    """

    def __init__(self, shards: Shards | None, source: Source | None) -> None:
        self.shards, self.source = shards, source
        self._numbered: SourceRows | None = None

    def __call__(self, split: str, document: int) -> tuple[str | None, int | None]:
        """The file of a document, and its row there; None where shards or source are gone."""
        rows = document_rows(self.shards, split) if self.shards else None
        if rows is None or self.source is None:
            return None, None
        return self.rows(int(rows[document]))

    def columns(self, file: str | None, row: int | None) -> dict[str, Any] | None:
        """What the source keeps next to the document of a row; None where that is nothing."""
        if file is None or row is None:
            return None
        return columns_of(self.rows.paths[file], row)

    @property
    def rows(self) -> SourceRows:
        """The rows of the source, which is here."""
        assert self.source is not None
        if self._numbered is None:
            self._numbered = SourceRows(self.source)
        return self._numbered


def origins_of(shards: Shards, root: DataRoot) -> dict[str | None, Origins]:
    """The origins of each source of a mixture; without one those of the shards, as None."""
    if not shards.parts:
        return {None: Origins(shards, root.source(shards.source_key))}
    joined = root.source(shards.source_key)  # which has the files of each, if its own is gone
    return {
        name: Origins(
            root.shards(part.key),
            root.source(part.source_key) or (joined and part_of_source(joined, name)),
        )
        for name, part in shards.parts.items()
    }


def origin_of(
    shards: Shards, root: DataRoot, split: str, document: int
) -> tuple[str | None, str | None, int | None, dict[str, Any] | None]:
    """Of a document its source in a mixture, its file, its row there, and what is kept next to it.

    `document`: its number in the split, of a mixture in that of all sources, with those of train
    that are left out. Each is None where it is not known.
    """
    origins = origins_of(shards, root)
    if split == "val":
        held_out = HeldOut(shards, origins)
        part, (file, row) = held_out.part(document), held_out(document)
    else:
        part, number = _part_of_train(shards, document)
        file, row = origins[part]("train", number)
    return part, file, row, origins[part].columns(file, row)


def _part_of_train(shards: Shards, document: int) -> tuple[str | None, int]:
    """The source of a train document, and its number in the train of that source."""
    for name, part in shards.parts.items():
        own = [shards.splits["train"].counts[file].documents for file in part.train.files]
        if document < sum(own):
            return name, document
        document -= sum(own)
    return None, document


class HeldOut:
    """Where the held-out documents of some shards come from; of a mixture those of all sources."""

    def __init__(self, shards: Shards, origins: Mapping[str | None, Origins]) -> None:
        self._shards, self._origins = shards, origins
        self._names = list(shards.parts)
        self._parts = part_of_val(shards)

    def part(self, document: int) -> str | None:
        """The source of a document; None without a mixture."""
        return self._names[int(self._parts[document])] if self._names else None

    def __call__(self, document: int) -> tuple[str | None, int | None]:
        """The file of a document, and its row there; None where they are not known."""
        name = self.part(document)
        if name is None:
            return self._origins[None]("val", document)
        kept = self._kept.get(name)
        if kept is None:
            return None, None
        before = int(np.count_nonzero(self._parts[:document] == self._parts[document]))
        return self._origins[name]("val", int(kept[before]))

    @cached_property
    def _kept(self) -> dict[str, I64]:
        """Of each source of a mixture, the numbers in its own val of those that the mixture has.

        The others are in val of a source before it: of which, that is counted anew where there are
        any, from the shards of all sources. A source is missing where the shards are gone.
        """
        here = {name: o.shards for name, o in self._origins.items() if name and o.shards}
        val = None
        numbers = {}
        for name, shards in here.items():
            if not self._shards.parts[name].excluded.get(VAL_AGAIN):
                numbers[name] = np.arange(shards.splits["val"].documents)
            elif len(here) == len(self._names):
                val = val or Val({each: here[each] for each in self._names})
                numbers[name] = np.flatnonzero(val.kept(name))
        return numbers


def train_texts(shards: Shards, *, left_out: bool = False) -> list[PartText]:
    """The tokens of each source of train in order, as training reads them.

    `left_out`: those that the mixture leaves out instead, which are also in another source.
    """
    by_part: dict[str | None, list[str]] = {
        name: part.train.files for name, part in shards.parts.items()
    }
    by_part = by_part or {None: shards.splits["train"].files}
    ranges = excluded(shards)
    numbers = {name: i for i, name in enumerate(shards.splits["train"].files)}
    texts = []
    for part, names in by_part.items():
        segments, before = list[Segment](), 0
        for name in names:
            path = shards.path / name
            tokens = read_tokens(path)
            own = ranges[ranges[:, 0] == numbers[name]]
            for begin, end, reason in _cuts(own, len(tokens), left_out):
                segments.append(Segment(path, begin, tokens[begin:end], before, reason))
            if name != names[-1]:
                before += _document_count(shards, name, tokens)
        texts.append(PartText(part, segments, shards.eot))
    return texts


def _cuts(ranges: I64, size: int, left_out: bool) -> Iterator[tuple[int, int, str | None]]:
    """The ranges of a file's tokens that are left out, with the reason; or those between them."""
    start = 0
    for _, begin, end, reason in ranges.tolist():
        if left_out:
            yield begin, end, TRAIN_REASONS[reason]
        elif begin > start:
            yield start, begin, None
        start = end
    if start < size and not left_out:
        yield start, size, None


def _document_count(shards: Shards, name: str, tokens: Tokens) -> int:
    """The documents of a file, those that are left out included."""
    if not shards.parts:
        return shards.splits["train"].counts[name].documents
    return sum(int(np.count_nonzero(chunk == shards.eot)) for _, chunk in token_chunks(tokens))


def val_text(shards: Shards) -> PartText:
    """The tokens of the held-out documents, of a mixture those of all sources."""
    segments, before = list[Segment](), 0
    for name, count in shards.splits["val"].counts.items():
        segments.append(Segment(shards.path / name, 0, read_tokens(shards.path / name), before))
        before += count.documents
    return PartText(None, segments, shards.eot)


def shards_of(run: RunFolder) -> Shards:
    """What a run was trained on. Raises UserError where that is gone."""
    shards = run.shards
    if shards is None:
        raise UserError(
            f"the shards of {run.name} are gone, and its rows with them: `slm encode RECIPE` "
            "rebuilds them, or `slm pull` brings them from a store"
        )
    return shards


def last_step(run: RunFolder) -> int:
    """The last step that a run has trained."""
    record = run.record
    if record is not None:
        return record.step
    return max((entry["step"] for entry in run.journal if entry["event"] == "step"), default=0)
