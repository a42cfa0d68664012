"""Duplicates between the splits, whatever the windows in which train is read."""

from pathlib import Path

import numpy as np
import pytest

from slm.evaluation import duplicates
from slm.evaluation.duplicates import NGRAM, contamination
from slm.records import Shards, ShardSplit
from slm.tokens.shards.writing import ShardWriter
from slm.tokens.tokenizer.bpe import Tokenizer

BYTES = Tokenizer([bytes([i]) for i in range(256)])


def text(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(97, 123, length)


def make_shards(folder: Path, train: list[np.ndarray]) -> Shards:
    writer = ShardWriter(folder, "train", BYTES.n_vocab, 400)
    for ids in train:
        tokens = np.concatenate(([BYTES.eot], ids)).astype(np.uint16)
        writer.add(tokens, np.array([len(tokens)]), np.array([len(ids)]))
    split = writer.close()
    return Shards(
        key="a", source_key="b", tokenizer_sha256="c", vocab_size=BYTES.n_vocab, eot=BYTES.eot,
        splits={"train": split, "val": ShardSplit(files=[], documents=0, tokens=0, bytes=0)},
        path=folder,
    )  # fmt: skip


@pytest.mark.parametrize("window", [40, 1 << 20])
def test_exact_near_and_unlike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(duplicates, "WINDOW", window)
    train = [text(seed, 100) for seed in range(12)]
    shards = make_shards(tmp_path, train)
    near = np.concatenate((train[7][:80], text(100, 20)))
    half = np.concatenate((train[3][:40], train[4][:40]))  # of two documents, so of neither
    short, unlike = text(200, NGRAM - 1), text(201, 100)
    result = contamination(shards, BYTES, [unlike, near, train[5], short, half])
    assert (result["documents"], result["exact"], result["near"]) == (5, 1, 1)
    assert result["train_tokens"] == 12 * 101
    first, second = result["examples"]
    assert (first["document"], first["shared"]) == (2, 1)
    assert first["train"] == first["held_out"] == BYTES.decode(train[5][:60]) + "…"
    assert second["document"] == 1
    assert second["shared"] == pytest.approx((80 - NGRAM + 1) / (100 - NGRAM + 1), abs=0.02)
    assert second["train"].startswith(BYTES.decode(train[7][:60]))
    assert 0.3 < result["phrases"] < 0.7


def test_a_short_document_counts_where_it_is_whole(tmp_path: Path) -> None:
    short = text(1, 5)
    shards = make_shards(tmp_path, [text(2, 30), short])
    longer = contamination(shards, BYTES, [np.append(short, 97)])
    assert (longer["exact"], longer["near"]) == (0, 0)
    assert contamination(shards, BYTES, [short, short])["exact"] == 2


def test_nothing_held_out_or_nothing_alike(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, [text(2, 30)])
    assert contamination(shards, BYTES, [])["documents"] == 0
    result = contamination(shards, BYTES, [np.empty(0, np.int64), text(9, 50)])
    assert (result["exact"], result["near"], result["examples"]) == (0, 0, [])
