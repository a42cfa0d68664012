"""What disqualifies a model whatever its loss: samples that are broken, or copied from the data.

Both are measured against human text of the same kind, the held-out documents: stories repeat
themselves, and templates recur word for word, without any model's doing.
"""

from slm.evaluation.text_quality import repetition
from slm.tokens.tokenizer.bpe import Ids

REPEATED = 0.5  # a text with a larger share of repeated n-grams runs in circles


def degenerate(text: str, ids: Ids) -> str | None:
    """Why a text is broken: "empty", "invalid" or "repetitive"; None where it is not."""
    if not text.strip():
        return "empty"
    if "\ufffd" in text or "\0" in text:
        return "invalid"
    if repetition(ids.tolist()) > REPEATED:
        return "repetitive"
    return None
