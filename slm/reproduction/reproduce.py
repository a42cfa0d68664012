"""Reproduce: rebuild a run from its lineage alone, and measure how alike the two are.

Source, shards and weights are built in a fresh folder from the run's config and plan; results of
the first time are read only to compare with. Where the lineage lacks something, or something in it
is not what was recorded, nothing is built and the verdict is `cannot`. The code may be at another
commit as long as its stages are of the same versions, which the keys show.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import torch

from slm import storage
from slm.config import EvaluateConfig, PipelineConfig
from slm.errors import CorruptionError, Interrupted, SlmError, UserError
from slm.evaluation.evaluate import DETAILS, evaluate
from slm.history.lineage import Lineage, Link, lineage
from slm.model.saved import MODEL, load_model
from slm.progress import Progress, silent
from slm.records import Frozen, Parent, Record, Run, Shards, Source
from slm.reproduction.comparing import Compared, Comparisons, Difference, tensor_differences
from slm.run_folder import CHECKPOINTS, JOURNAL, LOCK, RunFolder
from slm.source.download import download
from slm.source.hub_client import keep_cache_in
from slm.tokens.encode import encode
from slm.tokens.tokenizer import gpt2_files
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training import launch
from slm.training.identity import run_inputs, run_keys
from slm.training.loop import TRAIN_VERSION

FOLDER = "reproduced"  # of the data folder: what is being rebuilt
WEIGHTS_TOLERANCE = 1e-2  # largest difference of a weight
BPB_TOLERANCE = 1e-2  # bits per byte

# Links that are rebuilt where their files are gone; all others must be there.
REBUILT = ("source", "tokenizer", "shards", "checkpoint", "evaluation")
MAX_VERSION = 100  # of training, that are tried to name the one that a key was made with


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
        at = f"step {first.step}" if first.step else first.what
        tensor = f", first in {first.tensor}" if first.tensor else ""
        sizes = []
        if self.weights_difference is not None:
            sizes.append(f"weights by at most {self.weights_difference:.2g}")
        if self.val_bpb_difference is not None:
            sizes.append(f"val_bpb by {self.val_bpb_difference:+.2g}")
        by = f" ({' and '.join(sizes)})" if sizes else ""
        if self.verdict == "within tolerance":
            return f"within tolerance{by}; other bits from {at}{tensor}"
        return f"diverged at {at}{tensor}{by}"


def reproduce(
    run: RunFolder,
    *,
    chain: Lineage | None = None,
    keep: bool = False,
    progress: Progress = silent,
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
    if obstacle := _obstacle(chain, run, record):
        missing, first = obstacle
        return Reproduction(verdict="cannot", missing=missing, first_difference=first, **known)
    assert record is not None
    with _fresh_root(run, keep) as fresh:
        rebuild = _Rebuild(record, chain, fresh, progress)
        try:
            rebuild.all()
        except Interrupted:
            raise
        except SlmError as error:
            return Reproduction(
                verdict="cannot", missing=(str(error),), compared=tuple(rebuild.compared.rows),
                first_difference=Difference(what=rebuild.stage), **known,
            )  # fmt: skip
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


def _obstacle(
    chain: Lineage, run: RunFolder, record: Run | None
) -> tuple[tuple[str, ...], Difference] | None:
    """Why a run cannot be rebuilt, and the first link that is to blame; None where it can."""
    lacking = [link for link in chain.broken if not _is_no_obstacle(link)]
    if lacking:
        missing = tuple(
            f"{link.name} {link.state}: {note}"
            for link in lacking
            for note in link.notes or (link.value,)
        )
        return missing, Difference(what=lacking[0].name, recorded=lacking[0].digest)
    assert record is not None, "the lineage would lack it"
    if run.config.data.source == "hub" and chain["dataset"].digest is None:
        return ("the commit of the dataset is not known any more",), Difference(what="dataset")
    plan = run.plan
    assert plan is not None, "a finished run has one"
    if plan.device == "cuda" and torch.cuda.device_count() < plan.world_size:
        gpus = f"{torch.cuda.device_count()} GPUs here, {plan.world_size} needed"
        return (gpus,), Difference(what="environment")
    shards = run.shards
    if shards and (reason := _other_training(run, record.key, shards, chain)):
        return (reason,), Difference(what="code", recorded=chain["code"].digest)
    return None


def _is_no_obstacle(link: Link) -> bool:
    """Whether a broken link leaves the run to be rebuilt.

    Code at another commit does: if another version of a stage would run, its key says so. Of code
    that had changes in no commit (`gone`) the keys say nothing.
    """
    if link.state == "gone":
        return link.name in REBUILT
    return link.name in ("code", "environment")


def _other_training(run: RunFolder, key: str, shards: Shards, chain: Lineage) -> str | None:
    """Why this code trains other bits than the run's; None where the key shows that it does not."""
    settings = run.settings
    inputs = run_inputs(shards, settings.parent_key)
    made_by = [
        version
        for version in range(1, MAX_VERSION)
        if key in run_keys(settings.config, inputs, version)
    ]
    if made_by == [TRAIN_VERSION]:
        return None
    version = f"version {made_by[0]}" if made_by else "another version"
    return f"{run.name} was made by {version} of training, here is {TRAIN_VERSION}{_advice(chain)}"


def _advice(chain: Lineage) -> str:
    commit = chain["code"].digest
    return f": git checkout {commit}" if commit else ", and its commit was not recorded"


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


# ---- rebuilding -------------------------------------------------------------------------------


@dataclass
class _Rebuild:
    """One run rebuilt under `fresh`, compared stage by stage."""

    record: Run
    chain: Lineage
    fresh: Path
    progress: Progress
    compared: Comparisons = field(default_factory=Comparisons)
    stage: str = "source"
    weights_difference: float | None = None  # infinite where tensors are not comparable
    val_bpb_difference: float | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder.of(self.record)

    def all(self) -> None:
        """Rebuild stage after stage; other data ends it, since no training could be compared."""
        config = self.run.config
        root = self.run.root.path  # its caches are used: what they hold is verified by its hash
        gpt2_files.place(root)
        keep_cache_in(root)
        source = self._download(config)
        if self.compared.first:
            return
        self.stage = "shards"
        parent = self.run.parent
        given = Tokenizer.load(parent.path / TOKENIZER) if parent else None
        shards = encode(config, source, tokenizer=given, root=self.fresh, progress=self.progress)
        self._compare_folder("shards", shards)
        self.compared.add("tokenizer", self.chain["tokenizer"].digest, shards.tokenizer_sha256)
        if self.compared.first:
            return
        self.stage = "training"
        again = self._train(config, shards, parent)
        self.compared.add("run key", self.record.key, again.key)
        self.compared.add_journals(JOURNAL, self.run.journal, RunFolder.of(again).journal)
        self._compare_checkpoints(again)
        self.compared.add("val_bpb", self.record.val_bpb.hex(), again.val_bpb.hex())
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
        """Train by the recorded plan, so that nothing is probed or chosen anew.

        The model that the run continued from is the run's own copy.
        """
        if reason := _other_training(self.run, self.record.key, shards, self.chain):
            raise UserError(reason)
        run = launch.prepare(config, shards, parent=parent, root=self.fresh, key=self.record.key)
        plan = self.run.plan
        assert plan is not None, "a finished run has one"
        run.write_plan(plan)
        launch.supervise(run, config, self.progress, lambda event: None)
        rebuilt = run.verified_record
        assert rebuilt is not None, f"{run.path} ended without a record"
        return rebuilt

    def _evaluate(self, config: PipelineConfig, rebuilt: Run, shards: Shards) -> None:
        recorded = self.run.evaluation
        if recorded is None:
            return
        which = "best" if recorded.checkpoint == self.record.best else "last"
        fields = {"documents": recorded.documents, "checkpoint": which}
        same = config.model_copy(update={"evaluate": EvaluateConfig.model_validate(fields)})
        after = evaluate(same, rebuilt, shards, progress=self.progress)
        name = f"evaluation/{DETAILS}"
        self.compared.add(name, recorded.files[DETAILS].sha256, after.files[DETAILS].sha256)
        self.val_bpb_difference = after.val_bpb - recorded.val_bpb

    # ---- comparing ----

    def _compare_folder(self, name: str, rebuilt: Record) -> None:
        """Compare files and key. Raises UserError where the key is another stage version's."""
        link = self.chain[name]
        for file, recorded in link.files.items():
            entry = rebuilt.files.get(file)
            self.compared.add(f"{name}/{file}", recorded, entry.sha256 if entry else None)
        if not self.compared.add(f"{name} key", link.digest, rebuilt.key):
            raise UserError(
                f"the code here makes the {name} by another version of the stage"
                f"{_advice(self.chain)}"
            )

    def _compare_checkpoints(self, again: Run) -> None:
        for file, entry in sorted(self.record.files.items()):
            path = Path(file)
            if path.parts[0] != CHECKPOINTS or path.name == storage.RECORD:
                continue  # a checkpoint's record also holds the time and the machine
            step = int(path.parent.name.rpartition("_")[2])
            other = again.files.get(file)
            same = self.compared.add(file, entry.sha256, other.sha256 if other else None, step)
            if not same and path.name == MODEL and other and (self.run.path / file).is_file():
                self._compare_weights(step, self.run.path / path.parent, again.path / path.parent)

    def _compare_weights(self, step: int, recorded: Path, rebuilt: Path) -> None:
        """The first tensor that differs, and the largest difference of any weight."""
        before, after = (load_model(folder)[0].state_dict() for folder in (recorded, rebuilt))
        for each in tensor_differences(step, before, after):
            if self.compared.first and self.compared.first.tensor is None:
                self.compared.first = self.compared.first.model_copy(update={"tensor": each.name})
            largest = math.inf if each.largest is None else each.largest
            self.weights_difference = max(self.weights_difference or 0.0, largest)

    def verdict(self) -> Literal["bit-identical", "within tolerance", "diverged"]:
        if self.compared.first is None:
            return "bit-identical"
        bpb = self.val_bpb_difference
        if bpb is not None and abs(bpb) <= BPB_TOLERANCE and self._weights_are_near():
            return "within tolerance"
        return "diverged"

    def _weights_are_near(self) -> bool:
        """Whether the weights are as recorded, or were compared and differ little."""
        if all(row.same for row in self.compared.rows if row.name.endswith(MODEL)):
            return True
        return self.weights_difference is not None and self.weights_difference <= WEIGHTS_TOLERANCE
