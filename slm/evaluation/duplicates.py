"""Held-out documents that stand in the training documents too, whole or nearly.

Documents are compared by their runs of 13 tokens, the length by which GPT-3's test sets were
compared with its training data (Brown et al. 2020, arXiv:2005.14165, appendix C). The training
tokens stream by once, so memory does not grow with them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.evaluation.rolling_hash import Hashed, Hashes, Places, token_values
from slm.records import Shards
from slm.tokens.shards.reading import read_tokens
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

RUN = 13  # tokens
NEAR = 0.5  # of a document's runs in one training document: a near duplicate
TRAIN_TOKENS = 200_000_000  # that are looked through
HELD_OUT_TOKENS = 4_000_000
WINDOW = 1 << 20  # tokens hashed at a time
OWNERS = 8  # held-out documents that one run is counted for; what more of them have is a phrase
EXAMPLES = 3
SHOWN_TOKENS = 60  # of each of the two documents
_FILTER_BITS = 24


@dataclass(frozen=True)
class Pair:
    """A held-out document and the training document most like it."""

    document: int  # number of the held-out one
    shared: float  # of its runs, those that the training document has
    held_out: str
    train: str


def contamination(shards: Shards, tokenizer: Tokenizer, held_out: Iterable[Ids]) -> dict[str, Any]:
    """How many held-out documents are exact or near duplicates of training documents.

    Returns, as JSON values: the number of `documents` looked for and of `train_tokens` looked
    through; how many documents are `exact` duplicates and how many others `near` ones; `phrases`,
    the mean share of their runs that occur anywhere in train; and `examples`, the `Pair`s that
    share most.
    """
    values = token_values(tokenizer.n_vocab)
    texts = _first(held_out)
    hashed = [Hashed(values[ids]) for ids in texts]
    whole = np.array([text.sums[-1] for text in hashed], np.uint64)
    exact = np.zeros(len(texts), bool)
    runs = _Runs([text.passages(RUN) for text in hashed])
    read = 0
    for window in _windows(shards):
        read += len(window)
        train = Hashed(values[window])
        starts, stops = _bounds(window, shards.eot)
        exact |= np.isin(whole, train.between(starts, stops))
        runs.look_at(train.passages(RUN), window, starts, stops)
    shared = np.maximum(runs.most / np.maximum(runs.counts, 1), exact)
    likest = np.argsort(-shared, kind="stable")[:EXAMPLES].tolist()
    pairs = [
        Pair(i, float(shared[i]), _cut(tokenizer, texts[i]), _cut(tokenizer, runs.twins[i]))
        for i in likest
        if shared[i] >= NEAR and len(runs.twins[i])
    ]
    return {
        "documents": len(texts),
        "train_tokens": read,
        "exact": int(exact.sum()),
        "near": int((~exact & (shared >= NEAR)).sum()),
        "phrases": runs.share_found(),
        "examples": [asdict(pair) for pair in pairs],
    }


def _first(held_out: Iterable[Ids]) -> list[Ids]:
    """As many documents as HELD_OUT_TOKENS allow, but at least one; none that is empty."""
    found: list[Ids] = []
    tokens = 0
    for ids in held_out:
        tokens += len(ids)
        if found and tokens > HELD_OUT_TOKENS:
            break
        found.append(ids)
    return [ids for ids in found if len(ids)]


def _cut(tokenizer: Tokenizer, ids: Ids) -> str:
    return tokenizer.decode(ids[:SHOWN_TOKENS]) + ("…" if len(ids) > SHOWN_TOKENS else "")


class _Runs:
    """The runs of some documents, and the training document that has most of each one's."""

    def __init__(self, parts: Sequence[Hashes]) -> None:
        unique = [np.unique(part) for part in parts]
        self.counts = np.array([len(part) for part in unique], np.int64)  # runs of each document
        hashes = np.concatenate([*unique, np.empty(0, np.uint64)])
        owners = np.repeat(np.arange(len(parts)), self.counts)
        order = np.argsort(hashes, kind="stable")
        hashes, owners = hashes[order], owners[order]
        kept = np.arange(len(hashes)) - np.searchsorted(hashes, hashes) < OWNERS
        self.hashes, self.owners = hashes[kept], owners[kept]
        self.there = np.zeros(len(self.hashes), bool)
        self.likely = np.zeros(1 << _FILTER_BITS, bool)  # by their first bits
        self.likely[_first_bits(self.hashes)] = True
        self.most = np.zeros(len(parts), np.int64)  # runs that the likest document has
        self.twins: list[Ids] = [np.empty(0, np.int64)] * len(parts)

    def look_at(self, hashes: Hashes, window: Ids, starts: Places, stops: Places) -> None:
        """Looks for all runs in a window of training documents."""
        places = np.flatnonzero(self.likely[_first_bits(hashes)])
        first = np.searchsorted(self.hashes, hashes[places])
        counts = np.searchsorted(self.hashes, hashes[places], "right") - first
        hits = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        self.there[hits] = True
        documents = np.searchsorted(starts, np.repeat(places, counts), "right") - 1
        once = np.unique(hits * len(starts) + documents)  # each run once a document
        hits, documents = once // len(starts), once % len(starts)
        pairs, shared = np.unique(self.owners[hits] * len(starts) + documents, return_counts=True)
        for place in _best(pairs // len(starts), shared):
            owner, document = divmod(int(pairs[place]), len(starts))
            if shared[place] > self.most[owner]:
                self.most[owner] = shared[place]
                self.twins[owner] = window[starts[document] : stops[document]]

    def share_found(self) -> float:
        """The mean share of a document's runs that were found anywhere."""
        found = np.bincount(self.owners[self.there], minlength=len(self.counts))
        counted = np.bincount(self.owners, minlength=len(self.counts))
        return float((found / np.maximum(counted, 1)).mean()) if len(counted) else 0.0


def _best(owners: Places, shared: npt.NDArray[np.int64]) -> Iterator[int]:
    """The place of the largest number of each owner; `owners` is sorted."""
    edges = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()
    for start, stop in pairwise([*edges, len(owners)]):
        yield int(start + shared[start:stop].argmax())


def _first_bits(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - _FILTER_BITS)


def _windows(shards: Shards) -> Iterator[Ids]:
    """The training documents, about WINDOW tokens at a time, up to TRAIN_TOKENS of them."""
    left = TRAIN_TOKENS
    for name in shards.splits["train"].files:
        tokens = read_tokens(shards.path / name)
        start = 0
        while start < len(tokens) and left > 0:
            stop = min(start + WINDOW, len(tokens))
            while stop < len(tokens) and tokens[stop] != shards.eot:
                stop += 1
            yield tokens[start:stop]
            left -= stop - start
            start = stop


def _bounds(window: Ids, eot: int) -> tuple[Places, Places]:
    """Where each document of a window begins and ends, end-of-text left out."""
    starts = np.flatnonzero(window == eot) + 1
    starts = starts[starts < len(window)]
    return starts, np.append(starts[1:] - 1, len(window))
