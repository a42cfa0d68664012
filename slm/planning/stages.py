"""What each stage of a run would do: a walk through the stages, with the records that they reuse.

A stage's key needs the records of the stages before it, so from the first one that has to run on,
keys are not known.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field

from slm import keys, storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, UserError
from slm.evaluation.identity import evaluate_key, evaluation_folder
from slm.planning.inputs import SourceKey, file_changes, source_key
from slm.planning.results import Changed, Result, Results, differences, nearest
from slm.planning.versions import version_change
from slm.records import Evaluation, Frozen, Record, Report, Run, Selection, Shards, Source, Version
from slm.registry.tags import (
    PREFIX,
    chain_tags,
    ingredients,
    read_note,
    register_key,
    registered_notes,
)
from slm.report.identity import report_folder, report_key
from slm.run_folder import SELECTION, RunFolder, checkpoint_name
from slm.source.download import generator_version
from slm.storage import R
from slm.tokens.encode import encode_key, units_folder
from slm.tracking.server import recorded_uri, tracking_uri
from slm.tracking.store import file_of, version_tags
from slm.training.identity import find_run, run_inputs, run_keys
from slm.training.selection import check_kept, check_resumable, choice

Action = Literal["reused", "resumed", "to run", "refused"]
UNEXPLAINED = "no recorded setting differs: another slm made the nearest result"


class Stage(Frozen):
    """What a run would do at a stage, and why."""

    stage: str
    action: Action
    key: str | None = None  # None: not known before an earlier stage has run
    result: str | None = None  # the folder of the result, or the version
    nearest: str | None = None  # the existing result that differs the least
    changed: Changed = Field(default_factory=dict)  # the settings in which it differs: old, new
    version: tuple[int, int] | None = None  # of the stage, where it went up since
    reasons: tuple[str, ...] = ()
    assumed: bool = False  # it rests on what was not read: files by size and time, a branch
    step: int | None = None  # from which a training is resumed
    max_steps: int | None = None  # its last step, where that is fixed
    seconds: float | None = None  # estimated; None: unknown
    seconds_from: str = ""  # what the estimate rests on
    memory_bytes: int | None = None  # of a training process
    memory_from: str = ""
    disk_bytes: int | None = None  # that its result takes


class Walk:
    """The stages of a config in order, as far as the results that are here show them.

    Args:
        verify: whether files are hashed and servers asked, as a run does.
        against: a run that all stages are compared with, instead of the nearest results.
    """

    def __init__(
        self,
        config: PipelineConfig,
        results: Results,
        *,
        verify: bool = False,
        against: RunFolder | None = None,
    ) -> None:
        self.config, self.results, self.verify, self.against = config, results, verify, against
        self.flat = config.flat()
        self.stages: list[Stage] = []
        self.reference = against  # the run that is reused, or the nearest one
        self.source: Source | None = None
        self.shards: Shards | None = None
        self.run: Run | None = None
        self.cadence_counts = True  # whether another cadence chooses another checkpoint
        self._best_known = True

    def walk(self) -> list[Stage]:
        """Every stage up to `register`."""
        self.source = self._download()
        self.shards = self._encode(self.source)
        self.run = self._train(self.shards)
        evaluation = self._evaluate(self.run, self.shards)
        report = self._report(self.run, evaluation)
        self._register(self.run, evaluation, report)
        return self.stages

    # ---- what is here ----

    def _complete(self, folder: Any, kind: type[R], key: str) -> tuple[R | None, str]:
        """The complete result of a key, if any, and what is wrong with a damaged one."""
        try:
            record = storage.read_record(folder, kind, verify=self.verify)
        except CorruptionError as error:
            return None, str(error)
        if record is None or record.key != key:
            return None, ""
        damage = self._damage(record)
        return (None, damage) if damage else (record, "")

    def _damage(self, record: Record) -> str:
        """What is wrong with the files of a record, by size; with `verify` by their hashes too."""
        return "; ".join(storage.mismatches(record.path, record.files, hashes=self.verify))

    def _pinned(self, candidates: Iterable[Result]) -> list[Result]:
        """Of these results, those that led to the run that is compared with, if one is."""
        if self.against is None:
            return list(candidates)
        settings = self.against.settings
        shards = self.against.shards
        own = {settings.key, settings.shards_key, shards.source_key if shards else None}
        return [result for result in candidates if result.record.key in own]

    # ---- the lines of the plan ----

    def _reuse(
        self, stage: str, record: Record, candidates: Iterable[Result], **facts: Any
    ) -> None:
        """Add a stage that is reused; compared with that of `against` where it is another."""
        if self.against is not None:
            other = [r for r in candidates if r.path != record.path]
            if best := nearest(other, self.flat, self.flat):
                facts.setdefault("nearest", str(best.path))
                own = OWN[stage](self.config)
                facts.setdefault("changed", differences(best.settings, self.flat, own))
        facts.setdefault("result", str(record.path))
        self.stages.append(Stage(stage=stage, action="reused", key=record.key, **facts))

    def _make(
        self,
        stage: str,
        key: str | None,
        candidates: Sequence[Result],
        *,
        upstream: Sequence[str] = (),
        inputs: str | None = None,
        reasons: Iterable[str] = (),
        **facts: Any,
    ) -> Result | None:
        """Add a stage that has to run, explained by the nearest result; returns that.

        Args:
            upstream: settings of the stages before it, which explain other inputs.
            inputs: what it is made from; None: not known yet, and explained there.
        """
        own = OWN[stage](self.config)
        best = nearest(candidates, self.flat, (*own, *upstream))
        reasons, version, changed = list(reasons), None, Changed()
        if best is None:
            reasons = reasons or ["there is no result of this stage yet"]
        else:
            if best.recipe != self.config.recipe:
                changed["recipe"] = (best.recipe, self.config.recipe)
            changed |= differences(best.settings, self.flat, own)
            if inputs and best.inputs != inputs:
                changed |= differences(best.settings, self.flat, upstream)
            version = version_change(stage, best, self.config, self.results.root)
            if not (changed or version or reasons) and (inputs is None or best.inputs == inputs):
                reasons.append(UNEXPLAINED)
        facts.setdefault("action", "to run")
        line = Stage(
            stage=stage,
            key=key,
            nearest=str(best.path) if best else None,
            changed=changed,
            version=version,
            reasons=tuple(reasons),
            **facts,
        )
        self.stages.append(line)
        return best

    # ---- download and encode ----

    def _download(self) -> Source | None:
        known = source_key(self.config, self.results, verify=self.verify)
        candidates = self._pinned(self.results.sources)
        facts: dict[str, Any] = {"assumed": known.assumed}
        reasons = [known.note] if known.note else []
        damage = ""
        if known.key:
            folder = self.results.root.folder("sources", self.config.recipe, known.key)
            source, damage = self._complete(folder, Source, known.key)
            if source:
                self._reuse("download", source, candidates, reasons=tuple(reasons), **facts)
                return source
            facts["result"] = str(folder)
        if damage:
            reasons.append(f"damaged: {damage}")
        best = self._make("download", known.key, candidates, reasons=reasons, **facts)
        if best and isinstance(best.record, Source):
            self._explain_source(best.record, known)
        return None

    def _explain_source(self, old: Source, known: SourceKey) -> None:
        """Say of a new source what differs besides settings: files, a commit, the generator."""
        line = self.stages.pop()
        changed, files = dict(line.changed), file_changes(old, known.origin)
        if self.config.data.source == "files" and old.origin and not files:
            changed.pop("data.path", None)  # another path to the same files
        if self.config.data.revision == old.revision:
            changed.pop("data.revision", None)  # the commit that a branch was resolved to
        reasons = [reason for reason in line.reasons if reason != UNEXPLAINED] + files
        today = generator_version()
        if self.config.data.source == old.dataset == "stories" and old.revision != today:
            reasons.append(f"the generator of stories: {old.revision} → {today}")
        if known.commit and known.commit != old.revision and "data.revision" not in changed:
            reasons.append(f"commit {old.revision[:12]} → {known.commit[:12]}")
        if not (reasons or changed or line.version):
            reasons = [UNEXPLAINED]
        update = {"changed": changed, "reasons": tuple(reasons)}
        self.stages.append(line.model_copy(update=update))

    def _encode(self, source: Source | None) -> Shards | None:
        candidates = self._pinned(self.results.shards)
        upstream = OWN["download"](self.config)
        if source is None:
            self._make("encode", None, candidates, upstream=upstream, reasons=[_after("download")])
            return None
        key = encode_key(self.config, source, None)
        folder = self.results.root.folder("shards", self.config.recipe, key)
        shards, damage = self._complete(folder, Shards, key)
        if shards:
            self._reuse("encode", shards, candidates)
            return shards
        reasons = [f"damaged: {damage}"] if damage else []
        facts: dict[str, Any] = {"result": str(folder)}
        if any(units_folder(folder).glob("*")):
            facts["action"] = "resumed"
            reasons.append("an interrupted encoding left the units that it had finished")
        best = self._make(
            "encode", key, candidates,
            upstream=upstream, inputs=source.key, reasons=reasons, **facts,
        )  # fmt: skip
        if best and best.inputs != source.key:
            self._add_reason(f"other documents: {source.name} instead of {_of(best)}")
        return None

    # ---- train ----

    def _train(self, shards: Shards | None) -> Run | None:
        upstream = (*OWN["download"](self.config), *OWN["encode"](self.config))
        runs = self._runs()
        if shards is None:
            best = self._make("train", None, runs, upstream=upstream, reasons=[_after("encode")])
            self._refer_to(best)
            return None
        folder = find_run(self.config, shards, None, self.results.root)
        key = run_keys(self.config, run_inputs(shards, None))[0]
        reasons: list[str] = []
        if folder.exists:
            try:
                key = folder.settings.key
                folder.check_format()
                record = folder.record
                damage = self._damage(record) if record else ""
            except CorruptionError as error:
                record, damage = None, str(error)
            self.reference = self.against or folder
            if record and not damage:
                return self._trained(folder, record, runs)
            if self._resumes(folder, key, damage):
                return None
            reasons.append(f"damaged: {damage}" if damage else "started, but no step was saved")
        best = self._make(
            "train", key, runs,
            upstream=upstream, inputs=shards.key, reasons=reasons, result=str(folder.path),
        )  # fmt: skip
        if best and best.inputs != shards.key:
            self._add_reason(self._other_shards(best, shards))
        self._refer_to(best)
        return None

    def _runs(self) -> list[Result]:
        """The finished runs; where the plan is compared with one, that one, finished or not."""
        if self.against is None:
            return self.results.runs
        settings = self.against.settings
        record = Record(key=settings.key, path=self.against.path)
        flat, recipe = settings.config.flat(), settings.config.recipe
        return [Result(record, recipe, flat, settings.shards_key, None)]

    def _refer_to(self, best: Result | None) -> None:
        if best and self.reference is None:
            self.reference = RunFolder(best.path)

    def _other_shards(self, best: Result, shards: Shards) -> str:
        old = self.results.root.shards(best.inputs)
        name = old.name if old else "shards that are gone"
        other = old is not None and old.tokenizer_sha256 != shards.tokenizer_sha256
        tokenizer = ", by another tokenizer" if other else ""
        return f"other shards: {shards.name} instead of {name}{tokenizer}"

    def _trained(self, folder: RunFolder, record: Run, runs: list[Result]) -> Run | None:
        """A finished run, with the best checkpoint by the cadence of the config."""
        try:
            chosen = choice(folder, record, self.config)
            if chosen is None:
                self.cadence_counts = False
                self._reuse("train", record, runs)
                return record
            kept = folder.result_folder(SELECTION, chosen.key)
            selection, _ = self._complete(kept, Selection, chosen.key)
            if selection:
                self._reuse("train", record, runs)
                return record.model_copy(update={"best": selection.best})
            check_kept(folder, self.config, map(checkpoint_name, chosen.missing))
            reason = "trains nothing; its best checkpoint is chosen again"
            best = None
            if chosen.missing:
                reason += f", for which {len(chosen.missing)} saved checkpoints are scored"
                self._best_known = False
            else:
                best = chosen.best(chosen.known)
                check_kept(folder, self.config, [best])
        except UserError as error:
            self._refuse(folder, str(error))
            return None
        names = keys.names_of("select")
        changed = differences(folder.config.flat(), self.flat, names)
        facts = {"changed": changed, "nearest": str(folder.path), "reasons": (reason,)}
        self._reuse("train", record, runs, **facts)
        return record.model_copy(update={"best": best}) if best else record

    def _refuse(self, folder: RunFolder, message: str) -> None:
        """Add a training that a run would refuse, with its message."""
        changed = differences(folder.config.flat(), self.flat, keys.names_of("select"))
        line = Stage(
            stage="train",
            action="refused",
            key=folder.settings.key,
            result=str(folder.path),
            nearest=str(folder.path),
            changed=changed,
            reasons=(message,),
        )
        self.stages.append(line)

    def _resumes(self, folder: RunFolder, key: str, damage: str) -> bool:
        """Add an unfinished training that would be resumed, or refused; False where it begins."""
        with suppress(CorruptionError):
            if folder.config.train != self.config.train:
                try:
                    check_resumable(folder, self.config)
                except UserError as error:
                    self._refuse(folder, str(error))
                    return True
        step = self._last_step(folder)
        if step is None:
            return False
        reasons = [f"damaged: {damage}"] if damage else []
        if folder.is_training:
            reasons.append("another process trains it now")
        line = Stage(
            stage="train",
            action="resumed",
            key=key,
            result=str(folder.path),
            step=step,
            max_steps=folder.max_steps,
            reasons=tuple(reasons),
        )
        self.stages.append(line)
        return True

    def _last_step(self, folder: RunFolder) -> int | None:
        """The step of the newest checkpoint that is whole."""
        for step, path in reversed(folder.checkpoints):
            with suppress(CorruptionError):
                checkpoint = folder.checkpoint(path.name, verify=self.verify)
                if checkpoint and not self._damage(checkpoint):
                    return step
        return None

    # ---- of the run ----

    def _evaluate(self, run: Run | None, shards: Shards | None) -> Evaluation | None:
        candidates = self.results.evaluations(self.reference) if self.reference else []
        which = self.config.evaluate.checkpoint
        upstream = keys.names_of("select")
        if run is None or shards is None or (which == "best" and not self._best_known):
            self._make("evaluate", None, candidates, reasons=[_after("train")])
            return None
        name = run.checkpoint(which).name
        checkpoint = RunFolder.of(run).checkpoint(name)
        if checkpoint is None:
            self._make("evaluate", None, candidates, reasons=[f"damaged: {name} is gone"])
            return None
        key = evaluate_key(self.config, checkpoint.weights_sha256, shards.key)
        folder = evaluation_folder(self.config, run, key)
        evaluation, damage = self._complete(folder, Evaluation, key)
        if evaluation:
            self._reuse("evaluate", evaluation, candidates)
            return evaluation
        reasons = [f"damaged: {damage}"] if damage else []
        best = self._make(
            "evaluate", key, candidates,
            upstream=upstream, inputs=checkpoint.weights_sha256, reasons=reasons,
            result=str(folder),
        )  # fmt: skip
        if best and best.inputs != checkpoint.weights_sha256:
            self._add_reason(f"other weights: those of {name}")
        return None

    def _report(self, run: Run | None, evaluation: Evaluation | None) -> Report | None:
        candidates = self.results.reports(self.reference) if self.reference else []
        if run is None or evaluation is None:
            self._make("report", None, candidates, reasons=[_after("evaluate")])
            return None
        key = report_key(self.config, run, evaluation)
        folder = report_folder(self.config, run, evaluation, key)
        report, damage = self._complete(folder, Report, key)
        if report:
            self._reuse("report", report, candidates)
            return report
        upstream = keys.names_of("evaluate")
        self._make(
            "report", key, candidates,
            upstream=upstream, inputs=evaluation.key, result=str(folder),
            reasons=[f"damaged: {damage}"] if damage else [],
        )  # fmt: skip
        return None

    def _register(
        self, run: Run | None, evaluation: Evaluation | None, report: Report | None
    ) -> None:
        if run is None or evaluation is None or report is None:
            reason = _after("report")
            self.stages.append(Stage(stage="register", action="to run", reasons=(reason,)))
            return
        home, root = RunFolder.of(run), self.results.root.path
        checkpoint = home.checkpoint(evaluation.checkpoint)
        assert checkpoint is not None, "its evaluation is reused"
        made = ingredients(self.config, run, checkpoint, evaluation, report, self.shards)
        tags = chain_tags(made)
        key = register_key(self.config, tags, root)
        versions = [v for v in map(read_note, registered_notes(run.path)) if v]
        facts: dict[str, Any] = {"stage": "register", "key": key}
        noted, assumed = self._registered(run, versions, key, tags)
        if noted:
            facts |= {"result": noted.uri, "assumed": assumed}
            note = "by the note of it in the run's folder: its server was not asked"
            facts["reasons"] = (note,) if assumed else ()
            self.stages.append(Stage(action="reused", **facts))
            return
        if versions:
            last = versions[-1]
            changed = self._of_registry(last, home)
            facts |= {"nearest": last.uri, "changed": changed}
            gone = f"{last.uri} is gone, or what it was made of differs by now"
            facts["reasons"] = () if changed else (gone,)
        else:
            facts["reasons"] = ("the run is not registered yet",)
        self.stages.append(Stage(action="to run", **facts))

    def _registered(
        self, run: Run, noted: Iterable[Version], key: str, tags: dict[str, str]
    ) -> tuple[Version | None, bool]:
        """The version with this chain that `register` would reuse, and whether that is assumed.

        A store that is a file is read. A server is asked by `verify` alone, else the note counts.
        """
        root = self.results.root.path
        store = file_of(tracking_uri(self.config, root))
        if store is None and self.verify:
            from slm.registry.register import registered_version

            return registered_version(self.config, run, tags, root), False
        if store is not None and not store.exists():
            return None, False
        prefixed = {PREFIX + name: value for name, value in tags.items()}
        for version in noted:
            if version.model != self.config.model_name:
                continue
            held = version_tags(store, version.model, version.version) if store else None
            if version.key == key if held is None else prefixed.items() <= held.items():
                return version, held is None
        return None, False

    def _of_registry(self, version: Version, run: RunFolder) -> Changed:
        """The settings by which a version goes elsewhere than the one that is here."""
        old, changed = run.config.flat(), Changed()
        if version.model != self.config.model_name:
            names = ("registry.model", "data.path", "data.source", "recipe")
            by = next((name for name in names if old[name] != self.flat[name]), None)
            changed |= {by: (old[by], self.flat[by])} if by else {}
            changed = changed or {"registry.model": (version.model, self.config.model_name)}
        root = self.results.root.path
        address = recorded_uri(tracking_uri(self.config, root), root)
        if version.tracking_uri != address:
            changed["registry.tracking_uri"] = (version.tracking_uri, address)
        return changed

    def _add_reason(self, reason: str) -> None:
        line = self.stages.pop()
        self.stages.append(line.model_copy(update={"reasons": (*line.reasons, reason)}))


OWN: dict[str, Callable[[PipelineConfig], tuple[str, ...]]] = {
    "download": lambda config: keys.names_of("download", config.data.source),
    "encode": lambda config: keys.names_of("encode"),
    "train": lambda config: (*keys.names_of("train"), *keys.names_of("select")),
    "evaluate": lambda config: keys.names_of("evaluate"),
    "report": lambda config: keys.names_of("report"),
}


def _after(stage: str) -> str:
    return f"after {stage}: its key is not known until then"


def _of(result: Result) -> str:
    """The name of what a result was made from, as its folder's name shows it."""
    return f"{result.recipe}-{(result.inputs or '')[:12]}"
