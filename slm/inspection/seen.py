"""Whether a model has seen a text: when, how often, how much of it; and why not.

The text is looked for, byte by byte, in the documents of train and val as they were encoded, and in
the rows of the source as they came. What a training has read is computed from its order, so that
the answer is exact for every step that it has made.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from slm.errors import CorruptionError, UserError
from slm.inspection.batch import plan_of
from slm.inspection.occurrences import WHERE, Occurrence, Reading, Seen, Where
from slm.inspection.search import I64, Job, find_in_file
from slm.inspection.texts import (
    HeldOut,
    Origins,
    PartText,
    last_step,
    origins_of,
    shards_of,
    train_texts,
    val_text,
)
from slm.machine import available_cores
from slm.progress import Progress, automatic, silent
from slm.records import Plan, Shards
from slm.registry.opening import Given, open_run
from slm.run_folder import RunFolder
from slm.source.formats.kept import TEXT
from slm.tokens.exclusions import (
    NO_EXCLUSIONS,
    Excluded,
    document_rows,
    has_exclusions,
    read_excluded,
)
from slm.tokens.tokenizer.bpe import TOKENIZER
from slm.tokens.workers import Workers
from slm.training.session import new_loader

MAX_SHOWN = 100  # documents of each kind, with their steps
ROWS_TOGETHER = 1 << 20  # of the order
IN_PROCESS_TOKENS = 20_000_000  # below it, starting workers takes longer than the work


def find_text(
    run: Given, text: str, *, max_shown: int = MAX_SHOWN, progress: Progress = automatic
) -> Seen:
    """Whether, when and how often a run has seen a text, up to its last step.

    >>> slm.find_text("quickstart-3693316e0b15", "a red ball").verdict

    Args:
        run: a run, finished or not, or its name; or a version that was made from it.
        text: found where it is in a document exactly so, with its case, spaces and line ends.
        max_shown: documents of each kind that are listed; all are counted.

    Raises UserError for an empty text, and where the run's shards are gone.
    """
    if not text:
        raise UserError("give the text that is to be found: it is empty")
    folder = open_run(run)
    shards, plan, steps = shards_of(folder), plan_of(folder), last_step(folder)
    origins, needle = origins_of(shards, folder.root), text.encode()
    train = [search(shards, part, needle, progress) for part in train_texts(shards)]
    left_out = [
        search(shards, part, needle, progress) for part in train_texts(shards, left_out=True)
    ]
    val = search(shards, val_text(shards), needle, progress)
    exposures = [Exposures(hits, max_shown, folder.config.model.seq_len) for hits in train]
    epochs = _read_order(folder, plan, shards, steps, exposures, progress)
    listed, counts = list[Occurrence](), Counter[Where]()
    for hits, seen in zip(train, exposures, strict=True):
        counts["train"] += len(hits.documents)
        listed += hits.occurrences("train", origins[hits.part], max_shown, seen)
    counts["val"] = len(val.documents)
    listed += _held_out(shards, val, origins, max_shown)
    changed: int | None = 0
    source_rows: int | None = 0
    for hits, out in zip(train, left_out, strict=True):
        counts["excluded"] += len(out.documents)
        listed += out.occurrences("excluded", origins[out.part], max_shown)
        known = {"train": np.concatenate([hits.documents, out.documents])}
        dropped = _in_source(shards, origins[hits.part], text, known, val, max_shown, progress)
        listed += [each.model_copy(update={"part": hits.part}) for each in dropped.listed]
        counts["excluded"] += dropped.count
        more = dropped.unexplained
        changed = None if changed is None or more is None else changed + more
        more = dropped.rows
        source_rows = None if source_rows is None or more is None else source_rows + more
    return Seen(
        run=folder.name,
        text=text,
        steps=steps,
        rows=plan.rows,
        epochs=epochs,
        documents={where: counts[where] for where in WHERE},
        whole=sum(int(each.whole.sum()) for each in exposures),
        cut=sum(int(each.cut.sum()) for each in exposures),
        source_rows=source_rows,
        changed=changed,
        occurrences=tuple(listed),
        notes=tuple(_notes(folder, origins.values())),
    )


def _notes(run: RunFolder, origins: Iterable[Origins]) -> Iterator[str]:
    parent = run.parent_record
    if parent is not None:
        yield f"it started from {parent.model}, whose own training is not searched"
    origins = list(origins)
    if any(each.source is None for each in origins):
        yield (
            "the source is not here: of what cleaning dropped, only beginnings are known; "
            "`slm download RECIPE` brings it back"
        )
    if any(each.shards is None for each in origins):
        yield (
            "the shards of a source, which were joined, are gone: which of its rows cleaning "
            "dropped is not known; `slm encode RECIPE` makes them again"
        )
    if any(each.shards is not None and not has_exclusions(each.shards) for each in origins):
        yield f"which rows cleaning dropped is not known: {NO_EXCLUSIONS}"


def _held_out(
    shards: Shards, val: "Hits", origins: dict[str | None, Origins], max_shown: int
) -> Iterator[Occurrence]:
    """The held-out documents; of a mixture with their sources."""
    held_out = HeldOut(shards, origins)
    for each in val.occurrences("val", None, max_shown):
        assert each.document is not None
        file, row = held_out(each.document)
        part = held_out.part(each.document)
        yield each.model_copy(update={"part": part, "file": file, "row": row})


# ---- the documents ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Hits:
    """Where a text is in the tokens of a source, in order."""

    part: str | None
    begins: I64  # the first token of each, in the tokens of the source; (N,)
    ends: I64  # the token after its last; (N,)
    of: I64  # the document that it is in; (N,)
    reasons: tuple[str | None, ...] = ()  # why each is left out of a mixture

    @property
    def documents(self) -> I64:
        """The documents that have it, (D,)."""
        return np.unique(self.of)

    def occurrences(
        self, where: Where, origin: Origins | None, limit: int, seen: "Exposures | None" = None
    ) -> Iterator[Occurrence]:
        """The first documents that have it. `origin`: of train; None: it is not asked."""
        for document in self.documents[:limit].tolist():
            here = self.of == document
            file, row = origin("train", document) if origin else (None, None)
            counted = (
                {
                    "whole": int(seen.whole[here].sum()),
                    "cut": int(seen.cut[here].sum()),
                    "readings": seen.readings(np.flatnonzero(here)),
                }
                if seen
                else {}
            )
            yield Occurrence(
                where=where,
                part=self.part,
                document=document,
                times=int(here.sum()),
                file=file,
                row=row,
                reason=self.reasons[int(np.argmax(here))] if self.reasons else None,
                **counted,
            )


def search(shards: Shards, text: PartText, needle: bytes, progress: Progress) -> Hits:
    """Where bytes are in the documents of a source."""
    jobs = [
        Job(each.path, shards.path / TOKENIZER, needle, each.offset, len(each.tokens))
        for each in text.segments
    ]
    total, done = int(text.starts[-1]), 0
    count = min(available_cores(), len(jobs)) if total > IN_PROCESS_TOKENS else 0
    results: dict[Job, tuple[I64, I64, I64]] = {}
    with Workers(count) as workers:
        for job, result in workers.spread(find_in_file, jobs):
            results[job] = result
            done += job.length
            progress("searching", done, total)
    begins, ends, of, reasons = [], [], [], list[str | None]()
    for job, segment, first in zip(jobs, text.segments, text.starts.tolist(), strict=False):
        begin, end, document = results[job]
        begins.append(begin + first)
        ends.append(end + first)
        of.append(document + segment.documents_before)
        reasons += [segment.reason] * len(document) if segment.reason else []
    empty = np.empty(0, np.int64)
    joined = [np.concatenate([empty, *each]) for each in (begins, ends, of)]
    return Hits(text.name, joined[0], joined[1], joined[2], tuple(reasons))


# ---- the rows of the training -----------------------------------------------------------------


class Exposures:
    """The rows of a training that have some tokens, or a part of them.

    `seq_len`: T; a row is T + 1 tokens, of which the last is only predicted.
    """

    def __init__(self, hits: Hits, shown: int, seq_len: int) -> None:
        self._hits, self._width = hits, seq_len + 1
        self.whole = np.zeros(len(hits.of), np.int64)  # rows that have all of it; (N,)
        self.cut = np.zeros(len(hits.of), np.int64)
        last = hits.documents[:shown][-1:] if len(hits.of) else hits.of
        self._shown = int(np.searchsorted(hits.of, last, "right")[0]) if len(last) else 0
        self._readings: list[list[Reading]] = [[] for _ in range(self._shown)]

    def read(self, starts: I64, rows: I64, per_step: int) -> None:
        """Take in some rows of this source, in order.

        Args:
            starts: the first token of each; (R,).
            rows: the number of each in the training; (R,).
            per_step: rows of a step.

        Of texts at tokens 3 to 5 and 8 to 11, a row of tokens 4 to 9 has a part of either.
        """
        begins, ends = self._hits.begins, self._hits.ends
        first = np.searchsorted(ends, starts, "right")  # (R,): the first text that ends later
        stop = np.searchsorted(begins, starts + self._width, "left")  # … that begins later
        count = np.maximum(stop - first, 0)
        which = np.repeat(np.arange(len(starts)), count)  # (E,): the row of each exposure
        hit = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
        whole = (begins[hit] >= starts[which]) & (ends[hit] <= starts[which] + self._width)
        np.add.at(self.whole, hit[whole], 1)
        np.add.at(self.cut, hit[~whole], 1)
        for i in np.flatnonzero(hit < self._shown).tolist():
            kept = self._readings[int(hit[i])]
            if len(kept) < MAX_SHOWN:
                step, row = divmod(int(rows[which[i]]), per_step)
                kept.append(Reading(step=step + 1, row=row, whole=bool(whole[i])))

    def readings(self, hits: I64) -> tuple[Reading, ...]:
        """The first rows that have one of these, in order."""
        every = [each for hit in hits.tolist() for each in self._readings[hit]]
        return tuple(sorted(every, key=lambda each: (each.step, each.row))[:MAX_SHOWN])


def _read_order(
    run: RunFolder,
    plan: Plan,
    shards: Shards,
    steps: int,
    exposures: list[Exposures],
    progress: Progress,
) -> float:
    """Go through all rows of a run so far; return the epochs of train that they are."""
    together = max(1, ROWS_TOGETHER // plan.rows)  # steps
    loader = new_loader(run.config, plan, shards, steps=together)
    total = steps * plan.rows
    if any(len(each.whole) for each in exposures):
        for index, first in enumerate(range(0, total, loader.rows)):
            loader.own = range(min(loader.rows, total - first))  # not beyond the last step
            parts, starts = loader.rows_at(index)
            rows = np.arange(first, first + len(starts))
            for i, each in enumerate(exposures):
                here = parts == i
                each.read(starts[here], rows[here], plan.rows)
            progress("steps", (first + len(starts)) // plan.rows, steps)
    return total / sum(stream.windows for stream in loader.streams)


# ---- the source -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dropped:
    """What cleaning has dropped or changed of the documents of a source that had a text."""

    listed: list[Occurrence]  # the first that are dropped
    count: int  # all of them
    unexplained: int | None  # rows that had it before cleaning alone; None: not known
    rows: int | None  # rows of the source that have it; None: the source is not here


def _in_source(
    mixed: Shards,
    origin: Origins,
    text: str,
    kept: dict[str, I64],
    val: Hits,
    max_shown: int,
    progress: Progress,
) -> Dropped:
    """What of a source has a text and is in neither train nor val.

    Args:
        kept: the documents of the source's train that have the text.
        val: the held-out documents that have it; of a mixture those of all sources.
    """
    shards, source = origin.shards, origin.source
    if shards is None or not has_exclusions(shards):
        known = source is not None
        return Dropped([], 0, None, len(_rows_with(origin, text, progress)[0]) if known else None)
    if not mixed.parts:
        kept = {**kept, "val": val.documents}
    elif source is not None:  # a mixture has the held-out documents in another order
        kept = {**kept, "val": search(shards, val_text(shards), text.encode(), silent).documents}
    listed, count = list[Occurrence](), 0
    if source is None:  # what is known is how each of them begins
        for each in read_excluded(shards):
            if text in each.text:
                count += 1
                listed += [_excluded(each, each.text.count(text))] if count <= max_shown else []
        return Dropped(listed, count, None, None)
    places, times = _rows_with(origin, text, progress)
    unexplained = np.ones(len(places), bool)
    numbers = origin.rows.ranges()
    for each in read_excluded(shards):
        place = numbers[each.file][each.row]
        at = int(np.searchsorted(places, place))
        if at < len(places) and places[at] == place:
            unexplained[at] = False
            count += 1
            listed += [_excluded(each, int(times[at]))] if count <= max_shown else []
    for split, documents in kept.items():
        rows = document_rows(shards, split)
        if rows is not None:
            unexplained &= ~np.isin(places, rows[documents])
    return Dropped(listed, count, int(unexplained.sum()), len(places))


def _excluded(each: Excluded, times: int) -> Occurrence:
    return Occurrence(
        where="excluded",
        part=None,
        document=None,
        times=times,
        file=each.file,
        row=each.row,
        reason=each.reason,
        of=f"{each.of['file']}, row {each.of['row']}" if each.of else None,
    )


def _rows_with(origin: Origins, text: str, progress: Progress) -> tuple[I64, I64]:
    """The numbers of the rows of a source that have a text, and how often each has it; (N,)."""
    files = origin.rows.ranges()
    places, times = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number, (name, rows) in enumerate(files.items()):
        first = rows.start
        try:
            with pq.ParquetFile(origin.rows.paths[name]) as file:
                for group in range(file.num_row_groups):
                    texts = file.read_row_group(group, [TEXT]).column(0)
                    counts = pc.count_substring(texts, text).to_numpy()
                    here = np.flatnonzero(counts)
                    places.append(here + first)
                    times.append(counts[here].astype(np.int64))
                    first += len(texts)
        except (ArrowException, OSError) as error:
            raise CorruptionError(f"{origin.rows.paths[name]} cannot be read: {error}") from error
        progress("searching the source", number + 1, len(files))
    return np.concatenate(places), np.concatenate(times)
