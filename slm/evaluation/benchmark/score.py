"""The log-likelihood of many short texts that often begin alike, each beginning computed once.

The texts are sorted and put into rows. A row holds a tree: a text adds to it only what follows the
beginning that it shares with the text before it. Every position of a row attends to the positions
that lead to it, at its depth in the tree, so its hidden state is the one that the whole text gives.
The sentences "the cat sat down" and "the cat ran" (0 is end-of-text, a letter is a token):

    ids     0  t  c  s  r      the last token of a text is predicted and not read
    depth   0  1  2  3  3
    parent  -  0  1  2  2      "s" and "r" both follow "c"; "r" does not see "s"

Of BLiMP's sentences that is about half of the positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.evaluation.scoring import LOGIT_CHUNK
from slm.model.gpt import GPT, Attention, Block
from slm.progress import Progress, silent
from slm.tokens.tokenizer.bpe import Tokenizer

ROW = 256  # positions of a row, unless a text is longer
BATCH_TOKENS = 2048  # positions of a batch of rows: their activations fit into the caches

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

    ids: list[int]  # of its positions, at most as many as the width
    parents: list[int]  # of each position; of the first of a text, itself
    depths: list[int]
    sources: list[int]  # of each prediction, the position that it is made from
    targets: list[int]  # and the token that is predicted
    requests: list[int]  # and the request that it counts for


def pack(requests: Sequence[Request], width: int) -> list[Row]:
    """The requests in rows of at most `width` positions, those that begin alike together."""
    order = sorted(range(len(requests)), key=lambda number: requests[number].ids)
    rows: list[Row] = []
    path: list[int] = []  # the positions that lead to the end of the text before
    before: tuple[int, ...] = ()
    for number in order:
        ids, first, _ = requests[number]
        read = ids[:-1]  # the last one is predicted alone
        shared = _common(before, read) if rows else 0
        if not rows or len(rows[-1].ids) + len(read) - shared > width:
            rows.append(Row([], [], [], [], [], []))
            shared = 0
        row = rows[-1]
        del path[shared:]
        for depth in range(shared, len(read)):
            position = len(row.ids)
            row.ids.append(read[depth])
            row.parents.append(path[-1] if path else position)
            row.depths.append(depth)
            path.append(position)
        row.sources.extend(path[first - 1 :])
        row.targets.extend(ids[first:])
        row.requests.extend([number] * (len(ids) - first))
        before = read
    return rows


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many ids two texts share at their beginning."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


# ---- the model --------------------------------------------------------------------------------


@torch.inference_mode()
def log_likelihoods(
    model: GPT, requests: Sequence[Request], progress: Progress = silent
) -> LogLikelihoods:
    """The log-likelihood of what is scored of each request, in float32, on the model's device.

    The same requests give the same bits, whatever their order. None may be longer than the context
    and one token.
    """
    device = model.embed.weight.device
    order = sorted(range(len(requests)), key=lambda number: requests[number])
    distinct: dict[Request, int] = {}
    number_of = np.empty(len(requests), np.int64)
    for number in order:
        number_of[number] = distinct.setdefault(requests[number], len(distinct))
    width = max([ROW, *(len(request.ids) - 1 for request in distinct)])
    rows = pack(list(distinct), width)
    nats = np.zeros(len(distinct))
    greedy = np.ones(len(distinct), bool)
    training = model.training
    model.eval()
    rows_per_batch = max(1, BATCH_TOKENS // width)
    for start in range(0, len(rows), rows_per_batch):
        batch = rows[start : start + rows_per_batch]
        ids, depths, mask = (tensor.to(device) for tensor in _padded(batch, width))
        hidden = _hidden(model, ids, depths, mask).flatten(0, 1)  # (B·T, C)
        sources = np.concatenate([width * i + np.array(r.sources) for i, r in enumerate(batch)])
        targets = np.concatenate([np.array(row.targets) for row in batch])
        owners = np.concatenate([np.array(row.requests) for row in batch])
        figures, best = _predictions(model, hidden, sources, targets)
        nats += np.bincount(owners, figures, len(distinct))
        greedy[owners[~best]] = False
        progress("texts", int((start + len(batch)) / len(rows) * len(requests)), len(requests))
    model.train(training)
    return LogLikelihoods(nats[number_of], greedy[number_of])


def _padded(rows: Sequence[Row], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and depths, (B, T) each, and which positions each one attends to, (B, 1, T, T)."""
    shape = (len(rows), width)
    ids, depths = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    parents = np.tile(np.arange(width), (len(rows), 1))  # of padding: itself
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)], depths[i, : len(row.ids)] = row.ids, row.depths
        parents[i, : len(row.ids)] = row.parents
    mask = np.zeros((len(rows), width, width), bool)
    every = np.arange(len(rows))
    for position in range(width):  # a parent comes before its children
        mask[:, position] = mask[every, parents[:, position]]
        mask[:, position, position] = True
    return torch.from_numpy(ids), torch.from_numpy(depths), torch.from_numpy(mask[:, None])


def _hidden(model: GPT, ids: Tensor, depths: Tensor, mask: Tensor) -> Tensor:
    """The hidden states of trees, (B, T, C): `GPT.forward` with positions and mask given."""
    x = model.embed(ids)
    rotation = None
    if model.positions is not None:
        x = x + model.positions(depths)
    else:
        rotation = (model.cos[depths][:, :, None], model.sin[depths][:, :, None])  # (B, T, 1, D)
    for block in model.blocks:
        assert isinstance(block, Block)
        x = x + _attention(block.attention, block.attention_norm(x), rotation, mask)
        x = x + block.mlp(block.mlp_norm(x))
    out: Tensor = model.final_norm(x)
    return out


def _attention(
    attention: Attention, x: Tensor, rotation: tuple[Tensor, Tensor] | None, mask: Tensor
) -> Tensor:
    q, k, v = attention.heads(x, rotation)  # (B, H or fewer, T, D)
    grouped = k.shape[1] != q.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    out: Tensor = attention.o_proj(y.transpose(1, 2).reshape(x.shape))
    return out


def _predictions(
    model: GPT, hidden: Tensor, sources: Ints, targets: Ints
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
        logits = model.logits(states).float()  # (LOGIT_CHUNK, V)
        value = logits[at, token] - logits.logsumexp(-1)[at]
        figures[mine] = value.double().cpu().numpy()
        best[mine] = (logits.argmax(-1)[at] == token).cpu().numpy()
    return figures, best
