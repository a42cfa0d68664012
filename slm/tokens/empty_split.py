"""A split that no document is left for: what to do about it."""

from pathlib import PurePath

from slm.config import DataConfig
from slm.errors import UserError
from slm.records import ShardSplit, Source
from slm.source.documents import format_of
from slm.tokens.cleaning import (
    ALSO_IN_VAL,
    BY_FUNCTION,
    DUPLICATE,
    NEAR_DUPLICATE,
    TOO_LONG,
    TOO_SHORT,
    Tally,
)

# The settings of data.clean that drop documents for a reason.
DROPPED_BY = {
    TOO_SHORT: "min_chars",
    TOO_LONG: "max_chars",
    DUPLICATE: "exact_duplicates",
    NEAR_DUPLICATE: "near_duplicates",
    BY_FUNCTION: "filter",
}


def check_not_empty(
    data: DataConfig, source: Source, splits: dict[str, ShardSplit], tally: Tally
) -> None:
    """Raises UserError with the remedy where a split has no documents."""
    for split, written in splits.items():
        if not written.documents:
            dropped = ", ".join(f"{n['documents']} {reason}" for reason, n in tally.dropped.items())
            raise UserError(
                f"no documents are left in the {split} split of {source.dataset} "
                f"({source.documents} read; dropped: {dropped or 'none'}): "
                f"{_remedy(data, source, split, splits, tally)}"
            )


def _remedy(
    data: DataConfig, source: Source, split: str, splits: dict[str, ShardSplit], tally: Tally
) -> str:
    """What to do about a split without documents: the setting that is to blame comes first."""
    own_val = "val" in source.splits
    if split == "val" and not own_val and not data.val_fraction:
        return f"raise data.val_fraction={data.val_fraction}"
    if split == "train" and not own_val and data.val_fraction == 1:
        return f"lower data.val_fraction={data.val_fraction}"
    values = data.clean.flat()
    blamed = [
        f"data.clean.{n}={values[n]}" for why, n in DROPPED_BY.items() if why in tally.dropped
    ]
    if blamed:
        remedy = f"loosen {' and '.join(blamed)}, or give more documents"
    elif split == "train" and ALSO_IN_VAL in tally.dropped:
        remedy = "its documents are in val as well; give others"
    elif split == "train" and splits["val"].documents and not own_val:
        remedy = f"lower data.val_fraction={data.val_fraction}, or give more documents"
    else:
        remedy = f"give more documents{separator_hint(data, source)}"
    return remedy + ("; --set data.val_split=null leaves it out" * (own_val and split == "val"))


def separator_hint(data: DataConfig, source: Source) -> str:
    """How text files become more documents, where each is a single one."""
    formats = {format_of(PurePath(name), data.format) for name in source.origin}
    if data.separator is not None or formats != {"text"}:
        return ""
    return (
        "; a text file is one document unless it is split, at empty lines for example: "
        r"--set 'data.separator=\n\n'"
    )
