"""Mix: the shards of the sources of a mixture → those of the mixture.

    data/shards/mixed-5e6f…/
      wiki-train_00000.bin …   those of each source, by hard links
      val_00000.bin …          the held-out documents of all, in turn
      val_parts.npy            the source of each of them
      excluded.npy             the token ranges of train that are duplicates across sources
      tokenizer.tiktoken …     the one of all

No weight is read: these belong to the order of the training.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm import keys, storage
from slm.config import PipelineConfig
from slm.errors import UserError, listing
from slm.progress import Progress, automatic
from slm.records import ShardCount, Shards, ShardsPart, ShardSplit, Source, check_input
from slm.run_folder import DataRoot
from slm.tokens.cleaning import EXAMPLES, Mask, Tally
from slm.tokens.mixture.exclusions import (
    VAL_AGAIN,
    Left,
    Val,
    all_ranges,
    read_documents,
    train_exclusions,
)
from slm.tokens.mixture.identity import mix_key
from slm.tokens.mixture.reading import VAL_PARTS
from slm.tokens.shards.layout import Counts, Tokens, total
from slm.tokens.shards.reading import EXCLUDED
from slm.tokens.shards.writing import ShardWriter, length_bins
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

HUGGING_FACE = "tokenizer.json"
BATCH_TOKENS = 1 << 20  # of held-out documents written together


@storage.hashing_once()
def mix(
    config: PipelineConfig,
    source: Source,
    parts: Mapping[str, Shards],
    *,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Shards:
    """The shards of a mixture in `<root>/shards/<name>-<key>/`.

    >>> parts = {name: slm.encode_part(config, source, name) for name in config.data.sources}
    >>> shards = slm.mix(config, source, parts)

    Args:
        source: of the mixture, as `download` makes it.
        parts: the shards of each of its sources, by name, all of one vocabulary.

    Raises UserError where a source has nothing left to train on, CorruptionError where shards
    cannot be read.
    """
    check_input(source, Source)
    check_parts(config, parts)
    parts = {name: parts[name] for name in config.data.sources}
    data = DataRoot(root)
    key = mix_key(config, {name: shards.key for name, shards in parts.items()})
    folder = data.folder("shards", config.folder_name, key)

    def build(staging: Path) -> Shards:
        return _join(key, config, source, parts, staging, progress)

    with storage.reading(*(shards.path for shards in parts.values())):
        return storage.run_stage(folder, Shards, key, build, keys.made("encode", config))


def check_parts(config: PipelineConfig, parts: Mapping[str, Shards]) -> None:
    """Raises UserError unless these are the shards of the config's sources."""
    names = list(config.data.sources)
    if not names:
        raise UserError(f"recipe {config.recipe} is no mixture: it has no data.sources")
    if set(parts) != set(names):
        raise UserError(f"shards of {listing(sorted(parts))}, and the sources are {listing(names)}")
    if len({shards.tokenizer_sha256 for shards in parts.values()}) > 1:
        raise UserError("the sources were encoded with several vocabularies: a mixture has one")


def _join(
    key: str,
    config: PipelineConfig,
    source: Source,
    parts: Mapping[str, Shards],
    staging: Path,
    progress: Progress,
) -> Shards:
    first = next(iter(parts.values()))
    tokenizer = Tokenizer.load(first.path / TOKENIZER)
    for name in (TOKENIZER, HUGGING_FACE):
        storage.link_file(first.path / name, staging / name)
    size = sum(split.tokens for shards in parts.values() for split in shards.splits.values())
    val_size = sum(shards.splits["val"].tokens for shards in parts.values())
    val = Val(parts)
    progress("mix", val_size, size)
    left = train_exclusions(
        parts, val, tokenizer.token_bytes, lambda tokens: progress("mix", val_size + tokens, size)
    )
    np.save(staging / EXCLUDED, all_ranges(left.values()))
    writer = ShardWriter(staging, "val", tokenizer.n_vocab, config.data.shard_tokens)
    counts = _write_val(writer, parts, val, tokenizer, staging)
    joined = {
        name: _part(name, shards, left[name], val.kept(name), counts[name], source)
        for name, shards in parts.items()
    }
    train = {name: _link_train(name, shards, staging) for name, shards in parts.items()}
    tally = _tally(parts, left, val, tokenizer)
    return Shards(
        key=key,
        source_key=source.key,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.n_vocab,
        eot=tokenizer.eot,
        splits={"train": _union(train.values()), "val": writer.close()},
        dropped={reason: entry["documents"] for reason, entry in tally.dropped.items()},
        cleaning={"dropped": tally.dropped, "changed": tally.changed} | _functions(parts),
        length_histogram=_histogram(
            parts, [*val.left_lengths, *(one for each in left.values() for one in each.lengths)]
        ),
        parts=joined,
    )


# ---- train ------------------------------------------------------------------------------------


def _link_train(name: str, shards: Shards, staging: Path) -> ShardSplit:
    """The train shards of a source, in the mixture's folder."""
    train = shards.splits["train"]
    for file in train.files:
        storage.link_file(shards.path / file, staging / _linked(name, file))
    return train.model_copy(
        update={
            "files": [_linked(name, file) for file in train.files],
            "counts": {_linked(name, file): count for file, count in train.counts.items()},
        }
    )


def _linked(name: str, file: str) -> str:
    return f"{name}-{file}"


def _union(splits: Any) -> ShardSplit:
    splits = list(splits)
    return ShardSplit(
        files=[file for split in splits for file in split.files],
        counts={file: count for split in splits for file, count in split.counts.items()},
        **total(splits),
    )


def _part(
    name: str,
    shards: Shards,
    left: Left,
    kept: Mask,
    val: ShardCount,
    source: Source,
) -> ShardsPart:
    """The record of a source: what of it is trained on, and held out."""
    counts = {}
    for file, count in shards.splits["train"].counts.items():
        documents, tokens, size = left.by_file.get(file, (0, 0, 0))
        counts[_linked(name, file)] = ShardCount(
            documents=count.documents - documents,
            tokens=count.tokens - tokens,
            bytes=count.bytes - size,
        )
    again = len(kept) - int(kept.sum())
    return ShardsPart(
        key=shards.key,
        source_key=shards.source_key,
        train=ShardSplit(files=list(counts), counts=counts, **total(counts.values())),
        val=val,
        excluded={**left.documents, **({VAL_AGAIN: again} if again else {})},
        license=source.parts[name].license if name in source.parts else None,
    )


# ---- val --------------------------------------------------------------------------------------


def in_turn(counts: list[int]) -> npt.NDArray[np.uint8]:
    """The source of each held-out document, so that any beginning has them in proportion; (N,).

    Document i of n is at (i + ½) / n of the way: 4 of the first source and 2 of the second are at
    ⅛, ⅜, ⅝, ⅞ and at ¼, ¾.

    >>> in_turn([4, 2]).tolist()
    [0, 1, 0, 0, 1, 0]
    """
    places = [(2 * np.arange(count) + 1) / (2 * max(1, count)) for count in counts]
    parts = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    order = np.lexsort((parts, np.concatenate(places)))
    return parts[order]


def _write_val(
    writer: ShardWriter,
    parts: Mapping[str, Shards],
    val: Val,
    tokenizer: Tokenizer,
    staging: Path,
) -> dict[str, ShardCount]:
    """Write the held-out documents of all sources in turn; returns what there are of each."""
    order = in_turn([int(val.kept(name).sum()) for name in parts])
    np.save(staging / VAL_PARTS, order)
    streams = [_kept_documents(shards, val.kept(name)) for name, shards in parts.items()]
    counts = [[0, 0, 0] for _ in parts]
    batch: list[Tokens] = []
    waiting = 0

    def flush() -> None:
        lengths = np.array([len(document) for document in batch])
        tokens = np.concatenate(batch)
        starts = np.cumsum(lengths) - lengths
        writer.add(tokens, lengths, np.add.reduceat(tokenizer.token_bytes[tokens], starts))

    for part in order.tolist():
        document = next(streams[part])
        count = (1, len(document), tokenizer.count_bytes(document))
        counts[part] = [a + b for a, b in zip(counts[part], count, strict=True)]
        batch.append(document)
        waiting += len(document)
        if waiting >= BATCH_TOKENS:
            flush()
            batch, waiting = [], 0
    if batch:
        flush()
    return {
        name: ShardCount(documents=documents, tokens=tokens, bytes=size)
        for name, (documents, tokens, size) in zip(parts, counts, strict=True)
    }


def _kept_documents(shards: Shards, kept: Mask) -> Iterator[Tokens]:
    """The held-out documents of a source that stay, end-of-text first."""
    number = 0
    for file in shards.splits["val"].files:
        for documents in read_documents(shards, file):
            starts = documents.starts.tolist()
            for start, length in zip(starts, documents.lengths.tolist(), strict=True):
                if kept[number]:
                    yield documents.tokens[start : start + length]
                number += 1


# ---- what is shown ----------------------------------------------------------------------------


def _tally(
    parts: Mapping[str, Shards], left: Mapping[str, Left], val: Val, tokenizer: Tokenizer
) -> Tally:
    """What the cleaning of each source dropped and changed, and what this stage left out."""
    tally = Tally()
    for shards in parts.values():
        cleaning = shards.cleaning
        tally.add(Tally(cleaning.get("dropped", {}), cleaning.get("changed", {})))
    for name in parts:
        for reason, count in left[name].documents.items():
            texts = [tokenizer.decode(ids.tolist()) for ids in left[name].examples[reason]]
            entry = {"documents": count, "examples": texts[:EXAMPLES]}
            tally.add(Tally({reason: entry}))
        if again := int((~val.kept(name)).sum()):
            tally.add(Tally({VAL_AGAIN: {"documents": again, "examples": []}}))
    return tally


def _functions(parts: Mapping[str, Shards]) -> dict[str, Any]:
    """The user's own functions of each source: `wiki filter` → where it is."""
    own = {
        f"{name} {kind}": function
        for name, shards in parts.items()
        for kind, function in shards.cleaning.get("functions", {}).items()
    }
    return {"functions": own} if own else {}


def _histogram(parts: Mapping[str, Shards], left: list[Counts]) -> dict[str, int]:
    """The lengths of all documents without those that are left out, whose lengths are `left`."""
    counts: dict[str, int] = {}
    for shards in parts.values():
        for bound, documents in shards.length_histogram.items():
            counts[bound] = counts.get(bound, 0) + documents
    bins = np.bincount(length_bins(np.concatenate(left)))
    for power in np.flatnonzero(bins).tolist():
        counts[str(2**power)] -= int(bins[power])
    return {bound: counts[bound] for bound in sorted(counts, key=int) if counts[bound]}
