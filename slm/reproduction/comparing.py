"""Two results compared bit for bit: records, journals and tensors.

Of a record and of a journal everything is compared, except what is listed here as not repeated. So
a field that is added later is compared until someone gives a reason why it cannot be.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from slm.records import Checkpoint, Frozen, JournalEntry, Record, Run
from slm.storage import sha256_json

MISSING = "missing"
MAX_ROWS = 20  # of the values of a field that are all the same; more are one row
MAX_SHOWN = 40  # characters of a value in a sentence
RELATIVE_TOLERANCE = 1e-2  # of a figure that another machine may round otherwise
LOSS_TOLERANCE = 1e-2  # nats per token or bits per byte

# Of which field of a record another build has another value, and what it is checked by instead.
NOT_REPEATED: dict[type[BaseModel], dict[str, str]] = {
    Record: {
        "key": "compared by the caller, who knows the stage's version",
        "files": "compared file by file",
    },
    Run: {
        "tok_per_sec": "of the clock: compared with the journal",
        "seconds": "of the clock: compared with the journal",
        "environment": "of the machine: a link of the lineage",
    },
    Checkpoint: {
        "environment": "of the machine: a link of the lineage",
        "parent_sha256": "other where training was resumed",
    },
}
# The same of a journal's columns, in any event, and of its events.
CLOCK = {
    "time": "of the clock",
    "seconds": "of the clock",
    "tok_per_sec": "of the clock: the run's record is compared with it",
    "gflops": "of the clock: compared with tok_per_sec",
    "mfu": "of the clock: compared with tok_per_sec",
    "memory_bytes": "of the machine",
    "processes": "of the machine",
}
INTERRUPTIONS = {
    "resume": "of an interruption: checked by itself",
    "diverged": "of an interruption",
}
# What depends on every bit of the weights and has no distance that means anything.
FOLLOWS_WEIGHTS = {
    "grad_norm", "best", "checkpoint", "weights_sha256", "evaluation_key", "evaluation_sha256",
    "details",
}  # fmt: skip
LOSSES = {"train_loss", "val_loss", "val_bpb"}


class Compared(Frozen):
    """Something recorded, and the same rebuilt."""

    name: str
    recorded: str
    rebuilt: str
    near: bool = Field(default=False, exclude=True)  # a difference that rounding may make
    follows: bool = Field(default=False, exclude=True)  # any difference of the weights changes it

    @property
    def same(self) -> bool:
        return self.recorded == self.rebuilt

    @property
    def is_loss(self) -> bool:
        """Whether both are losses, of the same step or record."""
        return is_loss(self.name) and MISSING not in (self.recorded, self.rebuilt)


class Difference(Frozen):
    """Where the two first differ, or what is missing to rebuild the run."""

    what: str  # a link of the lineage, or what was compared
    step: int | None = None  # of the training; 0: before it
    tensor: str | None = None  # the first one that differs, in the model's order
    recorded: str | None = None
    rebuilt: str | None = None

    @property
    def place(self) -> str:
        """Where it is, in words; with the values where they are short enough to be read."""
        if self.tensor:
            return f"step {self.step}, first in {self.tensor}"
        place = f"{self.what} of step {self.step}" if self.step else self.what
        values = (self.recorded or MISSING, self.rebuilt or MISSING)
        is_short = max(map(len, values)) <= MAX_SHOWN and values != (MISSING, MISSING)
        return f"{place}: recorded {values[0]}, rebuilt {values[1]}" if is_short else place


class Comparisons:
    """What was compared so far, and where the two first differ."""

    def __init__(self) -> None:
        self.rows: list[Compared] = []
        self.first: Difference | None = None

    @property
    def differing(self) -> list[Compared]:
        return [row for row in self.rows if not row.same]

    def add(
        self,
        name: str,
        recorded: str | None,
        rebuilt: str | None,
        step: int = 0,
        *,
        follows: bool = False,
    ) -> bool:
        """Compare two values; return whether they are the same.

        What was never recorded is not compared.
        """
        if recorded is None:
            return True
        values = (recorded, MISSING if rebuilt is None else rebuilt)
        near = is_near(name, *values)
        return self._add(Compared(**_row(name, *values), near=near, follows=follows), name, step)

    def _add(self, row: Compared, what: str, step: int) -> bool:
        self.rows.append(row)
        if not row.same and self.first is None:
            self.first = Difference(
                what=what, step=step, recorded=row.recorded, rebuilt=row.rebuilt
            )
        return row.same

    def add_record(self, name: str, recorded: BaseModel, rebuilt: BaseModel, step: int = 0) -> None:
        """Compare the fields of a record that was stored, except those that are not repeated.

        A field with more than `MAX_ROWS` values that are all the same is one row.
        """
        for field in _stored_fields(recorded):
            path = f"{name}.{field}"
            pairs = list(_pairs(path, getattr(recorded, field), getattr(rebuilt, field, MISSING)))
            if len(pairs) > MAX_ROWS and all(old == new for _, old, new in pairs):
                digest = sha256_json([old for _, old, _ in pairs])
                pairs = [(f"{path}, {len(pairs)} values", digest, digest)]
            for leaf, old, new in pairs:
                self.add(leaf, old, new, step, follows=field in FOLLOWS_WEIGHTS)

    def add_journals(
        self, recorded: Iterable[JournalEntry], rebuilt: Iterable[JournalEntry]
    ) -> None:
        """Compare every column of every event; where some differ, `first` is the earliest step."""
        old, new = columns(recorded), columns(rebuilt)
        rows = [_column_row(name, old[name], new.get(name, [])) for name in old]
        rows += [_column_row(name, [], new[name]) for name in _lost_events(old, new)]
        for row, step in sorted(rows, key=lambda each: each[1]):  # the same ones are of step 0
            self._add(row, row.name.rpartition(".")[2].partition(" ")[0], step)


# ---- values -----------------------------------------------------------------------------------


def exact(value: object) -> str:
    """All bits of a value as text; "none" for a figure that is not finite, null in journals."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_near(name: str, a: str, b: str) -> bool:
    """Whether two figures differ no more than machines that round otherwise may make them.

    A count is never near another one.
    """
    if a.isdigit() or b.isdigit():
        return a == b
    try:
        x, y = float(a), float(b)
    except ValueError:
        return a == b
    return math.isclose(
        x, y, rel_tol=RELATIVE_TOLERANCE, abs_tol=LOSS_TOLERANCE if is_loss(name) else 0.0
    )


def is_loss(name: str) -> bool:
    """Whether the figure of a name such as `journal.step.train_loss of step 3` is a loss."""
    return name.rpartition(".")[2].partition(" ")[0] in LOSSES


def _row(name: str, recorded: str, rebuilt: str) -> dict[str, str]:
    return {"name": name, "recorded": recorded, "rebuilt": rebuilt}


def _stored_fields(record: BaseModel) -> list[str]:
    """The fields that the stored record has, in order, without those that are not repeated."""
    kind = type(record)
    exempt = {name for base in kind.__mro__ for name in NOT_REPEATED.get(base, ())}
    return [
        name
        for name, field in kind.model_fields.items()
        if name in record.model_fields_set and not field.exclude and name not in exempt
    ]


def _pairs(name: str, recorded: Any, rebuilt: Any) -> Iterator[tuple[str, str, str]]:
    """Each value in two trees with its path; what only one of them has is `missing` in the other.

    >>> list(_pairs("a", {"x": 1, "y": [2.5]}, {"x": 1, "y": [], "z": None}))
    [("a.x", "1", "1"), ("a.y.0", "2.5", "missing"), ("a.z", "missing", "none")]
    """
    if isinstance(recorded, BaseModel):
        for field in _stored_fields(recorded):
            other = getattr(rebuilt, field) if isinstance(rebuilt, BaseModel) else MISSING
            yield from _pairs(f"{name}.{field}", getattr(recorded, field), other)
        return
    a, b = _children(recorded), _children(rebuilt)
    if a or b:
        for key in dict.fromkeys((*a, *b)):
            yield from _pairs(f"{name}.{key}", a.get(key, MISSING), b.get(key, MISSING))
    else:
        yield name, exact(recorded), exact(rebuilt)


def _children(value: Any) -> Mapping[str, Any]:
    """The parts of a value by their names; none of what is no container."""
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in _stored_fields(value)}
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, list | tuple):
        return {str(place): part for place, part in enumerate(value)}
    return {}


# ---- journals ---------------------------------------------------------------------------------

Column = list[tuple[int, str]]  # (step, the exact value), in the journal's order


def columns(journal: Iterable[JournalEntry]) -> dict[str, Column]:
    """All that a training of the same bits repeats: `event.column` → its values."""
    result: dict[str, Column] = {}
    for entry in journal:
        event, step = entry["event"], entry.get("step") or 0
        if event in INTERRUPTIONS:
            continue
        for name, value in entry.items():
            if name != "event" and name not in CLOCK:
                result.setdefault(f"{event}.{name}", []).append((step, exact(value)))
    return result


def _lost_events(old: Mapping[str, Column], new: Mapping[str, Column]) -> list[str]:
    """A column of each event of which the old journal has no line at all."""
    events = {name.partition(".")[0] for name in old}
    firsts = {name.partition(".")[0]: name for name in reversed(list(new))}
    return [name for event, name in firsts.items() if event not in events]


def _column_row(name: str, old: Column, new: Column) -> tuple[Compared, int]:
    """A column's row and the step of its first difference; 0 where there is none.

    [(1, "5.5"), (2, "5.4")] and [(1, "5.5")] differ at step 2, where the second has none.
    """
    differing = [pair for pair in zip_longest(old, new) if pair[0] != pair[1]]
    if not differing:
        digest = sha256_json(old)
        return Compared(**_row(f"journal.{name}, {len(old)} values", digest, digest)), 0
    first, second = differing[0]
    step = (first or second)[0]
    values = [pair[1] if pair else MISSING for pair in (first, second)]
    return Compared(
        **_row(f"journal.{name} of step {step}", *values),
        near=all(a and b and a[0] == b[0] and is_near(name, a[1], b[1]) for a, b in differing),
        follows=name.rpartition(".")[2] in FOLLOWS_WEIGHTS,
    ), step


def segments(journal: Iterable[JournalEntry]) -> list[list[JournalEntry]]:
    """The lines of steps that one process wrote, each process's apart."""
    processes = 0
    steps: list[tuple[int, JournalEntry]] = []
    for entry in journal:
        processes += entry["event"] == "resume"
        if entry["event"] == "step":
            steps.append((processes, entry))
    return [[e for _, e in part] for _, part in groupby(steps, key=lambda each: each[0])]


# ---- tensors ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that has other bits."""

    step: int
    name: str  # of the weight, or <weight>/<state> of the optimizer
    largest: float | None  # absolute difference; None: missing, of another shape, or not finite


def tensor_differences(
    step: int, recorded: Mapping[str, Tensor], rebuilt: Mapping[str, Tensor]
) -> list[TensorDifference]:
    """The tensors that differ, in the order of `rebuilt`; those that it lacks come last."""
    return [
        TensorDifference(step, name, _largest_difference(recorded.get(name), rebuilt.get(name)))
        for name in dict.fromkeys((*rebuilt, *recorded))
        if not _is_same(recorded.get(name), rebuilt.get(name))
    ]


def _is_same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether the bits are the same: 0.0 and -0.0 differ, and a NaN is the same as itself."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _largest_difference(a: Tensor | None, b: Tensor | None) -> float | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    largest = float((a.double() - b.double()).abs().max())
    return largest if math.isfinite(largest) else None
