"""What is on disk, and when it is complete.

Every durable thing in `data/` is a folder with its files and, written last, a `record.json` with
the size and sha256 of each. A folder is complete if and only if that record is in it and every file
matches; "the file exists" is never enough. Only this package renames or fsyncs.

The commit rule, kept by `commit`: write the files in `X.tmp/`, fsync each, write the record, fsync
it and the folder, rename `X.tmp` to `X`, fsync the parent. Nothing is overwritten in place, so a
kill or a power cut at any moment leaves either no `X` or a whole one.
"""

from slm.errors import UserError

try:
    import fcntl  # noqa: F401 (before the modules that need it)
except ImportError as error:
    raise UserError(
        "slm runs on Linux and macOS: this system has no flock, by which its results are locked; "
        "on Windows install and run it inside WSL"
    ) from error

from slm.storage.faults import fault_point, reset_fault_points
from slm.storage.files import (
    finite,
    fsync_path,
    link_file,
    make_folder,
    named,
    replace_file,
    to_json,
    write_file,
    write_json,
)
from slm.storage.folders import LEFTOVER, commit, delete_leftovers, discard, quarantine
from slm.storage.hashes import (
    canonical_json,
    content_hash,
    describe_files,
    hashing_once,
    mismatches,
    sha256_bytes,
    sha256_file,
    sha256_json,
)
from slm.storage.locks import is_held, lock, lock_of, lock_shared, reading
from slm.storage.record import (
    FORMAT,
    MADE,
    RECORD,
    R,
    check_files,
    read_made,
    read_record,
    read_versioned,
    unmark_complete,
    write_record,
    write_versioned,
)
from slm.storage.stage import fetching, run_stage

__all__ = [
    "FORMAT",
    "LEFTOVER",
    "MADE",
    "RECORD",
    "R",
    "canonical_json",
    "check_files",
    "commit",
    "content_hash",
    "delete_leftovers",
    "describe_files",
    "discard",
    "fault_point",
    "fetching",
    "finite",
    "fsync_path",
    "hashing_once",
    "is_held",
    "link_file",
    "lock",
    "lock_of",
    "lock_shared",
    "make_folder",
    "mismatches",
    "named",
    "quarantine",
    "read_made",
    "read_record",
    "read_versioned",
    "reading",
    "replace_file",
    "reset_fault_points",
    "run_stage",
    "sha256_bytes",
    "sha256_file",
    "sha256_json",
    "to_json",
    "unmark_complete",
    "write_file",
    "write_json",
    "write_record",
    "write_versioned",
]
