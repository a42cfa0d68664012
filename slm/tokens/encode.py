"""Encode: parquet → token shards `train_00000.bin` …, `val_00000.bin` …, and their tokenizer.

The bytes depend on the source, the tokenizer and the config alone; `shards/layout.py` describes
them.

Worker processes encode the source in units of a few megabytes. Here the results are taken in the
units' order, duplicates are dropped, and the rest is appended to the shards of its split. A trimmed
vocabulary takes a second pass: the first counts the tokens of train, the second rewrites the units.
"""

import logging
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slm import keys, storage
from slm.config import DataConfig, PipelineConfig
from slm.errors import UserError, listing
from slm.machine import available_cores
from slm.progress import Progress, automatic
from slm.records import Shards, ShardSplit, Source, check_input
from slm.run_folder import DataRoot
from slm.source.mixture import naming, part_of_source
from slm.source.reading import kept_columns
from slm.tokens import holdout
from slm.tokens.cleaning import check_extras
from slm.tokens.empty_split import check_not_empty, separator_hint
from slm.tokens.exclusions import ExclusionWriter
from slm.tokens.functions import (
    Functions,
    check_functions,
    functions_of,
    key_fields,
    takes_columns,
)
from slm.tokens.mixture.identity import mix_key
from slm.tokens.mixture.joining import mix
from slm.tokens.selection import Choice, Selection
from slm.tokens.shards.layout import Counts
from slm.tokens.shards.writing import ShardWriter
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer, gpt2
from slm.tokens.tokenizer.trimming import trim_vocabulary
from slm.tokens.units import Encoded, Pool, Unit, Work, encode_unit, is_done, plan_units, remap_unit
from slm.tokens.workers import Workers

logger = logging.getLogger(__name__)

ENCODE_VERSION = 1
"""Goes up whenever the same source and config give other shard bytes."""

IN_PROCESS_BYTES = 24 << 20  # of text: below it, starting workers takes longer than the work
SPLITS = ("train", "val")

MakePool = Callable[[list[Unit]], AbstractContextManager[Pool]]


@storage.hashing_once()
def encode(
    config: PipelineConfig,
    source: Source,
    *,
    tokenizer: Tokenizer | None = None,
    root: Path | None = None,
    progress: Progress = automatic,
    pool: MakePool | None = None,
) -> Shards:
    """The shards of a source in `<root>/shards/<name>-<key>/`; of a mixture those of all sources.

    An interrupted call leaves its finished units next to that folder, and the next one resumes
    from them.

    Args:
        tokenizer: of the model that is to be trained further, or of `data.tokenizer`; None:
            GPT-2's, trimmed to the source where `data.vocab_size` is smaller.
        pool: makes what encodes these units; None: processes of this machine, whatever
            `data.runner` is.

    Raises UserError where no document is left for train or val, or a library that cleaning needs is
    not installed, CorruptionError where the source
    cannot be read, SlmError where a worker is killed twice on the same unit.
    """
    check_input(source, Source)
    if tokenizer is None:
        check_vocabulary_is_gpt2(config)
    if config.data.sources:
        parts = {
            name: encode_part(
                config, source, name, tokenizer=tokenizer, root=root, progress=progress, pool=pool
            )
            for name in config.data.sources
        }
        return mix(config, source, parts, root=root, progress=progress)
    data = DataRoot(root)
    functions = functions_of(config.data.clean)  # read once: what the key has is what runs
    given = tokenizer.sha256 if tokenizer else None
    key = encode_key(config, source, given, functions=functions)
    folder = data.folder("shards", config.folder_name, key)
    work = units_folder(folder)

    def build(staging: Path) -> Shards:
        check_extras(config.data.clean)
        check_functions(functions, config.data.columns)
        check_columns(config.data, source, functions)
        work.mkdir(exist_ok=True)
        base = tokenizer or gpt2(data.path)
        vocab_size = base.n_vocab if tokenizer else config.data.vocab_size
        try:
            return _write_shards(
                key, config.data, source, base, vocab_size, work, staging, progress, pool, functions
            )
        except UserError:  # which the same call would raise again
            shutil.rmtree(work, ignore_errors=True)
            raise

    with storage.reading(source.path):
        made = keys.made("encode", config)
        shards = storage.run_stage(folder, Shards, key, build, made)
    shutil.rmtree(work, ignore_errors=True)
    if held_out := shards.cleaning.get("held_out"):
        logger.warning("%s%s", holdout.describe(held_out), separator_hint(config.data, source))
    return shards


def check_vocabulary_is_gpt2(config: PipelineConfig) -> None:
    """Raises UserError where the vocabulary is not GPT-2's: it has to be given."""
    if config.train.init_from:
        raise UserError(
            f"train.init_from={config.train.init_from}: its vocabulary comes with the model, which "
            "`config, parent = slm.initial_model(config)` opens; give it as parent=parent"
        )
    if config.data.makes_vocabulary:
        setting = "data.tokenizer is set" if config.data.tokenizer.is_set else "a mixture trims it"
        raise UserError(
            f"{setting}: `vocabulary = slm.make_tokenizer(config, source)` makes the vocabulary; "
            "give it as vocabulary=vocabulary"
        )


def encode_part(
    config: PipelineConfig,
    source: Source,
    name: str,
    *,
    tokenizer: Tokenizer | None = None,
    root: Path | None = None,
    progress: Progress = automatic,
    pool: MakePool | None = None,
) -> Shards:
    """The shards of one source of a mixture, as `encode` makes them of it alone.

    `source`: of the mixture.
    """
    with naming(name):
        return encode(
            config.of_source(name),
            part_of_source(source, name),
            tokenizer=tokenizer,
            root=root,
            progress=progress,
            pool=pool,
        )


def check_columns(data: DataConfig, source: Source, functions: Functions) -> None:
    """Raises UserError where functions read columns that a source does not keep.

    It was then downloaded with other settings.
    """
    if any(takes_columns(each, data.columns) for each in functions):
        kept = kept_columns(source)
        if kept != list(data.columns):
            raise UserError(
                f"data.columns names {listing(data.columns)}, and the source {source.name} was "
                f"downloaded with {listing(kept)}: download it with the settings that it is "
                "encoded with"
            )


def units_folder(folder: Path) -> Path:
    """Where an interrupted encoding leaves the units that it has finished."""
    return folder.with_name(f".{folder.name}.units")


def encode_key(
    config: PipelineConfig,
    source: Source,
    tokenizer_sha256: str | None,
    version: int | None = None,
    functions: Functions | None = None,
) -> str:
    """The key of the shards that `encode` makes; of a given tokenizer, where there is one.

    Args:
        version: of the stage; None: today's.
        functions: those that the config names; None: they are read now.

    Of a mixture that of the stage `mix`.
    """
    if config.data.sources:
        return mix_key(config, part_keys(config, source, tokenizer_sha256, version))
    inputs: Any = storage.content_hash(source)
    if tokenizer_sha256:
        inputs = {"source": inputs, "tokenizer": tokenizer_sha256}
    # Under version 1 the split was drawn from the hash of the cleaned text. It is now drawn from
    # the raw text, which gives other bytes only where the two can differ.
    version = (version or ENCODE_VERSION) + config.data.clean.fix_text
    fields = keys.stage_fields("encode", config)
    if functions is None:
        functions = functions_of(config.data.clean)
    if functions:
        fields["functions"] = key_fields(functions)
    if rule := holdout.small_set_rule(config.data, source):  # added later: only these have it
        fields["held_out"] = rule
    return keys.stage_key("encode", version, fields, inputs)


def part_keys(
    config: PipelineConfig,
    source: Source,
    tokenizer_sha256: str | None,
    version: int | None = None,
) -> dict[str, str]:
    """The key of the shards of each source of a mixture, by its name."""
    return {
        name: encode_key(
            config.of_source(name), part_of_source(source, name), tokenizer_sha256, version
        )
        for name in config.data.sources
    }


def _write_shards(
    key: str,
    data: DataConfig,
    source: Source,
    base: Tokenizer,
    vocab_size: int,
    work: Path,
    staging: Path,
    progress: Progress,
    pool: MakePool | None,
    functions: Functions,
) -> Shards:
    """Write every file of the shards to `staging` and return their record.

    Args:
        base: what the units are encoded with.
        vocab_size: that it is trimmed to where it is larger.
        work: the folder of the units.
        functions: of the user, by which documents are dropped or changed.
    """
    base.save(work / TOKENIZER)
    rule = holdout.small_set_rule(data, source)
    units = plan_units(
        source,
        work / TOKENIZER,
        data.clean,
        work,
        splits_ends=rule == "ends",
        functions=functions,
        columns=data.columns,
    )
    exclusions = ExclusionWriter(staging, units, source)
    selection = Selection(data, source, base, exclusions.exclude)
    tokenizer = base
    with pool(units) if pool else Workers(worker_count(data, units)) as workers:
        chosen = _chosen(workers, units, selection, progress)
        if vocab_size < base.n_vocab:
            counts, choices = count_tokens(chosen, base.n_vocab)
            tokenizer = trim_vocabulary(base, counts, vocab_size)
            rewritten = _rewritten(workers, units, tokenizer, work, progress)
            chosen = zip(rewritten, choices, strict=True)
        writers = {
            split: ShardWriter(staging, split, tokenizer.n_vocab, data.shard_tokens)
            for split in SPLITS
        }
        for each, choice in chosen:
            for split, mask in choice.items():
                writers[split].add(*each.select(mask))
                exclusions.keep(split, each.places[mask])
    splits = {split: writer.close() for split, writer in writers.items()}
    tally = selection.tally
    check_not_empty(data, source, splits, tally)
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
        cleaning=_cleaning(data, source, selection, splits, functions),
        length_histogram=_histogram([writer.histogram for writer in writers.values()]),
    )


def _chosen(
    workers: Pool, units: list[Unit], selection: Selection, progress: Progress
) -> Iterator[tuple[Encoded, Choice]]:
    """The units, in order, each with the splits that its documents go to.

    Of a small set all are encoded before the first is chosen.
    """
    outputs = {unit: unit.output for unit in units}
    encoded: Iterator[Encoded] = encode_in_order(workers, "encode", outputs, progress)
    if selection.is_small:
        selection.hold_out_minimum(each.draws for each in encoded)
        encoded = map(Encoded.read, outputs.values())
    return (
        (each, selection.choose(unit.split, each))
        for unit, each in zip(units, encoded, strict=True)
    )


def _rewritten(
    workers: Pool, units: list[Unit], tokenizer: Tokenizer, work: Path, progress: Progress
) -> Generator[Encoded]:
    """The units, in order, by a vocabulary that was trimmed to them."""
    trimmed = work / "trimmed.tiktoken"
    tokenizer.save(trimmed)
    outputs = {unit: unit.remapped for unit in units}
    return _in_order(workers, "trim", partial(remap_unit, trimmed=trimmed), outputs, progress)


def _cleaning(
    data: DataConfig,
    source: Source,
    selection: Selection,
    splits: Mapping[str, ShardSplit],
    functions: Functions,
) -> dict[str, Any]:
    """What was dropped, changed and held out, by which rule and functions: for the report."""
    tally, rule = selection.tally, holdout.small_set_rule(data, source)
    cleaning: dict[str, Any] = {"dropped": tally.dropped, "changed": tally.changed}
    if rule or selection.has_minimum:
        cleaning["held_out"] = {
            "rule": rule or "lowest hashes",
            "val_fraction": data.val_fraction,
            "documents": splits["val"].documents,
            "tokens": splits["val"].tokens,
            "of": source.documents,
        }
    if functions:
        cleaning["functions"] = {
            each.kind: {"file": Path(each.path).name, "function": each.name, "sha256": each.sha256}
            for each in functions
        }
    return cleaning


def worker_count(data: DataConfig, units: list[Unit]) -> int:
    size = sum(unit.text_bytes for unit in units)
    count = data.workers or (available_cores() if size >= IN_PROCESS_BYTES else 0)
    return min(count, len(units))


def encode_in_order(
    workers: Pool, task: str, outputs: Mapping[Unit, Path], progress: Progress
) -> Generator[Encoded]:
    """The units encoded by the workers, in order; `outputs`: the file of each."""
    return _in_order(workers, task, encode_unit, outputs, progress)


def _in_order(
    workers: Pool,
    task: str,
    work: Work,
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


def count_tokens(
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


def _histogram(parts: list[Counts]) -> dict[str, int]:
    """Upper bound in tokens → documents, from the shortest to the longest that there are."""
    counts = np.sum(parts, axis=0)
    used = np.flatnonzero(counts)
    return {str(2**i): int(counts[i]) for i in range(used[0], used[-1] + 1)}
