"""Where everything is: a data folder, a run's folder in it, and how each part is read.

    data/
      sources/<name>-<key>/       documents as parquet          DataRoot.source(key)
      tokenizers/<name>-<key>/    vocabularies of one's own     DataRoot.vocabulary(key)
      shards/<name>-<key>/        token shards                  DataRoot.shards(key)
      runs/<name>-<key>/          one training each             DataRoot.run(reference)
        config.json               what was asked for            RunFolder.config
        plan.json                 what was fixed before step 1  RunFolder.plan
        decision.json             the end that the clock chose  RunFolder.decision
        metrics.jsonl             one line per step             RunFolder.journal
        checkpoints/step_000500/  weights, optimizer state      RunFolder.checkpoint(name)
        parent/                   the model it continued from   RunFolder.parent
        record.json               its results, once finished    RunFolder.record
        evaluation/, report/      of the best checkpoint        RunFolder.evaluation, .report
        benchmarks/               its scores on tasks           RunFolder.benchmarks
        selection-<key>/          the best by another cadence   training.selection
      sweeps/<name>-<key>/        trials of one recipe          DataRoot.sweep(reference)

The name is the recipe's, or the setting `name`. The key alone says what a result is: one of the
same key under another name is the same result.

Nothing here opens weights, and nothing is kept in memory: every access reads the files as they
are now.
"""

import glob
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar, cast

from pydantic import ValidationError

from slm import storage
from slm.config import PipelineConfig, data_root
from slm.errors import (
    CorruptionError,
    NewerFormat,
    UserError,
    first_invalid,
    listing,
    unknown,
)
from slm.records import (
    LATEST,
    Benchmarks,
    Checkpoint,
    Decision,
    Derivation,
    Evaluation,
    Frozen,
    JournalEntry,
    Parent,
    Plan,
    Report,
    Run,
    Shards,
    Source,
    Vocabulary,
)
from slm.storage import R

CONFIG, PLAN, JOURNAL, LOG = "config.json", "plan.json", "metrics.jsonl", "train.log"
CHECKPOINTS, PARENT, EVALUATION, REPORT = "checkpoints", "parent", "evaluation", "report"
SELECTION, DECISION, BENCHMARKS = "selection", "decision.json", "benchmarks"
KINDS: dict[str, type[Source | Shards | Vocabulary]] = {
    "sources": Source, "tokenizers": Vocabulary, "shards": Shards,
}  # fmt: skip
F = TypeVar("F", bound=Frozen)
MIN_DIGITS = 4  # of a key's beginning, so that it names a run
KEY_DIGITS = 12  # of a key that end a folder's name
_OF_KEY = re.compile(rf"-[0-9a-f]{{{KEY_DIGITS}}}$")
LOCK = "lock"  # held by a run's trainer, and by a sweep's driver
SWEEP = "sweep.json"
LOCK_PATIENCE_SECONDS = 0.3  # who only looks whether a run is in training holds it for an instant


class DataRoot:
    """The folder of everything produced.

    Args:
        path: None: `SLM_DATA`, else `data/` next to `pipelines.yaml`.
    """

    def __init__(self, path: "str | Path | DataRoot | None" = None) -> None:
        self.path: Path = path.path if isinstance(path, DataRoot) else Path(path or data_root())

    def __repr__(self) -> str:
        return f"DataRoot({str(self.path)!r})"

    # ---- where results are ----

    def folder(self, kind: str, name: str, key: str) -> Path:
        """Where a result of a kind (`KINDS`, `runs`, `sweeps`) belongs.

        A result of this key that has another name stays where it is, and is reused there.
        """
        own = self.path / kind / f"{name}-{key[:KEY_DIGITS]}"
        if own.exists():
            return own
        if kind == "sweeps":
            others = self._of_key(kind, key)
        elif kind == "runs":
            others = [path for path in self._of_key(kind, key) if RunFolder(path).has_key(key)]
        else:
            record = self._result(kind, KINDS[kind], key)
            others = [record.path] if record else []
        return next(iter(others), own)

    def _of_key(self, kind: str, key: str) -> list[Path]:
        """The folders of a kind whose names end as those of a key do."""
        return sorted((self.path / kind).glob(f"[!.]*-{glob.escape(key[:KEY_DIGITS])}"))

    def source(self, key: str | None) -> Source | None:
        """The source of a key; its files are not verified. None where it is not here."""
        return self._result("sources", Source, key)

    def shards(self, key: str | None) -> Shards | None:
        """The shards of a key; their files are not verified. None where they are not here."""
        return self._result("shards", Shards, key)

    def vocabulary(self, key: str | None) -> Vocabulary | None:
        """The vocabulary of a key; its files are not verified. None where it is not here."""
        return self._result("tokenizers", Vocabulary, key)

    def vocabulary_of(self, shards: Shards) -> Vocabulary | None:
        """The vocabulary of one's own that shards were encoded with; None where it is not here."""
        for folder in self.results("tokenizers"):
            with suppress(CorruptionError):
                record = storage.read_record(folder, Vocabulary, verify=False)
                if record and record.tokenizer_sha256 == shards.tokenizer_sha256:
                    return record
        return None

    def _result(self, kind: str, record: type[R], key: str | None) -> R | None:
        if not key:
            return None
        return _record_of_key(self._of_key(kind, key), record, key)

    def results(self, kind: str, name: str = "") -> list[Path]:
        """The folders of the results of a name, `<name>-<12 hex digits>`, complete or not.

        Those of a name `<name>-more`, and what was quarantined, are not among them. Without a name:
        of all.
        """
        pattern = re.compile(f"{re.escape(name) or '[^.].*'}-[0-9a-f]{{{KEY_DIGITS}}}")
        folders = (self.path / kind).glob("*")
        return sorted(folder for folder in folders if pattern.fullmatch(folder.name))

    # ---- runs ----

    def run(self, reference: str) -> "RunFolder":
        """A run by a path of its folder or in it, its name, the beginning of its key, or `latest`.

        >>> [root.run(r).name for r in ("notes-7e6ad240c4d7", "7e6a", "notes-7e6a", "latest")]
        ["notes-7e6ad240c4d7"] * 4

        Raises UserError with the nearest name, and with the candidates where several runs' keys
        begin so.
        """
        runs = self.path / "runs"
        given = Path(reference)
        above = given.resolve().parents[:2] if given.exists() else ()  # of a folder inside a run
        for path in (given, runs / given.name, *above):
            if (path / CONFIG).is_file() and (path / CHECKPOINTS).is_dir():
                return RunFolder(path.resolve())
        known = self.runs()
        if not known:
            raise UserError(
                f"no run {reference!r}: there are none in {runs} yet; `slm run` makes one"
            )
        if reference == LATEST:
            return RunFolder(max(known, key=lambda run: run.started or 0).path.resolve())
        if matching := self._runs_of_key(reference):
            if len(matching) == 1:
                return RunFolder(matching[0].path.resolve())
            raise UserError(
                f"{reference!r} is the beginning of the keys of {len(matching)} runs: "
                f"{listing(run.name for run in matching)}; give more digits, or the name"
            )
        if re.fullmatch("[0-9a-f]+", reference) and len(reference) < MIN_DIGITS:
            raise UserError(
                f"{reference!r} is too short for the beginning of a key: give {MIN_DIGITS} digits "
                "or more, or the run's name"
            )
        raise unknown("run", reference, [run.name for run in known])

    def _runs_of_key(self, reference: str) -> "list[RunFolder]":
        """The runs whose keys begin as a reference, `<digits>` or `<name>-<digits>`, says."""
        parts = re.fullmatch(r"(?:(.+)-)?([0-9a-f]+)", reference.lower())
        if parts is None or len(parts[2]) < MIN_DIGITS:
            return []
        start, digits = reference[: -len(parts[2])], parts[2]
        runs = [
            RunFolder(path)
            for path in self.results("runs")
            if path.name[-KEY_DIGITS:].startswith(digits[:KEY_DIGITS])
            and start in ("", path.name[:-KEY_DIGITS])
            and (path / CONFIG).is_file()
        ]
        return runs if len(digits) <= KEY_DIGITS else [r for r in runs if r.has_key(digits)]

    def named_run(self, name: str) -> "RunFolder":
        """The run that a record or a server names; it may be gone."""
        return RunFolder(storage.named(self.path / "runs", name))

    def runs(self) -> "list[RunFolder]":
        """Every run, in the order of their names; none that was quarantined."""
        folders = (path.parent for path in (self.path / "runs").glob(f"[!.]*/{CONFIG}"))
        kept = (folder for folder in folders if not storage.LEFTOVER.fullmatch(folder.name))
        return [RunFolder(folder) for folder in sorted(kept)]

    # ---- sweeps ----

    def sweeps(self) -> list[Path]:
        """The folder of every sweep, in the order of their names: see slm/sweeps/folder.py."""
        return [path for path in self.results("sweeps") if (path / SWEEP).is_file()]

    def sweep(self, reference: str) -> Path:
        """A sweep's folder by its path, its name, that without the key, or the key's beginning.

        Of several sweeps of a name the newest. Raises UserError with the nearest name.
        """
        given = Path(reference)
        for path in (given, self.path / "sweeps" / given.name):
            if (path / SWEEP).is_file():
                return path.resolve()
        known = self.sweeps()
        named = [path for path in known if path.name[: -KEY_DIGITS - 1] == reference]
        if named:
            return max(named, key=lambda path: (path / SWEEP).stat().st_mtime).resolve()
        parts = re.fullmatch(r"(?:(.+)-)?([0-9a-f]{4,})", reference.lower())
        matching = [
            path
            for path in known
            if parts
            and path.name[-KEY_DIGITS:].startswith(parts[2][:KEY_DIGITS])
            and parts[1] in (None, path.name[: -KEY_DIGITS - 1].lower())
        ]
        if len(matching) == 1:
            return matching[0].resolve()
        if matching:
            raise UserError(
                f"{reference!r} is the beginning of the keys of {len(matching)} sweeps: "
                f"{listing(path.name for path in matching)}; give more digits, or the name"
            )
        if not known:
            raise UserError(
                f"no sweep {reference!r}: there are none in {self.path / 'sweeps'} yet; "
                "`slm sweep` makes one"
            )
        raise unknown("sweep", reference, [path.name for path in known])

    # ---- the rest ----

    @property
    def mlflow(self) -> Path:
        """MLflow's own store and what we keep next to it."""
        return self.path / "mlflow"


@dataclass(frozen=True)
class Settings:
    """What a run's `config.json` holds."""

    key: str
    config: PipelineConfig
    shards_key: str
    parent_key: str | None  # of the model that the weights start from; None: from the seed
    derived: Derivation | None = None  # from another run; None: by its config alone


@dataclass(frozen=True)
class RunFolder:
    """A run and what belongs to it.

    >>> run = slm.open_run("quickstart-3693316e0b15")
    >>> run.evaluation.val_bpb, run.best.step, run.config.train.learning_rate
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def of(cls, run: Run) -> Self:
        """The folder of a run's record."""
        return cls(run.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def root(self) -> DataRoot:
        """The data folder that the run is in."""
        return DataRoot(self.path.parents[1])

    # ---- what was asked for, what was fixed, what happened ----

    @property
    def settings(self) -> Settings:
        """What `config.json` holds. Raises CorruptionError where it cannot be read."""
        path = self.path / CONFIG
        try:
            number, fields = storage.read_versioned(path)
            config = PipelineConfig.model_validate(fields["config"], context={"stored": True})
            parent_key = fields.get("parent") if number == 1 else fields["parent_key"]
            derived = fields.get("derived")
            return Settings(
                fields["key"],
                config,
                fields["shards_key"],
                parent_key,
                Derivation.model_validate(derived) if derived else None,
            )
        except ValidationError as error:
            raise CorruptionError(f"{path} cannot be read: {first_invalid(error)}") from error
        except (OSError, KeyError, TypeError) as error:
            raise CorruptionError(f"{path} cannot be read: {error}") from error

    def write_settings(self, settings: Settings) -> None:
        derived = settings.derived.model_dump(mode="json") if settings.derived else None
        config = settings.config.model_dump(mode="json")
        fields = {**vars(settings), "config": config, "derived": derived}
        storage.write_versioned(self.path / CONFIG, fields)

    @property
    def config(self) -> PipelineConfig:
        return self.settings.config

    @property
    def exists(self) -> bool:
        """Whether the run was prepared and is here."""
        return (self.path / CONFIG).is_file()

    @property
    def plan(self) -> Plan | None:
        """None where none is made yet. Raises CorruptionError."""
        return self._fixed(PLAN, Plan)

    def write_plan(self, plan: Plan) -> None:
        older = {"world_size"} if plan.world_size == 1 else set()
        storage.write_versioned(self.path / PLAN, plan.model_dump(mode="json", exclude=older))

    @property
    def decision(self) -> Decision | None:
        """The cooldown that the clock chose; None before that, and where no clock does.

        Raises CorruptionError.
        """
        return self._fixed(DECISION, Decision)

    def write_decision(self, decision: Decision) -> None:
        storage.write_versioned(self.path / DECISION, decision.model_dump(mode="json"))

    def _fixed(self, name: str, kind: type[F]) -> F | None:
        path = self.path / name
        try:
            return kind.model_validate(storage.read_versioned(path)[1])
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CorruptionError(f"{path} cannot be read: {first_invalid(error)}") from error

    @property
    def max_steps(self) -> int | None:
        """The last step of its training; None while that is not known."""
        plan = self.plan
        return plan.end(self.decision) if plan else None

    @property
    def journal(self) -> Iterator[JournalEntry]:
        """The entries so far, in order; a line that is not whole yet is left out.

        Raises CorruptionError where a line is not an entry.
        """
        path = self.path / JOURNAL
        if not path.is_file():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):  # else it is being written
                    entry = parse_entry(line)
                    if entry is None:
                        raise CorruptionError(f"{path}, line {number}: not a journal entry")
                    yield entry

    @property
    def started(self) -> float | None:
        """When its training started, in unix seconds; None where that is not known.

        Of a run made from another one, whose journal begins with that one's: when it went on alone.
        """
        time = None
        with suppress(CorruptionError, NewerFormat):
            derived = self.settings.derived
            for entry in self.journal:
                went_on = derived and entry["event"] == "resume" and entry["step"] == derived.step
                if time is None or went_on:
                    time = float(entry["time"])
                if derived is None or (entry.get("step") or 0) > derived.step:
                    break
        return time

    def has_key(self, start: str) -> bool:
        """Whether its key begins so."""
        with suppress(CorruptionError, NewerFormat):
            return self.settings.key.startswith(start)
        return False

    @property
    def is_training(self) -> bool:
        """Whether a process trains this run now."""
        return storage.is_held(self.path / LOCK)

    @property
    def is_finished(self) -> bool:
        """Whether its training has ended and left its record, which may be damaged."""
        return (self.path / storage.RECORD).is_file()

    def check_format(self) -> None:
        """Raises NewerFormat where settings, plan or decision are of a newer slm, CorruptionError
        where they are damaged. To be called before files are compared with hashes: newer is not
        damaged.
        """
        _ = self.settings, self.plan, self.decision

    # ---- records ----

    @property
    def record(self) -> Run | None:
        """None where training has not ended; its files are not verified."""
        return storage.read_record(self.path, Run, verify=False)

    @property
    def verified_record(self) -> Run | None:
        """`record`, with every file compared with its hash. Raises CorruptionError."""
        if self.exists:
            self.check_format()
        return storage.read_record(self.path, Run)

    def checkpoint(self, name: str, *, verify: bool = False) -> Checkpoint | None:
        """The record of a checkpoint by its name, such as `step_000500`; None where it is gone."""
        folder = storage.named(self.path / CHECKPOINTS, name)
        return storage.read_record(folder, Checkpoint, verify=verify)

    @property
    def checkpoints(self) -> list[tuple[int, Path]]:
        """The folders of the checkpoints by their steps, valid or not, in that order."""
        return checkpoint_folders(self.path / CHECKPOINTS)

    @property
    def best(self) -> Checkpoint | None:
        """The checkpoint with the lowest held-out loss; None where training has not ended."""
        record = self.record
        return self.checkpoint(record.best) if record else None

    @property
    def last(self) -> Checkpoint | None:
        """The final checkpoint, or the newest of a training that has not ended."""
        record = self.record
        if record:
            return self.checkpoint(record.last)
        for _, folder in reversed(self.checkpoints):
            with suppress(CorruptionError):
                if checkpoint := self.checkpoint(folder.name):
                    return checkpoint
        return None

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation by the run's own settings; None where it was not evaluated."""
        return storage.read_record(self.result_folder(EVALUATION), Evaluation)

    @property
    def benchmarks(self) -> Benchmarks | None:
        """The scores on the tasks of the run's own settings; None where it has none."""
        return storage.read_record(self.result_folder(BENCHMARKS), Benchmarks)

    @property
    def all_benchmarks(self) -> list[Benchmarks]:
        """The scores on tasks by whatever settings, those of its own first, then the newest.

        Their files are not verified; a folder that cannot be read is left out.
        """
        own = self.result_folder(BENCHMARKS)
        others = [path for path in self.path.glob(f"{BENCHMARKS}-*") if _OF_KEY.search(path.name)]
        results = []
        for folder in (own, *sorted(others, key=_finished, reverse=True)):
            with suppress(CorruptionError):
                if record := storage.read_record(folder, Benchmarks, verify=False):
                    results.append(record)
        return results

    def benchmarks_of(self, weights_sha256: str) -> tuple[Benchmarks, ...]:
        """Those of `all_benchmarks` that are of these weights."""
        return tuple(r for r in self.all_benchmarks if r.weights_sha256 == weights_sha256)

    @property
    def report(self) -> Report | None:
        """The report by the run's own settings; None where none was written."""
        return storage.read_record(self.result_folder(REPORT), Report)

    @property
    def parent(self) -> Parent | None:
        """The verified model that the weights started from; None where it was the seed.

        Raises CorruptionError where its copy is gone or is not what the run was made from.
        """
        key = self.settings.parent_key
        if key is None:
            return None
        parent = storage.read_record(self.path / PARENT, Parent)
        if parent is None or parent.key != key:
            raise CorruptionError(f"{self.path / PARENT} is not the parent of {self.name}")
        return parent

    @property
    def parent_record(self) -> Parent | None:
        """The record of `parent`, whose files are not verified; None where it cannot be read."""
        with suppress(CorruptionError):
            return storage.read_record(self.path / PARENT, Parent, verify=False)
        return None

    @property
    def shards(self) -> Shards | None:
        """What it was trained on; None where that is not here."""
        return self.root.shards(self.settings.shards_key)

    @property
    def source(self) -> Source | None:
        """What its shards were made from; None where either is not here."""
        shards = self.shards
        return self.root.source(shards.source_key) if shards else None

    # ---- results by other settings than the run's own ----

    def result_folder(self, kind: str, key: str | None = None) -> Path:
        """Where a result belongs: `kind` is EVALUATION, BENCHMARKS, REPORT or SELECTION.

        One by the run's own settings, those of its `config.json`, has the plain name. Any other
        is next to it, with its key, so that no two commands overwrite each other's result.
        """
        return self.path / (f"{kind}-{key[:12]}" if key else kind)

    def find_evaluation(self, key: str) -> Evaluation | None:
        """The evaluation of a key; None where it is not here."""
        folders = (self.result_folder(EVALUATION), self.result_folder(EVALUATION, key))
        return _record_of_key(folders, Evaluation, key)


def _finished(folder: Path) -> float:
    """When a result was finished, in unix seconds; 0 where it is not."""
    with suppress(OSError):
        return (folder / storage.RECORD).stat().st_mtime
    return 0.0


def _record_of_key(folders: Iterable[Path], kind: type[R], key: str) -> R | None:
    """The first record of a key in these folders; its files are not verified."""
    for folder in folders:
        with suppress(CorruptionError):
            record = storage.read_record(folder, kind, verify=False)
            if record and record.key == key:
                return record
    return None


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step_{step:06d}"


def checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a run's `checkpoints/`, valid or not, by their steps, in that order."""
    matches = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in folder.glob("step_*"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def run_of_checkpoint(folder: Path) -> RunFolder | None:
    """The run that a checkpoint's folder is in; None for a model's folder elsewhere."""
    return RunFolder(folder.parents[1]) if folder.parent.name == CHECKPOINTS else None


def parse_entry(line: bytes) -> JournalEntry | None:
    """The entry of a line of a journal; None where the line is torn or no entry."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return cast(JournalEntry, entry) if isinstance(entry, dict) and "event" in entry else None
