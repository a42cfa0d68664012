"""The very rows of a training step: by the loader of the training, from the run's own plan."""

from typing import Any

import numpy as np
import numpy.typing as npt

from slm.errors import UserError
from slm.inspection.texts import last_step, origins_of, shards_of, train_texts
from slm.records import Frozen, Plan
from slm.registry.opening import Given, open_run
from slm.run_folder import PLAN, RunFolder
from slm.tokens.loader import Loader
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training.session import new_loader


class RowDocument(Frozen):
    """A document of a row, as far as the row has it."""

    document: int  # its number in train; of a mixture in that of its source
    at: int  # its first token's position in the row
    begin: int  # the row has these of its tokens, the first of which is end-of-text
    end: int
    length: int  # tokens
    file: str | None  # of the source that it came from; None: not known
    row: int | None  # of that file
    columns: dict[str, Any] | None = None  # what `data.columns` keeps next to it


class BatchRow(Frozen):
    """A row of a step: T + 1 tokens, the first T of which are inputs, the last T targets."""

    row: int
    micro_batch: int  # whose gradient it is in
    part: str | None  # its source in a mixture
    epoch: int  # of that source, from 0
    start: int  # its first token's position in train, or in that of its source
    file: str  # of the shards, in which that token is
    offset: int  # and the token's position there
    ids: tuple[int, ...]  # (T + 1,)
    documents: tuple[RowDocument, ...]
    text: str


class Batch(Frozen):
    """The rows of a step of a run."""

    run: str
    step: int  # from 1, as in the journal
    trained: bool  # whether the run has made this step
    seq_len: int
    micro_batches: int
    rows: tuple[BatchRow, ...]


def batch_rows(run: Given, step: int) -> Batch:
    """The rows that a run is trained on in a step, with their documents and where each is from.

    >>> for row in slm.batch_rows("quickstart-3693316e0b15", 100).rows:
    ...     print(row.row, row.documents[0].document, row.text[:60])

    Args:
        run: a run, finished or not, or its name; or a version that was made from it.
        step: from 1, as in the journal.

    Raises UserError where the run has no such step, or its shards are gone.
    """
    folder = open_run(run)
    shards, plan = shards_of(folder), plan_of(folder)
    end = folder.max_steps or plan.max_steps
    if not 1 <= step <= max(end, last_step(folder)):
        raise UserError(f"{folder.name} has the steps 1 to {end:,}, and no step {step:,}")
    loader = new_loader(folder.config, plan, shards)
    parts, starts = loader.rows_at(step - 1)
    epochs = epochs_of(loader, step - 1, parts)
    texts, origins = train_texts(shards), origins_of(shards, folder.root)
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    length = loader.seq_len + 1
    inputs, targets = loader.batch(step - 1)
    ids = np.concatenate([inputs.numpy(), targets.numpy()[:, -1:]], axis=1)  # (R, T + 1)
    documents: dict[int, list[RowDocument]] = {}
    for i, text in enumerate(texts):
        here = np.flatnonzero(parts == i)
        ranges = [(int(starts[row]), int(starts[row]) + length) for row in here]
        for row, places in zip(here.tolist(), text.documents(ranges), strict=True):
            documents[row] = [
                RowDocument(
                    document=place.number,
                    at=at,
                    begin=place.begin,
                    end=place.end,
                    length=place.length,
                    file=(origin := origins[text.name]("train", place.number))[0],
                    row=origin[1],
                    columns=origins[text.name].columns(*origin),
                )
                for at, place in places
            ]
    rows = []
    for row in range(plan.rows):
        text = texts[int(parts[row])]
        segment, offset, _ = next(text.pieces(int(starts[row]), int(starts[row]) + 1))
        rows.append(
            BatchRow(
                row=row,
                micro_batch=row * plan.leaves // plan.rows,
                part=text.name,
                epoch=int(epochs[row]),
                start=int(starts[row]),
                file=segment.path.name,
                offset=offset,
                ids=tuple(ids[row].tolist()),
                documents=tuple(documents[row]),
                text=tokenizer.decode(ids[row].tolist()),
            )
        )
    return Batch(
        run=folder.name,
        step=step,
        trained=step <= last_step(folder),
        seq_len=loader.seq_len,
        micro_batches=plan.leaves,
        rows=tuple(rows),
    )


def plan_of(run: RunFolder) -> Plan:
    """The plan of a run. Raises UserError where it has none yet."""
    plan = run.plan
    if plan is None:
        raise UserError(
            f"{run.name} has no {PLAN} yet: its rows are fixed when its training starts"
        )
    return plan


def epochs_of(loader: Loader, step: int, parts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The epoch of its source, from 0, that each row of a step of the loader is in; (R,)."""
    rows = np.arange(len(parts)) + step * loader.rows
    places = rows if loader.order is None else loader.order.rows(rows[0], rows[-1] + 1)[1]
    windows = np.array([stream.windows for stream in loader.streams])
    epochs: npt.NDArray[np.int64] = places // windows[parts]
    return epochs
