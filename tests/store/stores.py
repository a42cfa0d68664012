"""Stores for tests, and what is in them."""

import uuid
from pathlib import Path
from typing import Any

from slm.records import Record
from slm.run_folder import DataRoot, RunFolder
from slm.storage import RECORD, check_files
from slm.store.entries import Entry, Kind
from slm.store.remote import open_store


def memory_store() -> str:
    """The address of a store of its own in this process."""
    return f"memory://{uuid.uuid4().hex}"


def entries(address: str) -> list[Entry]:
    """All results in a store, each read."""
    store = open_store(address)
    kinds: tuple[Kind, ...] = ("source", "shards", "run")
    top = [store.entry(kind, key) for kind in kinds for key in store.keys(kind)]
    filled = [entry for entry in top if entry]
    return filled + [inner for e in filled if e.kind == "run" for inner in store.inside(e.key)]


def assert_whole(address: str) -> list[Entry]:
    """Every entry of a store has all its blobs, of the right bytes; returns the entries."""
    store, every = open_store(address), entries(address)
    for entry in every:
        for name, blob in entry.files.items():
            assert store.has_blob(blob, verify=True), f"{entry.kind} {entry.name}: {name}"
    return every


def blob_path(address: str, sha256: str) -> Path:
    """The file of a blob in a store of files."""
    return Path(address.removeprefix("file://")) / "blobs" / sha256[:2] / sha256


def verify_folder(folder: Path) -> int:
    """As `slm verify` does: hash every file below a folder; returns the number of records."""
    records = sorted(folder.rglob(RECORD))
    for record in records:
        check_files(record.parent)
    return len(records)


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, locks and notes of servers aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("lock") and path.name != "train.log"
    }


def only_run(root: Path) -> RunFolder:
    [run] = DataRoot(root).runs()
    return run


def blob_of(address: str, kind: Kind, name: str) -> Path:
    """The blob, in a store of files, of a file of the only result of a kind."""
    [entry] = [each for each in entries(address) if each.kind == kind]
    return blob_path(address, entry.files[name].sha256)


def facts(record: Record | None) -> dict[str, Any]:
    """What a record holds, wherever it is."""
    assert record is not None
    return record.model_dump()
