"""A run: what was asked for, what was fixed, what happened, and its results."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from pydantic import ValidationError

from slm import storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, NewerFormat, first_invalid
from slm.records import (
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
)
from slm.run_folder.journal import parse_entry
from slm.run_folder.names import (
    BENCHMARKS,
    CHECKPOINTS,
    CONFIG,
    DECISION,
    EVALUATION,
    JOURNAL,
    LOCK,
    OF_KEY,
    PARENT,
    PLAN,
    REPORT,
    checkpoint_folders,
)
from slm.storage import R

if TYPE_CHECKING:
    from slm.run_folder.data_root import DataRoot

F = TypeVar("F", bound=Frozen)


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
    def root(self) -> "DataRoot":
        """The data folder that the run is in."""
        from slm.run_folder.data_root import DataRoot  # which imports this module

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
        others = [path for path in self.path.glob(f"{BENCHMARKS}-*") if OF_KEY.search(path.name)]
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
        return record_of_key(folders, Evaluation, key)


def _finished(folder: Path) -> float:
    """When a result was finished, in unix seconds; 0 where it is not."""
    with suppress(OSError):
        return (folder / storage.RECORD).stat().st_mtime
    return 0.0


def record_of_key(folders: Iterable[Path], kind: type[R], key: str) -> R | None:
    """The first record of a key in these folders; its files are not verified."""
    for folder in folders:
        with suppress(CorruptionError):
            record = storage.read_record(folder, kind, verify=False)
            if record and record.key == key:
                return record
    return None


def run_of_checkpoint(folder: Path) -> RunFolder | None:
    """The run that a checkpoint's folder is in; None for a model's folder elsewhere."""
    return RunFolder(folder.parents[1]) if folder.parent.name == CHECKPOINTS else None
