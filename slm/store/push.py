"""`slm.push`: a finished result, with all that another machine needs to use it, → a store."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, cast

from slm import storage
from slm.errors import UserError
from slm.progress import Progress, automatic
from slm.records import Report, Run, Shards, Source, Vocabulary, names_version
from slm.registry.opening import finished_run, reference_to
from slm.registry.version import ModelVersion
from slm.registry.versions import open_version
from slm.run_folder import DataRoot, RunFolder
from slm.storage import R
from slm.store.entries import Entry, Kind
from slm.store.remote import Store, open_store
from slm.store.send import Pushed, Sender, results_of_run, send_data, send_of_run, send_run

if TYPE_CHECKING:
    from slm.registry.opening import Given

logger = logging.getLogger(__name__)


@storage.hashing_once()
def push(
    result: "Given | Source | Vocabulary | Shards",
    store: str | Store,
    *,
    data: bool = True,
    verify: bool = False,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Pushed:
    """Send a finished result to a store, with all that another machine needs to use it.

    >>> slm.push("quickstart-3693316e0b15", "s3://models/slm").sent

    With shards goes their source; with a run its shards, evaluations and reports; with a version
    its run. Only blobs that the store lacks are sent. A push that was killed is repeated.

    Args:
        result: a source, shards or a run, by name, folder or record; or a model version.
        store: its address, such as `file:///mnt/slm` or `s3://BUCKET/PREFIX`.
        data: whether sources and shards go with a run or a version.
        verify: hash the blobs that the store has too, and replace what is damaged.
        root: the data folder; None: as of `DataRoot`.

    Raises UserError for what is unknown or not finished, CorruptionError where a local file is
    damaged, StoreError where the store cannot be written.
    """
    sender = Sender(open_store(store), progress, verify=verify)
    home = DataRoot(root)
    if named := _data_named(result, home):
        _push_data(sender, named, home)
        return sender.pushed()
    reference = reference_to(cast("Given", result))
    version = open_version(reference, home.path) if names_version(reference) else None
    run = version.run(home) if version else home.run(reference)
    if version and not run.exists:
        raise UserError(f"the run of {version.uri}, {run.name}, is not here: push it where it is")
    folder, record = finished_run(run)
    if data:
        shards = folder.shards
        if shards:
            _push_data(sender, shards, home)
        else:
            logger.warning("the shards of %s are gone: it is pushed without them", folder.name)
    send_run(sender, folder, record)
    for inner in results_of_run(folder):
        send_of_run(sender, folder, inner)
    if version:
        _push_version(sender, version, folder, record)
    return sender.pushed()


def _data_named(result: object, home: DataRoot) -> Source | Vocabulary | Shards | None:
    """The source, the vocabulary or the shards that a name, a folder or a record is of."""
    if isinstance(result, Source | Vocabulary | Shards):
        return result
    if not isinstance(result, str | Path) or names_version(str(result)):
        return None
    source = _record_at(home, "sources", Path(result), Source)
    vocabulary = _record_at(home, "tokenizers", Path(result), Vocabulary)
    return source or vocabulary or _record_at(home, "shards", Path(result), Shards)


def _record_at(home: DataRoot, kind: str, name: Path, record: type[R]) -> R | None:
    for folder in (name, home.path / kind / name.name):
        if folder.parent.name == kind and (folder / storage.RECORD).is_file():
            return storage.read_record(folder.resolve(), record, verify=False)
    return None


def _push_data(sender: Sender, record: Source | Vocabulary | Shards, home: DataRoot) -> None:
    """Send a source; or a vocabulary or shards, after what they were made from."""
    vocabulary = None
    if not isinstance(record, Source) and record.source_key:
        source = home.source(record.source_key)
        if source:
            send_data(sender, source)
        else:
            logger.warning("the source of %s is gone: it is pushed without it", record.name)
    if isinstance(record, Shards) and (vocabulary := home.vocabulary_of(record)):
        send_data(sender, vocabulary)
    send_data(sender, record, vocabulary)


def _push_version(sender: Sender, version: ModelVersion, run: RunFolder, record: Run) -> None:
    """Send what a version was made of, and its aliases."""
    evaluation = run.find_evaluation(version.required("evaluation_key"))
    if evaluation is None:
        raise UserError(f"the evaluation of {version.uri} is gone: `slm register {run.name}` first")
    needs: dict[Kind, str] = {"run": record.key, "evaluation": evaluation.key}
    sha256 = version.tags.get("report_sha256")
    for inner in results_of_run(run):
        if isinstance(inner, Report) and storage.content_hash(inner) == sha256:
            needs["report"] = inner.key
    key = storage.sha256_json({"model": version.name, **needs})
    entry = Entry(kind="version", key=key, name=version.name, needs=needs, number=version.version)
    sender.send(entry, run.path)
    for alias in version.aliases:
        sender.store.set_alias(version.name, alias, key)
