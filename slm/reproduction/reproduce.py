"""Reproduce: makes a run again, from its chain alone, and says how alike the two are.

Source, shards and weights are built in a fresh folder from the run's config and its settled plan;
no result of the first time is read but to be compared with. Where the chain lacks something, or
something in it is not what was recorded, nothing is built and the verdict is `cannot`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from tempfile import mkdtemp
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from slm import storage
from slm.config import EvaluateConfig, PipelineConfig
from slm.errors import CorruptionError, Interrupted, SlmError, UserError
from slm.evaluation.evaluate import DETAILS, evaluate
from slm.history.lineage import Lineage, lineage
from slm.model.saved import MODEL, load_model
from slm.records import Parent, Progress, Record, Run, Shards, Source, silent
from slm.run_folder import CHECKPOINTS, JOURNAL, RunFolder
from slm.source.download import download
from slm.source.hub_client import keep_cache_in
from slm.tokens.encode import encode
from slm.tokens.tokenizer import gpt2_files
from slm.tokens.tokenizer.bpe import FILE_NAME as TOKENIZER
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.training import launch

FOLDER = "reproduced"  # of the data folder: what is being rebuilt
WEIGHTS_TOLERANCE = 1e-2  # largest difference of a weight
BPB_TOLERANCE = 1e-2  # bits a byte

# Links that are built again where their files are gone; all others must be there.
REBUILT = ("source", "tokenizer", "shards", "checkpoint", "evaluation")


class Compared(BaseModel):
    """One thing of the first time beside the same thing made again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    recorded: str
    rebuilt: str

    @property
    def same(self) -> bool:
        return self.recorded == self.rebuilt


class Difference(BaseModel):
    """Where the two first part, or what is missing to make it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str  # a link of the chain, or a thing that was compared
    step: int | None = None  # of the training; 0: before it
    tensor: str | None = None  # the first one that differs, in the model's order
    recorded: str | None = None
    rebuilt: str | None = None


class Reproduction(BaseModel):
    """The verdict, and all that it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    verdict: Literal["bit-identical", "within tolerance", "diverged", "cannot"]
    level: str | None  # that the run promises, by the levels of docs/reliability.md
    compared: tuple[Compared, ...] = ()
    first_difference: Difference | None = None
    missing: tuple[str, ...] = ()  # why it cannot be made again
    notes: tuple[str, ...] = ()  # what else is not as it was, or was not compared
    weights_difference: float | None = None  # the largest, where weights differ and both are there
    val_bpb_difference: float | None = None  # rebuilt minus recorded, in bits a byte
    folder: str | None = None  # where what was rebuilt is kept

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        first = self.first_difference
        if self.verdict == "cannot":
            return f"cannot be made again: {'; '.join(self.missing)}"
        if self.verdict == "bit-identical":
            return f"bit-identical in all of {len(self.compared)} comparisons"
        assert first is not None
        at = f"step {first.step}" if first.step else first.what
        tensor = f", first in {first.tensor}" if first.tensor else ""
        far = []
        if self.weights_difference is not None:
            far.append(f"weights by at most {self.weights_difference:.2g}")
        if self.val_bpb_difference is not None:
            far.append(f"val_bpb by {self.val_bpb_difference:+.2g}")
        apart = f" ({' and '.join(far)})" if far else ""
        if self.verdict == "within tolerance":
            return f"within tolerance{apart}; other bits from {at}{tensor}"
        return f"diverged at {at}{tensor}{apart}"


def reproduce(
    run: RunFolder,
    *,
    chain: Lineage | None = None,
    keep: bool = False,
    progress: Progress = silent,
) -> Reproduction:
    """Makes a finished run again and compares every hash.

    Args:
        run: a finished one.
        chain: its lineage, or that of a version of it, checked; None: it is looked up here.
        keep: leaves what was rebuilt in `<data>/reproduced/`.

    Raises UserError where the run is not finished.
    """
    chain = chain or lineage(run)
    record: Run | None = None
    if chain["run"].state == "not checked":
        raise UserError(f"the run {run.name!r} is not finished: there is nothing to compare with")
    with suppress(CorruptionError):  # which the chain says too
        record = run.record
    level = record.level if record else None
    notes = tuple(
        note
        for name in ("code", "environment")
        if chain[name].state in ("not checked", "changed")
        for note in chain[name].notes
    )
    if found := _obstacles(chain, run):
        missing, first = found
        return Reproduction(
            name=chain.name, verdict="cannot", level=level, missing=missing,
            first_difference=first, notes=notes,
        )  # fmt: skip
    assert record is not None
    with _fresh_root(run, keep) as fresh:
        rebuild = _Rebuild(record, chain, fresh, progress)
        try:
            rebuild.all()
        except Interrupted:
            raise
        except SlmError as error:
            return Reproduction(
                name=chain.name, verdict="cannot", level=level, missing=(str(error),),
                first_difference=Difference(what=rebuild.stage), notes=notes,
                compared=tuple(rebuild.compared),
            )  # fmt: skip
        return rebuild.judged(level, notes, str(fresh) if keep else None)


def _obstacles(chain: Lineage, run: RunFolder) -> tuple[tuple[str, ...], Difference] | None:
    """What the chain lacks, and the first link that does; None where all is there."""
    lacking = [
        link
        for link in chain.broken
        if link.name != "environment" and not (link.state == "gone" and link.name in REBUILT)
    ]
    if lacking:
        missing = tuple(
            f"{link.name} {link.state}: {note}"
            for link in lacking
            for note in link.notes or (link.value,)
        )
        return missing, Difference(what=lacking[0].name, recorded=lacking[0].digest)
    config = run.config
    if config.data.source == "hub" and chain["dataset"].digest is None:
        return ("the commit of the dataset is known nowhere any more",), Difference(what="dataset")
    plan = run.plan
    assert plan is not None, "a finished run has one"
    if plan.device == "cuda" and torch.cuda.device_count() < plan.world_size:
        found = f"{torch.cuda.device_count()} GPUs here, {plan.world_size} needed"
        return (found,), Difference(what="environment")
    return None


@contextmanager
def _fresh_root(run: RunFolder, keep: bool) -> Iterator[Path]:
    """An empty data folder inside the run's own, locked while it is in use."""
    parent = storage.make_folder(run.root.path / FOLDER)
    fresh = Path(mkdtemp(prefix=f"{run.name}-", dir=parent))
    try:
        with storage.lock(fresh / "lock"):
            yield fresh
    finally:
        if not keep:
            storage.discard(fresh)


# ---- building it again ------------------------------------------------------------------------


@dataclass
class _Rebuild:
    """One run made again under `fresh`, compared stage by stage."""

    record: Run
    chain: Lineage
    fresh: Path
    progress: Progress
    compared: list[Compared] = field(default_factory=list)
    first: Difference | None = None
    stage: str = "source"
    weights_difference: float | None = None
    val_bpb_difference: float | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder.of(self.record)

    def all(self) -> None:
        """Stage after stage; data that differs ends it, since no training could be compared."""
        config = self.run.config
        root = self.run.root.path  # whose caches serve: what they hold is verified by its hash
        gpt2_files.place(root)
        keep_cache_in(root)
        source = self._download(config)
        if self.first:
            return
        self.stage = "shards"
        parent = self.run.parent
        given = Tokenizer.load(parent.path / TOKENIZER) if parent else None
        shards = encode(config, source, tokenizer=given, root=self.fresh, progress=self.progress)
        self._compare_folder("shards", shards)
        self._compare("tokenizer", self.chain["tokenizer"].digest, shards.tokenizer_sha256)
        if self.first:
            return
        self.stage = "training"
        again = self._train(config, shards, parent)
        self._compare("run key", self.record.key, again.key)
        self._compare_journals(again)
        self._compare_checkpoints(again)
        self._compare("val_bpb", self.record.val_bpb.hex(), again.val_bpb.hex())
        self.val_bpb_difference = again.val_bpb - self.record.val_bpb
        self.stage = "evaluation"
        self._evaluate(config, again, shards)

    def _download(self, config: PipelineConfig) -> Source:
        if config.data.source == "hub":
            pinned = config.data.model_copy(update={"revision": self.chain["dataset"].digest})
            config = config.model_copy(update={"data": pinned})
        source = download(config, root=self.fresh, progress=self.progress)
        self._compare_folder("source", source)
        return source

    def _train(self, config: PipelineConfig, shards: Shards, parent: Parent | None) -> Run:
        """Trains by the plan of the first time, so that nothing is probed or chosen anew.

        The model that the run went on from is taken as the run kept it.
        """
        run = launch.prepare(config, shards, parent=parent, root=self.fresh)
        plan = self.run.plan
        assert plan is not None, "a finished run has one"
        run.write_plan(plan)
        launch.supervise(run, config, self.progress, lambda event: None)
        again = run.verified_record
        assert again is not None, f"{run.path} ended without a record"
        return again

    def _evaluate(self, config: PipelineConfig, again: Run, shards: Shards) -> None:
        before = self.run.evaluation
        if before is None:
            return
        which = "best" if before.checkpoint == self.record.best else "last"
        fields = {"documents": before.documents, "checkpoint": which}
        same = config.model_copy(update={"evaluate": EvaluateConfig.model_validate(fields)})
        after = evaluate(same, again, shards, progress=self.progress)
        name = f"evaluation/{DETAILS}"
        self._compare(name, before.files[DETAILS].sha256, after.files[DETAILS].sha256)
        self.val_bpb_difference = after.val_bpb - before.val_bpb

    # ---- comparing ----

    def _compare(
        self, name: str, recorded: str | None, rebuilt: str | None, step: int = 0
    ) -> Compared | None:
        """Notes a comparison; what was never recorded is not compared."""
        if recorded is None:
            return None
        row = Compared(name=name, recorded=recorded, rebuilt=rebuilt or "missing")
        self.compared.append(row)
        if not row.same and self.first is None:
            self.first = Difference(
                what=name, step=step, recorded=row.recorded, rebuilt=row.rebuilt
            )
        return row

    def _compare_folder(self, name: str, rebuilt: Record) -> None:
        link = self.chain[name]
        for file, recorded in link.files.items():
            entry = rebuilt.files.get(file)
            self._compare(f"{name}/{file}", recorded, entry.sha256 if entry else None)
        self._compare(f"{name} key", link.digest, rebuilt.key)

    def _compare_journals(self, again: Run) -> None:
        """The loss and the gradient's norm of every step, the held-out loss of every evaluation."""
        recorded, rebuilt = (list(_measured(path)) for path in (self.run, RunFolder.of(again)))
        parted = next((p for p in zip_longest(recorded, rebuilt) if p[0] != p[1]), None)
        if parted and self.first is None:
            before, after = parted
            step, what, _ = before or after
            self.first = Difference(
                what=what,
                step=step,
                recorded=before and before[2],
                rebuilt=after and after[2],
            )
        name = f"{JOURNAL}: {len(recorded)} losses and gradient norms"
        hashes = [storage.sha256_bytes(storage.canonical_json(m)) for m in (recorded, rebuilt)]
        self._compare(name, hashes[0], hashes[1])

    def _compare_checkpoints(self, again: Run) -> None:
        for file, entry in sorted(self.record.files.items()):
            path = Path(file)
            if path.parts[0] != CHECKPOINTS or path.name == storage.RECORD:
                continue  # a checkpoint's record tells of the time and the machine too
            step = int(path.parent.name.rpartition("_")[2])
            other = again.files.get(file)
            row = self._compare(file, entry.sha256, other.sha256 if other else None, step)
            if row and not row.same and path.name == MODEL and other:
                self._compare_weights(self.run.path / path.parent, again.path / path.parent)

    def _compare_weights(self, recorded: Path, rebuilt: Path) -> None:
        """The first tensor that differs, and the largest difference of any weight."""
        if not (recorded / MODEL).is_file():
            return
        before, after = (load_model(f)[0].state_dict() for f in (recorded, rebuilt))
        for name, tensor in before.items():
            apart = float((tensor - after[name]).abs().max())
            if apart and self.first and self.first.tensor is None:
                self.first = self.first.model_copy(update={"tensor": name})
            self.weights_difference = max(self.weights_difference or 0.0, apart)

    # ---- the verdict ----

    def judged(self, level: str | None, notes: tuple[str, ...], folder: str | None) -> Reproduction:
        weights = self.weights_difference
        apart = self.val_bpb_difference
        verdict: Literal["bit-identical", "within tolerance", "diverged"] = "diverged"
        if self.first is None:
            verdict = "bit-identical"
        elif apart is not None and abs(apart) <= BPB_TOLERANCE and self._weights_are_near():
            verdict = "within tolerance"
        return Reproduction(
            name=self.chain.name, verdict=verdict, level=level, compared=tuple(self.compared),
            first_difference=self.first, notes=notes, folder=folder,
            weights_difference=weights, val_bpb_difference=apart,
        )  # fmt: skip

    def _weights_are_near(self) -> bool:
        """Whether the weights are as recorded, or were compared and differ little."""
        rows = [row for row in self.compared if row.name.endswith(MODEL)]
        if all(row.same for row in rows):
            return True
        far = self.weights_difference
        return far is not None and math.isfinite(far) and far <= WEIGHTS_TOLERANCE


def _measured(run: RunFolder) -> Iterator[tuple[int, str, str]]:
    """(step, what, the exact value) of everything that a journal must repeat."""
    for entry in run.journal:
        if entry["event"] == "step":
            yield entry["step"], "train_loss", float(entry["train_loss"]).hex()
            norm = entry.get("grad_norm")
            if norm is not None and math.isfinite(norm):
                yield entry["step"], "grad_norm", float(norm).hex()
        elif entry["event"] == "evaluate":
            yield entry["step"], "val_loss", float(entry["val_loss"]).hex()
