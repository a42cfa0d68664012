"""Encode: parquet → token shards `train_00000.bin` …, `val_00000.bin` …, and their tokenizer.

The bytes depend on the source, the tokenizer and the config alone; `shards/layout.py` describes
them.

Worker processes encode the source in units of a few megabytes. Here the results are taken in the
units' order, duplicates are dropped, and the rest is appended to the shards of its split. A trimmed
vocabulary takes a second pass: the first counts the tokens of train, the second rewrites the units.
"""

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from slm import keys, storage
from slm.config import DataConfig, PipelineConfig
from slm.errors import UserError
from slm.machine import available_cores
from slm.progress import Progress, automatic
from slm.records import Shards, ShardSplit, Source, check_input
from slm.run_folder import DataRoot
from slm.source.documents import format_of
from slm.tokens.cleaning import EXAMPLE_CHARS, Duplicates, Mask, Tally
from slm.tokens.shards.layout import Counts
from slm.tokens.shards.writing import ShardWriter
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer, gpt2
from slm.tokens.tokenizer.trimming import trim_vocabulary
from slm.tokens.units import Encoded, Unit, encode_unit, is_done, plan_units, remap_unit
from slm.tokens.workers import Workers

ENCODE_VERSION = 1
"""Goes up whenever the same source and config give other shard bytes."""

IN_PROCESS_BYTES = 24 << 20  # of text: below it, starting workers takes longer than the work
SPLITS = ("train", "val")

Choice = dict[str, Mask]  # split → which documents of a unit go there


@storage.hashing_once()
def encode(
    config: PipelineConfig,
    source: Source,
    *,
    tokenizer: Tokenizer | None = None,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Shards:
    """The shards of a source in `<root>/shards/<recipe>-<key>/`.

    An interrupted call leaves its finished units next to that folder, and the next one resumes
    from them.

    Args:
        tokenizer: of the model that is to be trained further; None: made from the source.

    Raises UserError where no document is left for train or val, CorruptionError where the source
    cannot be read, SlmError where a worker is killed twice on the same unit.
    """
    check_input(source, Source)
    data = DataRoot(root)
    key = encode_key(config, source, tokenizer.sha256 if tokenizer else None)
    folder = data.folder("shards", config.recipe, key)
    work = folder.with_name(f".{folder.name}.units")

    def build(staging: Path) -> Shards:
        work.mkdir(exist_ok=True)
        base = gpt2(data.path)
        return _write_shards(key, config.data, source, base, tokenizer, work, staging, progress)

    with storage.reading(source.path):
        shards = storage.run_stage(folder, Shards, key, build)
    shutil.rmtree(work, ignore_errors=True)
    return shards


def encode_key(config: PipelineConfig, source: Source, tokenizer_sha256: str | None) -> str:
    """The key of the shards that `encode` makes; of a given tokenizer, where there is one."""
    inputs: Any = storage.content_hash(source)
    if tokenizer_sha256:
        inputs = {"source": inputs, "tokenizer": tokenizer_sha256}
    # Under version 1 the split was drawn from the hash of the cleaned text. It is now drawn from
    # the raw text, which gives other bytes only where the two can differ.
    version = ENCODE_VERSION + config.data.clean.fix_text
    return keys.stage_key("encode", version, keys.stage_fields("encode", config), inputs)


def _write_shards(
    key: str,
    data: DataConfig,
    source: Source,
    base: Tokenizer,
    given: Tokenizer | None,
    work: Path,
    staging: Path,
    progress: Progress,
) -> Shards:
    """Write every file of the shards to `staging` and return their record.

    Args:
        base: what the units are encoded with.
        given: a trimmed vocabulary to use as it is.
        work: the folder of the units.
    """
    base.save(work / TOKENIZER)
    units = plan_units(source, work / TOKENIZER, data.clean, work)
    selection = Selection(data, "val" in source.splits, base)
    tokenizer = base
    with Workers(_worker_count(data, units)) as workers:
        outputs = {unit: unit.output for unit in units}
        encoded = _in_order(workers, "encode", encode_unit, outputs, progress)
        chosen: Iterator[tuple[Encoded, Choice]] = (
            (each, selection.choose(unit.split, each))
            for unit, each in zip(units, encoded, strict=True)
        )
        if (given.n_vocab if given else data.vocab_size) < base.n_vocab:
            counts, choices = _count_tokens(chosen, base.n_vocab)
            tokenizer = given or trim_vocabulary(base, counts, data.vocab_size)
            trimmed = work / "trimmed.tiktoken"
            tokenizer.save(trimmed)
            outputs = {unit: unit.remapped for unit in units}
            remap = partial(remap_unit, trimmed=trimmed)
            chosen = zip(_in_order(workers, "trim", remap, outputs, progress), choices, strict=True)
        writers = {
            split: ShardWriter(staging, split, tokenizer.n_vocab, data.shard_tokens)
            for split in SPLITS
        }
        for each, choice in chosen:
            for split, mask in choice.items():
                writers[split].add(*each.select(mask))
    splits = {split: writer.close() for split, writer in writers.items()}
    tally = selection.tally
    _check_not_empty(data, source, splits, tally)
    tokenizer.save(staging / TOKENIZER)
    tokenizer.save_hugging_face(staging / "tokenizer.json")
    return Shards(
        key=key,
        source_key=source.key,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.n_vocab,
        eot=tokenizer.eot,
        splits=splits,
        dropped={reason: entry["documents"] for reason, entry in tally.dropped.items()},
        cleaning={"dropped": tally.dropped, "changed": tally.changed},
        length_histogram=_histogram([writer.histogram for writer in writers.values()]),
    )


def _worker_count(data: DataConfig, units: list[Unit]) -> int:
    size = sum(unit.text_bytes for unit in units)
    count = data.workers or (available_cores() if size >= IN_PROCESS_BYTES else 0)
    return min(count, len(units))


def _in_order(
    workers: Workers,
    task: str,
    work: Callable[[Unit], None],
    outputs: Mapping[Unit, Path],
    progress: Progress,
) -> Generator[Encoded]:
    """The outputs of `work` in the units' order, each as soon as those before it are done too.

    A unit whose output is whole already is not done again.
    """
    done = {unit for unit, path in outputs.items() if is_done(path)}
    finished, total = (sum(unit.text_bytes for unit in units) for units in (done, outputs))
    with closing(workers.spread(work, [u for u in outputs if u not in done])) as results:
        progress(task, finished, total)
        for unit, path in outputs.items():
            while unit not in done:
                other, _ = next(results)
                done.add(other)
                finished += other.text_bytes
                progress(task, finished, total)
            yield Encoded.read(path)


def _count_tokens(
    chosen: Iterator[tuple[Encoded, Choice]], n_vocab: int
) -> tuple[Counts, list[Choice]]:
    """How often each token occurs in train, (n_vocab,), and the choices again."""
    counts = np.zeros(n_vocab, np.int64)
    choices = []
    for encoded, choice in chosen:
        tokens, _, _ = encoded.select(choice["train"])
        counts += np.bincount(tokens, minlength=n_vocab)
        choices.append(choice)
    return counts, choices


class Selection:
    """Decides of each document, in order, which split it goes to, if any."""

    def __init__(self, data: DataConfig, own_val: bool, tokenizer: Tokenizer) -> None:
        self._val_fraction = None if own_val else data.val_fraction
        self._tokenizer = tokenizer
        self._duplicates = Duplicates(data.clean)
        self.tally = Tally()

    def choose(self, split: str, encoded: Encoded) -> Choice:
        """A mask over the documents of the source's split for each split of the shards.

        A document's raw text draws its split, so it never changes sides: not when the dataset
        grows, and not when other settings clean it. With `val_fraction` 0.25, hashes of 0.1, 0.6
        and 0.2 (times 2**64) go to val, train and val; if the last is dropped as a duplicate, the
        masks are train [F, T, F] and val [T, F, F].
        """
        self.tally.add(encoded.tally)
        if self._val_fraction is None:
            val = np.full(len(encoded.hashes), split == "val")
        else:
            val = encoded.raw_hashes / 2.0**64 < self._val_fraction  # (N,)
        reasons = self._duplicates.reasons(encoded.hashes, encoded.signatures, val)
        starts = np.cumsum(encoded.lengths) - encoded.lengths  # (N,), of end-of-text
        for i, reason in enumerate(reasons):
            if reason:
                start = int(starts[i]) + 1
                stop = min(start + EXAMPLE_CHARS, int(starts[i] + encoded.lengths[i]))
                self.tally.drop(reason, self._tokenizer.decode(encoded.tokens[start:stop].tolist()))
        keep = np.array([not reason for reason in reasons], bool)
        return {"train": keep & ~val, "val": keep & val}


def _check_not_empty(
    data: DataConfig, source: Source, splits: dict[str, ShardSplit], tally: Tally
) -> None:
    """Raises UserError with the remedy where a split has no documents."""
    formats = {format_of(PurePath(name), data.format) for name in source.origin}
    for split, written in splits.items():
        if written.documents:
            continue
        dropped = ", ".join(f"{n['documents']} {reason}" for reason, n in tally.dropped.items())
        remedy = "loosen data.clean or give more documents"
        if split == "val" and "val" not in source.splits:
            remedy = f"raise data.val_fraction={data.val_fraction} or give more documents"
        if data.separator is None and formats == {"text"}:
            remedy = (
                "a text file is one document unless it is split, at empty lines for example: "
                r"--set 'data.separator=\n\n'"
            )
        raise UserError(
            f"no documents are left in the {split} split of {source.dataset} "
            f"({source.documents} read; dropped: {dropped or 'none'}): {remedy}"
        )


def _histogram(parts: list[Counts]) -> dict[str, int]:
    """Upper bound in tokens → documents, from the shortest to the longest that there are."""
    counts = np.sum(parts, axis=0)
    used = np.flatnonzero(counts)
    return {str(2**i): int(counts[i]) for i in range(used[0], used[-1] + 1)}
