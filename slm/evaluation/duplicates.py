"""Held-out documents that are in the training documents too, whole or nearly.

Documents are compared by their 13-grams of tokens, the length by which GPT-3's test sets were
compared with its training data (Brown et al. 2020, arXiv:2005.14165, appendix C). The training
tokens are read once, a window at a time, so memory does not grow with them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.evaluation.rolling_hash import HashedTokens, Hashes, HashFilter, Positions, token_values
from slm.records import Shards
from slm.tokens.shards.reading import first_documents, split_tokens
from slm.tokens.tokenizer.bpe import Ids, Tokenizer
from slm.tokens.tokenizer.pretokenize import ranges

NGRAM = 13  # tokens
NEAR = 0.5  # of a document's n-grams in one training document: a near duplicate
TRAIN_TOKENS = 200_000_000  # that are searched
HELD_OUT_TOKENS = 4_000_000
WINDOW = 1 << 20  # tokens hashed at a time
MAX_OWNERS = 8  # held-out documents that an n-gram is counted for; more share a common phrase
EXAMPLES = 3
SHOWN_TOKENS = 60  # of each of the two documents

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """A held-out document and the training document most like it."""

    document: int  # number of the held-out one
    shared: float  # of its n-grams, those that the training document has
    held_out: str
    train: str


def contamination(shards: Shards, tokenizer: Tokenizer, held_out: Iterable[Ids]) -> dict[str, Any]:
    """How many held-out documents are exact or near duplicates of training documents.

    Returns, as JSON values: the numbers of held-out `documents` compared and of `train_tokens`
    searched; how many documents are `exact` duplicates and how many others `near` ones; `phrases`,
    the mean share of their n-grams that occur anywhere in train; and `examples`, the `Pair`s that
    share most.
    """
    values = token_values(tokenizer.n_vocab)
    texts = [ids for ids in first_documents(held_out, HELD_OUT_TOKENS) if len(ids)]
    hashed = [HashedTokens(values[ids]) for ids in texts]
    whole = np.array([text.sums[-1] for text in hashed], np.uint64)
    exact = np.zeros(len(texts), bool)
    index = _NgramIndex([text.ngrams(NGRAM) for text in hashed])
    tokens_read = 0
    for window in _windows(shards):
        tokens_read += len(window)
        train = HashedTokens(values[window])
        starts, stops = _bounds(window, shards.eot)
        exact |= np.isin(whole, train.spans(starts, stops))
        index.search(train.ngrams(NGRAM), window, starts, stops)
    shared = np.maximum(index.most / np.maximum(index.counts, 1), exact)
    closest = np.argsort(-shared, kind="stable")[:EXAMPLES].tolist()
    pairs = [
        Pair(i, float(shared[i]), _excerpt(tokenizer, texts[i]), _excerpt(tokenizer, twin))
        for i in closest
        if shared[i] >= NEAR and len(twin := index.twins[i])
    ]
    return {
        "documents": len(texts),
        "train_tokens": tokens_read,
        "exact": int(exact.sum()),
        "near": int((~exact & (shared >= NEAR)).sum()),
        "phrases": index.mean_share(),
        "examples": [asdict(pair) for pair in pairs],
    }


def _excerpt(tokenizer: Tokenizer, ids: Ids) -> str:
    return tokenizer.decode(ids[:SHOWN_TOKENS]) + ("…" if len(ids) > SHOWN_TOKENS else "")


class _NgramIndex:
    """The n-grams of held-out documents, and for each document the most similar training document.

    Worked example, with small numbers for hashes:

    >>> document_0, document_1 = np.array([1, 2, 3], np.uint64), np.array([2, 4], np.uint64)
    >>> index = _NgramIndex([document_0, document_1])
    >>> index.ngrams, index.owners  # sorted; 2 has two owners
    (array([1, 2, 2, 3, 4], dtype=uint64), array([0, 0, 1, 0, 1]))
    >>> train = np.array([9, 2, 3, 3, 9, 4, 9], np.uint64)  # two documents, [0, 4) and [4, 7)
    >>> index.search(train, np.arange(7), np.array([0, 4]), np.array([4, 7]))
    >>> index.in_train  # 2 (of both), 3 in the first, 4 in the second; entry 0 is nowhere
    array([False,  True,  True,  True,  True])
    >>> index.most, index.twins[1]  # document_1 has one n-gram in each: the first is its twin
    (array([2, 1]), array([0, 1, 2, 3]))
    """

    def __init__(self, documents: Sequence[Hashes]) -> None:
        distinct = [np.unique(ngrams) for ngrams in documents]
        self.counts = np.array([len(ngrams) for ngrams in distinct], np.int64)  # of each document
        ngrams = np.concatenate([*distinct, np.empty(0, np.uint64)])
        owners = np.repeat(np.arange(len(documents)), self.counts)
        order = np.argsort(ngrams, kind="stable")
        ngrams, owners = ngrams[order], owners[order]
        kept = np.arange(len(ngrams)) - np.searchsorted(ngrams, ngrams) < MAX_OWNERS
        self.ngrams, self.owners = ngrams[kept], owners[kept]  # (G,) each: an entry per owner
        self.in_train = np.zeros(len(self.ngrams), bool)
        self.filter = HashFilter(self.ngrams, bits=24)
        self.most = np.zeros(len(documents), np.int64)  # n-grams shared with the twin
        self.twins: list[Ids] = [np.empty(0, np.int64)] * len(documents)

    def search(self, hashes: Hashes, window: Ids, starts: Positions, stops: Positions) -> None:
        """Count the entries that occur in a window of training documents.

        Args:
            hashes: of the n-grams at each position of the window.
            starts, stops: of the documents in it, (D,) each.
        """
        positions = self.filter.candidates(hashes)
        first = np.searchsorted(self.ngrams, hashes[positions])
        counts = np.searchsorted(self.ngrams, hashes[positions], "right") - first
        entries = ranges(first, counts)
        self.in_train[entries] = True
        documents = np.searchsorted(starts, np.repeat(positions, counts), "right") - 1
        once = np.unique(entries * len(starts) + documents)  # each entry once per document
        entries, documents = once // len(starts), once % len(starts)
        pairs, shared = np.unique(
            self.owners[entries] * len(starts) + documents, return_counts=True
        )
        for best in _largest_of_each(pairs // len(starts), shared):
            owner, document = divmod(int(pairs[best]), len(starts))
            if shared[best] > self.most[owner]:
                self.most[owner] = shared[best]
                self.twins[owner] = window[starts[document] : stops[document]]

    def mean_share(self) -> float:
        """The mean share of a document's n-grams that occur anywhere in train."""
        in_train = np.bincount(self.owners[self.in_train], minlength=len(self.counts))
        counted = np.bincount(self.owners, minlength=len(self.counts))
        return float((in_train / np.maximum(counted, 1)).mean()) if len(counted) else 0.0


def _largest_of_each(owners: Ints, values: Ints) -> Iterator[int]:
    """The index of the largest value of each owner, the first of equal ones; owners are sorted.

    >>> list(_largest_of_each(np.array([0, 0, 0, 4, 4]), np.array([1, 3, 3, 2, 1])))
    [1, 3]
    """
    edges = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()
    for start, stop in pairwise([*edges, len(owners)]):
        yield int(start + values[start:stop].argmax())


def _windows(shards: Shards) -> Iterator[Ids]:
    """The training documents, about WINDOW tokens at a time, up to TRAIN_TOKENS of them."""
    left = TRAIN_TOKENS
    for tokens in split_tokens(shards, "train"):
        start = 0
        while start < len(tokens) and left > 0:
            stop = min(start + WINDOW, len(tokens))
            while stop < len(tokens) and tokens[stop] != shards.eot:
                stop += 1
            yield tokens[start:stop]
            left -= stop - start
            start = stop


def _bounds(window: Ids, eot: int) -> tuple[Positions, Positions]:
    """Where each document of a window begins and ends, end-of-text left out; (D,) each.

    >>> _bounds(np.array([9, 1, 2, 9, 9, 3]), eot=9)  # 1 2, an empty one, 3
    (array([1, 4, 5]), array([3, 4, 6]))
    """
    starts = np.flatnonzero(window == eot) + 1
    starts = starts[starts < len(window)]
    return starts, np.append(starts[1:] - 1, len(window))
