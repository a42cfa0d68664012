"""How a dataset has changed since a model was made from it, and how the model does on the change.

Documents are identified by the hash of their text: 8 bytes each are kept in memory, the texts are
streamed. The model is measured on a sample of the new ones, with as many held-out documents of its
own data as the baseline: two samples of the same language differ too, more so if they are small.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slm.evaluation.evaluate import device_of, score_documents
from slm.model.saved import load_model
from slm.progress import Progress, silent
from slm.records import Frozen, Shards, Source
from slm.source.reading import source_texts
from slm.tokens.cleaning import Hashes, Mask, document_hash
from slm.tokens.shards.reading import documents, split_tokens

CHUNK_TOKENS = 1 << 22
ENDS_WORDS = 32  # at a document's start and end, by which an edited one is recognised
MAX_TOKENS = 200_000  # of each sample that is measured

Counts = npt.NDArray[np.int64]  # of each token, (V,)


class Changes(Frozen):
    """Two states of a dataset, compared by the texts of their documents.

    A further copy of an old text is not new. A new document that begins or ends with the same words
    as a document that is gone counts as that one changed, and as neither new nor gone.
    """

    before: int  # documents then
    now: int
    new: int
    gone: int
    changed: int

    @property
    def new_fraction(self) -> float:
        """The share of the documents now that are new or changed."""
        return (self.new + self.changed) / max(1, self.now)

    @property
    def gone_fraction(self) -> float:
        return self.gone / max(1, self.before)


class Drift(Frozen):
    """New documents compared with held-out ones of the data that the model was made from."""

    documents: int  # new ones that were measured
    tokens: int  # of each sample that its tokens were counted in
    divergence: float  # bits, from the tokens of train to those of the new documents
    usual: float  # the same to as many tokens of held-out documents
    new_bpb: float  # of the model, bits per byte
    held_out_bpb: float

    @property
    def excess(self) -> float:
        """The divergence beyond the usual, in bits: 0 to 1."""
        return max(0.0, self.divergence - self.usual)

    @property
    def rise(self) -> float:
        """Bits per byte by which the model does worse on the new documents."""
        return self.new_bpb - self.held_out_bpb


# ---- documents --------------------------------------------------------------------------------


def compare(before: Source, now: Source, sample: int) -> tuple[Changes, list[str]]:
    """What has changed, and a sample of the new or changed documents.

    The sample is uniform over texts and depends on nothing else: those with the lowest hashes.

    Raises CorruptionError where a file of the sources cannot be read.
    """
    then_hashes, now_hashes = _hashes(before), _hashes(now)
    new = ~np.isin(now_hashes, then_hashes)
    gone = ~np.isin(then_hashes, now_hashes)
    chosen = np.unique(now_hashes[new])[:sample]
    texts: dict[bytes, str] = {}

    def keep(text: str, digest: np.uint64) -> None:
        if digest in chosen:
            texts[digest.tobytes()] = text

    new_ends = _ends(now, new, now_hashes, keep)
    gone_ends = _ends(before, gone, then_hashes)
    changed = _count_pairs(new_ends, gone_ends)
    changes = Changes(
        before=len(then_hashes),
        now=len(now_hashes),
        new=int(new.sum()) - changed,
        gone=int(gone.sum()) - changed,
        changed=changed,
    )
    return changes, [texts[digest.tobytes()] for digest in chosen]


def _hashes(source: Source) -> Hashes:
    """Of every document, in order; (N,)."""
    hashes = bytearray()
    for text in source_texts(source):  # a join would hold an object of 41 bytes for each of them
        hashes += document_hash(text.encode())
    return np.frombuffer(hashes, "<u8")


def _ends(
    source: Source,
    selected: Mask,
    hashes: Hashes,
    keep: Callable[[str, np.uint64], None] = lambda text, digest: None,
) -> tuple[Hashes, Hashes]:
    """Hashes of the first and of the last words of the selected documents; (n,) each.

    Args:
        selected: a mask over all documents of the source, (N,), with n set.
        hashes: of all documents, (N,).
        keep: is given the text and the hash of each selected document.
    """
    heads, tails = bytearray(), bytearray()
    if selected.any():
        for i, text in enumerate(source_texts(source)):
            if selected[i]:
                words = text.split()
                count = min(ENDS_WORDS, max(1, len(words) // 2))
                heads += document_hash(" ".join(words[:count]).encode())
                tails += document_hash(" ".join(words[-count:]).encode())
                keep(text, hashes[i])
    return np.frombuffer(heads, "<u8"), np.frombuffer(tails, "<u8")


# Documents that are new and documents that are gone are paired by their heads first, and those left
# over by their tails; each serves once. With A, B, … for hashes:
#
#   new   heads [A, A, B]  tails [X, Y, Z]
#   gone  heads [A, C]     tails [Q, Z]
#   heads: the first A of new pairs with gone's A    1 pair; left: new [A, B], [Y, Z]; gone [C], [Z]
#   tails: Z of new pairs with gone's Z              2 pairs in all
def _count_pairs(new: tuple[Hashes, Hashes], gone: tuple[Hashes, Hashes]) -> int:
    """How many new documents have a partner of their own among those that are gone.

    Args:
        new, gone: the hashes of heads and of tails, (n,) each and (g,) each.
    """
    pairs = 0
    for end in (0, 1):
        in_new, in_gone = _paired(new[end], gone[end]), _paired(gone[end], new[end])
        pairs += int(in_new.sum())
        new = (new[0][~in_new], new[1][~in_new])
        gone = (gone[0][~in_gone], gone[1][~in_gone])
    return pairs


# some = [7, 5, 7, 7], others = [7, 9, 7]:
#
#   ordered     [5, 7, 7, 7]   some, sorted
#   occurrence  [0, 0, 1, 2]   how many equal ones come before each of them
#   available   [0, 2, 2, 2]   how many equal ones the others have
#   occurrence < available is [no, yes, yes, no], in the order of some: [yes, no, yes, no]
def _paired(some: Hashes, others: Hashes) -> Mask:
    """Which of some, (n,), have a partner of the same value among others, (m,), each used once."""
    order = np.argsort(some, kind="stable")  # (n,)
    ordered, other = some[order], np.sort(others)
    occurrence = np.arange(len(some)) - np.searchsorted(ordered, ordered, "left")  # (n,)
    available = np.searchsorted(other, ordered, "right") - np.searchsorted(other, ordered, "left")
    mask = np.zeros(len(some), bool)
    mask[order] = occurrence < available
    return mask


# ---- language ---------------------------------------------------------------------------------


def divergence(p: Counts, q: Counts) -> float:
    """The Jensen–Shannon divergence of two distributions, given as counts; in bits, 0 to 1.

    Lin 1991, "Divergence measures based on the Shannon entropy" (doi:10.1109/18.61115).

    Args:
        p, q: the count of each event, (V,) each; both with at least one event.
    """
    first, second = p / p.sum(), q / q.sum()
    mean = (first + second) / 2
    return (_relative_entropy(first, mean) + _relative_entropy(second, mean)) / 2


def _relative_entropy(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """The Kullback–Leibler divergence in bits, (V,) each; q is not 0 where p is not."""
    nonzero = p > 0
    return max(0.0, float((p[nonzero] * np.log2(p[nonzero] / q[nonzero])).sum()))


def measure(model: Path, shards: Shards, texts: list[str], progress: Progress = silent) -> Drift:
    """How a model does on new documents, compared with held-out ones.

    Args:
        model: the folder of its files.
        shards: those that it was trained on.
        texts: a sample of the new documents, at least one.

    Raises CorruptionError where the model's files or the shards are damaged.
    """
    gpt, tokenizer = load_model(model, device_of(model))
    new = _within(np.array(tokenizer.encode(text), np.int64) for text in texts)
    held_out = _within(islice(documents(shards, "val"), len(new)))

    def bpb(sample: list[npt.NDArray[np.int64]]) -> float:
        scores = score_documents(gpt, tokenizer, sample, len(sample), progress)
        return float(scores.totals()["val_bpb"])

    def counts(ids: npt.NDArray[np.int64]) -> Counts:
        return np.bincount(ids, minlength=tokenizer.n_vocab)

    new_ids, held_out_ids = np.concatenate(new), np.concatenate(held_out)
    tokens = min(len(new_ids), len(held_out_ids))  # a smaller sample diverges more by chance
    train = _train_counts(shards)
    return Drift(
        documents=len(new),
        tokens=tokens,
        divergence=divergence(train, counts(new_ids[:tokens])),
        usual=divergence(train, counts(held_out_ids[:tokens])),
        new_bpb=bpb(new),
        held_out_bpb=bpb(held_out),
    )


def _within(sample: Iterable[npt.NDArray[np.integer]]) -> list[npt.NDArray[np.int64]]:
    """The first documents, at least one, up to `MAX_TOKENS` in all."""
    chosen: list[npt.NDArray[np.int64]] = []
    size = 0
    for ids in sample:
        if chosen and size + len(ids) > MAX_TOKENS:
            break
        chosen.append(ids.astype(np.int64))
        size += len(ids)
    return chosen


def _train_counts(shards: Shards) -> Counts:
    """The count of each token in train, (V,); end-of-text, which samples lack, left out."""
    total = np.zeros(shards.vocab_size, np.int64)
    for tokens in split_tokens(shards, "train"):
        for first in range(0, len(tokens), CHUNK_TOKENS):
            total += np.bincount(tokens[first : first + CHUNK_TOKENS], minlength=shards.vocab_size)
    total[shards.eot] = 0
    return total
