"""The key of a source before its download: from settings, and from what is known of its files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slm import storage
from slm.config import PipelineConfig
from slm.planning.results import Result, Results
from slm.records import Source
from slm.source import hub, seen
from slm.source.download import files_key, hub_keys, known_hub_key, stories_count, stories_key
from slm.source.files import find_files
from slm.source.hub_client import keep_cache_in
from slm.source.remote import is_here, is_remote
from slm.source.splits import counted, examples


@dataclass(frozen=True)
class SourceKey:
    """What is known of a source before its download."""

    key: str | None
    assumed: bool = False  # by size and time of files, or that a branch has not moved
    note: str = ""  # why the key is not known, or what is assumed
    commit: str | None = None  # of a dataset on the hub, where it is known
    origin: Mapping[str, str | None] = field(default_factory=dict)  # local files → sha256, if known


def source_key(config: PipelineConfig, results: Results, *, verify: bool) -> SourceKey:
    """The key that `download` would give the source of a config.

    `verify`: local files are hashed, and the hub is asked for the commit of a branch.

    Raises UserError where local files are missing, as `download` does.
    """
    if config.data.source == "stories":
        stories_count(config.data)
        return SourceKey(stories_key(config))
    if config.data.source == "files":
        return _of_files(config, results, verify)
    return _of_hub(config, results, verify)


def _of_files(config: PipelineConfig, results: Results, verify: bool) -> SourceKey:
    if not is_here(config.data):
        return SourceKey(None, True, f"{config.data.path} is asked for its files by the download")
    base, layout = find_files(config.data)
    splits = {split: list(paths) for split, paths in layout.files.items()}
    names = {path: path.relative_to(base).as_posix() for each in splits.values() for path in each}
    known: dict[Path, str]
    if verify:
        entries = storage.describe_files(base, names)
        known = {path: entries[name].sha256 for path, name in names.items()}
    else:
        known = seen.recall(results.root.path, names)
    origin = {name: known.get(path) for path, name in names.items()}
    digests = {name: digest for name, digest in origin.items() if digest}
    if len(digests) == len(names):
        key = files_key(config, base, splits, digests)
        note = "" if verify else f"{counted(len(names))} known by size and time, not hashed"
        if is_remote(config.data.path):
            note = f"{counted(len(names))} of {config.data.path} as they were fetched last"
        return SourceKey(key, not verify, note, origin=origin)
    for source in _newest(results.sources, config.recipe):
        record = _source(source)
        same_names = record.origin.keys() == origin.keys()
        if same_names and record.key == files_key(config, base, splits, record.origin):
            if _changed_since(names, source.time):
                continue
            note = f"{counted(len(names))} unchanged since, by their times"
            return SourceKey(record.key, True, note, origin=record.origin)
    missing = [name for name, digest in origin.items() if digest is None]
    note = (
        f"{examples(missing)}: new or changed by size and time; what is in "
        f"{'it' if len(missing) == 1 else 'them'} is not known yet (--verify hashes it)"
    )
    return SourceKey(None, True, note, origin=origin)


def _changed_since(paths: Iterable[Path], moment: float) -> bool:
    return any(path.stat().st_mtime > moment for path in paths)


def _of_hub(config: PipelineConfig, results: Results, verify: bool) -> SourceKey:
    data = config.data
    if verify:
        keep_cache_in(results.root.path)
        commit = hub.resolve_commit(data)
        return _at_commit(config, results, commit)
    if hub.is_commit(data.revision):
        return _at_commit(config, results, str(data.revision))
    for source in _newest(results.sources, config.recipe):
        record = _source(source)
        asked = source.settings.get("data.revision")
        if asked == data.revision and record.key in hub_keys(config, record.revision):
            branch = data.revision or "the main branch"
            note = f"{branch} is assumed to be commit {record.revision[:12]} still"
            return SourceKey(record.key, True, note)
    return SourceKey(None, True, "its commit is known once the hub is asked (--verify asks)")


def _at_commit(config: PipelineConfig, results: Results, commit: str) -> SourceKey:
    if key := known_hub_key(config, results.root, commit):
        return SourceKey(key, commit=commit)
    exact, _ = hub_keys(config, commit)
    if any(source.record.key == exact for source in results.sources):
        note = "the hub is asked whether it has a val split of another name"
        return SourceKey(exact, True, note, commit=commit)
    note = "its key is known once the hub has listed its files"
    return SourceKey(None, False, note, commit=commit)


def _newest(sources: Iterable[Result], recipe: str) -> list[Result]:
    """The newest first, those of the recipe before others: a result is reused under any name."""
    return sorted(sources, key=lambda source: (source.recipe != recipe, -source.time))


def _source(result: Result) -> Source:
    assert isinstance(result.record, Source)
    return result.record


def file_changes(old: Source, origin: Mapping[str, str | None]) -> list[str]:
    """What differs between the files that a source was made from and those that are here now."""
    if not origin or not old.origin:
        return []
    new = [name for name in origin if name not in old.origin]
    gone = [name for name in old.origin if name not in origin]
    both = [name for name in origin if name in old.origin]
    other = [name for name in both if origin[name] not in (None, old.origin[name])]
    maybe = [name for name in both if origin[name] is None]
    kinds = (("new", new), ("gone", gone), ("changed", other), ("changed by size or time", maybe))
    return [f"{counted(len(names))} {kind}: {examples(names)}" for kind, names in kinds if names]
