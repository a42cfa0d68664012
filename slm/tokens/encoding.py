"""Units → shards: what `slm.tokens.encode.encode` does between its source and its record.

Workers encode the units; here they are taken in order, duplicates are dropped, and the rest is
appended to the shards of its split. A trimmed vocabulary takes a second round: the first counts
the tokens of train, the second rewrites the units.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np

from slm.config import DataConfig
from slm.errors import UserError
from slm.machine import available_cores
from slm.records import Progress, Shards, ShardSplit, Source
from slm.source.documents import format_of
from slm.tokens.cleaning import EXAMPLE_CHARS, Duplicates, Mask, Tally
from slm.tokens.shards.layout import Counts
from slm.tokens.shards.writing import ShardWriter
from slm.tokens.tokenizer.bpe import FILE_NAME, Tokenizer
from slm.tokens.tokenizer.trimming import trim_vocabulary
from slm.tokens.units import (
    Encoded,
    RemapJob,
    Unit,
    encode_unit,
    is_done,
    plan_units,
    remap_unit,
)
from slm.tokens.workers import Workers

IN_PROCESS_BYTES = 24 << 20  # of text: below it, starting workers takes longer than the work
SPLITS = ("train", "val")

Job = TypeVar("Job", Unit, RemapJob)
Choice = dict[str, Mask]  # split → which documents of a unit go there


@dataclass
class Encoding:
    """One run of the stage: what it reads, where it writes, and what it has dropped so far."""

    data: DataConfig
    source: Source
    work: Path  # the units' files
    staging: Path  # the shards' files
    progress: Progress
    given: Tokenizer | None = None  # a trimmed vocabulary to use as it is
    workers: Workers = field(init=False)

    def run(self, key: str, base: Tokenizer) -> Shards:
        """Writes every file of the shards and returns their record.

        Raises UserError where no document is left for train or val.
        """
        base.save(self.work / FILE_NAME)
        units = [
            unit
            for split in ("val", "train")  # what stands in val leaves train
            if split in self.source.splits
            for unit in plan_units(
                self.source, split, self.work / FILE_NAME, self.data.clean, self.work
            )
        ]
        size = sum(unit.text_bytes for unit in units)
        count = self.data.workers or (available_cores() if size >= IN_PROCESS_BYTES else 0)
        with Workers(min(count, len(units))) as self.workers:
            return self._make(key, base, units)

    def _make(self, key: str, base: Tokenizer, units: list[Unit]) -> Shards:
        selection = Selection(self.data, "val" in self.source.splits, base)
        chosen: Iterator[tuple[Encoded, Choice]] = (
            (encoded, selection.choose(unit, encoded))
            for unit, encoded in self._finish("encode", encode_unit, units)
        )
        tokenizer = base
        wanted = self.given.n_vocab if self.given else self.data.vocab_size
        if wanted < base.n_vocab:
            tokenizer, chosen = self._trim(base, units, chosen)
        writers = self._write(tokenizer, chosen)
        splits = {split: writer.close() for split, writer in writers.items()}
        self._check(splits, selection.tally)
        tokenizer.save(self.staging / FILE_NAME)
        tokenizer.save_hugging_face(self.staging / "tokenizer.json")
        tally = selection.tally
        return Shards(
            key=key,
            source_key=self.source.key,
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.n_vocab,
            eot=tokenizer.eot,
            splits=splits,
            dropped={reason: entry["documents"] for reason, entry in tally.dropped.items()},
            cleaning={"dropped": tally.dropped, "changed": tally.changed},
            length_histogram=_histogram([writer.histogram for writer in writers.values()]),
        )

    def _finish(
        self, what: str, work: Callable[[Job], None], jobs: list[Job]
    ) -> Generator[tuple[Job, Encoded]]:
        """The results of jobs in their order, each as soon as those before it are done too."""
        todo = [job for job in jobs if not is_done(job.output)]
        ready = {job.output for job in jobs} - {job.output for job in todo}
        total, left = sum(job.text_bytes for job in jobs), sum(job.text_bytes for job in todo)
        with closing(self.workers.spread(work, todo)) as finished:
            self.progress(what, total - left, total)
            for job in jobs:
                while job.output not in ready:
                    other, _ = next(finished)
                    ready.add(other.output)
                    left -= other.text_bytes
                    self.progress(what, total - left, total)
                yield job, Encoded.read(job.output)

    def _trim(
        self, base: Tokenizer, units: list[Unit], chosen: Iterator[tuple[Encoded, Choice]]
    ) -> tuple[Tokenizer, Iterator[tuple[Encoded, Choice]]]:
        """The trimmed tokenizer, and the units in its ids with the choice made before."""
        counts = np.zeros(base.n_vocab, np.int64)
        choices = []
        for encoded, choice in chosen:
            tokens = encoded.tokens[np.repeat(choice["train"], encoded.lengths)]
            counts += np.bincount(tokens, minlength=base.n_vocab)
            choices.append(choice)
        tokenizer = self.given or trim_vocabulary(base, counts, self.data.vocab_size)
        path = self.work / "trimmed.tiktoken"
        tokenizer.save(path)
        narrowed = self._finish("trim", remap_unit, [RemapJob(unit, path) for unit in units])
        return tokenizer, (
            (encoded, choice) for (_, encoded), choice in zip(narrowed, choices, strict=True)
        )

    def _write(
        self, tokenizer: Tokenizer, chosen: Iterator[tuple[Encoded, Choice]]
    ) -> dict[str, "ShardWriter"]:
        writers = {
            split: ShardWriter(self.staging, split, tokenizer.n_vocab, self.data.shard_tokens)
            for split in SPLITS
        }
        for encoded, choice in chosen:
            for split, mask in choice.items():
                writers[split].add(
                    encoded.tokens[np.repeat(mask, encoded.lengths)],
                    encoded.lengths[mask],
                    encoded.sizes[mask],
                )
        return writers

    def _check(self, splits: dict[str, ShardSplit], tally: Tally) -> None:
        for split, written in splits.items():
            if written.documents:
                continue
            why = ", ".join(f"{n['documents']} {reason}" for reason, n in tally.dropped.items())
            remedy = "loosen data.clean or give more documents"
            if split == "val" and "val" not in self.source.splits:
                remedy = f"raise data.val_fraction={self.data.val_fraction} or give more documents"
            if self.data.separator is None and _is_plain_text(self.source):
                remedy = (
                    "a text file is one document unless it is split, at empty lines for example: "
                    """--set 'data.separator="\\n\\n"'"""
                )
            raise UserError(
                f"no documents are left in the {split} split of {self.source.dataset} "
                f"({self.source.documents} read; dropped: {why or 'none'}): {remedy}"
            )


def _is_plain_text(source: Source) -> bool:
    return bool(source.origin) and {format_of(PurePath(name)) for name in source.origin} == {"txt"}


class Selection:
    """Decides of each document, in order, which split it goes to, if any."""

    def __init__(self, data: DataConfig, own_val: bool, tokenizer: Tokenizer) -> None:
        self._val_fraction = None if own_val else data.val_fraction
        self._tokenizer = tokenizer
        self._duplicates = Duplicates(data.clean)
        self.tally = Tally()

    def choose(self, unit: Unit, encoded: Encoded) -> Choice:
        """A mask over the unit's documents for each split."""
        self.tally.add(encoded.tally)
        if self._val_fraction is None:
            val = np.full(len(encoded.hashes), unit.split == "val")
        else:
            val = encoded.hashes / 2.0**64 < self._val_fraction
        reasons = self._duplicates.reasons(encoded.hashes, encoded.signatures, val)
        starts = np.cumsum(encoded.lengths) - encoded.lengths
        for i, reason in enumerate(reasons):
            if reason:
                start = int(starts[i]) + 1
                stop = min(start + EXAMPLE_CHARS, int(starts[i] + encoded.lengths[i]))
                self.tally.drop(reason, self._tokenizer.decode(encoded.tokens[start:stop].tolist()))
        keep = np.array([not reason for reason in reasons], bool)
        return {"train": keep & ~val, "val": keep & val}


def _histogram(parts: list[Counts]) -> dict[str, int]:
    """Upper bound in tokens → documents, from the shortest to the longest that there are."""
    counts = np.sum(parts, axis=0)
    used = np.flatnonzero(counts)
    return {str(2**i): int(counts[i]) for i in range(used[0], used[-1] + 1)}
