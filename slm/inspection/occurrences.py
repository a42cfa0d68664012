"""Where a text is, in which rows a training had it, and whether it was seen."""

from typing import Literal, get_args

from slm.records import Frozen

Where = Literal["train", "val", "excluded"]
WHERE: tuple[Where, ...] = get_args(Where)


class Reading(Frozen):
    """A row of a step that has the text, or a part of it."""

    step: int  # from 1, as in the journal
    row: int  # of the step
    whole: bool  # whether the text is whole in it


class Occurrence(Frozen):
    """A document that has the text."""

    where: Where
    part: str | None  # its source in a mixture
    document: int | None  # its number in train or val; None of one that is excluded
    times: int  # that the text is in the document
    file: str | None  # of the source that it came from; None: not known
    row: int | None  # of that file
    reason: str | None = None  # why it is excluded
    of: str | None = None  # file and row of the document that it is a copy of
    whole: int = 0  # rows that had the text whole, over all steps so far
    cut: int = 0  # rows that had a part of it
    readings: tuple[Reading, ...] = ()  # the first of them, in order


class Seen(Frozen):
    """Whether a run has seen a text."""

    run: str
    text: str
    steps: int  # that the run has made
    rows: int  # of a step
    epochs: float  # of train that these are
    documents: dict[Where, int]  # that have the text, by where they are
    whole: int  # rows that had the text whole, over all steps
    cut: int  # rows that had a part of it: the window ended or began within it
    source_rows: int | None  # rows of the source that have it, as they came; None: it is not here
    changed: int | None  # of these, those in which cleaning changed it; None: not known
    occurrences: tuple[Occurrence, ...]  # the first of each kind
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence."""
        train, val, out = (self.documents[where] for where in ("train", "val", "excluded"))
        if self.whole or self.cut:
            times = f"{self.whole:,} times whole" if self.whole != 1 else "once whole"
            parts = f", {self.cut:,} times in part" if self.cut else ""
            return f"seen: {times}{parts}, in {self.steps:,} steps"
        if train:
            return f"not seen so far: it is in train, and in no row of the {self.steps:,} steps"
        if val:
            return "not seen: it is held out"
        if out:
            return "not seen: cleaning dropped every document that has it"
        if self.source_rows is None:
            return "not seen: it is neither in train nor in val; the source is not here"
        if not self.source_rows:
            return "not seen: it is not in the source"
        if self.changed is None:
            return "not seen: cleaning dropped or changed every document that had it"
        return "not seen in this form: cleaning changed every document that had it"
