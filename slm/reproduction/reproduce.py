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
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import torch
from pydantic import ValidationError

from slm import storage
from slm.config import EvaluateConfig, PipelineConfig
from slm.errors import CorruptionError, Interrupted, SlmError, UserError
from slm.evaluation.evaluate import evaluate
from slm.evaluation.identity import DETAILS, EVALUATE_VERSION, evaluate_key
from slm.history.lineage import (
    ARITHMETIC,
    WRITER,
    Lineage,
    Link,
    lineage,
    machine_differences,
)
from slm.machine import has_mps
from slm.model.saved import MODEL, load_model
from slm.progress import Progress, automatic
from slm.records import Evaluation, Frozen, Parent, Record, Run, Shards, Source
from slm.reproduction.claims import Claims, compare_data, compare_results, compare_training
from slm.reproduction.comparing import Compared, Comparisons, Difference, tensor_differences
from slm.run_folder import CHECKPOINTS, EVALUATION, LOCK, RunFolder
from slm.source.download import download
from slm.source.hub_client import keep_cache_in
from slm.source.reading import documents_sha256, written_by
from slm.tokens.encode import encode
from slm.tokens.tokenizer import gpt2_files
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.tokens.vocabulary import make_tokenizer
from slm.training import supervisor
from slm.training.identity import TRAIN_VERSION, run_inputs, run_keys
from slm.training.journal import process_counts
from slm.training.prepare import prepare

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
    if obstacle := _obstacle(chain, run, record):
        missing, first = obstacle
        return Reproduction(verdict="cannot", missing=missing, first_difference=first, **known)
    assert record is not None
    known["expected"] = ", ".join(machine_differences(record.environment, ARITHMETIC)) or None
    with _fresh_root(run, keep) as fresh:
        rebuild = _Rebuild(record, chain, fresh, progress, expects_other=bool(known["expected"]))
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
    counts = process_counts(run)
    if plan.world_size > 2 or (plan.parallel != "elastic" and len(counts) > 1):
        sums = (
            f"{max(plan.world_size, *counts)} processes summed gradients in an order that is lost"
        )
        return (sums,), Difference(what="environment")
    needed = 1 if plan.parallel == "elastic" else max(counts)
    if plan.device == "cuda" and torch.cuda.device_count() < needed:
        gpus = f"{torch.cuda.device_count()} GPUs here, {needed} needed"
        return (gpus,), Difference(what="environment")
    if plan.device == "mps" and not has_mps():
        return ("it was trained on mps, and torch sees no Apple GPU here",), Difference(
            what="environment"
        )
    saved = {
        name: entry
        for name, entry in record.files.items()
        if name.startswith(f"{CHECKPOINTS}/") and (run.path / name).is_file()
    }
    if wrong := storage.mismatches(run.path, saved):
        return tuple(wrong), Difference(what="checkpoint")
    shards = run.shards
    if shards and (reason := _other_training(run, record.key, shards, chain)):
        return (reason,), Difference(what="code", recorded=chain["code"].digest)
    return None


def _is_no_obstacle(link: Link) -> bool:
    """Whether a broken link leaves the run to be rebuilt.

    Code at another commit does: if another version of a stage would run, its key says so. Of code
    that had changes in no commit (`gone`) the keys say nothing. A run that was made from another
    one holds all that it needs.
    """
    if link.state == "gone":
        return link.name in REBUILT
    return link.name in ("code", "environment", "made from")


def _other_training(run: RunFolder, key: str, shards: Shards, chain: Lineage) -> str | None:
    """Why this code trains other bits than the run's; None where the key shows that it does not."""
    settings = run.settings
    inputs = run_inputs(shards, settings.parent_key, settings.derived)
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
    expects_other: bool = False  # whether torch, CPU or GPU are others, and so the bits
    compared: Comparisons = field(default_factory=Comparisons)
    notes: list[str] = field(default_factory=list)
    stage: str = "source"
    weights_difference: float | None = None  # infinite where tensors are not comparable
    val_bpb_difference: float | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder.of(self.record)

    def all(self) -> None:
        """Rebuild stage after stage; other data ends it, since no training could be compared."""
        config = self.run.config
        recorded = Claims.of(self.run, self.chain.tags)
        root = self.run.root.path  # its caches are used: what they hold is verified by its hash
        gpt2_files.place(root)
        keep_cache_in(root)
        source = self._download(config)
        if self.compared.first:
            return
        self.stage = "shards"
        parent = self.run.parent
        given = Tokenizer.load(parent.path / TOKENIZER) if parent else None
        if config.data.makes_vocabulary and given is None:
            self.stage = "tokenizer"
            given = self._vocabulary(config, source)
            self.compared.add("tokenizer", self.chain["tokenizer"].digest, given.sha256)
            if self.compared.first:
                return
            self.stage = "shards"
        shards = encode(config, source, tokenizer=given, root=self.fresh, progress=self.progress)
        self._compare_folder("shards", shards)
        if parent or not config.data.makes_vocabulary:  # else it was compared already
            self.compared.add("tokenizer", self.chain["tokenizer"].digest, shards.tokenizer_sha256)
        if self.compared.first:
            return
        is_rebuilt = source.path.is_relative_to(self.fresh)
        claims = recorded if is_rebuilt else replace(recorded, source=None)  # compared already
        compare_data(self.compared, claims, Claims(source=source, shards=shards))
        self.stage = "training"
        again = self._train(config, shards, parent)
        self.compared.add("run key", self.record.key, again.key)
        rebuilt = Claims.of(RunFolder.of(again))
        compare_training(self.compared, recorded, rebuilt)
        self._compare_weights(again)
        self.val_bpb_difference = again.val_bpb - self.record.val_bpb
        self.stage = "evaluation"
        evaluations = {
            name: self._evaluate(config, name, evaluation, again, shards)
            for name, evaluation in recorded.evaluations.items()
        }
        if not evaluations and (recorded.tags or recorded.pages):  # which copy one that is gone
            evaluations = {EVALUATION: evaluate(config, again, shards, progress=self.progress)}
        compare_results(self.compared, recorded, replace(rebuilt, evaluations=evaluations))

    def _vocabulary(self, config: PipelineConfig, source: Source) -> Tokenizer:
        """The vocabulary of `data.tokenizer`, trained anew, or read from the file that has it."""
        made = make_tokenizer(config, source, root=self.fresh, progress=self.progress)
        return Tokenizer.load(made.path / TOKENIZER)

    def _download(self, config: PipelineConfig) -> Source:
        recorded = self.run.source
        if config.data.sources and recorded:
            config = config.with_revisions(
                {name: part.revision for name, part in recorded.parts.items()}
            )
        elif config.data.source == "hub":
            pinned = config.data.model_copy(update={"revision": self.chain["dataset"].digest})
            config = config.model_copy(update={"data": pinned})
        source = download(config, root=self.fresh, progress=self.progress)
        if recorded is None or written_by(recorded) == written_by(source):
            self._compare_folder("source", source)
            return source
        return self._compare_documents(recorded, source)

    def _compare_documents(self, recorded: Source, rebuilt: Source) -> Source:
        """Compare what two sources hold, whose files were written by different pyarrows.

        Returns the recorded one: the key of the shards is made from its files.
        """
        self.notes.append(
            f"the source was written by {written_by(recorded)}, here by {written_by(rebuilt)}: "
            "other files are expected, and the documents were compared"
        )
        self.compared.add("source key", self.chain["source"].digest, rebuilt.key)
        self.compared.add_record("source", recorded, rebuilt)
        for split in recorded.splits:
            before, after = (documents_sha256(source, split) for source in (recorded, rebuilt))
            self.compared.add(f"source, documents of {split}", before, after)
        return recorded

    def _train(self, config: PipelineConfig, shards: Shards, parent: Parent | None) -> Run:
        """Train by the recorded plan and decision, so that nothing is probed or chosen anew.

        The model that the run continued from is the run's own copy. A run that was made from
        another one is trained from the start, the other's steps too.
        """
        if reason := _other_training(self.run, self.record.key, shards, self.chain):
            raise UserError(reason)
        run = prepare(
            config, shards, parent=parent, root=self.fresh, key=self.record.key,
            derived=self.run.settings.derived,
        )  # fmt: skip
        plan = self.run.plan
        assert plan is not None, "a finished run has one"
        run.write_plan(plan)
        if decision := self.run.decision:
            run.write_decision(decision)
        if plan.parallel != "elastic":  # whose bits are those of a number of processes
            [count] = process_counts(self.run)
            train = config.train.model_copy(update={"processes": count})
            config = config.model_copy(update={"train": train})
        supervisor.supervise(run, config, self.progress, lambda event: None)
        rebuilt = run.verified_record
        assert rebuilt is not None, f"{run.path} ended without a record"
        return rebuilt

    def _evaluate(
        self, config: PipelineConfig, name: str, recorded: Evaluation, rebuilt: Run, shards: Shards
    ) -> Evaluation:
        """Score the rebuilt checkpoint by the settings that a recorded evaluation was made with."""
        known = self.record.best, self.record.last
        settings, version = evaluation_settings(config, recorded, shards.key, known)
        after = evaluate(
            config.model_copy(update={"evaluate": settings}), rebuilt, shards,
            progress=self.progress,
        )  # fmt: skip
        if version in (None, EVALUATE_VERSION):
            self.compared.add(f"{name} key", recorded.key, after.key, follows=True)
        file, entry = f"{name}/{DETAILS}", recorded.files.get(DETAILS)
        digest = after.files[DETAILS].sha256
        self.compared.add(file, entry.sha256 if entry else None, digest, follows=True)
        self.val_bpb_difference = after.val_bpb - recorded.val_bpb
        return after

    # ---- comparing ----

    def _compare_folder(self, name: str, rebuilt: Record) -> None:
        """Compare files and key. Raises UserError where the key is another stage version's."""
        link = self.chain[name]
        for file, recorded in link.files.items():
            entry = rebuilt.files.get(file)
            self.compared.add(f"{name}/{file}", recorded, entry.sha256 if entry else None)
        if not self.compared.add(f"{name} key", link.digest, rebuilt.key):
            if self.run.source is None and (other := self._other_writer()):
                raise UserError(
                    f"{other}, which writes other files of the same documents, and those that the "
                    f"{name} were made from are gone: install that pyarrow"
                )
            raise UserError(
                f"the code here makes the {name} by another version of the stage"
                f"{_advice(self.chain)}"
            )

    def _other_writer(self) -> str | None:
        return next(iter(machine_differences(self.record.environment, WRITER)), None)

    def _compare_weights(self, again: Run) -> None:
        """The first tensor that differs, and the largest difference of any weight."""
        for row in self.compared.differing:
            file = Path(row.name)
            folders = (self.run.path / file.parent, again.path / file.parent)
            if file.name != MODEL or not all((folder / MODEL).is_file() for folder in folders):
                continue
            step = int(file.parent.name.rpartition("_")[2])
            before, after = (load_model(folder)[0].state_dict() for folder in folders)
            for each in tensor_differences(step, before, after):
                first = self.compared.first
                if first and first.step and first.tensor is None:
                    self.compared.first = first.model_copy(update={"tensor": each.name})
                largest = math.inf if each.largest is None else each.largest
                self.weights_difference = max(self.weights_difference or 0.0, largest)

    def verdict(self) -> Literal["bit-identical", "within tolerance", "diverged"]:
        differing = self.compared.differing
        if not differing:
            return "bit-identical"
        weights = [row for row in self.compared.rows if row.name.endswith(MODEL)]
        have_moved = any(not row.same for row in weights)
        bpb, far = self.val_bpb_difference, self.weights_difference
        if bpb is None or abs(bpb) > BPB_TOLERANCE:
            return "diverged"
        if have_moved and not self.expects_other and (far is None or far > WEIGHTS_TOLERANCE):
            return "diverged"
        # With the same weights nothing that follows from them has a reason to differ. Where other
        # arithmetic moved them, the losses on the way follow too: only the result must be near.
        excused = (
            row.near or (have_moved and (row.follows or (row.is_loss and self.expects_other)))
            for row in differing
        )
        return "within tolerance" if all(excused) else "diverged"


def evaluation_settings(
    config: PipelineConfig, evaluation: Evaluation, shards_key: str, checkpoints: tuple[str, str]
) -> tuple[EvaluateConfig, int | None]:
    """The settings that an evaluation was made with, and the version of the stage.

    Its key is what shows them: its figures are what is to be compared.

    Args:
        checkpoints: the names of the best and the last one.

    Where the key is of no settings, those are the run's own, and the version None.
    """
    which = "best" if evaluation.checkpoint == checkpoints[0] else "last"
    candidates = [config.evaluate]
    for checkpoint in dict.fromkeys((which, "best", "last")):
        for documents in (None, evaluation.documents):
            fields = {"documents": documents, "checkpoint": checkpoint}
            with suppress(ValidationError):  # a count that none can have
                candidates.append(EvaluateConfig.model_validate(fields))
    for version in range(EVALUATE_VERSION, 0, -1):
        for settings in candidates:
            by = config.model_copy(update={"evaluate": settings})
            if evaluation.key == evaluate_key(by, evaluation.weights_sha256, shards_key, version):
                return settings, version
    return config.evaluate, None
