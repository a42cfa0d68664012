"""`slm batch`: the rows of a training step, and whether a text was seen."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from slm.cli.options import AsJson, RunName, display_for, show, show_line, show_wide, suggest
from slm.errors import UserError

if TYPE_CHECKING:
    from slm.inspection.batch import Batch, BatchRow
    from slm.inspection.occurrences import Occurrence, Seen

PREVIEW = 160  # characters of a row
MAX_READINGS = 5  # of a document in a table


def batch(
    run: RunName,
    step: Annotated[
        int | None,
        typer.Argument(metavar="STEP", help="A step from 1 on, as in the journal."),
    ] = None,
    row: Annotated[
        int | None, typer.Option(metavar="N", help="Show one row of the step, whole.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Show the whole text of each row.")] = False,
    find: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Whether training has seen a text, exactly so: when, how often, and why not.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the very rows of a training step: documents, where each is from, offsets, text.

    With --find, in place of a step: whether a text was seen, in which steps and rows, whole or cut;
    or whether it is held out, or was dropped by cleaning, and why.

    Examples: slm batch RUN 100 · slm batch RUN --find 'a red ball'
    """
    if (step is None) == (find is None):
        raise UserError("give a step, such as `slm batch RUN 100`, or --find TEXT: one of them")
    if find is not None:
        if row is not None or full:
            raise UserError("--row and --full are of a step, and --find looks at all of them")
        _find(run, find, as_json)
        return
    from slm.inspection.batch import batch_rows

    assert step is not None
    made = batch_rows(run, step)
    if row is not None:
        if not 0 <= row < len(made.rows):
            raise UserError(f"--row {row}: step {step} has the rows 0 to {len(made.rows) - 1}")
        made = made.model_copy(update={"rows": (made.rows[row],)})
    if as_json:
        show(made.model_dump(mode="json"), as_json)
        return
    _show(made, full or row is not None)
    suggest(as_json, *([] if row is not None else [f"slm batch {run} {step} --row 0"]))


def _show(made: "Batch", full: bool) -> None:
    state = "" if made.trained else ", not trained yet"
    length = f"{made.seq_len:,} tokens and the one after them"
    show_line(f"step {made.step:,} of {made.run}: rows of {length}{state}")
    for row in made.rows:
        show_line(f"\nrow {row.row}{_head(row, made.micro_batches)}")
        for document in row.documents:
            origin = "" if document.file is None else f"  {document.file}, row {document.row:,}"
            visible = f"tokens {document.begin:,} to {document.end:,} of {document.length:,}"
            show_line(f"  at {document.at:<5} document {document.document:,}, {visible}{origin}")
            if document.columns is not None:
                columns = json.dumps(document.columns, ensure_ascii=False)
                show_line(f"           {columns if full else _shorten(columns)}")
        text = row.text if full else _shorten(row.text)
        show_line(text if full else f"  {text}")


def _head(row: "BatchRow", micro_batches: int) -> str:
    part = f" of {row.part}" if row.part else ""
    micro = f", micro-batch {row.micro_batch}" if micro_batches > 1 else ""
    where = f"from token {row.start:,}{part}, in {row.file} at {row.offset:,}"
    return f"{micro}, epoch {row.epoch}, {where}"


def _shorten(text: str) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"


def _find(run: str, text: str, as_json: bool) -> None:
    from slm.inspection.seen import find_text

    with display_for(as_json) as display, display.progress("find") as progress:
        seen = find_text(run, text, progress=progress)
    if as_json:
        show({**seen.model_dump(mode="json"), "verdict": seen.verdict}, as_json)
        return
    _show_seen(seen)
    first = next((r for each in seen.occurrences for r in each.readings), None)
    if first:
        suggest(as_json, f"slm batch {run} {first.step} --row {first.row}")


def _show_seen(seen: "Seen") -> None:
    from slm.cli import tables

    show_line(seen.verdict)
    counts = {
        "documents of train": seen.documents["train"],
        "documents of val": seen.documents["val"],
        "excluded documents": seen.documents["excluded"],
        "rows that had it whole": seen.whole,
        "rows that had a part": seen.cut,
        "steps": f"{seen.steps:,} of {seen.rows:,} rows, {seen.epochs:.2f} epochs",
    }
    if seen.changed:
        counts["rows before cleaning alone"] = seen.changed
    show_wide(tables.pairs(counts))
    if seen.occurrences:
        print()
        columns = ("where", "document", "times", "from", "whole", "in part", "steps, or the reason")
        show_wide(tables.listing(columns, map(_occurrence, seen.occurrences)))
    listed = len(seen.occurrences)
    if (left := sum(seen.documents.values()) - listed) > 0:
        show_line(f"and {left:,} more documents")
    for note in seen.notes:
        show_line(f"note: {note}")


def _occurrence(each: "Occurrence") -> tuple[object, ...]:
    where = f"{each.where} of {each.part}" if each.part else each.where
    origin = "" if each.file is None else f"{each.file}, row {each.row:,}"
    if each.where == "excluded":
        why = f"{each.reason}{f' of {each.of}' if each.of else ''}"
        return (where, None, each.times, origin, None, None, why)
    if each.where == "val":
        return (where, each.document, each.times, origin, None, None, "held out")
    steps = [f"{r.step:,}{'' if r.whole else ' (part)'}" for r in each.readings[:MAX_READINGS]]
    more = each.whole + each.cut - len(steps)
    listed = ", ".join([*steps, *([f"and {more:,} more"] if more > 0 else [])])
    return (where, each.document, each.times, origin, each.whole, each.cut, listed or "none yet")
