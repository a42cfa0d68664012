"""val_loss and bits per byte: how many nats a model spends on a document, each scored once.

A document is scored as the sequence `end-of-text, tokens…, end-of-text`: every token and the
closing end-of-text is predicted from what stands before it in the document. What is longer than
the context is scored in windows that overlap by half, so that, past the first window, every token
has at least half a context before it. Bits per byte divides by the document's UTF-8 bytes, so it
compares models with different vocabularies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.model.gpt import GPT
from slm.tokens.tokenizer.bpe import Ids

Measure = Callable[[Tensor, Tensor], Tensor]  # logits (N, V), targets (N,) → (N, K) figures
BATCH_TOKENS = 8192  # positions scored at a time; (BATCH_TOKENS × V) logits are made in chunks
LOGIT_CHUNK = 1024


@dataclass(frozen=True)
class Score:
    """What a model spends on a set of documents."""

    nats: float
    tokens: int  # predicted: each document's tokens and its closing end-of-text
    bytes: int
    documents: int

    @property
    def val_loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def val_bpb(self) -> float:
        """Bits a UTF-8 byte."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class _Window:
    document: int
    start: int  # of the window in the document's sequence
    first: int  # first prediction that counts, within the window
    ids: Ids  # the window's tokens and the one after them


def _windows(documents: Sequence[Ids], eot: int, seq_len: int) -> list[_Window]:
    windows = []
    for number, document in enumerate(documents):
        sequence = np.concatenate(([eot], document, [eot])).astype(np.int64)
        start, scored = 0, 0
        while scored < len(sequence) - 1:
            ids = sequence[start : start + seq_len + 1]
            windows.append(_Window(number, start, scored - start, ids))
            scored = start + len(ids) - 1
            start = scored - seq_len // 2
    return windows


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """The measure of the loss alone: (N, V) logits and (N,) targets → (N, 1)."""
    return F.cross_entropy(logits, targets, reduction="none")[:, None]


def token_losses(
    model: GPT,
    documents: Sequence[Ids],
    eot: int,
    *,
    autocast: torch.dtype | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Nats of every prediction, an array of `len(document) + 1` a document."""
    found = token_measures(model, documents, eot, nats, autocast=autocast)
    return [figures[:, 0] for figures in found]


@torch.inference_mode()
def token_measures(
    model: GPT,
    documents: Sequence[Ids],
    eot: int,
    measure: Measure,
    *,
    autocast: torch.dtype | None = None,
) -> list[npt.NDArray[np.float32]]:
    """The figures of every prediction, an array (len(document) + 1, K) a document.

    Windows of about one length are scored together, padded on the right; causality keeps the
    padding out of what is counted, and the order of the documents has no effect on any figure.
    """
    device = model.embed.weight.device
    found: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(documents)
    windows = _windows(documents, eot, model.config.seq_len)
    windows.sort(key=lambda w: (len(w.ids), w.document, w.start))
    training = model.training
    model.eval()
    for batch in _batches(windows):
        width = len(batch[-1].ids) - 1
        padded = np.full((len(batch), width + 1), eot, dtype=np.int64)
        for row, window in zip(padded, batch, strict=True):
            row[: len(window.ids)] = window.ids
        ids = torch.from_numpy(padded).to(device)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            hidden = model(ids[:, :-1])  # (B, T, C)
        figures = _measured(model, hidden.flatten(0, 1), ids[:, 1:].flatten(), measure, autocast)
        rows = figures.view(len(batch), width, -1).cpu().numpy()  # (B, T, K)
        for row, window in zip(rows, batch, strict=True):
            number, count = window.document, len(window.ids) - 1
            if not len(found[number]):
                shape = (len(documents[number]) + 1, row.shape[-1])
                found[number] = np.empty(shape, np.float32)
            begin = window.start + window.first
            found[number][begin : window.start + count] = row[window.first : count]
    model.train(training)
    return found


def _batches(windows: list[_Window]) -> list[list[_Window]]:
    batches: list[list[_Window]] = []
    for window in windows:  # sorted by length, so the last of a batch is its longest
        if not batches or (len(batches[-1]) + 1) * len(window.ids) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(window)
    return batches


def _measured(
    model: GPT, hidden: Tensor, targets: Tensor, measure: Measure, dtype: torch.dtype | None
) -> Tensor:
    """The figures of each target, (N, K) float32; logits exist for LOGIT_CHUNK at a time."""
    weight = model.embed.weight.to(dtype or model.embed.weight.dtype)
    parts = [
        measure(F.linear(h.to(weight.dtype), weight).float(), t)
        for h, t in zip(
            torch.split(hidden, LOGIT_CHUNK), torch.split(targets, LOGIT_CHUNK), strict=True
        )
    ]
    return torch.cat(parts)


def score(
    model: GPT,
    documents: Sequence[Ids],
    eot: int,
    token_bytes: npt.NDArray[np.integer],
    *,
    autocast: torch.dtype | None = None,
) -> Score:
    """`token_losses` summed up. `token_bytes`: (V,), the UTF-8 bytes of each token."""
    losses = token_losses(model, documents, eot, autocast=autocast)
    return Score(
        nats=math.fsum(float(loss.sum(dtype=np.float64)) for loss in losses),
        tokens=sum(len(loss) for loss in losses),
        bytes=sum(int(token_bytes[document].sum()) for document in documents),
        documents=len(documents),
    )
