"""How surprising each token of a text is to the model, as shades."""

import codecs
from collections.abc import Sequence
from typing import Any

import numpy as np

from slm.evaluation.scoring import token_losses
from slm.model.gpt import GPT
from slm.records import Shards
from slm.report.samples import ReportSample
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import Ids, Tokenizer

SURPRISE_EDGES = (0.5, 1.5, 3.0, 6.0)  # nats, between the shades of a token
MAX_SURPRISE_TOKENS = 200  # of a text that is shown with its shades


def surprises(
    model: GPT, tokenizer: Tokenizer, shards: Shards | None, samples: Sequence[ReportSample]
) -> list[dict[str, Any]]:
    """A held-out document and a sample, as pieces of text with a shade by their nats."""
    texts: list[tuple[str, Ids]] = []
    if shards and (held_out := next(documents(shards, "val"), None)) is not None:
        texts.append(("a held-out document", held_out.astype(np.int64)))
    if samples:
        chosen = samples[len(samples) // 2]
        name = f"a sample, temperature {chosen.temperature}"
        texts.append((name, np.array(tokenizer.encode(chosen.text))))
    shown = [ids[:MAX_SURPRISE_TOKENS] for _, ids in texts]
    losses = token_losses(model, shown, tokenizer.eot)
    return [
        {
            "name": name,
            "pieces": _pieces(part, nats.tolist(), tokenizer),
            "cut": len(part) < len(ids),
        }
        for (name, ids), part, nats in zip(texts, shown, losses, strict=True)
    ]


def _pieces(ids: Ids, nats: Sequence[float], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens as whole characters; tokens that share a character are one piece."""
    characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces, pending = [], 0.0
    for token, loss in zip(ids.tolist(), nats, strict=False):
        pending += float(loss)
        if text := characters.decode(tokenizer.decode_bytes([token])):
            shade = sum(pending > edge for edge in SURPRISE_EDGES)
            word = text.lstrip()
            pieces.append({"space": text[: len(text) - len(word)], "word": word, "shade": shade})
            pending = 0.0
    return pieces
