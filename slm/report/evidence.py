"""What the report shows of the evaluation and the data beyond single figures, as plain values."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from slm.evaluation.baselines import Baseline
from slm.records import Checkpoint, Evaluation, Shards, Source
from slm.report.summary import percent
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import Tokenizer

EXCERPT_TOKENS = 60


def references(checkpoint: Checkpoint, evaluation: Evaluation) -> dict[str, Any] | None:
    """The model among others by bits a byte, the worst first; None where none were measured."""
    beside = evaluation.details.get("beside")
    if not beside:
        return None
    knows = f"{checkpoint.tokens:,} tokens, with repetition"
    ours = {"name": "this model", "bpb": beside["val_bpb"], "knows": knows, "ours": True}
    rows = [{**row, "ours": False} for row in beside["references"]]
    rows = sorted([*rows, ours], key=lambda row: -row["bpb"])
    return {"rows": rows, "documents": beside["documents"], "bytes": beside["bytes"]}


def others(evaluation: Evaluation) -> dict[str, Baseline]:
    """The references by their names."""
    beside = evaluation.details.get("beside") or {"references": []}
    return {row["name"]: Baseline(**row) for row in beside["references"]}


def comparable_bpb(evaluation: Evaluation) -> float:
    """The model's on the documents that the references were given."""
    beside = evaluation.details.get("beside")
    return float(beside["val_bpb"]) if beside else evaluation.val_bpb


def extremes(
    evaluation: Evaluation, shards: Shards | None, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The held-out documents that the model found least and most likely, with their beginnings."""
    if shards is None:
        return []
    chosen = [
        (kind, number, bpb)
        for kind in ("least_likely", "most_likely")
        for number, bpb in evaluation.details.get(kind, ())[:2]
    ]
    wanted = {number for _, number, _ in chosen}
    last = max(wanted, default=-1)
    texts = {
        number: tokenizer.decode(ids[:EXCERPT_TOKENS]) + ("…" if len(ids) > EXCERPT_TOKENS else "")
        for number, ids in enumerate(islice(documents(shards, "val"), last + 1))
        if number in wanted
    }
    return [
        {"kind": kind.replace("_", " "), "bpb": bpb, "text": texts[number]}
        for kind, number, bpb in chosen
        if number in texts
    ]


def duplicates(evaluation: Evaluation) -> dict[str, Any] | None:
    """Duplicates between train and val: pairs of words, and the examples."""
    found = evaluation.details.get("contamination")
    if not found:
        return None
    looked = f"{found['documents']:,} held-out, {found['train_tokens']:,} training tokens"
    pairs = [
        ("documents looked for, and in how much", looked),
        ("exact duplicates", f"{found['exact']:,}"),
        ("near duplicates: half or more in one training document", f"{found['near']:,}"),
        ("runs of 13 tokens that occur anywhere in train, mean", percent(found["phrases"])),
    ]
    examples = [{**pair, "shared": percent(pair["shared"])} for pair in found["examples"]]
    return {"pairs": pairs, "examples": examples}


def cleaning(source: Source | None, shards: Shards | None) -> list[dict[str, Any]]:
    """Each reason for which documents were left out or changed, with how many and examples."""
    unread = source.dropped if source else {}
    rows = [
        {"what": "not read", "reason": reason, "documents": count, "examples": []}
        for reason, count in unread.items()
    ]
    if shards is None:
        return rows
    return rows + [
        {"what": what, "reason": reason, **_cleaned(entry)}
        for what in ("dropped", "changed")
        for reason, entry in sorted(shards.cleaning.get(what, {}).items())
    ]


def _cleaned(entry: Mapping[str, Any]) -> dict[str, Any]:
    examples: Sequence[Any] = entry["examples"]
    shown = [" → ".join(e) if isinstance(e, list | tuple) else str(e) for e in examples]
    return {"documents": entry["documents"], "examples": [text for text in shown if text.strip()]}
