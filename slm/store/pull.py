"""`slm.pull`: a result of a store, with all that it was pushed with, → the data folder."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from slm import storage
from slm.errors import CorruptionError, SlmError, UserError, excerpt, listing
from slm.progress import Progress, automatic
from slm.records import LATEST, Report, names_version, parse_version
from slm.registry.register import register
from slm.registry.version import CHAMPION
from slm.run_folder import KEY_DIGITS, MIN_DIGITS, DataRoot, RunFolder
from slm.store.entries import Entry, Kind
from slm.store.receive import Pulled, Receiver, stem
from slm.store.remote import Store, open_store


@storage.hashing_once()
def pull(
    name: str,
    store: str | Store,
    *,
    data: bool = True,
    root: Path | None = None,
    progress: Progress = automatic,
) -> Pulled:
    """Get a result from a store, with all that it was pushed with.

    >>> slm.pull("quickstart-3693316e0b15", "s3://models/slm").path

    With shards comes their source; with a run its shards, evaluations and reports. A version is
    registered here, as `slm register` does, with a number and aliases of this registry. What is
    complete here is left as it is.

    Args:
        name: of a source, shards or a run, or the beginning of its key; or a version: NAME@ALIAS,
            models:/NAME/NUMBER by the number where it was pushed, or models:/NAME.
        store: its address.
        data: whether sources and shards come with a run or a version.
        root: the data folder; None: as of `DataRoot`.

    Raises UserError where the store has no such result, CorruptionError where a blob is damaged,
    StoreError where the store cannot be read.
    """
    store, home = open_store(store), DataRoot(root)
    receiver = Receiver(store, home, progress)
    if names_version(name):
        entry = _version(store, name)
        run = receiver.with_run(_needed(store, "run", entry.needs["run"]), data=data)
        version = _register(entry, run, home)
        return receiver.pulled(run.path, version)
    entry = _named(store, name)
    if entry.kind == "run":
        return receiver.pulled(receiver.with_run(entry, data=data).path)
    return receiver.pulled(receiver.with_needs(entry).path)


# ---- names ------------------------------------------------------------------------------------


def _named(store: Store, name: str) -> Entry:
    """The source, shards or run of a name or the beginning of a key. Raises UserError."""
    parts = re.fullmatch(r"(?:(.+)-)?([0-9a-f]{1,64})", Path(name).name)
    if parts is None or len(parts[2]) < MIN_DIGITS:
        raise UserError(
            f"{excerpt(repr(name))} is not the name of a result, such as quickstart-3693316e0b15, "
            "nor the beginning of its key, nor NAME@ALIAS of a version"
        )
    kinds: tuple[Kind, ...] = ("run", "shards", "tokenizer", "source")
    entries = [
        entry
        for kind in kinds
        for key in store.keys(kind, parts[2])
        if (entry := store.entry(kind, key)) and (parts[1] is None or len(parts[2]) >= KEY_DIGITS
                                                  or stem(entry) == parts[1])
    ]  # fmt: skip
    if not entries:
        raise UserError(f"the store {store} has no result {excerpt(repr(name))}: push it first")
    if len(entries) > 1:
        names = listing(f"{entry.kind} {entry.name}" for entry in entries)
        raise UserError(f"{name!r} is the beginning of several keys in {store}: {names}")
    return entries[0]


def _version(store: Store, reference: str) -> Entry:
    """The version that a reference names in a store. Raises UserError."""
    model, chosen = parse_version(reference)
    entries = store.versions(model)
    if not entries:
        models = listing(store.models())
        raise UserError(f"the store {store} has no version of {model!r}; its models: {models}")
    if chosen and chosen.isdigit():
        fitting = [entry for entry in entries if entry.number == chosen]
    else:
        key = store.alias(model, chosen or CHAMPION) if chosen != LATEST else None
        fitting = [entry for entry in entries if entry.key == key]
        if chosen is None and not fitting:
            fitting = entries
    if len(fitting) == 1:
        return fitting[0]
    known = listing(f"models:/{model}/{entry.number}" for entry in entries)
    problem = f"{len(fitting)} versions" if fitting else "no version"
    raise UserError(f"the store {store} has {problem} {reference}; it has {known}")


def _needed(store: Store, kind: Kind, key: str) -> Entry:
    entry = store.entry(kind, key)
    if entry is None:
        raise CorruptionError(f"the store {store} lacks the {kind} {key[:KEY_DIGITS]}")
    return entry


def _register(entry: Entry, run: RunFolder, home: DataRoot) -> str:
    """Register a pulled run as the version that it was, in this registry; returns its URI."""
    evaluation, record = run.find_evaluation(entry.needs["evaluation"]), run.verified_record
    if evaluation is None or record is None:
        raise CorruptionError(f"the evaluation of the version of {entry.name} did not come with it")
    own = run.config
    registry = own.registry.model_copy(update={"model": entry.name, "tracking_uri": None})
    config = own.model_copy(update={"registry": registry})
    report = next((each for each in _reports(run) if each.key == entry.needs.get("report")), None)
    version = register(config, record, evaluation, report, run.shards, root=home.path)
    return version.uri


def _reports(run: RunFolder) -> Iterator[Report]:
    for path in sorted(run.path.glob("report*")):
        with suppress(SlmError):
            if record := storage.read_record(path, Report, verify=False):
                yield record
