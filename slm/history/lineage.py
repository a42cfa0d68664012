"""What a run was made from: the chain from the dataset to the evaluation, each link checked.

The records of the stages hold the hashes. Here they are put in a row, and every link is compared
with the files, the code and the machine that are here now. No server is asked: what the registry
knows of a version is added by `slm.registry.versions`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from slm import keys, storage
from slm.config import DataConfig
from slm.errors import CorruptionError, UserError
from slm.model.saved import CONFIG
from slm.records import Checkpoint, Evaluation, Parent, Record, Run, Shards, Source
from slm.run_folder import CHECKPOINTS, EVALUATION, PARENT, TOKENIZER, RunFolder, Settings
from slm.source.files import find_files
from slm.source.stories import STORIES_VERSION
from slm.training import provenance

State = Literal["unchanged", "changed", "gone", "not checked"]
"""`not checked`: not asked for, or it could not be reached; a note says so. It breaks no chain."""
Notes = tuple[str, ...]
R = TypeVar("R", bound=Record)

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a commit of the hub; a hash of local files
MACHINE = ("python", "torch", "cpu_capability", "gpu", "packages_sha256")  # bits may depend on it


class Link(BaseModel):
    """One thing that the result was made from, or the result itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: str  # for a person
    digest: str | None = None  # its key, content hash or commit, where it is known
    state: State
    notes: Notes = ()  # what is wrong with it, or was not checked
    files: dict[str, str] = Field(default_factory=dict)  # each file → its recorded sha256
    made_from: tuple[str, ...] = ()  # names of links, the one that it continues first


class Lineage(BaseModel):
    """The chain of a run or of a version, from the dataset on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # of the run or the version
    links: tuple[Link, ...]

    def __getitem__(self, name: str) -> Link:
        return next(link for link in self.links if link.name == name)

    @property
    def broken(self) -> list[Link]:
        """The links that are gone or changed."""
        return [link for link in self.links if link.state in ("gone", "changed")]


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
    """
    tags = tags or {}
    return _Chain(run, tags, evaluation_key or tags.get("evaluation_key", ""), check).lineage()


@dataclass(frozen=True)
class _Checked(Generic[R]):
    """A record, if there is one, and the state of the files that it lists."""

    record: R | None
    state: State
    notes: Notes = ()

    def link(self, name: str, value: str, digest: str | None, *made_from: str) -> Link:
        files = {name: e.sha256 for name, e in self.record.files.items()} if self.record else {}
        return Link(
            name=name, value=value, digest=digest, state=self.state, notes=self.notes,
            files=files, made_from=made_from,
        )  # fmt: skip


class _Chain:
    """The records of one run, each read once, and the links that are made from them."""

    def __init__(
        self, run: RunFolder, tags: Mapping[str, str], evaluation_key: str, check: bool
    ) -> None:
        self.run, self.tags, self.check = run, tags, check
        self.settings = self._settings()
        self.trained = self._read(run.path, Run, lambda name: "/" not in name and name != CONFIG)
        self.evaluated = self._find_evaluation(evaluation_key)
        self.checkpoint = self._read(run.path / CHECKPOINTS / self._checkpoint_name(), Checkpoint)
        self.parent_key, self.shards_key = tags.get("parent_sha256"), tags.get("shards_key")
        if self.settings:
            self.parent_key = self.settings.parent_key
            self.shards_key = self.settings.shards_key
        self.shards = self._read(self._folder("shards", self.shards_key), Shards)
        encoded = self.shards.record
        self.source_key = encoded.source_key if encoded else tags.get("source_key")
        self.source = self._read(self._folder("sources", self.source_key), Source)

    def lineage(self) -> Lineage:
        config, parent = self._config(), self._parent()
        links = (
            self._dataset(), self._source(), self._cleaning(config.state), self._tokenizer(),
            self._shards(), config, self._code(), self._environment(), *parent,
            self._run(*(link.name for link in parent)), self._checkpoint(), self._evaluation(),
        )  # fmt: skip
        return Lineage(name=self.run.name, links=links)

    # ---- reading ----

    def _settings(self) -> Settings | None:
        try:
            return self.run.settings
        except CorruptionError:
            return None

    def _find_evaluation(self, key: str) -> _Checked[Evaluation]:
        """The evaluation of a key; the run's own where there is no key."""
        named = self.run.find_evaluation(key)
        checked = self._read(named.path if named else self.run.path / EVALUATION, Evaluation)
        if key and checked.record and checked.record.key != key:
            return _Checked(None, "gone", (f"the evaluation {key[:12]} is gone",))
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
        return next((p.name for p in folders if (p / storage.RECORD).is_file()), "none")

    def _folder(self, kind: str, key: str | None) -> Path:
        """Where the result of a key is, under whichever recipe's name."""
        short = (key or "unknown")[:12]
        parent = self.run.root.path / kind
        return next(parent.glob(f"[!.]*-{short}"), parent / short)

    def _read(
        self, folder: Path, kind: type[R], is_own: Callable[[str], bool] = lambda name: True
    ) -> _Checked[R]:
        """A record and the state of its files; `is_own`: which of them are this link's."""
        try:
            record = storage.read_record(folder, kind, verify=False)
        except CorruptionError as error:
            return _Checked(None, "changed", (str(error),))
        if record is None:
            return _Checked(None, "gone", (f"{folder} is gone",))
        if not self.check:
            return _Checked(record, "not checked")
        files = {name: entry for name, entry in record.files.items() if is_own(name)}
        wrong = tuple(storage.mismatches(folder, files))
        if not wrong:
            return _Checked(record, "unchanged")
        gone = all(line.endswith("missing") for line in wrong)
        return _Checked(record, "gone" if gone else "changed", wrong)

    # ---- data ----

    def _dataset(self) -> Link:
        source, tags = self.source.record, self.tags
        name = source.dataset if source else tags.get("dataset", "unknown")
        revision = source.revision if source else tags.get("dataset_revision", "unknown")
        state, notes = self._dataset_state(source)
        is_digest = _DIGEST.fullmatch(revision)
        return Link(
            name="dataset", value=name if is_digest else f"{name}, {revision}",
            digest=revision if is_digest else None, state=state, notes=notes,
            files=source.origin if source else {},
        )  # fmt: skip

    def _dataset_state(self, source: Source | None) -> tuple[State, Notes]:
        if self.settings is None or source is None or not self.check:
            return "not checked", ()
        data = self.settings.config.data
        if data.source == "hub":
            return "not checked", ("the hub was not asked",)
        if data.source == "files":
            return _compare_origin(data, source.origin)
        current = f"version {STORIES_VERSION}"
        if current == source.revision:
            return "unchanged", ()
        return "changed", (f"the code now writes {current}",)

    def _source(self) -> Link:
        record = self.source.record
        value = f"{record.documents:,} documents" if record else "documents as parquet"
        return self.source.link("source", value, self.source_key, "dataset")

    def _cleaning(self, state: State) -> Link:
        """The part of the config that says what is left out, in the state of the config."""
        if self.settings is None:
            return Link(name="cleaning", value="unknown", state="gone")
        clean = self.settings.config.data.clean.flat()
        shards = self.shards.record
        left_out = sum(shards.dropped.values()) if shards else 0
        chosen = ", ".join(f"{k}={v}" for k, v in clean.items() if v is not None)
        return Link(
            name="cleaning", value=f"{left_out:,} documents left out; {chosen}",
            digest=storage.sha256_bytes(storage.canonical_json(clean)), state=state,
        )  # fmt: skip

    def _tokenizer(self) -> Link:
        shards, saved = self.shards.record, self.checkpoint.record
        recorded = shards or saved
        digest = recorded.tokenizer_sha256 if recorded else self.tags.get("tokenizer_sha256")
        paths = [record.path / TOKENIZER for record in (shards, saved) if record]
        copies = [path for path in paths if path.is_file()]
        state: State = "not checked"
        notes: Notes = ()
        if not copies:
            state, notes = "gone", ("no copy of it is left",)
        elif self.check:
            notes = tuple(f"{f}: other bytes" for f in copies if storage.sha256_file(f) != digest)
            state = "changed" if notes else "unchanged"
        value = f"{shards.vocab_size:,} tokens" if shards else "vocabulary"
        return Link(name="tokenizer", value=value, digest=digest, state=state, notes=notes)

    def _shards(self) -> Link:
        record = self.shards.record
        tokens = sum(split.tokens for split in record.splits.values()) if record else 0
        value = f"{tokens:,} tokens" if record else "token shards"
        inputs = ("source", "cleaning", "tokenizer")
        return self.shards.link("shards", value, self.shards_key, *inputs)

    # ---- config, code, machine ----

    def _config(self) -> Link:
        saved, trained = self.checkpoint.record, self.trained.record
        digest = saved.config_sha256 if saved else self.tags.get("config_sha256")
        path = self.run.path / CONFIG
        if self.settings is None:
            notes: Notes = (f"{path} is gone",)
            return Link(name="config", value="unknown", digest=digest, state="gone", notes=notes)
        current = keys.config_sha256(self.settings.config)
        recorded = trained.files.get(CONFIG) if trained else None
        state: State = "unchanged"
        notes = ()
        if digest is None:
            state, notes = "not checked", ("no checkpoint records what it was",)
        elif current != digest or (
            recorded and storage.mismatches(self.run.path, {CONFIG: recorded})
        ):
            state, notes = "changed", (f"{path} is not what was trained by",)
        value = f"recipe {self.settings.config.recipe}"
        return Link(name="config", value=value, digest=digest or current, state=state, notes=notes)

    def _facts(self) -> dict[str, Any]:
        """Code, packages and machine that the run was trained with."""
        for record in (self.trained.record, self.checkpoint.record):
            if record and record.environment:
                return record.environment
        facts = {name: self.tags.get(f"code_{name}") for name in ("commit", "dirty", "diff_sha256")}
        return {**facts, "dirty": facts["dirty"] == "True"}

    def _code(self) -> Link:
        facts = self._facts()
        commit = facts.get("commit")
        value = f"commit {commit[:12]}" if commit else "not under version control"
        value += ", with changes in no commit" if facts.get("dirty") else ""
        state, notes = code_state(facts) if self.check else ("not checked", ())
        digest = facts.get("diff_sha256") or commit
        return Link(name="code", value=value, digest=digest, state=state, notes=notes)

    def _environment(self) -> Link:
        facts = self._facts()
        parts = [f"{name} {facts[name]}" for name in ("python", "torch") if facts.get(name)]
        parts.append(str(facts.get("gpu") or facts.get("cpu") or "unknown machine"))
        digest = self.tags.get("environment_sha256")
        state: State = "not checked"
        notes: Notes = ()
        if facts.get("torch"):
            digest = storage.sha256_bytes(storage.canonical_json(facts))
            if self.check:
                notes = machine_differences(facts)
                state = "changed" if notes else "unchanged"
        value = ", ".join(parts)
        return Link(name="environment", value=value, digest=digest, state=state, notes=notes)

    # ---- results ----

    def _parent(self) -> tuple[Link, ...]:
        """The model that the training continued from, if it did not start from the seed."""
        if self.parent_key is None:
            return ()
        parent = self._read(self.run.path / PARENT, Parent)
        record = parent.record
        value = f"{record.model}, of {record.run}" if record else self.tags.get("parent", "a model")
        link = parent.link("parent", value, self.parent_key)
        if record and record.key != self.parent_key:
            link = link.model_copy(update={"state": "changed", "notes": ("it is another model",)})
        return (link,)

    def _run(self, *parent: str) -> Link:
        inputs = ("shards", "config", "code", "environment", *parent)
        record = self.trained.record
        known = record or self.settings
        key = known.key if known else self.tags.get("run_key")
        if record:
            return self.trained.link("run", f"{self.run.name}, {record.step:,} steps", key, *inputs)
        if self.settings is None or self.trained.state != "gone":
            return self.trained.link("run", self.run.name, key, *inputs)
        notes = ("its training has not ended",)
        unfinished: _Checked[Run] = _Checked(None, "not checked", notes)
        return unfinished.link("run", f"{self.run.name}, unfinished", key, *inputs)

    def _checkpoint(self) -> Link:
        record = self.checkpoint.record
        digest = record.weights_sha256 if record else self.tags.get("weights_sha256")
        name = record.name if record else self._checkpoint_name()
        return self.checkpoint.link("checkpoint", name, digest, "run")

    def _evaluation(self) -> Link:
        record, tags = self.evaluated.record, self.tags
        if record is None and self.evaluated.state == "gone" and "val_bpb" not in tags:
            none: _Checked[Evaluation] = _Checked(None, "not checked")
            return none.link("evaluation", "not evaluated", None, "checkpoint")
        val_bpb = record.val_bpb if record else float(tags.get("val_bpb", "nan"))
        digest = storage.content_hash(record) if record else tags.get("evaluation_sha256")
        value = f"{val_bpb:.4f} bits per byte"
        link = self.evaluated.link("evaluation", value, digest, "checkpoint")
        saved = self.checkpoint.record
        if record and saved and record.weights_sha256 != saved.weights_sha256:
            note = f"it is of other weights than {saved.path}"
            return link.model_copy(update={"state": "changed", "notes": (*link.notes, note)})
        return link


# ---- what is here now -------------------------------------------------------------------------


def _compare_origin(data: DataConfig, recorded: Mapping[str, str]) -> tuple[State, Notes]:
    """Local files now, compared with those that were read."""
    try:
        base, splits = find_files(data)
        files = [path for paths in splits.values() for path in paths]
        current = {name: e.sha256 for name, e in storage.describe_files(base, files).items()}
    except (UserError, OSError) as error:
        return "gone", (str(error),)
    notes = [f"{base / name}: missing" for name in recorded if name not in current]
    if notes and len(notes) == len(recorded):
        return "gone", tuple(notes)
    notes += [f"{base / name}: was not there" for name in current if name not in recorded]
    notes += [
        f"{base / name}: sha256 {current[name][:12]}…, recorded {digest[:12]}…"
        for name, digest in recorded.items()
        if current.get(name, digest) != digest
    ]
    return ("changed", tuple(notes)) if notes else ("unchanged", ())


def code_state(facts: Mapping[str, Any]) -> tuple[State, Notes]:
    """The code that a run was trained with, compared with the code now.

    Changes that are in no commit are kept nowhere but in the working tree, and only their hash is
    known: code that was dirty counts as gone.
    """
    commit, now = facts.get("commit"), provenance.code_state()
    if commit is None:
        return "not checked", ("no commit was recorded",)
    if facts.get("dirty"):
        return "gone", (f"it had changes that are in no commit, on top of {commit}",)
    if now["commit"] is None:
        return "not checked", ("this code is not under version control",)
    notes = []
    if now["commit"] != commit:
        notes.append(f"the code is now at {now['commit']}: git checkout {commit}")
    if now["dirty"]:
        notes.append("the code now has changes that are in no commit")
    return ("changed", tuple(notes)) if notes else ("unchanged", ())


def machine_differences(facts: Mapping[str, Any]) -> Notes:
    """What differs between the machine of a run and this one, of what its bits may depend on."""
    now = provenance.environment()
    return tuple(
        "other packages are installed" if name == "packages_sha256"
        else f"{name} is {now.get(name)}, was {facts[name]}"
        for name in MACHINE
        if name in facts and facts[name] != now.get(name)
    )  # fmt: skip
