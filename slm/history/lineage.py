"""What a run was made of: the chain from the dataset to the evaluation, each link checked.

The records of the stages hold the hashes. Here they are put in a row, and every link is compared
with the files, the code and the machine that are there now. Nothing is asked of a server: what the
registry knows of a version is added by `slm.registry.chain`.
"""

import re
from collections.abc import Mapping
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
R = TypeVar("R", bound=Record)

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a commit of the hub; a hash of local files
MACHINE = ("python", "torch", "cpu_capability", "gpu", "packages_sha256")  # what bits may hang on


class Link(BaseModel):
    """One thing that the result was made of, or the result itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: str  # for a person
    digest: str | None = None  # its key, content hash or commit, where it is known
    state: State
    notes: tuple[str, ...] = ()  # what is wrong with it, or was not looked at
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
    run: RunFolder, *, tags: Mapping[str, str] | None = None, check: bool = True
) -> Lineage:
    """The chain of a run.

    Args:
        run: it may be gone where the tags tell what it was.
        tags: what a version's tags say of it, without their prefix: this fills in what no file
            tells any more.
        check: whether to hash every file again; without it, links count as not checked.
    """
    return _Chain(run, tags or {}, check).lineage()


@dataclass(frozen=True)
class _Found(Generic[R]):
    """A record, if there is one, and how the files stand that it vouches for."""

    record: R | None
    state: State
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, str]:
        return {name: e.sha256 for name, e in self.record.files.items()} if self.record else {}


class _Chain:
    """The records of one run, read once, and the links that are made from them."""

    def __init__(self, folder: RunFolder, tags: Mapping[str, str], check: bool) -> None:
        self.folder, self.root, self.tags, self.check = folder, folder.root, tags, check
        self.run = run = folder.path
        self.settings = self._settings()
        self.trained = self._look(run, Run, own=lambda name: "/" not in name and name != CONFIG)
        self.evaluated = self._look(self._evaluation_folder(), Evaluation)
        self.checkpoint = self._look(run / CHECKPOINTS / self._checkpoint_name(), Checkpoint)
        settings = self.settings
        self.shards_key = settings.shards_key if settings else tags.get("shards_key")
        self.shards = self._look(self._folder("shards", self.shards_key), Shards)
        made = self.shards.record
        self.parent_key = settings.parent_key if settings else tags.get("parent_sha256")
        self.source_key = made.source_key if made else tags.get("source_key")
        self.source = self._look(self._folder("sources", self.source_key), Source)

    def lineage(self) -> Lineage:
        config, parent = self._config(), self._parent()
        links = (
            self._dataset(), self._source(), self._cleaning(config.state), self._tokenizer(),
            self._shards(), config, self._code(), self._environment(), *parent,
            self._run(*(link.name for link in parent)), self._weights(), self._evaluation(),
        )  # fmt: skip
        return Lineage(name=self.run.name, links=links)

    # ---- reading ----

    def _settings(self) -> Settings | None:
        try:
            return self.folder.settings
        except CorruptionError:
            return None

    def _evaluation_folder(self) -> Path:
        """That of the evaluation that the tags name, else of the run's own."""
        tagged = self.folder.find_evaluation(self.tags.get("evaluation_key", "none"))
        return tagged.path if tagged else self.run / EVALUATION

    def _checkpoint_name(self) -> str:
        """The checkpoint that was evaluated, else the best, else the newest there is."""
        if self.evaluated.record:
            return self.evaluated.record.checkpoint
        if self.trained.record:
            return self.trained.record.best
        folders = self.folder.checkpoints
        done = [path.name for _, path in folders if (path / storage.RECORD).is_file()]
        return self.tags.get("checkpoint", done[-1] if done else "none")

    def _folder(self, kind: str, key: str | None) -> Path:
        short = (key or "unknown")[:12]
        parent = self.root.path / kind
        return next(parent.glob(f"[!.]*-{short}"), parent / short)

    def _look(self, folder: Path, kind: type[R], own: Any = lambda name: True) -> _Found[R]:
        try:
            record = storage.read_record(folder, kind, verify=False)
        except CorruptionError as error:
            return _Found(None, "changed", (str(error),))
        if record is None:
            return _Found(None, "gone", (f"{folder} is gone",))
        if not self.check:
            return _Found(record, "not checked")
        files = {name: entry for name, entry in record.files.items() if own(name)}
        wrong = tuple(storage.mismatches(folder, files))
        if not wrong:
            return _Found(record, "unchanged")
        gone = all(line.endswith("missing") for line in wrong)
        return _Found(record, "gone" if gone else "changed", wrong)

    # ---- data ----

    def _dataset(self) -> Link:
        source, tags = self.source.record, self.tags
        name = source.dataset if source else tags.get("dataset", "unknown")
        revision = source.revision if source else tags.get("dataset_revision", "unknown")
        state, notes = self._dataset_state(source)
        digest = revision if _DIGEST.fullmatch(revision) else None
        return Link(
            name="dataset",
            value=name if digest else f"{name}, {revision}",
            digest=digest,
            state=state,
            notes=notes,
            files=source.origin if source else {},
        )

    def _dataset_state(self, source: Source | None) -> tuple[State, tuple[str, ...]]:
        if self.settings is None or source is None or not self.check:
            return "not checked", ()
        data = self.settings.config.data
        if data.source == "hub":
            return "not checked", ("the hub was not asked",)
        if data.source == "stories":
            now = f"version {STORIES_VERSION}"
            same = now == source.revision
            return ("unchanged", ()) if same else ("changed", (f"the code now writes {now}",))
        return _compare_origin(data, source.origin)

    def _source(self) -> Link:
        record = self.source.record
        value = f"{record.documents:,} documents" if record else "documents as parquet"
        return self._link("source", value, self.source_key, self.source, "dataset")

    def _cleaning(self, state: State) -> Link:
        """The part of the config that says what is left out; it stands as the config does."""
        if self.settings is None:
            return Link(name="cleaning", value="unknown", state="gone")
        clean = self.settings.config.data.clean.model_dump(mode="json")
        shards = self.shards.record
        left_out = sum(shards.dropped.values()) if shards else 0
        chosen = ", ".join(f"{k}={v}" for k, v in clean.items() if v is not None)
        return Link(
            name="cleaning",
            value=f"{left_out:,} documents left out; {chosen}",
            digest=storage.sha256_bytes(storage.canonical_json(clean)),
            state=state,
        )

    def _tokenizer(self) -> Link:
        shards, saved = self.shards.record, self.checkpoint.record
        recorded = shards or saved
        wanted = recorded.tokenizer_sha256 if recorded else self.tags.get("tokenizer_sha256")
        value = f"{shards.vocab_size:,} tokens" if shards else "vocabulary"
        files = [f.path / TOKENIZER for f in (shards, saved) if f]
        state, notes = self._same_files(files, wanted)
        return Link(name="tokenizer", value=value, digest=wanted, state=state, notes=notes)

    def _same_files(self, files: list[Path], wanted: str | None) -> tuple[State, tuple[str, ...]]:
        standing = [file for file in files if file.is_file()]
        if not standing:
            return "gone", ("no copy of it is left",)
        if not self.check:
            return "not checked", ()
        notes = tuple(f"{file}: other bytes" for file in standing
                      if storage.sha256_file(file) != wanted)  # fmt: skip
        return ("changed", notes) if notes else ("unchanged", ())

    def _shards(self) -> Link:
        record = self.shards.record
        tokens = sum(split.tokens for split in record.splits.values()) if record else 0
        value = f"{tokens:,} tokens" if record else "token shards"
        inputs = ("source", "cleaning", "tokenizer")
        return self._link("shards", value, self.shards_key, self.shards, *inputs)

    # ---- config, code, machine ----

    def _config(self) -> Link:
        saved = self.checkpoint.record
        wanted = saved.config_sha256 if saved else self.tags.get("config_sha256")
        if self.settings is None:
            note = f"{self.run / CONFIG} is gone"
            return Link(name="config", value="unknown", digest=wanted, state="gone", notes=(note,))
        value = f"recipe {self.settings.config.recipe}"
        found = keys.config_sha256(self.settings.config)
        state: State = "unchanged"
        notes: tuple[str, ...] = ()
        if wanted is None:
            state, notes = "not checked", ("no checkpoint says what it was",)
        elif found != wanted or self._config_file_differs():
            state = "changed"
            notes = (f"{self.run / CONFIG} is not what was trained by",)
        return Link(name="config", value=value, digest=wanted or found, state=state, notes=notes)

    def _config_file_differs(self) -> bool:
        entry = self.trained.record and self.trained.record.files.get(CONFIG)
        return bool(entry and storage.mismatches(self.run, {CONFIG: entry}))

    def _facts(self) -> dict[str, Any]:
        """Code, packages and machine that the run was trained with."""
        for record in (self.trained.record, self.checkpoint.record):
            if record and record.environment:
                return record.environment
        links = {"commit": "code_commit", "dirty": "code_dirty", "diff_sha256": "code_diff_sha256"}
        known = {name: self.tags.get(tag) for name, tag in links.items()}
        return {**known, "dirty": known["dirty"] == "True"}

    def _code(self) -> Link:
        facts = self._facts()
        commit, dirty = facts.get("commit"), facts.get("dirty")
        value = f"commit {commit[:12]}" if commit else "not under version control"
        value += ", with changes in no commit" if dirty else ""
        state, notes = code_state(facts) if self.check else ("not checked", ())
        digest = facts.get("diff_sha256") or commit
        return Link(name="code", value=value, digest=digest, state=state, notes=notes)

    def _environment(self) -> Link:
        facts = self._facts()
        parts = [f"{name} {facts[name]}" for name in ("python", "torch") if facts.get(name)]
        parts.append(str(facts.get("gpu") or facts.get("cpu") or "unknown machine"))
        digest = self.tags.get("environment_sha256")
        if facts.get("torch"):
            digest = storage.sha256_bytes(storage.canonical_json(facts))
        state: State = "not checked"
        notes: tuple[str, ...] = ()
        if self.check and facts.get("torch"):
            notes = machine_differences(facts)
            state = "changed" if notes else "unchanged"
        return Link(
            name="environment", value=", ".join(parts), digest=digest, state=state, notes=notes
        )

    # ---- results ----

    def _parent(self) -> tuple[Link, ...]:
        """The model that the training went on from, if it did not start from the seed."""
        if self.parent_key is None:
            return ()
        found = self._look(self.run / PARENT, Parent)
        record = found.record
        value = f"{record.model}, of {record.run}" if record else self.tags.get("parent", "a model")
        link = self._link("parent", value, self.parent_key, found)
        if record and record.key != self.parent_key:
            link = link.model_copy(update={"state": "changed", "notes": ("it is another model",)})
        return (link,)

    def _run(self, *parent: str) -> Link:
        inputs = ("shards", "config", "code", "environment", *parent)
        record = self.trained.record
        key = record.key if record else self.settings.key if self.settings else None
        key = key or self.tags.get("run_key")
        if record is None and self.settings is not None and self.trained.state == "gone":
            return Link(
                name="run", value=f"{self.run.name}, unfinished", digest=key,
                state="not checked", notes=("its training has not ended",),
                made_from=inputs,
            )  # fmt: skip
        value = f"{self.run.name}, {record.step:,} steps" if record else self.run.name
        return self._link("run", value, key, self.trained, *inputs)

    def _weights(self) -> Link:
        record = self.checkpoint.record
        digest = record.weights_sha256 if record else self.tags.get("weights_sha256")
        name = record.name if record else self._checkpoint_name()
        return self._link("checkpoint", name, digest, self.checkpoint, "run")

    def _evaluation(self) -> Link:
        record, tags = self.evaluated.record, self.tags
        if record is None and not (self.run / EVALUATION).exists() and "val_bpb" not in tags:
            value = "not evaluated"
            return Link(
                name="evaluation", value=value, state="not checked", made_from=("checkpoint",)
            )
        val_bpb = record.val_bpb if record else float(tags.get("val_bpb", "nan"))
        digest = storage.content_hash(record) if record else tags.get("evaluation_sha256")
        value = f"{val_bpb:.4f} bits a byte"
        link = self._link("evaluation", value, digest, self.evaluated, "checkpoint")
        saved = self.checkpoint.record
        if record and saved and record.weights_sha256 != saved.weights_sha256:
            note = f"it is of other weights than {saved.path}"
            return link.model_copy(update={"state": "changed", "notes": (*link.notes, note)})
        return link

    def _link(
        self, name: str, value: str, digest: str | None, found: _Found[Any], *made_from: str
    ) -> Link:
        return Link(
            name=name, value=value, digest=digest, state=found.state, notes=found.notes,
            files=found.files, made_from=made_from,
        )  # fmt: skip


# ---- what is there now ------------------------------------------------------------------------


def _compare_origin(data: DataConfig, recorded: Mapping[str, str]) -> tuple[State, tuple[str, ...]]:
    """How local files stand beside those that were read."""
    try:
        base, splits = find_files(data)
        paths = {p.relative_to(base).as_posix(): p for found in splits.values() for p in found}
        now = {name: storage.sha256_file(path) for name, path in paths.items()}
    except (UserError, OSError) as error:
        return "gone", (str(error),)
    notes = [f"{base / name}: missing" for name in recorded if name not in now]
    if notes and len(notes) == len(recorded):
        return "gone", tuple(notes)
    notes += [f"{base / name}: was not there" for name in now if name not in recorded]
    notes += [
        f"{base / name}: sha256 {now[name][:12]}…, recorded {digest[:12]}…"
        for name, digest in recorded.items()
        if name in now and now[name] != digest
    ]
    return ("changed", tuple(notes)) if notes else ("unchanged", ())


def code_state(facts: Mapping[str, Any]) -> tuple[State, tuple[str, ...]]:
    """How the code stands that a run was trained with.

    Changes that are in no commit are kept nowhere but in the working tree: only their hash is
    known, so code that was dirty counts as gone.
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


def machine_differences(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between the machine of a run and this one, of what its bits may hang on."""
    now = provenance.environment()
    return tuple(
        "other packages are installed" if name == "packages_sha256"
        else f"{name} is {now.get(name)}, was {facts[name]}"
        for name in MACHINE
        if name in facts and facts[name] != now.get(name)
    )  # fmt: skip
