"""Download: a dataset on the hub, local files, or the embedded corpus → parquet files.

Every source is written alike: `train_00000.parquet` …, and `val_00000.parquet` … where the dataset
has a split of its own, each with the column `text`, one row per document, and `columns` where
`data.columns` keeps any (slm/source/formats/kept.py). The bytes are a function of the documents and
what is kept alone, not of how the input was cut into files.
"""

import errno
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slm import keys, storage
from slm.config import DataConfig, PipelineConfig
from slm.errors import CorruptionError, SlmError, UserError
from slm.progress import Progress, automatic
from slm.records import Source, SourceSplit
from slm.run_folder import DataRoot
from slm.source import hub, seen
from slm.source.documents import check_contents, check_separator, read_documents
from slm.source.files import find_files
from slm.source.formats.kept import Kept
from slm.source.hub_client import keep_cache_in
from slm.source.mixture import join_sources, naming, part_of_source
from slm.source.remote import fetch, is_here
from slm.source.splits import Layout, explicit
from slm.source.stories import STORIES_VERSION, stories

logger = logging.getLogger(__name__)

DOWNLOAD_VERSION = 1
"""Goes up whenever the same input gives other parquet bytes."""

_PIECES_VERSION = 2  # of how a text is split: part of the key only where `data.separator` is set
ROW_GROUP_BYTES = 2 << 20  # of text: the piece that one encoding worker takes
FILE_BYTES = 256 << 20
_TEXT = pa.field("text", pa.string(), nullable=False)
_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@storage.hashing_once()
def download(
    config: PipelineConfig, *, root: Path | None = None, progress: Progress = automatic
) -> Source:
    """The documents of `config.data` as parquet files in `<root>/sources/<name>-<key>/`.

    Each source of a mixture is downloaded into a folder of its own first, and then joined.

    Raises UserError where the dataset is missing, empty or not text, CorruptionError where its
    bytes are damaged, SlmError where the hub cannot be reached.
    """
    data = DataRoot(root)
    if config.data.sources:
        parts = {}
        for name in config.data.sources:
            with naming(name):
                parts[name] = download(config.of_source(name), root=root, progress=progress)
        return join_sources(config, parts, root=root)
    make = {"stories": _from_stories, "files": _from_files, "hub": _from_hub}[config.data.source]
    try:
        return make(config, data, progress)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            raise UserError(
                f"cannot write to {data.path} ({error.strerror}): free some space, fix its "
                "permissions, or point SLM_DATA at another folder"
            ) from error
        raise


def download_key(
    config: PipelineConfig, inputs: Any, *, version: int | None = None, **resolved: str
) -> str:
    """The stage's key. `resolved` replaces settings, such as a revision by its commit.

    `version`: of the stage; None: today's.
    """
    fields: dict[str, Any] = {**keys.stage_fields("download", config), **resolved}
    if config.data.source != "stories" and config.data.separator is not None:
        fields["pieces"] = _PIECES_VERSION
    return keys.stage_key("download", version or DOWNLOAD_VERSION, fields, inputs)


def files_key(
    config: PipelineConfig,
    base: Path,
    splits: Mapping[str, Iterable[Path]],
    origin: Mapping[str, str],
    version: int | None = None,
) -> str:
    """The key of a source of local files.

    Args:
        base: their common folder.
        splits: the files of each split in order.
        origin: the sha256 of each by its path in that folder.
    """
    ordered = {s: [p.relative_to(base).as_posix() for p in paths] for s, paths in splits.items()}
    inputs = {"files": dict(origin), "splits": ordered}
    return download_key(config, inputs, version=version)


def is_made_with(source: Source, config: PipelineConfig) -> bool:
    """Whether a source was made with these settings, going by names alone: no data is read.

    A branch or tag of the hub is assumed to still be the source's commit, and local files to be
    unchanged.
    """
    data = config.data
    if data.sources or source.parts:
        return set(source.parts) == set(data.sources) and all(
            is_made_with(part_of_source(source, name), config.of_source(name))
            for name in data.sources
        )
    if data.source == "hub":
        return source.key in hub_keys(config, source.revision)
    if data.source == "files":
        if not is_here(data):
            return False
        base, layout = find_files(data)
        return source.key == files_key(config, base, layout.files, source.origin)
    return source.key == stories_key(config)


def stories_count(data: DataConfig) -> int:
    """How many stories are generated. Raises UserError where the config does not say."""
    if data.documents is None:
        raise UserError(
            "data.source=stories needs a number of documents, for example "
            "--set data.documents=12000"
        )
    return data.documents


def generator_version() -> str:
    """What the record of generated stories has as its revision."""
    return f"version {STORIES_VERSION}"


def stories_key(config: PipelineConfig, version: int | None = None) -> str:
    """The key of the generated corpus."""
    return download_key(config, {"stories": STORIES_VERSION}, version=version)


# ---- the embedded corpus ----------------------------------------------------------------------


def _from_stories(config: PipelineConfig, root: DataRoot, progress: Progress) -> Source:
    data, count = config.data, stories_count(config.data)
    key = stories_key(config)

    def build(staging: Path) -> Source:
        texts = stories(data.seed, 0, count)
        batches = iter(lambda: list(islice(texts, 1000)), [])
        arrays = (pa.array(batch, pa.string()) for batch in batches)
        split = _write_split(staging, "train", arrays, pa.schema([_TEXT]), progress, count)
        return Source(
            key=key,
            dataset="stories",
            revision=generator_version(),
            splits={"train": split},
        )

    return _run_stage(config, root, key, build)


# ---- local files ------------------------------------------------------------------------------


def _from_files(config: PipelineConfig, root: DataRoot, progress: Progress) -> Source:
    data = fetch(config.data, root.path, progress)
    base, layout = find_files(data)
    splits = layout.files
    check_contents([path for paths in splits.values() for path in paths], data)
    names = {path: path.relative_to(base).as_posix() for paths in splits.values() for path in paths}
    try:
        stamped = seen.stamps(names)
        entries = storage.describe_files(base, names)
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from error
    origin = {name: entry.sha256 for name, entry in entries.items()}
    revision = storage.sha256_json(origin)
    key = files_key(config, base, splits, origin)
    for note in layout.notes:
        logger.warning("%s: %s", config.data.path, note)
    source = _convert(config, root, key, revision, lambda: layout, origin, progress, checked=True)
    seen.remember(root.path, {path: origin[name] for path, name in names.items()}, stamped)
    # Of a reused source too, these are of the files as they are now.
    return source.model_copy(update={"inputs": layout.inputs, "notes": layout.notes})


# ---- the hub ----------------------------------------------------------------------------------


def _from_hub(config: PipelineConfig, root: DataRoot, progress: Progress) -> Source:
    data = config.data
    keep_cache_in(root.path)
    commit = hub.resolve_commit(data)
    key, known = _hub_key(config, root, commit)
    origin: dict[str, str] = {}

    def fetched(files: Iterable[hub.HubFile]) -> Iterator[Path]:
        for file in files:
            storage.fault_point("download.file")
            path = hub.fetch(data, commit, file, progress)
            origin[file.path] = file.sha256 or storage.sha256_file(path)
            yield path

    def find() -> Layout[Path]:
        layout = known or hub.find_files(data, commit)
        files = {split: fetched(files) for split, files in layout.files.items()}
        return Layout(files, layout.inputs, layout.notes)

    source = _convert(config, root, key, commit, find, origin, progress)
    for note in source.notes or ():
        logger.warning("%s: %s", data.path, note)
    return source


def hub_keys(config: PipelineConfig, commit: str, version: int | None = None) -> tuple[str, str]:
    """The key of a dataset whose val, if any, is the split of that name; and of any other."""
    return (
        download_key(config, None, version=version, revision=commit),
        download_key(config, {"val": "a split named like it"}, version=version, revision=commit),
    )


def known_hub_key(config: PipelineConfig, root: DataRoot, commit: str) -> str | None:
    """The key of the dataset at a commit where a source that is here shows it; the hub is not
    asked. None too where a source was made by an earlier version, which took a split of exactly
    that name as val and no other.
    """
    exact, alike = hub_keys(config, commit)
    if _known(config, root, alike):
        return alike
    data, record = config.data, _known(config, root, exact)
    if record:
        taken = "val" in record.splits and data.train_split != data.val_split
        if record.notes is not None or taken or explicit(data, "val_split"):
            return exact
    return None


def _hub_key(
    config: PipelineConfig, root: DataRoot, commit: str
) -> tuple[str, hub.HubLayout | None]:
    """The key of the dataset at a commit, and its layout where the hub had to be asked for it."""
    if key := known_hub_key(config, root, commit):
        return key, None
    exact, alike = hub_keys(config, commit)
    data, record = config.data, _known(config, root, exact)
    try:
        layout = hub.find_files(data, commit)
    except UserError:
        raise
    except SlmError as error:
        if record is None:
            raise
        logger.warning("%s; whether it has a val split of its own is not known", error)
        return exact, None
    return (alike if layout.val_alike else exact), layout


def _known(config: PipelineConfig, root: DataRoot, key: str) -> Source | None:
    """The record of a source, whose files are not checked; None where it is missing or damaged."""
    try:
        folder = root.folder("sources", config.folder_name, key)
        record = storage.read_record(folder, Source, verify=False)
    except CorruptionError:
        return None
    return record if record and record.key == key else None


# ---- writing ----------------------------------------------------------------------------------


def _convert(
    config: PipelineConfig,
    root: DataRoot,
    key: str,
    revision: str,
    find: Callable[[], Layout[Path]],
    origin: dict[str, str],
    progress: Progress,
    *,
    checked: bool = False,
) -> Source:
    """Files of documents → a source. Raises UserError where a split has no documents.

    Args:
        find: called where the source is not there yet; returns the files of each split.
        origin: the sha256 of each file by its name, filled by the time that all are read.
        checked: whether `check_contents` was called with the files.
    """
    data = config.data

    def build(staging: Path) -> Source:
        dropped: Counter[str] = Counter()
        written = {}
        layout = find()
        kept = Kept(data)
        schema = pa.schema([_TEXT, kept.field] if kept else [_TEXT])
        for split, paths in layout.files.items():
            separated = check_separator(paths, data)
            documents = _documents(separated, data, split, dropped, checked, kept)
            written[split] = _write_split(staging, split, documents, schema, progress, None)
        kept.check_noted(f"data.path={data.path}")
        counts = {reason: count for reason, count in sorted(dropped.items()) if count}
        for reason, count in counts.items():
            logger.warning("%s: %d row(s) left out: %s", data.path, count, reason)
        for split, files in written.items():
            if not files.documents:
                left_out = (f"; {count} row(s) left out: {why}" for why, count in counts.items())
                raise UserError(
                    f"data.path={data.path}: no documents in the {split} split{''.join(left_out)}"
                    + ("; --set data.val_split=null leaves it out" if split == "val" else "")
                )
        return Source(
            key=key,
            dataset=data.path,
            revision=revision,
            splits=written,
            origin=origin,
            dropped=counts,
            inputs=layout.inputs,
            notes=layout.notes,
        )

    return _run_stage(config, root, key, build)


def _run_stage(
    config: PipelineConfig, root: DataRoot, key: str, build: Callable[[Path], Source]
) -> Source:
    folder = root.folder("sources", config.folder_name, key)
    return storage.run_stage(folder, Source, key, build, keys.made("download", config))


def _documents(
    paths: Iterable[Path],
    data: DataConfig,
    split: str,
    dropped: Counter[str],
    checked: bool,
    kept: Kept,
) -> Iterator[pa.Array]:
    """All documents of a split in order; of train at most `data.documents`."""
    left = data.documents if split == "train" else None
    for path in paths:
        for array in read_documents(path, data, dropped, checked=checked, kept=kept):
            if left is not None and left <= len(array):
                yield array.slice(0, left)
                return
            yield array
            left = None if left is None else left - len(array)


def _write_split(
    folder: Path,
    split: str,
    arrays: Iterable[pa.Array],
    schema: pa.Schema,
    progress: Progress,
    total: int | None,
) -> SourceSplit:
    """Write `<split>_00000.parquet` … and return their names and counts."""
    files: list[str] = []
    documents = size = room = 0
    writer: pq.ParquetWriter | None = None
    try:
        for group in row_groups(arrays):
            if writer is None or room <= 0:
                if writer:
                    writer.close()
                storage.fault_point("download.file")
                files.append(f"{split}_{len(files):05d}.parquet")
                writer = pq.ParquetWriter(folder / files[-1], schema, compression="zstd")
                room = FILE_BYTES
            fields = group.flatten() if len(schema) > 1 else [group]
            writer.write_table(pa.table(fields, schema=schema))
            documents += len(group)
            size += pc.sum(pc.binary_length(fields[0])).as_py()
            room -= int(_row_bytes(group).sum())
            progress(f"{split} documents", documents, total)
    finally:
        if writer:
            writer.close()
    return SourceSplit(files=files, documents=documents, bytes=size)


def row_groups(arrays: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """The same documents, cut after each one with which a group reaches `ROW_GROUP_BYTES`.

    What is kept next to a document counts as its text does.

    With 10 as that size, documents of [4, 7] and [3, 9, 1] bytes become groups of 4 + 7, 3 + 9
    and 1, as those of [4, 7, 3, 9, 1] do.
    """
    pending: list[pa.Array] = []
    size = 0  # of what is pending
    for array in arrays:
        ends = np.cumsum(_row_bytes(array), dtype=np.int64)  # (N,)
        start = before = 0
        while start < len(array):
            stop = int(np.searchsorted(ends, before + ROW_GROUP_BYTES - size)) + 1
            pending.append(array.slice(start, stop - start))
            if stop > len(array):
                size += int(ends[-1]) - before
                break
            group, pending, size = pa.concat_arrays(pending), [], 0
            yield group
            start, before = stop, int(ends[stop - 1])
    if pending:
        yield pa.concat_arrays(pending)


def _row_bytes(array: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each document, with those of what is kept next to it; (N,)."""
    fields = array.flatten() if pa.types.is_struct(array.type) else [array]
    sizes = [pc.binary_length(each).to_numpy().astype(np.int64) for each in fields]
    total: npt.NDArray[np.int64] = np.sum(sizes, axis=0, dtype=np.int64)
    return total
