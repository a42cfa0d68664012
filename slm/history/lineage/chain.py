"""The chain of a run: each record is read once, and the links are made from them."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from slm import keys, storage
from slm.config import DataConfig
from slm.errors import CorruptionError
from slm.evaluation.benchmark.results import show_score
from slm.history.lineage.current import (
    code_status,
    compare_origin,
    derived_status,
    machine_differences,
)
from slm.history.lineage.link import (
    NOT_CHECKED,
    WORST_FIRST,
    Checked,
    Lineage,
    Link,
    State,
    Status,
    make_link,
    status_of,
)
from slm.history.sweeps import trials_of
from slm.model.saved import CONFIG
from slm.records import Benchmarks, Checkpoint, Evaluation, Parent, Run, Shards, Source
from slm.run_folder import CHECKPOINTS, EVALUATION, PARENT, RunFolder, Settings
from slm.source.mixture import part_of_source
from slm.source.stories import STORIES_VERSION
from slm.storage import R
from slm.tokens.tokenizer.bpe import TOKENIZER

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a commit of the hub; a hash of local files
NONE_YET = "none yet"
NO_CHECKPOINT: Status = ("not checked", ("its training has saved no checkpoint yet",))


def lineage(
    run: RunFolder,
    *,
    tags: Mapping[str, str] | None = None,
    evaluation_key: str | None = None,
    check: bool = True,
) -> Lineage:
    """The chain of a run.

    Args:
        run: it may be gone where the tags describe it.
        tags: of a version of the run, without their prefix; they fill in what no file holds.
        evaluation_key: of the evaluation that ends the chain; None: the one that the tags name,
            else the run's own.
        check: hash every file again; else links count as not checked.

    Raises NewerFormat where a newer slm wrote the run.
    """
    with suppress(CorruptionError):  # which becomes a link's state
        run.check_format()
    tags = tags or {}
    return _Chain(run, tags, evaluation_key or tags.get("evaluation_key", ""), check).lineage()


class _Chain:
    """The records of one run, each read once, and the links that are made from them."""

    def __init__(
        self, run: RunFolder, tags: Mapping[str, str], evaluation_key: str, check: bool
    ) -> None:
        self.run, self.tags, self.check = run, tags, check
        self.trained = self._read(run.path, Run, lambda name: "/" not in name and name != CONFIG)
        self.evaluated = self._find_evaluation(evaluation_key)
        self.checkpoint = self._read(run.path / CHECKPOINTS / self._checkpoint_name(), Checkpoint)
        self.settings: Settings | None = None
        self.parent_key, self.shards_key = tags.get("parent_sha256"), tags.get("shards_key")
        with suppress(CorruptionError):
            self.settings = settings = run.settings
            self.parent_key, self.shards_key = settings.parent_key, settings.shards_key
        self.shards = self._read(self._folder("shards", self.shards_key), Shards)
        encoded = self.shards.record
        self.source_key = encoded.source_key if encoded else tags.get("source_key")
        self.source = self._read(self._folder("sources", self.source_key), Source)

    def lineage(self) -> Lineage:
        config, parent = self._config(), (*self._parent(), *self._derived(), *self._sweep())
        links = (
            self._dataset(), *self._parts(), self._source(), self._cleaning(config.state),
            self._tokenizer(), self._shards(), config, self._code(), self._environment(), *parent,
            self._run(*(link.name for link in parent)), self._checkpoint(), self._evaluation(),
            *self._benchmarks(),
        )  # fmt: skip
        return Lineage(name=self.run.name, links=links)

    # ---- reading ----

    def _find_evaluation(self, key: str) -> Checked[Evaluation]:
        """The evaluation of a key; the run's own where there is no key."""
        named = self.run.find_evaluation(key)
        checked = self._read(
            named.path if named else self.run.result_folder(EVALUATION), Evaluation
        )
        if key and checked.record and checked.record.key != key:
            return Checked(None, ("gone", (f"the evaluation {key[:12]} is gone",)))
        return checked

    def _checkpoint_name(self) -> str:
        """The checkpoint that was evaluated, else the best, else the newest there is."""
        if self.evaluated.record:
            return self.evaluated.record.checkpoint
        if "checkpoint" in self.tags:
            return self.tags["checkpoint"]
        if self.trained.record:
            return self.trained.record.best
        folders = (path for _, path in reversed(self.run.checkpoints))
        return next((p.name for p in folders if (p / storage.RECORD).is_file()), NONE_YET)

    @property
    def _has_saved(self) -> bool:
        """Whether there ever was a checkpoint; none is missing of a training before its first."""
        return (
            self.trained.record is not None
            or self.trained.status[0] != "gone"
            or self.settings is None
            or self._checkpoint_name() != NONE_YET
        )

    def _folder(self, kind: str, key: str | None) -> Path:
        """Where the result of a key is, under whichever recipe's name."""
        short = (key or "unknown")[:12]
        parent = self.run.root.path / kind
        return next(parent.glob(f"[!.]*-{short}"), parent / short)

    def _read(
        self, folder: Path, kind: type[R], is_own: Callable[[str], bool] = lambda name: True
    ) -> Checked[R]:
        """A record and the state of its files; `is_own`: which of them are this link's."""
        try:
            record = storage.read_record(folder, kind, verify=False)
        except CorruptionError as error:
            return Checked(None, status_of([str(error)]))
        if record is None:
            return Checked(None, ("gone", (f"{folder} is gone",)))
        if not self.check:
            return Checked(record, NOT_CHECKED)
        files = {name: entry for name, entry in record.files.items() if is_own(name)}
        wrong = storage.mismatches(folder, files)
        if wrong and all(line.endswith("missing") for line in wrong):
            return Checked(record, ("gone", tuple(wrong)))
        return Checked(record, status_of(wrong))

    # ---- data ----

    def _dataset(self) -> Link:
        source, tags = self.source.record, self.tags
        name = source.dataset if source else tags.get("dataset", "unknown")
        revision = source.revision if source else tags.get("dataset_revision", "unknown")
        status = self._dataset_status(source)
        files = source.origin if source else {}
        if _DIGEST.fullmatch(revision):
            link = make_link("dataset", name, revision, status)
        else:
            link = make_link("dataset", f"{name}, {revision}", None, status)
        return link.model_copy(update={"files": files})

    def _dataset_status(self, source: Source | None) -> Status:
        if self.settings is None or source is None or not self.check:
            return NOT_CHECKED
        config = self.settings.config
        if not source.parts:
            return self._text_status(config.data, source)
        notes: list[str] = []
        states: set[State] = set()
        for name in sorted(source.parts.keys() & config.data.sources.keys()):
            part = part_of_source(source, name)
            state, own = self._text_status(config.of_source(name).data, part)
            states.add(state)
            notes += [f"{name}: {note}" for note in own]
        return next((each for each in WORST_FIRST if each in states), NOT_CHECKED[0]), tuple(notes)

    def _text_status(self, data: DataConfig, source: Source) -> Status:
        """Whether a dataset is what it was, as far as this machine knows."""
        if data.source == "hub":
            return "not checked", ("the hub was not asked",)
        if data.source == "files":
            return compare_origin(data, source.origin)
        current = f"version {STORIES_VERSION}"
        return status_of([] if current == source.revision else [f"the code now writes {current}"])

    def _parts(self) -> list[Link]:
        """Each source of a mixture: what of it is trained on, held out and left out."""
        shards, source = self.shards.record, self.source.record
        links = []
        for name, part in shards.parts.items() if shards else ():
            value = (
                f"{part.train.documents:,} documents, {part.train.tokens:,} tokens of train, "
                f"{part.val.documents:,} held out, {sum(part.excluded.values()):,} left out"
            )
            if source and name in source.parts:
                own = source.parts[name]
                dataset = Path(own.dataset).name if own.dataset[:1] in "/~" else own.dataset
                value = f"{dataset}, {own.revision[:12]}: {value}"
            links.append(make_link(f"source {name}", value, part.source_key, self.shards.status))
        return links

    def _source(self) -> Link:
        record = self.source.record
        value = f"{record.documents:,} documents" if record else "documents as parquet"
        parts = [link.name for link in self._parts()]
        return self.source.link("source", value, self.source_key, "dataset", *parts)

    def _cleaning(self, state: State) -> Link:
        """The part of the config that says what is left out, in the state of the config."""
        if self.settings is None:
            return make_link("cleaning", "unknown", None, ("gone", ()))
        data = self.settings.config.data
        clean: dict[str, object] = dict(data.clean.flat())
        if data.sources:
            texts = {name: text.clean.flat() for name, text in data.sources.items()}
            clean = {f"{name}.{k}": v for name, text in texts.items() for k, v in text.items()}
        shards = self.shards.record
        left_out = sum(shards.dropped.values()) if shards else 0
        chosen = ", ".join(f"{k}={v}" for k, v in clean.items() if v is not None)
        digest = storage.sha256_json(clean)
        return make_link(
            "cleaning", f"{left_out:,} documents left out; {chosen}", digest, (state, ())
        )

    def _tokenizer(self) -> Link:
        shards, saved = self.shards.record, self.checkpoint.record
        recorded = shards or saved
        digest = recorded.tokenizer_sha256 if recorded else self.tags.get("tokenizer_sha256")
        paths = [record.path / TOKENIZER for record in (shards, saved) if record]
        copies = [path for path in paths if path.is_file()]
        status: Status = ("gone", ("no copy of it is left",))
        if copies and self.check:
            status = status_of(
                f"{f}: other bytes" for f in copies if storage.sha256_file(f) != digest
            )
        elif copies:
            status = NOT_CHECKED
        value = f"{shards.vocab_size:,} tokens" if shards else "vocabulary"
        own = self.run.root.vocabulary_of(shards) if shards else None
        if own is None:
            return make_link("tokenizer", value, digest, status)
        if own.kind == "given":
            return make_link("tokenizer", f"{value}, of {own.origin}", digest, status)
        value += f", trained on {own.documents:,} documents"
        return make_link("tokenizer", value, digest, status, "source", "cleaning")

    def _shards(self) -> Link:
        record = self.shards.record
        tokens = sum(split.tokens for split in record.splits.values()) if record else 0
        value = f"{tokens:,} tokens" if record else "token shards"
        return self.shards.link("shards", value, self.shards_key, "source", "cleaning", "tokenizer")

    # ---- config, code, machine ----

    def _config(self) -> Link:
        saved, trained = self.checkpoint.record, self.trained.record
        digest = saved.config_sha256 if saved else self.tags.get("config_sha256")
        path = self.run.path / CONFIG
        if self.settings is None:
            return make_link("config", "unknown", digest, ("gone", (f"{path} is gone",)))
        value = f"recipe {self.settings.config.recipe}"
        current = keys.config_sha256(self.settings.config)
        if digest is None:
            status: Status = ("not checked", ("no checkpoint records what it was",))
            return make_link("config", value, current, status)
        files = {CONFIG: trained.files[CONFIG]} if trained and CONFIG in trained.files else {}
        hashes = keys.config_hashes(self.settings.config)
        is_other = digest not in hashes or storage.mismatches(self.run.path, files)
        notes = [f"{path} is not what was trained by"] if is_other else []
        return make_link("config", value, digest, status_of(notes))

    def _facts(self) -> dict[str, Any]:
        """Code, packages and machine that the run was trained with."""
        for record in (self.trained.record, self.checkpoint.record):
            if record and record.environment:
                return record.environment
        names = ("commit", "dirty", "diff_sha256", "modules_sha256")
        facts = {name: self.tags.get(f"code_{name}") for name in names}
        return {**facts, "dirty": facts["dirty"] == "True"}

    def _code(self) -> Link:
        facts = self._facts()
        commit, modules = facts.get("commit"), facts.get("modules_sha256")
        if not self._has_saved:
            return make_link("code", "not recorded yet", None, NO_CHECKPOINT)
        value = f"commit {commit[:12]}" if commit else "no known commit"
        value += f", modules {modules[:12]}" if modules and not commit else ""
        value += ", with changes in no commit" if facts.get("dirty") else ""
        status = code_status(facts) if self.check else NOT_CHECKED
        return make_link("code", value, facts.get("diff_sha256") or commit or modules, status)

    def _environment(self) -> Link:
        facts = self._facts()
        if not self._has_saved:
            return make_link("environment", "not recorded yet", None, NO_CHECKPOINT)
        parts = [f"{name} {facts[name]}" for name in ("python", "torch") if facts.get(name)]
        parts.append(str(facts.get("gpu") or facts.get("cpu") or "unknown machine"))
        digest, status = self.tags.get("environment_sha256"), NOT_CHECKED
        if facts.get("torch"):
            digest = storage.sha256_json(facts)
            status = status_of(machine_differences(facts)) if self.check else NOT_CHECKED
        return make_link("environment", ", ".join(parts), digest, status)

    # ---- results ----

    def _parent(self) -> tuple[Link, ...]:
        """The model that the training continued from, if it did not start from the seed."""
        if self.parent_key is None:
            return ()
        parent = self._read(self.run.path / PARENT, Parent)
        record = parent.record
        value = _origin_of(record) if record else self.tags.get("parent", "a model")
        if self.settings and self.settings.config.train.init_from:
            value = f"initialised from {value}"
        link = parent.link("parent", value, self.parent_key)
        if record and record.key != self.parent_key:
            link = link.model_copy(update={"state": "changed", "notes": ("it is another model",)})
        return (link,)

    def _derived(self) -> tuple[Link, ...]:
        """The run that this one was made from, at which step, if it was; it need not be here."""
        derived = self.settings.derived if self.settings else None
        if derived is None:
            return ()
        other = self.run.root.named_run(derived.run)
        status: Status = NOT_CHECKED
        if self.check:
            status = derived_status(self.run, other, derived)
        return (make_link("made from", derived.text, derived.key, status),)

    def _sweep(self) -> tuple[Link, ...]:
        """The trials of sweeps that the run is; one that its version names may be gone."""
        trials = trials_of(self.run)
        name, number = self.tags.get("sweep"), self.tags.get("trial")
        texts = [trial.text for trial in trials]
        status: Status = NOT_CHECKED
        if self.check and trials:
            key = self.settings.key if self.settings else self.tags.get("run_key")
            status = status_of(
                f"trial {trial.trial} of {trial.sweep} was another run of this name"
                for trial in trials
                if trial.key != key
            )
        if name and name not in [trial.sweep for trial in trials]:
            texts.insert(0, f"trial {number} of {name}")
            status = (status[0], (*status[1], f"{name} is gone from here"))
        return (make_link("sweep", "; ".join(texts), None, status),) if texts else ()

    def _run(self, *parent: str) -> Link:
        inputs = ("shards", "config", "code", "environment", *parent)
        record = self.trained.record
        known = record or self.settings
        key = known.key if known else self.tags.get("run_key")
        name = self.run.name
        if record is None and self.settings and self.trained.status[0] == "gone":
            status: Status = ("not checked", ("its training has not ended",))
            return make_link("run", f"{name}, unfinished", key, status, *inputs)
        value = f"{name}, {record.step:,} steps" if record else name
        return self.trained.link("run", value, key, *inputs)

    def _checkpoint(self) -> Link:
        record = self.checkpoint.record
        if not self._has_saved:
            return make_link("checkpoint", NONE_YET, None, NO_CHECKPOINT, "run")
        digest = record.weights_sha256 if record else self.tags.get("weights_sha256")
        name = record.name if record else self._checkpoint_name()
        return self.checkpoint.link("checkpoint", name, digest, "run")

    def _evaluation(self) -> Link:
        record, tags = self.evaluated.record, self.tags
        if record is None and self.evaluated.status[0] == "gone" and "val_bpb" not in tags:
            return make_link("evaluation", "not evaluated", None, NOT_CHECKED, "checkpoint")
        val_bpb = record.val_bpb if record else float(tags.get("val_bpb", "nan"))
        digest = storage.content_hash(record) if record else tags.get("evaluation_sha256")
        value = f"{val_bpb:.4f} bits per byte"
        link = self.evaluated.link("evaluation", value, digest, "checkpoint")
        saved = self.checkpoint.record
        if record and saved and record.weights_sha256 != saved.weights_sha256:
            note = f"it is of other weights than {saved.path}"
            return link.model_copy(update={"state": "changed", "notes": (*link.notes, note)})
        return link

    def _benchmarks(self) -> Iterator[Link]:
        """The scores of the checkpoint on the tasks of benchmarks, a link per result."""
        saved = self.checkpoint.record
        for result in self.run.benchmarks_of(saved.weights_sha256) if saved else ():
            value = "; ".join(map(show_score, result.tasks))
            checked = self._read(result.path, Benchmarks)
            digest = storage.content_hash(result)
            yield checked.link(result.path.name, value, digest, "checkpoint")


def _origin_of(parent: Parent) -> str:
    """Where a parent came from, with the hash of the weights that were imported."""
    if not parent.origin:
        return f"{parent.model}, of {parent.run}" if parent.run else parent.model
    weights = [n for n in parent.origin if n.endswith(".safetensors")]
    hashes = ", ".join(f"{name} sha256 {parent.origin[name]}" for name in weights)
    return f"{parent.model}, {hashes}"
