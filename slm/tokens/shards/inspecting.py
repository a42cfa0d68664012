"""Shards, checked to the last token and shown to people."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import CorruptionError, UserError
from slm.records import ShardCount, Shards
from slm.tokens.shards.layout import Tokens, total
from slm.tokens.shards.reading import read_shards, read_tokens, split_documents, token_chunks
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer


def verify(path: Path) -> dict[str, int]:
    """Check a shards folder to the last token: hashes, headers, counts, ids, bytes.

    Returns `files`, `documents`, `tokens` and `bytes`. Raises CorruptionError naming each file
    that is not as recorded, UserError where there are no shards.
    """
    shards = read_shards(path)
    tokenizer = Tokenizer.load(path / TOKENIZER)
    if (tokenizer.sha256, tokenizer.eot) != (shards.tokenizer_sha256, shards.eot):
        raise CorruptionError(f"{path / TOKENIZER} is not the tokenizer of these shards")
    wrong = []
    for split in shards.splits.values():
        for name in split.files:
            counted, recorded = _count(read_tokens(path / name), tokenizer), split.counts[name]
            if counted != recorded:
                wrong.append(f"{path / name} holds {counted}, recorded {recorded}")
        if total(split.counts.values()) != total([split]):
            wrong.append(f"{path}: the counts of {', '.join(split.files)} do not add up")
    if wrong:
        raise CorruptionError("; ".join(wrong))
    return {"files": len(shards.files), **total(shards.splits.values())}


def _count(tokens: Tokens, tokenizer: Tokenizer) -> ShardCount | None:
    """The counts of a shard's tokens; None where they cannot be of this tokenizer."""
    documents = size = 0
    for _, chunk in token_chunks(tokens):
        if int(chunk.max()) >= tokenizer.n_vocab:
            return None
        documents += int(np.count_nonzero(chunk == tokenizer.eot))
        size += tokenizer.count_bytes(chunk)
    if not len(tokens) or tokens[0] != tokenizer.eot:
        return None
    return ShardCount(documents=documents, tokens=len(tokens), bytes=size)


def inspect(path: Path, document: int | None = None) -> dict[str, Any]:
    """A summary of shards for people.

    Returns `splits` (documents, tokens, bytes and files of each), `vocab_size`, `dropped`,
    `length_histogram` and `frequent`: the most frequent tokens of the first train shard with their
    share of it. With a number also `document`: its split, ids, tokens and text; the documents of
    train are numbered from 0, those of val follow.
    """
    shards = read_shards(path)
    tokenizer = Tokenizer.load(path / TOKENIZER)
    first = read_tokens(path / shards.splits["train"].files[0])
    counts = np.zeros(tokenizer.n_vocab, np.int64)
    for _, chunk in token_chunks(first):
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
                documents = split_documents(read_tokens(shards.path / name), shards.eot)
                ids: list[int] = next(islice(documents, left, None)).tolist()
                return split, ids
            left -= count.documents
    last = total(shards.splits.values())["documents"] - 1
    raise UserError(f"there is no document {number}: they are numbered from 0 to {last}")
