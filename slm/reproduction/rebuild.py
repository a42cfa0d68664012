"""A run that is rebuilt, stage by stage, and compared with what was recorded."""

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from slm.config import EvaluateConfig, PipelineConfig
from slm.errors import UserError
from slm.evaluation.evaluate import evaluate
from slm.evaluation.identity import DETAILS, EVALUATE_VERSION, evaluate_key
from slm.history.lineage import WRITER, Lineage, machine_differences
from slm.model.saved import MODEL, load_model
from slm.progress import Progress
from slm.records import Evaluation, Parent, Record, Run, Shards, Source
from slm.reproduction.claims import Claims, compare_data, compare_results, compare_training
from slm.reproduction.comparing import Comparisons, tensor_differences
from slm.reproduction.obstacles import advice, other_training
from slm.run_folder import EVALUATION, RunFolder
from slm.source.download import download
from slm.source.hub_client import keep_cache_in
from slm.source.reading import documents_sha256, written_by
from slm.tokens.encode import encode
from slm.tokens.tokenizer import gpt2_files
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.tokens.vocabulary import make_tokenizer
from slm.training import supervisor
from slm.training.journal import process_counts
from slm.training.prepare import prepare

WEIGHTS_TOLERANCE = 1e-2  # largest difference of a weight
BPB_TOLERANCE = 1e-2  # bits per byte


@dataclass
class Rebuild:
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
        if reason := other_training(self.run, self.record.key, shards, self.chain):
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
                f"{advice(self.chain)}"
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
