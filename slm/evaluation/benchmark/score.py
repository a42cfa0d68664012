"""The log-likelihood of many short texts that often begin alike, each beginning computed once.

The texts are sorted and put into rows. A row holds a tree (`slm.model.trees`): a text adds to it
only what follows the beginning that it shares with the text before it. Of BLiMP's sentences that is
about half of the positions.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slm.model.gpt import GPT
from slm.model.trees import TreeReader
from slm.progress import Progress, silent
from slm.tokens.tokenizer.bpe import Tokenizer

ROW = 128  # positions of a row, unless a text is longer
CPU_BATCH = 512  # positions of a batch, so that their activations stay in a core's cache
BATCH = 8192  # elsewhere
LOGIT_CHUNK = 256  # positions whose logits exist at once

Ints = npt.NDArray[np.int64]


class Request(NamedTuple):
    """A text whose end is scored: the ids, and the index of the first that is predicted."""

    ids: tuple[int, ...]
    first: int  # at least 1
    truncated: bool = False  # whether its beginning was cut off


class LogLikelihoods(NamedTuple):
    """Of each request, the log-likelihood of what is scored, in nats, and whether it is greedy."""

    nats: npt.NDArray[np.float64]  # (N,)
    greedy: npt.NDArray[np.bool_]  # (N,), every token the most likely one


def requests_of(
    tokenizer: Tokenizer, context: str, continuation: str, seq_len: int
) -> list[Request]:
    """What has to be scored so that the log-likelihoods sum up to that of a continuation."""
    return fitted(*request_of(tokenizer, context, continuation), seq_len)


def request_of(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], int]:
    """The ids of a context and what follows it, and the index of the first that is scored.

    Both are encoded together, after end-of-text, where documents begin in training; blanks at the
    end of the context belong to the continuation. As in lm-eval of our export, whose tokenizer puts
    end-of-text before each text.
    """
    ids = [tokenizer.eot, *tokenizer.encode(context + continuation)]
    before = tokenizer.encode(context.rstrip())
    return ids, min(1 + len(before), len(ids) - 1)


def fitted(ids: list[int], first: int, seq_len: int) -> list[Request]:
    """Ids, of which those from `first` on are scored, as requests that fit the context length.

    What is longer loses its beginning. A continuation that is longer itself is scored in windows
    that overlap by half, as documents are.
    """
    if len(ids) <= seq_len + 1:
        return [Request(tuple(ids), first)]
    if len(ids) - first <= seq_len:
        cut = len(ids) - seq_len - 1
        return [Request(tuple(ids[cut:]), first - cut, truncated=True)]
    requests, start, scored = [], first - 1, first
    while scored < len(ids):
        window = ids[start : start + seq_len + 1]
        requests.append(Request(tuple(window), scored - start, truncated=True))
        scored = start + len(window)
        start = scored - 1 - seq_len // 2
    return requests


# ---- rows -------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A tree of texts, and what is predicted from it."""

    ids: list[int]  # of its positions
    depths: list[int]
    ends: list[int]  # of each position, where its subtree ends
    sources: list[int]  # of each prediction, the position that it is made from
    targets: list[int]  # and the token that is predicted
    requests: list[int]  # and the request that it counts for


def pack(requests: Sequence[Request], width: int = ROW) -> list[Row]:
    """The requests in rows of at most `width` positions, those that begin alike together.

    A longer text has a row of its own.
    """
    order = sorted(range(len(requests)), key=lambda number: requests[number].ids)
    rows: list[Row] = []
    path: list[int] = []  # the positions that lead to the end of the text before
    before: tuple[int, ...] = ()
    for number in order:
        ids, first, _ = requests[number]
        read = ids[:-1]  # the last one is predicted alone
        shared = _common(before, read) if rows else 0
        full = not rows or len(rows[-1].ids) + len(read) - shared > width
        shared = 0 if full else shared
        _end(rows, path[shared:])
        del path[shared:]
        if full:
            rows.append(Row([], [], [], [], [], []))
        row = rows[-1]
        start = len(row.ids)
        row.ids.extend(read[shared:])
        row.depths.extend(range(shared, len(read)))
        row.ends.extend([0] * (len(read) - shared))
        path.extend(range(start, len(row.ids)))
        row.sources.extend(path[first - 1 :])
        row.targets.extend(ids[first:])
        row.requests.extend([number] * (len(ids) - first))
        before = read
    _end(rows, path)
    return rows


def _end(rows: Sequence[Row], positions: Iterable[int]) -> None:
    """End the subtrees of positions of the last row at what it has so far."""
    for position in positions:
        rows[-1].ends[position] = len(rows[-1].ids)


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many ids two texts share at their beginning."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


# ---- the model --------------------------------------------------------------------------------


def log_likelihoods(
    model: GPT, requests: Sequence[Request], progress: Progress = silent
) -> LogLikelihoods:
    """The log-likelihood of what is scored of each request, in float32, on the model's device.

    The same requests give the same bits, whatever their order. None may be longer than the context
    and one token.
    """
    order = sorted(range(len(requests)), key=lambda number: requests[number])
    distinct: dict[Request, int] = {}
    number_of = np.empty(len(requests), np.int64)
    for number in order:
        number_of[number] = distinct.setdefault(requests[number], len(distinct))
    rows = pack(list(distinct))
    nats = np.zeros(len(distinct))
    greedy = np.ones(len(distinct), bool)
    reader, on_cpu = TreeReader(model), model.embed.weight.device.type == "cpu"
    batches = _batches(rows, CPU_BATCH if on_cpu else BATCH)
    done = 0
    with _workers(on_cpu) as pool:
        for batch, scored in zip(batches, pool.map(partial(_scored, reader), batches), strict=True):
            owners, figures, best = scored
            np.add.at(nats, owners, figures)
            greedy[owners[~best]] = False
            done += len(batch)
            progress("texts", int(done / len(rows) * len(requests)), len(requests))
    return LogLikelihoods(nats[number_of], greedy[number_of])


def _batches(rows: Sequence[Row], positions: int) -> list[list[Row]]:
    """Rows of similar length together, of so many positions with their padding; longest first."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.ids), reverse=True):
        if not batches or (len(batches[-1]) + 1) * len(batches[-1][0].ids) > positions:
            batches.append([])
        batches[-1].append(row)
    return batches


@contextmanager
def _workers(on_cpu: bool) -> Iterator[ThreadPoolExecutor]:
    """Threads that score batches: on a CPU one per core, each with its batch in its own caches.

    Several threads on one operation would wait for each other after each of them.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        threads if on_cpu else 1, initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@torch.inference_mode()
def _scored(
    reader: TreeReader, batch: Sequence[Row]
) -> tuple[Ints, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The predictions of rows: the request of each, its log-likelihood, whether it is greedy."""
    hidden = reader.hidden(*(tensor.to(reader.embed.device) for tensor in _padded(batch)))
    width = len(batch[0].ids)
    sources = np.concatenate([width * i + np.array(row.sources) for i, row in enumerate(batch)])
    targets = np.concatenate([np.array(row.targets) for row in batch])
    owners = np.concatenate([np.array(row.requests) for row in batch])
    return owners, *_predictions(reader, hidden, sources, targets)


def _padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, depths and ends, (B, T) each, of rows of which the first is the longest."""
    shape = (len(rows), len(rows[0].ids))
    ids, depths = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    ends = np.tile(np.arange(1, shape[1] + 1), (len(rows), 1))
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length], depths[i, :length], ends[i, :length] = row.ids, row.depths, row.ends
    return torch.from_numpy(ids), torch.from_numpy(depths), torch.from_numpy(ends)


def _predictions(
    reader: TreeReader, hidden: Tensor, sources: Ints, targets: Ints
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The log-likelihood of each target, (P,), and whether it is the most likely token.

    Several targets may be predicted from one position: its logits are made once.
    """
    unique, inverse = np.unique(sources, return_inverse=True)
    chosen = hidden[torch.from_numpy(unique).to(hidden.device)]  # (U, C)
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(0, len(unique) + LOGIT_CHUNK, LOGIT_CHUNK))
    figures, best = np.empty(len(targets)), np.empty(len(targets), bool)
    for number, states in enumerate(torch.split(chosen, LOGIT_CHUNK)):
        mine = order[bounds[number] : bounds[number + 1]]  # the predictions of this chunk
        at = torch.from_numpy(inverse[mine] - number * LOGIT_CHUNK).to(hidden.device)
        token = torch.from_numpy(targets[mine]).to(hidden.device)
        logprobs = reader.logits(states).float().log_softmax(-1)  # (LOGIT_CHUNK, V)
        value = logprobs[at, token]
        figures[mine] = value.double().cpu().numpy()
        best[mine] = (value == logprobs.amax(-1)[at]).cpu().numpy()
    return figures, best
