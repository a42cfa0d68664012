"""What a data folder has of each stage, and the settings that each result was asked for with."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slm import keys, storage
from slm.errors import SlmError
from slm.records import Benchmarks, Evaluation, Made, Record, Report, Shards, Source, Vocabulary
from slm.run_folder import BENCHMARKS, EVALUATION, REPORT, DataRoot, RunFolder
from slm.run_folder import Settings as RunSettings
from slm.storage import R
from slm.training.identity import Index, index_of

Settings = Mapping[str, Any]  # by dotted key, as JSON values
Changed = dict[str, tuple[Any, Any]]  # dotted key → old and new value
_NAME = re.compile(r"(.+)-[0-9a-f]{12}")


@dataclass(frozen=True)
class Result:
    """A finished result, by its record alone: its files are not read."""

    record: Record
    recipe: str
    settings: Settings  # its own, and those of what it was made from
    inputs: str | None  # what it was made from: a key, or of an evaluation the weights
    made: Made | None

    @property
    def path(self) -> Path:
        return self.record.path

    @property
    def time(self) -> float:
        """When it was finished; of a run that is not, when its folder last changed."""
        record = self.path / storage.RECORD
        return (record if record.exists() else self.path).stat().st_mtime


def differences(old: Settings, new: Settings, names: Iterable[str]) -> Changed:
    """The settings of these names that differ.

    One that was added after a result was made has the value there that means the old behaviour;
    one that was not recorded is left out. Of a mixture, `data.sources` is the list of its names.
    """
    changed: Changed = {}
    old, new = keys.with_sources(old), keys.with_sources(new)
    for name in names:
        if name not in old and name.startswith("data.sources."):
            continue  # of a source that is new, whose name differs
        added = name in keys.ADDED or name in keys.BY_CONTENT
        before = old.get(name, keys.default_of(name) if added else new[name])
        if before != new[name]:
            changed[name] = (before, new[name])
    return changed


class Results:
    """The results in a data folder. Those whose settings nobody recorded are left out.

    They are in a result's `made.json`; of older results, in the `config.json` of a run that they
    led to.
    """

    def __init__(self, root: DataRoot) -> None:
        self.root = root

    @cached_property
    def _settings(self) -> list[tuple[RunFolder, RunSettings]]:
        """The settings of every run, finished or not, that can be read."""
        readable = []
        for folder in self.root.runs():
            with suppress(SlmError):
                readable.append((folder, folder.settings))
        return readable

    @cached_property
    def index(self) -> Index:
        """The runs by what their weights depend on, for the plan of many configs."""
        return index_of(self._settings)

    @cached_property
    def runs(self) -> list[Result]:
        """The finished runs."""
        results = []
        for folder, own in self._settings:
            with suppress(SlmError):
                if record := folder.record:
                    flat = own.config.flat()
                    results.append(Result(record, own.config.recipe, flat, own.shards_key, None))
        return results

    @cached_property
    def shards(self) -> list[Result]:
        own = list(self._records("shards", Shards))
        of_sources = {source.record.key: source.settings for source in self.sources}
        results = []
        for recipe, record in own:
            made = storage.read_made(record.path)
            settings = made.settings if made else self._of_runs.get(record.key)
            if settings is not None:
                upstream = of_sources.get(record.source_key, {})
                whole = {**upstream, **settings}
                results.append(Result(record, recipe, whole, record.source_key, made))
        return results

    @cached_property
    def vocabularies(self) -> list[Result]:
        """Those that were trained or given, with the settings of their source."""
        of_sources = {source.record.key: source.settings for source in self.sources}
        results = []
        for recipe, record in self._records("tokenizers", Vocabulary):
            made = storage.read_made(record.path)
            if made is not None:
                upstream = of_sources.get(record.source_key or "", {})
                whole = {**upstream, **made.settings}
                results.append(Result(record, recipe, whole, record.source_key, made))
        return results

    @cached_property
    def sources(self) -> list[Result]:
        led_to = {
            shards.source_key: self._of_runs[shards.key]
            for _, shards in self._records("shards", Shards)
            if shards.key in self._of_runs
        }
        results = []
        for recipe, record in self._records("sources", Source):
            made = storage.read_made(record.path)
            settings = made.settings if made else led_to.get(record.key)
            if settings is not None:
                results.append(Result(record, recipe, settings, None, made))
        return results

    @cached_property
    def _of_runs(self) -> dict[str, Settings]:
        """The settings of a run, finished or not, by the key of its shards."""
        return {own.shards_key: own.config.flat() for _, own in self._settings}

    def _records(self, kind: str, record: type[R]) -> Iterator[tuple[str, R]]:
        """The complete results of a kind, each with the recipe in its folder's name."""
        for folder in sorted((self.root.path / kind).glob("[!.]*")):
            with suppress(SlmError):
                name = _NAME.fullmatch(folder.name)
                if name and (result := storage.read_record(folder, record, verify=False)):
                    yield name[1], result

    def evaluations(self, run: RunFolder) -> list[Result]:
        """The evaluations of a run, by whatever settings."""
        results = []
        for record, made, settings in self._inside(run, EVALUATION, Evaluation):
            results.append(Result(record, run.config.recipe, settings, record.weights_sha256, made))
        return results

    def benchmarks(self, run: RunFolder) -> list[Result]:
        """The scores of a run on the tasks of benchmarks, by whatever settings."""
        return [
            Result(record, run.config.recipe, settings, record.weights_sha256, made)
            for record, made, settings in self._inside(run, BENCHMARKS, Benchmarks)
        ]

    def reports(self, run: RunFolder) -> list[Result]:
        """The reports of a run, by whatever settings."""
        return [
            Result(record, run.config.recipe, settings, None, made)
            for record, made, settings in self._inside(run, REPORT, Report)
        ]

    def _inside(
        self, run: RunFolder, kind: str, record: type[R]
    ) -> Iterator[tuple[R, Made | None, Settings]]:
        """The results of a kind in a run's folder: the plain name is of the run's own settings."""
        own = run.config.flat()
        for folder in sorted(run.path.glob(f"{kind}*")):
            with suppress(SlmError):
                if folder.name != kind and not _NAME.fullmatch(folder.name):
                    continue
                made = storage.read_made(folder)
                if made is None and folder.name != kind:
                    continue
                if result := storage.read_record(folder, record, verify=False):
                    yield result, made, {**own, **(made.settings if made else {})}


def nearest(candidates: Iterable[Result], new: Settings, names: Iterable[str]) -> Result | None:
    """The result of the fewest settings that differ; of equal ones of this recipe, the newest."""
    names = list(names)

    def distance(result: Result) -> tuple[int, bool, float]:
        other = result.recipe != new["recipe"]
        return len(differences(result.settings, new, names)) + other, other, -result.time

    return min(candidates, key=distance, default=None)
