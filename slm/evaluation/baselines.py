"""Baselines: the bits per byte of counting models and compressors, to compare the model's with.

The unigram and 5-gram models count the tokens of the training documents; the compressors are xz and
zstd. All work on the same held-out bytes. Sizes are bounded, so that this takes seconds on any
dataset, and each baseline states what it was given.
"""

import lzma
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slm.evaluation.identity import XZ as XZ
from slm.evaluation.ngrams import ORDER, Ints, KneserNey, unigram_nats
from slm.evaluation.scoring import bits_per_byte
from slm.records import Shards
from slm.tokens.shards.reading import documents, first_documents, split_tokens
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

HELD_OUT_BYTES = 4_000_000  # of held-out text, at least one document
TRAIN_TOKENS = 3_000_000  # of the training documents, for the two that count
PRIMER_BYTES = 1_000_000  # of training text that zstd is given beforehand
UNIGRAM = "unigram"
FIVE_GRAM = "5-gram"


@dataclass(frozen=True)
class Baseline:
    """Bits per UTF-8 byte of something that is not the model."""

    name: str
    bpb: float
    knows: str  # what it was given of the training documents


def compare_baselines(shards: Shards, tokenizer: Tokenizer, scored: int) -> dict[str, Any]:
    """The baselines on the first held-out documents, at most `scored`, as JSON values.

    Returns:
        `documents` and `bytes`, of these, and `references`: a list of `Baseline` as mappings, the
        worst first.
    """
    held_out = first_documents(documents(shards, "val"), HELD_OUT_BYTES, tokenizer.count_bytes)
    held_out = held_out[:scored]
    size = sum(map(tokenizer.count_bytes, held_out))
    text = b"\n".join(map(tokenizer.decode_bytes, held_out))
    baselines = [
        *_counting(shards, held_out, size),
        *_compressors(shards, tokenizer, text, size),
    ]
    return {
        "documents": len(held_out),
        "bytes": size,
        "references": [asdict(b) for b in sorted(baselines, key=lambda b: -b.bpb)],
    }


def naive_baselines(
    shards: Shards, tokenizer: Tokenizer, held_out: Sequence[Ids]
) -> tuple[int, list[Baseline]]:
    """What a model that has learned anything predicts better than: token counts, and xz.

    Args:
        held_out: the token ids of documents, without end-of-text.

    Returns the number of documents, from the first on, that were used; and the two baselines.
    """
    held_out = first_documents(held_out, HELD_OUT_BYTES, tokenizer.count_bytes)
    size = sum(map(tokenizer.count_bytes, held_out))
    unigram = _unigram(shards, training_stream(shards), _stream(shards, held_out), size)
    text = b"\n".join(map(tokenizer.decode_bytes, held_out))
    return len(held_out), [unigram, _xz(text, size)]


def _counting(shards: Shards, held_out: Sequence[Ids], size: int) -> list[Baseline]:
    """The unigram and the 5-gram model; both score the closing end-of-text, as the model does."""
    train, stream = training_stream(shards), _stream(shards, held_out)
    unigram = _unigram(shards, train, stream, size)
    smoothed = KneserNey(train, shards.vocab_size, shards.eot).nats(stream)
    bpb = bits_per_byte(float(smoothed.sum()), size)
    return [unigram, Baseline(f"{ORDER}-gram", bpb, unigram.knows)]


def _unigram(shards: Shards, train: Ints, stream: Ints, size: int) -> Baseline:
    nats = unigram_nats(train, stream, shards.vocab_size)
    knows = f"counts of {len(train) - 1:,} of its tokens"
    return Baseline(UNIGRAM, bits_per_byte(float(nats.sum()), size), knows)


def _stream(shards: Shards, held_out: Sequence[Ids]) -> Ints:
    """Documents as one sequence, with end-of-text before each and after the last."""
    stream = np.concatenate([part for ids in held_out for part in ([shards.eot], ids)])
    return np.append(stream, shards.eot).astype(np.int64)


def training_stream(shards: Shards) -> Ints:
    """The first training tokens, whole documents, with end-of-text at both ends."""
    parts, left = [], TRAIN_TOKENS
    for whole in split_tokens(shards, "train"):
        tokens = whole[:left]
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
) -> Iterable[Baseline]:
    import zstandard

    train = first_documents(documents(shards, "train"), PRIMER_BYTES, tokenizer.count_bytes)
    primer = b"\n".join(map(tokenizer.decode_bytes, train))[:PRIMER_BYTES]
    dictionary = zstandard.ZstdCompressionDict(primer, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    wide = zstandard.ZstdCompressionParameters.from_level(19, window_log=24)  # reaches all of it
    primed = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=wide)
    packed = (
        ("zstd -19", zstandard.ZstdCompressor(level=19).compress(text), "nothing"),
        ("zstd -19, primed", primed.compress(text), f"{len(primer):,} bytes of its text"),
    )
    zstd = [Baseline(name, 8 * len(data) / max(1, size), knows) for name, data, knows in packed]
    return [_xz(text, size), *zstd]


def _xz(text: bytes, size: int) -> Baseline:
    return Baseline(XZ, 8 * len(lzma.compress(text, preset=9)) / max(1, size), "nothing")
