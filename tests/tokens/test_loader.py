"""Batches: a function of (seed, step) alone, each window once an epoch, at any size."""

from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.errors import UserError
from slm.tokens.loader import Loader
from slm.tokens.permutation import derive_seed, permute


def loader(tokens: int = 1000, **kwargs: object) -> Loader:
    parts = np.split(np.arange(tokens, dtype=np.uint16), [tokens // 3, tokens // 2])
    return Loader(parts, **{"seq_len": 8, "rows": 4, "seed": 1, **kwargs})  # type: ignore[arg-type]


@given(size=st.integers(1, 3000), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_permute_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    permuted = permute(np.arange(size, dtype=np.uint64), size, seed, epoch)
    assert sorted(permuted.tolist()) == list(range(size))


def test_permute_mixes() -> None:
    positions = np.arange(10_000, dtype=np.uint64)
    one, other = permute(positions, 10_000, 0, 0), permute(positions, 10_000, 0, 1)
    assert abs(np.corrcoef(positions, one)[0, 1]) < 0.05
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_the_order_never_changes() -> None:
    """A golden order: if it changes, every run's bits change; bump TRAIN_VERSION then."""
    order = permute(np.arange(8, dtype=np.uint64), 1000, 7, 2).tolist()
    assert order == [278, 376, 37, 940, 279, 51, 467, 14]
    assert derive_seed(1, "weights") == 6921093961725178177


def test_targets_are_the_next_tokens_across_shards() -> None:
    for step in range(60):
        x, y = loader().batch(step)
        assert x.shape == y.shape == (4, 8)
        assert torch.equal(y, x + 1)  # the tokens are 0, 1, 2 …


def test_an_epoch_visits_every_window_once_at_one_offset() -> None:
    made = loader(rows=1)
    [windows] = (stream.windows for stream in made.streams)
    for epoch in (0, 1):
        steps = range(epoch * windows, (epoch + 1) * windows)
        starts = sorted(int(made.rows_at(step)[1][0]) for step in steps)
        assert np.diff(starts).tolist() == [8] * (windows - 1)
        assert 0 <= starts[0] < 8


def test_any_number_of_processes_trains_on_the_same_rows() -> None:
    """One that has none gets an empty batch."""
    whole = loader().batch(17)[0]
    for ends in ((0, 2, 4), (0, 1, 2, 3, 4), (0, 0, 1, 4, 4)):
        parts = [loader(own=range(*own)).batch(17)[0] for own in pairwise(ends)]
        assert torch.equal(torch.cat(parts), whole)


def test_prefetched_batches_are_those_of_their_steps() -> None:
    made = loader()
    for step, (x, y) in zip(range(5, 9), made.batches(5), strict=False):
        inputs, targets = made.batch(step)
        assert torch.equal(x, inputs)
        assert torch.equal(y, targets)


def test_starts_anywhere_in_ten_billion_tokens(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(2 * 10_000_000_000)
    made = Loader([np.memmap(path, np.uint16, "r")], seq_len=1024, rows=64, seed=3)
    assert made.streams[0].windows == 9_765_623
    x, _ = made.batch(10**7)  # deep in the 66th epoch
    assert x.shape == (64, 1024)
    assert not torch.any(x)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="12 training tokens are too few for a context of 8"):
        loader(12)


def test_the_batches_of_one_text_never_change() -> None:
    """Golden batches, as before mixtures: see `test_the_order_never_changes`."""
    digest = sha256()
    for own in (None, range(1, 3)):
        made = loader(own=own)
        for step in range(100):
            for tensor in made.batch(step):
                digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == "9069546fe5f6ab43d38de149012f201b662eb4a20ef77416cb48ef7b54d511dd"


def with_documents(length: int = 1000) -> list[np.ndarray]:
    """Tokens that count up from 1, with end-of-text, 0, before every document; in two shards."""
    tokens = np.arange(1, length + 1, dtype=np.uint16)
    tokens[np.random.default_rng(0).choice(length, length // 20, replace=False)] = 0
    return np.split(tokens, [length // 3])


def test_rows_begin_at_the_first_document_of_their_window() -> None:
    tokens = with_documents()
    whole = np.concatenate(tokens)
    plain = Loader(tokens, seq_len=8, rows=4, seed=1)
    made = Loader(tokens, seq_len=8, rows=4, seed=1, eot=0)
    moved = 0
    for step in range(120):
        x, y = made.batch(step)
        windows, starts = plain.rows_at(step)[1], made.rows_at(step)[1]
        for window, start, inputs, targets in zip(windows, starts, x, y, strict=True):
            assert inputs.tolist() == whole[start : start + 8].tolist()
            assert targets.tolist() == whole[start + 1 : start + 9].tolist()
            begins = [p for p in range(window, window + 8) if whole[p] == 0 and p + 9 <= 1000]
            assert start == (begins[0] if begins else window)
            moved += start > window
    assert moved > 100


def test_rows_that_begin_at_documents_are_the_same_for_any_number_of_processes() -> None:
    settings = {"seq_len": 8, "rows": 4, "seed": 1, "eot": 0}
    whole = Loader(with_documents(), **settings)  # type: ignore[arg-type]
    for step in (0, 31, 64):
        halves = [
            Loader(with_documents(), **settings, own=own).batch(step)[0]  # type: ignore[arg-type]
            for own in (range(2), range(2, 4))
        ]
        assert torch.equal(torch.cat(halves), whole.batch(step)[0])
