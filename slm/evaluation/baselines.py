"""What others need for the same held-out bytes, so that a model's bits a byte mean something.

Two models that only count, of the tokenizer's ids and trained on the training documents, and the
compressors that everybody has. Sizes are bounded, so that this takes seconds on any dataset; what
was left out is said.
"""

import lzma
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slm.evaluation.ngrams import ORDER, KneserNey, unigram_nats
from slm.records import Shards
from slm.tokens.shards.reading import documents, read_tokens
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

HELD_OUT_BYTES = 4_000_000  # of held-out text, at least one document
TRAIN_TOKENS = 3_000_000  # of the training documents, for the two that count
PRIMER_BYTES = 1_000_000  # of training text that zstd is given beforehand
FIVE_GRAM, XZ = "5-gram", "xz -9"


@dataclass(frozen=True)
class Reference:
    """Bits a UTF-8 byte of something that is not the model."""

    name: str
    bpb: float
    knows: str  # what it was given of the training documents


def compare_references(
    shards: Shards, tokenizer: Tokenizer, rows: Sequence[tuple[float, int, int]]
) -> dict[str, Any]:
    """References on the first held-out documents, and the model on the same, as JSON values.

    Args:
        rows: (nats, predictions, bytes) that the model spent on each held-out document, in order.

    Returns:
        `documents`, `bytes`, the model's `val_bpb` on these, and `references`: a list of
        `Reference` as mappings, the worst first.
    """
    held_out = _first_documents(shards, "val", HELD_OUT_BYTES, tokenizer)[: len(rows)]
    scored = rows[: len(held_out)]
    size = sum(row[2] for row in scored)
    text = b"\n".join(tokenizer.decode_bytes(ids) for ids in held_out)
    found = [*_counting(shards, held_out, size), *_compressors(shards, tokenizer, text, size)]
    return {
        "documents": len(held_out),
        "bytes": size,
        "val_bpb": _bpb(math.fsum(row[0] for row in scored), size),
        "references": [asdict(r) for r in sorted(found, key=lambda r: -r.bpb)],
    }


def _bpb(nats: float, size: int) -> float:
    return nats / math.log(2) / size if size else math.nan


def _counting(shards: Shards, held_out: Sequence[Ids], size: int) -> list[Reference]:
    """The unigram and the 5-gram model; both score the closing end-of-text, as the model does."""
    train = _train_stream(shards)
    stream = np.concatenate([part for ids in held_out for part in ([shards.eot], ids)])
    stream = np.append(stream, shards.eot).astype(np.int64)
    knows = f"counts of {len(train) - 1:,} of its tokens"
    smoothed = KneserNey(train, shards.vocab_size, shards.eot).nats(stream)
    alone = unigram_nats(train, stream, shards.vocab_size)
    return [
        Reference("unigram", _bpb(float(alone.sum()), size), knows),
        Reference(f"{ORDER}-gram", _bpb(float(smoothed.sum()), size), knows),
    ]


def _train_stream(shards: Shards) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The first training tokens, whole documents, with end-of-text at both ends."""
    parts, left = [], TRAIN_TOKENS
    for name in shards.splits["train"].files:
        tokens = read_tokens(shards.path / name)[:left]
        parts.append(tokens)
        left -= len(tokens)
        if not left:
            break
    stream = np.concatenate(parts).astype(np.int64)
    if not left and (ends := np.flatnonzero(stream == shards.eot))[-1] > 0:
        stream = stream[: ends[-1]]  # the last document may be cut
    return np.append(stream, shards.eot)


def _compressors(
    shards: Shards, tokenizer: Tokenizer, text: bytes, size: int
) -> Iterable[Reference]:
    import zstandard

    primer = b"\n".join(
        tokenizer.decode_bytes(ids)
        for ids in _first_documents(shards, "train", PRIMER_BYTES, tokenizer)
    )[:PRIMER_BYTES]
    dictionary = zstandard.ZstdCompressionDict(primer, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    far = zstandard.ZstdCompressionParameters.from_level(19, window_log=24)  # reaches all of it
    primed = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=far)
    packed = (
        (XZ, lzma.compress(text, preset=9), "nothing"),
        ("zstd -19", zstandard.ZstdCompressor(level=19).compress(text), "nothing"),
        ("zstd -19, primed", primed.compress(text), f"{len(primer):,} bytes of its text"),
    )
    return [Reference(name, 8 * len(data) / max(1, size), knows) for name, data, knows in packed]


def _first_documents(shards: Shards, split: str, limit: int, tokenizer: Tokenizer) -> list[Ids]:
    """The first documents of a split, up to a number of bytes, but at least one."""
    found: list[Ids] = []
    size = 0
    for ids in documents(shards, split):
        size += int(tokenizer.token_bytes[ids].sum())
        if found and size > limit:
            break
        found.append(ids)
    return found
