"""The folder of everything produced: its sources, shards, runs and sweeps, by key or by name."""

import glob
import re
from contextlib import suppress
from pathlib import Path

from slm import storage
from slm.config import data_root
from slm.errors import CorruptionError, UserError, listing, unknown
from slm.records import LATEST, Shards, Source, Vocabulary
from slm.run_folder.names import CHECKPOINTS, CONFIG, KEY_DIGITS, KINDS, MIN_DIGITS, SWEEP
from slm.run_folder.run import RunFolder, record_of_key
from slm.storage import R


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
        return record_of_key(self._of_key(kind, key), record, key)

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
