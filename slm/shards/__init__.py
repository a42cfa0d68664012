"""Encode: parquet → token shards `train_00000.bin` …, `val_00000.bin` …, and their tokenizer.

A shard is a header of 256 int32 (magic, version, token count) and the tokens, as in llm.c: uint16,
or uint32 above 65,535 ids. Each document is end-of-text and then its tokens; a shard holds whole
documents. The bytes depend on the source, the tokenizer and the config alone.
"""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slm import storage
from slm.config import PipelineConfig, data_root
from slm.errors import CorruptionError, UserError
from slm.records import Progress, ShardCount, Shards, Source, silent
from slm.shards.encoding import FORMATS, HEADER, Encoding
from slm.shards.units import Tokens
from slm.tokenizer import FILE_NAME, Tokenizer, gpt2

ENCODE_VERSION = 1
"""Goes up whenever the same source and config give other shard bytes."""


def encode(
    config: PipelineConfig,
    source: Source,
    *,
    tokenizer: Tokenizer | None = None,
    root: Path | None = None,
    progress: Progress = silent,
) -> Shards:
    """The shards of a source in `<root>/shards/<recipe>-<key>/`.

    `tokenizer`: of the model that is to be trained on; None: made from the source.

    An interrupted call leaves its finished units beside that folder; the next one goes on from
    there. Raises UserError where no document is left for train or val, CorruptionError where the
    source cannot be read, SlmError where a worker is killed twice on the same unit.
    """
    root = root or data_root()
    key = encode_key(config, source, tokenizer.sha256 if tokenizer else None)
    folder = root / "shards" / f"{config.recipe}-{key[:12]}"
    work = folder.with_name(f".{folder.name}.units")

    def build(staging: Path) -> Shards:
        work.mkdir(exist_ok=True)
        encoding = Encoding(config.data, source, work, staging, progress, tokenizer)
        return encoding.run(key, gpt2(root))

    shards = storage.run_stage(folder, Shards, key, build)
    shutil.rmtree(work, ignore_errors=True)
    return shards


def encode_key(config: PipelineConfig, source: Source, tokenizer_sha256: str | None) -> str:
    """The key of the shards that `encode` makes; of a given tokenizer, where there is one."""
    inputs: Any = storage.content_hash(source)
    if tokenizer_sha256:
        inputs = {"source": inputs, "tokenizer": tokenizer_sha256}
    return storage.stage_key("encode", ENCODE_VERSION, config.data.encode_fields(), inputs)


# ---- reading ----------------------------------------------------------------------------------


def read_shards(path: Path, *, verify: bool = True) -> Shards:
    """The record of a shards folder; every file is rehashed unless told not to.

    Raises UserError where there are none, CorruptionError where bytes are not those recorded.
    """
    shards = storage.read_record(path, Shards, verify=verify)
    if shards is None:
        raise UserError(f"{path} holds no shards: make them with slm encode RECIPE")
    return shards


def read_tokens(path: Path) -> Tokens:
    """The tokens of one shard, mapped into memory; (T,) uint16 or uint32.

    Raises CorruptionError where the header and the size of the file do not agree.
    """
    try:
        header = np.fromfile(path, "<i4", HEADER)
        size = path.stat().st_size
    except OSError as error:
        raise CorruptionError(f"{path}: cannot be read ({error.strerror})") from error
    for dtype, (magic, version) in FORMATS.items():
        if header[:2].tolist() == [magic, version]:
            count = int(header[2])
            if size != 4 * HEADER + count * dtype.itemsize:
                raise CorruptionError(f"{path}: {size} bytes do not hold {count} tokens")
            tokens = np.memmap(path, dtype, mode="r", offset=4 * HEADER, shape=(count,))
            return np.asarray(tokens)
    raise CorruptionError(f"{path} is not a token shard: it begins with {header[:2].tolist()}")


def documents(shards: Shards, split: str) -> Iterator[Tokens]:
    """The token ids of each document in order, without end-of-text; (T,) each."""
    for name in shards.splits[split].files:
        yield from _documents(read_tokens(shards.path / name), shards.eot)


def _documents(tokens: Tokens, eot: int) -> Iterator[Tokens]:
    start = None
    for first, chunk in _chunks(tokens):
        for stop in (np.flatnonzero(chunk == eot) + first).tolist():
            if start is not None:
                yield tokens[start:stop]
            start = stop + 1
    if start is not None:
        yield tokens[start:]


def _chunks(tokens: Tokens, size: int = 1 << 20) -> Iterator[tuple[int, Tokens]]:
    """Pieces small enough to compute with, each with the position of its first token."""
    for first in range(0, len(tokens), size):
        yield first, tokens[first : first + size]


# ---- looking at them --------------------------------------------------------------------------


def verify(path: Path) -> dict[str, int]:
    """Checks a shards folder to the last token: hashes, headers, counts, ids, bytes.

    Returns `files`, `documents`, `tokens` and `bytes`. Raises CorruptionError naming each file
    that is not what the record says, UserError where there are no shards.
    """
    shards = read_shards(path)
    tokenizer = Tokenizer.load(path / FILE_NAME)
    if (tokenizer.sha256, tokenizer.eot) != (shards.tokenizer_sha256, shards.eot):
        raise CorruptionError(f"{path / FILE_NAME} is not the tokenizer of these shards")
    wrong = []
    for split in shards.splits.values():
        for name in split.files:
            found, expected = _count(read_tokens(path / name), tokenizer), split.counts[name]
            if found != expected:
                wrong.append(f"{path / name} holds {found}, recorded {expected}")
        totals = [(n.documents, n.tokens, n.bytes) for n in split.counts.values()]
        if tuple(map(sum, zip(*totals, strict=True))) != (
            split.documents,
            split.tokens,
            split.bytes,
        ):
            wrong.append(f"{path}: the counts of {', '.join(split.files)} do not add up")
    if wrong:
        raise CorruptionError("; ".join(wrong))
    splits = shards.splits.values()
    return {
        "files": len(shards.files),
        "documents": sum(split.documents for split in splits),
        "tokens": sum(split.tokens for split in splits),
        "bytes": sum(split.bytes for split in splits),
    }


def _count(tokens: Tokens, tokenizer: Tokenizer) -> ShardCount | None:
    """What a shard holds, by its tokens; None where they cannot be of this tokenizer."""
    found = size = 0
    for _, chunk in _chunks(tokens):
        if int(chunk.max()) > tokenizer.eot:
            return None
        found += int(np.count_nonzero(chunk == tokenizer.eot))
        size += int(tokenizer.token_bytes[chunk].sum())
    if not len(tokens) or tokens[0] != tokenizer.eot:
        return None
    return ShardCount(documents=found, tokens=len(tokens), bytes=size)


def inspect(path: Path, document: int | None = None) -> dict[str, Any]:
    """What shards hold, for people to look at.

    Returns `splits` (documents, tokens, bytes and files of each), `vocab_size`, `dropped`,
    `length_histogram` and `frequent`: the commonest tokens of the first train shard with their
    share of it. With a number also `document`: its split, ids, tokens and text; the documents of
    train are numbered from 0, those of val go on from there.
    """
    shards = read_shards(path)
    tokenizer = Tokenizer.load(path / FILE_NAME)
    first = read_tokens(path / shards.splits["train"].files[0])
    counts = np.zeros(tokenizer.n_vocab, np.int64)
    for _, chunk in _chunks(first):
        counts += np.bincount(chunk, minlength=tokenizer.n_vocab)
    common = np.argsort(-counts, kind="stable")[:20].tolist()
    shown: dict[str, Any] = {
        "shards": shards.name,
        "splits": {
            name: {**split.model_dump(exclude={"files", "counts"}), "files": len(split.files)}
            for name, split in shards.splits.items()
        },
        "vocab_size": shards.vocab_size,
        "dropped": shards.dropped,
        "length_histogram": shards.length_histogram,
        "frequent": [
            {"id": i, "token": tokenizer.decode([i]), "share": int(counts[i]) / len(first)}
            for i in common
        ],
    }
    if document is not None:
        split, ids = _find_document(shards, document)
        shown["document"] = {
            "number": document,
            "split": split,
            "ids": ids,
            "tokens": [tokenizer.decode([i]) for i in ids],
            "text": tokenizer.decode(ids),
        }
    return shown


def _find_document(shards: Shards, number: int) -> tuple[str, list[int]]:
    left = number
    for split in ("train", "val"):
        for name, count in shards.splits[split].counts.items():
            if 0 <= left < count.documents:
                found = _documents(read_tokens(shards.path / name), shards.eot)
                ids: list[int] = next(islice(found, left, None)).tolist()
                return split, ids
            left -= count.documents
    total = sum(split.documents for split in shards.splits.values())
    raise UserError(f"document {number} is not there: the numbers go from 0 to {total - 1}")
