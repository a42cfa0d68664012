"""Which run a config asks for: the one that has the weights which it would train.

A run's key has everything that its weights depend on. How often is saved is no part of it, nor how
often is scored and on how many documents, its cadence, which only chooses the best of the
checkpoints (`slm.training.selection`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from slm import keys
from slm.config import PipelineConfig
from slm.errors import CorruptionError, NewerFormat
from slm.records import Derivation, Shards
from slm.run_folder import DataRoot, RunFolder, Settings
from slm.storage import content_hash, sha256_json

TRAIN_VERSION = 4
"""Goes up whenever the same config and shards give other weights."""


def run_inputs(shards: Shards, parent_key: str | None, derived: Derivation | None = None) -> Any:
    """The inputs of a run's key: the content of its shards; the key of its parent if any.

    Of a run that was made from another one also that one's key, step and weights.
    """
    inputs = content_hash(shards)
    if derived:
        made_from = derived.model_dump(exclude={"run"})
        return {"shards": inputs, "parent": parent_key, "derived": made_from}
    return {"shards": inputs, "parent": parent_key} if parent_key else inputs


def run_keys(config: PipelineConfig, inputs: Any, version: int | None = None) -> tuple[str, str]:
    """The key of the run of a config, and the one that it had while `keys.FORMER` counted.

    `version`: of the stage; None: today's.
    """
    version = version or TRAIN_VERSION
    now, former = (
        keys.stage_key("train", version, fields, inputs) for fields in keys.run_fields(config)
    )
    return now, former


def has_former_key(settings: Settings, inputs: Any) -> bool:
    """Whether a run has the key of a time when settings of `keys.FORMER` were in it."""
    return settings.key != run_keys(settings.config, inputs)[0]


Index = Mapping[str, Sequence[RunFolder]]  # hash of what a run's weights depend on → such runs


def index_of(runs: Iterable[tuple[RunFolder, Settings]]) -> Index:
    """Runs by what their weights depend on besides their inputs, for `find_run`."""
    index: dict[str, list[RunFolder]] = {}
    for folder, settings in runs:
        fields = keys.run_fields(settings.config)[0]
        index.setdefault(sha256_json(fields), []).append(folder)
    return index


def find_run(
    config: PipelineConfig,
    shards: Shards,
    parent_key: str | None,
    root: DataRoot,
    index: Index | None = None,
) -> RunFolder:
    """The folder of the run that a config asks for; it may not be made yet.

    `index`: of the runs in the data folder, for many calls; None: they are read if need be.

    Of several runs with these weights, made while the cadence was in the key, it is the one with
    the config's cadence, or else a finished one. Raises NewerFormat.
    """
    inputs = run_inputs(shards, parent_key)
    names = (root.folder("runs", config.folder_name, key) for key in run_keys(config, inputs))
    new, *other = (RunFolder(path) for path in dict.fromkeys(names))
    runs = [run for run in (new, *other) if run.exists]
    if chosen := next((run for run in runs if _has_cadence(run, config)), None):
        return chosen
    runs += [run for run in _former_runs(config, inputs, root, index) if run not in runs]
    return max(runs, key=lambda run: (_has_cadence(run, config), run.is_finished), default=new)


def _has_cadence(run: RunFolder, config: PipelineConfig) -> bool:
    with suppress(CorruptionError):
        return cadence(run.config) == cadence(config)
    return False


def cadence(config: PipelineConfig) -> dict[str, int]:
    """The settings that choose a run's best checkpoint."""
    return keys.stage_fields("select", config)


def _former_runs(
    config: PipelineConfig, inputs: Any, root: DataRoot, index: Index | None
) -> Iterator[RunFolder]:
    """The runs of a recipe that have the weights of a config and a key of former settings."""
    fields = keys.run_fields(config)[0]
    alike = None if index is None else {run.path for run in index.get(sha256_json(fields), ())}
    folders = root.results("runs", config.recipe) if alike is None or alike else []
    for folder in folders:
        if alike is not None and folder not in alike:
            continue
        with suppress(CorruptionError, NewerFormat):
            settings = RunFolder(folder).settings
            if keys.run_fields(settings.config)[0] != fields:
                continue
            if settings.key == run_keys(settings.config, inputs)[1]:
                yield RunFolder(folder)
