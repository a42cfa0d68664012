"""Whether an exported model is ours: weights, logits, greedy text and vocabulary, of what was read
back from its files (`slm.model.export.reading`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slm.errors import SlmError
from slm.model.decode import Decoder, KVCache
from slm.model.export.gguf import gguf_weights, is_matrix
from slm.model.export.reading import Exported
from slm.model.gpt import GPT, NORM_EPS
from slm.records import Frozen
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Ids, Tokenizer

MAX_TOKENS = 2048  # of documents that are scored
MAX_BATCH = 512  # tokens at a time
MAX_PROMPTS, PROMPT_TOKENS, GREEDY_TOKENS = 8, 8, 24
MAX_LOGIT_DIFFERENCE = 1e-4  # of the largest logit: float32 in another order of its sums
MAX_BPB_CHANGE = 0.01  # relative, by rounding
# The largest error of rounding a number, relative to it; of q8_0, to the largest of its 32.
MAX_ROUNDING = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127 + 2**-10}
SMALLEST_F16 = 2**-24  # whose half is the error near zero
BLOCK = 32  # numbers that share a factor in q8_0

ODD_TEXTS = (
    "",
    " ",
    "\n\n\n  \t x  \r\n",
    "It's we'll DON'T 'tis 's 'S ''ll they'd've",
    "naïve café — “quoted” … ½ ² Ⅷ ٣٤ 一二三 ㊿",
    "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 e\u0301 \u200b\u200d\ufeff \u2028\u2029\u0085\xa0\u3000 end",
    "日本語のテキスト。ไทย ភាសាខ្មែរ עברית العربية हिन्दी",
    "\x00\x01\x1c\x1f\x7f\x80\x9f\ufffd\U0010ffff\ue000",
    "a" * 300 + " " * 70 + "0" * 100 + "!" * 90,
    f"text that spells {END_OF_TEXT} stays text",
    "x<|im_end|></s>[EOT]<EOT> 1,234.5e-6 _under_score_ http://a.b/?c=d&e=f#g",
)


class ParityError(SlmError):
    """What was written is not the model: nothing of it is kept."""


class Parity(Frozen):
    """What was compared, and by how much it differs."""

    documents: int
    tokens: int
    max_logit_difference: float  # of the computation, relative to the largest logit
    greedy_prompts: int
    greedy_tokens: int
    greedy_same: int  # tokens of our greedy text that the file's weights choose too
    val_bpb: float  # bits per byte of these documents, by our model
    exported_bpb: float  # by the file's weights
    texts: int  # that the vocabulary was compared on
    text_bytes: int

    @property
    def bpb_change(self) -> float:
        """Relative."""
        return self.exported_bpb / self.val_bpb - 1

    @property
    def summary(self) -> str:
        """One line for a person."""
        count = f"{self.greedy_tokens:,} tokens"
        same = self.greedy_same == self.greedy_tokens
        greedy = f"identical in {count}" if same else f"the same in {self.greedy_same:,} of {count}"
        return (
            f"logits within {self.max_logit_difference:.0e} of the largest, greedy text {greedy}, "
            f"bits per byte {100 * self.bpb_change:+.3f} %, vocabulary identical on "
            f"{self.text_bytes:,} bytes"
        )


def check_parity(
    model: GPT, tokenizer: Tokenizer, exported: Exported, dtype: str, documents: Sequence[Ids]
) -> Parity:
    """Compare a model with what its export reads as; raise ParityError where they differ.

    Args:
        model: on a CPU, in evaluation mode.
        documents: token ids of held-out documents, at least one token in all.
    """
    _check_shape(model, exported)
    texts = [*ODD_TEXTS, *(tokenizer.decode(ids.tolist()) for ids in documents)]
    _check_vocabulary(tokenizer, exported, texts)
    ours = gguf_weights(model)
    _check_weights(ours, exported, dtype)
    rows = _rows(tokenizer, documents, model.config.seq_len)
    with torch.inference_mode():
        differences, nats, exported_nats = zip(
            *(_compare(model, exported, ours, batch) for batch in _batches(rows)), strict=True
        )
        same, greedy, prompts = _compare_greedy(model, exported, tokenizer, rows, dtype)
    size = sum(tokenizer.count_bytes(row[1:].numpy()) for row in rows)
    parity = Parity(
        documents=len(rows),
        tokens=sum(len(row) - 1 for row in rows),
        max_logit_difference=max(differences),
        greedy_prompts=prompts,
        greedy_tokens=greedy,
        greedy_same=same,
        val_bpb=sum(nats) / math.log(2) / size,
        exported_bpb=sum(exported_nats) / math.log(2) / size,
        texts=len(texts),
        text_bytes=sum(len(text.encode()) for text in texts),
    )
    if not parity.max_logit_difference <= MAX_LOGIT_DIFFERENCE:
        raise ParityError(
            f"the logits of the file differ by {parity.max_logit_difference:.1e} of the largest"
        )
    if dtype == "f32" and same < greedy:
        raise ParityError(f"the greedy text of the file differs after {same} of {greedy} tokens")
    if not abs(parity.bpb_change) <= MAX_BPB_CHANGE:
        raise ParityError(
            f"{dtype} changes the bits per byte of held-out text by "
            f"{100 * parity.bpb_change:+.1f} %: export with --dtype f32"
        )
    return parity


# ---- parts --------------------------------------------------------------------------------------


def _check_shape(model: GPT, exported: Exported) -> None:
    c = model.config
    expected: dict[str, Any] = {
        "architecture": c.architecture,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_kv_head": c.n_kv_head or c.n_head,
        "context": c.seq_len,
        "norm_eps": NORM_EPS[c.architecture],
    }
    if c.architecture == "qwen3":
        expected["rope_theta"] = c.rope_theta
    for name, value in expected.items():
        read = getattr(exported, name)
        if not (read == value or np.float32(read) == np.float32(value)):
            raise ParityError(f"the file has {name} {read}, and the model {value}")


def _check_vocabulary(tokenizer: Tokenizer, exported: Exported, texts: Sequence[str]) -> None:
    if exported.tokens != [*tokenizer.spelling, END_OF_TEXT, *tokenizer.special]:
        raise ParityError("the file has other tokens than the model")
    if exported.end_of_text != tokenizer.eot:
        raise ParityError(f"the file has end-of-text {exported.end_of_text}, not {tokenizer.eot}")
    for text, ids in zip(texts, exported.encode(list(texts)), strict=True):
        if ids != tokenizer.encode(text):
            raise ParityError(f"the file's vocabulary has other tokens for the text {text[:80]!r}")


def _check_weights(ours: dict[str, Tensor], exported: Exported, dtype: str) -> None:
    """Every weight is there, of its shape, and no further from ours than rounding brings it."""
    if differing := sorted(ours.keys() ^ exported.weights.keys()):
        raise ParityError(f"the file and the model do not have the same weights: {differing[0]}")
    for name, tensor in ours.items():
        read, stored = exported.weights[name], exported.stored[name]
        if read.shape != tensor.shape:
            raise ParityError(f"{name} of the file has the shape {tuple(read.shape)}")
        if stored not in (dtype, "f32") or (stored != dtype and is_matrix(name, tensor)):
            raise ParityError(f"{name} of the file is {stored}, not {dtype}")
        if not bool(((read - tensor).abs() <= _allowed(tensor, stored)).all()):
            raise ParityError(f"{name} of the file is not ours in {stored}")


def _allowed(tensor: Tensor, stored: str) -> Tensor:
    """How far rounding may bring each number."""
    size = tensor.abs()
    if stored == "q8_0":
        size = size.view(-1, BLOCK).amax(-1, keepdim=True).expand(-1, BLOCK).reshape(tensor.shape)
    return size * MAX_ROUNDING[stored] + (SMALLEST_F16 / 2 if stored in ("f16", "q8_0") else 0)


def _rows(tokenizer: Tokenizer, documents: Sequence[Ids], context: int) -> list[Tensor]:
    """Documents after end-of-text, (T,) each, cut to the context, of MAX_TOKENS in all."""
    rows: list[Tensor] = []
    left = MAX_TOKENS
    for ids in documents:
        taken = ids[: min(left, context - 1)].tolist()
        if taken:
            rows.append(torch.tensor([tokenizer.eot, *taken]))
            left -= len(taken)
        if left <= 0:
            break
    return rows


def _batches(rows: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Rows of similar length together, of about MAX_BATCH tokens."""
    batch: list[Tensor] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(row) > MAX_BATCH:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _compare(
    model: GPT, exported: Exported, ours: dict[str, Tensor], batch: Sequence[Tensor]
) -> tuple[float, float, float]:
    """The relative difference of logits by the same weights, and both losses in nats."""
    padding = -1
    ids = torch.nn.utils.rnn.pad_sequence(list(batch), batch_first=True, padding_value=padding)
    known = ids.clamp_min(0)  # (B, T): no position sees what comes after it
    logits = model.logits(model(known)).float()  # (B, T, V)
    difference = (exported.logits(known, ours) - logits).abs().max()
    nats = [
        float(F.cross_entropy(
            each[:, :-1].transpose(1, 2), ids[:, 1:], reduction="sum", ignore_index=padding
        ))
        for each in (logits, exported.logits(known))
    ]  # fmt: skip
    return float(difference / logits.abs().max().clamp_min(1.0)), nats[0], nats[1]


def _compare_greedy(
    model: GPT, exported: Exported, tokenizer: Tokenizer, rows: Sequence[Tensor], dtype: str
) -> tuple[int, int, int]:
    """Greedy texts of ours: at how many of their tokens the file's weights choose the same, of how
    many, and from how many prompts.

    One pass over prompt and text: where all are the same, so is the text that the file would give.
    Two tokens whose logits are as near as rounding in float32 are both right.
    """
    begin = min(PROMPT_TOKENS, model.config.seq_len // 2)
    prompts = [row[:begin] for row in rows if len(row) >= begin][:MAX_PROMPTS]
    ids = torch.stack(prompts or [torch.tensor([tokenizer.eot])])  # (B, T)
    texts = greedy(Decoder(model), ids, min(GREEDY_TOKENS, model.config.seq_len - ids.shape[1]))
    logits = exported.logits(torch.cat((ids, texts), dim=1))[:, ids.shape[1] - 1 : -1]
    chosen = logits.gather(-1, texts[..., None])[..., 0]  # (B, N)
    near = MAX_LOGIT_DIFFERENCE * logits.abs().amax() if dtype == "f32" else 0.0
    same = int((chosen >= logits.amax(-1) - near).sum())
    return same, texts.numel(), len(ids)


def greedy(decoder: Decoder, ids: Tensor, count: int) -> Tensor:
    """The likeliest continuation of prompts of one length, (B, T) → (B, count)."""
    cache = KVCache.empty(decoder.model, len(ids))
    hidden = decoder.prefill(ids, cache)[:, -1]
    cache.lengths[:] = ids.shape[1]
    texts: list[Tensor] = []
    while len(texts) < count:
        if texts:
            hidden = decoder.step(texts[-1], cache)
        texts.append(decoder.logits(hidden).argmax(-1))
    return torch.stack(texts, dim=1)
