"""Tables of the report on the evaluation and the data, as plain values for the templates."""

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
    """The model among the references by bits per byte, the worst first; None without references."""
    measured = evaluation.details.get("beside")
    if not measured:
        return None
    knows = f"{checkpoint.tokens:,} tokens, with repetition"
    ours = {"name": "this model", "bpb": measured["val_bpb"], "knows": knows, "is_model": True}
    rows = [{**row, "is_model": False} for row in measured["references"]]
    rows = sorted([*rows, ours], key=lambda row: -row["bpb"])
    return {"rows": rows, "documents": measured["documents"], "bytes": measured["bytes"]}


def references_by_name(evaluation: Evaluation) -> dict[str, Baseline]:
    """The other predictors of the same documents."""
    measured = evaluation.details.get("beside") or {"references": []}
    return {row["name"]: Baseline(**row) for row in measured["references"]}


def comparable_bpb(evaluation: Evaluation) -> float:
    """The model's bits per byte on the documents that the references were scored on."""
    measured = evaluation.details.get("beside")
    return float(measured["val_bpb"]) if measured else evaluation.val_bpb


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
    numbers = {number for _, number, _ in chosen}
    last = max(numbers, default=-1)
    texts = {
        number: tokenizer.decode(ids[:EXCERPT_TOKENS]) + ("…" if len(ids) > EXCERPT_TOKENS else "")
        for number, ids in enumerate(islice(documents(shards, "val"), last + 1))
        if number in numbers
    }
    return [
        {"kind": kind.replace("_", " "), "bpb": bpb, "text": texts[number]}
        for kind, number, bpb in chosen
        if number in texts
    ]


def duplicates(evaluation: Evaluation) -> dict[str, Any] | None:
    """Duplicates between train and val: counts and examples; None where none were searched."""
    counts = evaluation.details.get("contamination")
    if not counts:
        return None
    searched = f"{counts['documents']:,} held-out, {counts['train_tokens']:,} training tokens"
    pairs = [
        ("documents compared, and with how much", searched),
        ("exact duplicates", f"{counts['exact']:,}"),
        ("near duplicates: half or more in one training document", f"{counts['near']:,}"),
        (
            "sequences of 13 tokens that occur anywhere in train, mean share",
            percent(counts["phrases"]),
        ),
    ]
    examples = [{**pair, "shared": percent(pair["shared"])} for pair in counts["examples"]]
    return {"pairs": pairs, "examples": examples}


def cleaning(source: Source | None, shards: Shards | None) -> list[dict[str, Any]]:
    """Each reason for which documents were left out or changed, with how many and examples."""
    unread = source.dropped if source else {}
    rows = [
        {"action": "not read", "reason": reason, "documents": count, "examples": []}
        for reason, count in unread.items()
    ]
    if shards is None:
        return rows
    return rows + [
        {"action": action, "reason": reason, **_cleaned(entry)}
        for action in ("dropped", "changed")
        for reason, entry in sorted(shards.cleaning.get(action, {}).items())
    ]


def _cleaned(entry: Mapping[str, Any]) -> dict[str, Any]:
    examples: Sequence[Any] = entry["examples"]
    shown = [" → ".join(e) if isinstance(e, list | tuple) else str(e) for e in examples]
    return {"documents": entry["documents"], "examples": [text for text in shown if text.strip()]}
