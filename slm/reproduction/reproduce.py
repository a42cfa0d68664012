"""Reproduce: rebuild a run from its lineage alone, and measure how alike the two are.

Source, shards and weights are built in a fresh folder from the run's config and plan; results of
the first time are read only to compare with, every figure and not only every hash: a record that
was changed carries a new hash of itself. Where the lineage lacks something, or something in it
is not what was recorded, nothing is built and the verdict is `cannot`. The code may be at another
commit as long as its stages are of the same versions, which the keys show.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from slm import storage
from slm.errors import CorruptionError, Interrupted, SlmError, UserError
from slm.history.lineage import ARITHMETIC, Lineage, lineage, machine_differences
from slm.model.saved import MODEL
from slm.progress import Progress, automatic
from slm.records import Frozen, Run
from slm.reproduction.comparing import Compared, Difference
from slm.reproduction.obstacles import obstacle
from slm.reproduction.rebuild import Rebuild
from slm.run_folder import LOCK, RunFolder

FOLDER = "reproduced"  # of the data folder: what is being rebuilt


class Reproduction(Frozen):
    """The verdict and what it rests on."""

    name: str
    verdict: Literal["bit-identical", "within tolerance", "diverged", "cannot"]
    level: str | None  # that the run promises, by the levels of docs/reliability.md
    compared: tuple[Compared, ...] = ()
    first_difference: Difference | None = None
    missing: tuple[str, ...] = ()  # why it cannot be reproduced
    notes: tuple[str, ...] = ()  # what else has changed, or was not checked
    weights_difference: float | None = None  # the largest; None: none, or not comparable
    val_bpb_difference: float | None = None  # rebuilt minus recorded, in bits per byte
    expected: str | None = None  # why other bits are: another torch, CPU or GPU
    folder: str | None = None  # where what was rebuilt is kept

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.verdict == "cannot":
            return f"cannot be reproduced: {'; '.join(self.missing)}"
        if self.verdict == "bit-identical":
            return f"bit-identical in all of {len(self.compared)} comparisons"
        first = self.first_difference
        assert first is not None
        sizes = []
        if self.weights_difference is not None:
            sizes.append(f"weights by at most {self.weights_difference:.2g}")
        if self.val_bpb_difference:
            sizes.append(f"val_bpb by {self.val_bpb_difference:+.2g}")
        by = f" ({' and '.join(sizes)})" if sizes else ""
        if self.verdict == "within tolerance":
            why = f"; {self.expected}: other bits are expected" if self.expected else ""
            return f"within tolerance{by}; other bits from {first.place}{why}"
        weights = [row for row in self.compared if row.name.endswith(MODEL)]
        are_same = weights and all(row.same for row in weights)
        note = (
            "; the weights are bit-identical, so the recorded figure is wrong" if are_same else ""
        )
        if self.expected and not are_same:
            note = f"; {self.expected}: other bits are expected, but not by so much"
        return f"diverged at {first.place}{by}{note}"


def reproduce(
    run: RunFolder,
    *,
    chain: Lineage | None = None,
    keep: bool = False,
    progress: Progress = automatic,
) -> Reproduction:
    """Rebuild a finished run and compare every hash.

    Args:
        chain: its checked lineage, or that of a version of it; None: `lineage(run)`.
        keep: leave what was rebuilt in `<data>/reproduced/`.

    Raises UserError where the run is not finished.
    """
    chain = chain or lineage(run)
    if chain["run"].state == "not checked":
        raise UserError(f"the run {run.name!r} is not finished: there is nothing to compare with")
    record: Run | None = None
    with suppress(CorruptionError):  # which the lineage reports too
        record = run.record
    known: dict[str, Any] = {
        "name": chain.name,
        "level": record.level if record else None,
        "notes": _notes(chain),
    }
    if reason := obstacle(chain, run, record):
        missing, first = reason
        return Reproduction(verdict="cannot", missing=missing, first_difference=first, **known)
    assert record is not None
    known["expected"] = ", ".join(machine_differences(record.environment, ARITHMETIC)) or None
    with _fresh_root(run, keep) as fresh:
        rebuild = Rebuild(record, chain, fresh, progress, expects_other=bool(known["expected"]))
        try:
            rebuild.all()
        except Interrupted:
            raise
        except SlmError as error:
            known["notes"] += tuple(rebuild.notes)
            return Reproduction(
                verdict="cannot", missing=(str(error),), compared=tuple(rebuild.compared.rows),
                first_difference=Difference(what=rebuild.stage), **known,
            )  # fmt: skip
        known["notes"] += tuple(rebuild.notes)
        far = rebuild.weights_difference
        return Reproduction(
            verdict=rebuild.verdict(),
            compared=tuple(rebuild.compared.rows),
            first_difference=rebuild.compared.first,
            weights_difference=far if far is not None and math.isfinite(far) else None,
            val_bpb_difference=rebuild.val_bpb_difference,
            folder=str(fresh) if keep else None,
            **known,
        )


def _notes(chain: Lineage) -> tuple[str, ...]:
    """What may explain other bits, and what was not checked, such as an unreachable registry."""
    links = (link for link in chain.links if link.name in ("code", "environment", "version"))
    return tuple(
        n for link in links if link.state in ("not checked", "changed") for n in link.notes
    )


@contextmanager
def _fresh_root(run: RunFolder, keep: bool) -> Iterator[Path]:
    """An empty data folder inside that of the run, locked while it is in use."""
    parent = storage.make_folder(run.root.path / FOLDER)
    fresh = Path(mkdtemp(prefix=f"{run.name}-", dir=parent))
    try:
        with storage.lock(fresh / LOCK):
            yield fresh
    finally:
        if not keep:
            storage.discard(fresh)
