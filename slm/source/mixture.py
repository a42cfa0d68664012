"""Download of a mixture: each of its sources alone, then all of them joined in one folder.

    data/sources/wiki-0a1b…/train_00000.parquet        a part, as any source
    data/sources/mixed-9c8d…/wiki-train_00000.parquet  the same file, by a hard link

So a part is shared with every other recipe that has it, and a mixture is a source as any other.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from slm import keys, storage
from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.records import Source, SourcePart, SourceSplit
from slm.run_folder import DataRoot

JOIN_VERSION = 1
"""Goes up whenever the same parts give another folder."""

SPLITS = ("train", "val")


@storage.hashing_once()
def join_sources(
    config: PipelineConfig, parts: Mapping[str, Source], *, root: Path | None = None
) -> Source:
    """The sources of a mixture in `<root>/sources/<name>-<key>/`, by hard links of their files.

    Args:
        parts: what `download` made of `config.of_source(name)`, by name.
    """
    record = joined_record(config, parts)

    def build(staging: Path) -> Source:
        for name, part in parts.items():
            for file in part.files:
                storage.link_file(part.path / file, staging / _linked(name, file))
        return record

    with storage.reading(*(part.path for part in parts.values())):
        folder = DataRoot(root).folder("sources", config.folder_name, record.key)
        made = keys.made("download", config)
        return storage.run_stage(folder, Source, record.key, build, made)


def joined_record(config: PipelineConfig, parts: Mapping[str, Source]) -> Source:
    """The record of a mixture by those of its parts; none of its files is made."""
    parts = {name: parts[name] for name in config.data.sources}
    every = parts.items()
    joined = {name: _as_part(name, part, config) for name, part in every}
    return Source(
        key=joined_key(config, {name: part.key for name, part in every}),
        files={_linked(n, file): entry for n, p in every for file, entry in p.files.items()},
        dataset=config.data.dataset_name,
        revision=storage.sha256_json({name: part.revision for name, part in every}),
        splits=_all_splits(joined),
        origin={f"{n}/{file}": digest for n, p in every for file, digest in p.origin.items()},
        dropped={f"{n}: {why}": count for n, p in every for why, count in p.dropped.items()},
        inputs=_inputs(parts),
        notes=[f"{n}: {note}" for n, p in every for note in p.notes or ()],
        parts=joined,
    )


def joined_key(config: PipelineConfig, parts: Mapping[str, str]) -> str:
    """The key of a mixture's source by those of its parts."""
    sources = config.data.sources
    fields = {"licenses": {name: sources[name].license for name in sources}}
    return keys.stage_key("join", JOIN_VERSION, fields, {name: parts[name] for name in sources})


def _linked(name: str, file: str) -> str:
    return f"{name}-{file}"


def _as_part(name: str, source: Source, config: PipelineConfig) -> SourcePart:
    """What the record of a mixture has of one source."""
    splits = {
        split: held.model_copy(update={"files": [_linked(name, file) for file in held.files]})
        for split, held in source.splits.items()
    }
    return SourcePart(
        key=source.key,
        dataset=source.dataset,
        revision=source.revision,
        splits=splits,
        license=config.data.sources[name].license,
    )


def _all_splits(parts: Mapping[str, SourcePart]) -> dict[str, SourceSplit]:
    """The splits that any part has, with the files of all that have them."""
    splits = {}
    for split in SPLITS:
        held = [part.splits[split] for part in parts.values() if split in part.splits]
        if held:
            splits[split] = SourceSplit(
                files=[file for each in held for file in each.files],
                documents=sum(each.documents for each in held),
                bytes=sum(each.bytes for each in held),
            )
    return splits


def _inputs(parts: Mapping[str, Source]) -> dict[str, str]:
    """Split → what it was read from, of each part; of what had no files, its dataset."""
    inputs: dict[str, list[str]] = {}
    for name, part in parts.items():
        for split in part.splits:
            text = part.inputs.get(split, part.dataset)
            inputs.setdefault(split, []).append(f"{name}: {text}")
    return {split: "; ".join(texts) for split, texts in inputs.items()}


def part_of_source(source: Source, name: str) -> Source:
    """One source of a mixture as it was downloaded, whose files are read in the mixture's folder.

    Its key and its hashes are those of its own record, so that what is made from it has the same
    key, whether or not its own folder is still here.
    """
    part, begin = source.parts[name], f"{name}-"
    linked = [file for split in part.splits.values() for file in split.files]
    origin = (
        (file.removeprefix(f"{name}/"), digest)
        for file, digest in source.origin.items()
        if file.startswith(f"{name}/")
    )
    return Source(
        key=part.key,
        files={file.removeprefix(begin): source.files[file] for file in linked},
        path=source.path,
        dataset=part.dataset,
        revision=part.revision,
        splits=part.splits,
        origin=dict(origin),
    )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let the errors of one source of a mixture name it."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"source {name}: {error}") from error
    except SlmError as error:
        if type(error) is not SlmError:
            raise
        raise SlmError(f"source {name}: {error}") from error
