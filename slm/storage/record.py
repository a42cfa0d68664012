"""The record of a folder, `record.json`, which makes it complete; and the format of files."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from slm.errors import CorruptionError, NewerFormat, SlmError, first_invalid
from slm.records import Made, Record
from slm.storage.files import finite, fsync_path, write_json
from slm.storage.hashes import mismatches, sha256_json

RECORD = "record.json"
MADE = "made.json"  # next to it: how the result was made; no hash covers it, nothing needs it
FORMAT = 8
"""The format number of `record.json`, `config.json`, `plan.json` and `decision.json`; none means 1.

It goes up when a field of one of them is added, dropped or renamed. An older file is migrated in
memory; a newer one is refused, and never touched.
"""
PLAIN_FORMAT = 7  # of records of what is no mixture: they are written as before there were any
R = TypeVar("R", bound=Record)


def write_record(folder: Path, record: Record) -> None:
    """Write `record.json`, with its own hash in it: this makes the folder complete."""
    fields = finite(record.model_dump(mode="json"))
    try:
        type(record).model_validate(fields)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise SlmError(f"{folder} is not complete: {names} of its record is not finite") from error
    if not fields.get("parts"):
        fields.pop("parts", None)
    of_mixture = "parts" in fields or fields.get("kind") == "trimmed"
    fields = {"format": FORMAT if of_mixture else PLAIN_FORMAT, **fields}
    write_json(folder / RECORD, {**fields, "sha256": sha256_json(fields)})


def read_record(folder: Path, kind: type[R], *, verify: bool = True) -> R | None:
    """The record of a complete folder; None where there is none.

    Raises CorruptionError if the record cannot be read or a file does not match it.
    """
    try:
        _, fields = read_versioned(folder / RECORD, sealed=True)
        record = kind.model_validate({**fields, "path": folder})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        reason = first_invalid(error)
        raise CorruptionError(f"{folder / RECORD} cannot be read: {reason}") from error
    except ValueError as error:
        raise CorruptionError(f"{folder / RECORD} cannot be read: {error}") from error
    if verify and (wrong := mismatches(folder, record.files)):
        raise CorruptionError("; ".join(wrong))
    return record


def write_versioned(path: Path, fields: Mapping[str, Any]) -> None:
    """`write_json` for a file that carries the format number."""
    write_json(path, {"format": FORMAT, **fields})


def read_versioned(path: Path, *, sealed: bool = False) -> tuple[int, dict[str, Any]]:
    """The format number of a file, and its fields.

    `sealed`: it holds its own sha256, which in every format is made in the same way.

    Raises FileNotFoundError, CorruptionError where it cannot be read or is not what was written,
    NewerFormat.
    """
    try:
        fields = dict(json.loads(path.read_bytes()))
        if sealed and fields.pop("sha256", None) != sha256_json(fields):
            raise ValueError("its own sha256 does not match")
        number = fields.pop("format", 1)
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"its format is {number!r}")
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from error
    if number > FORMAT:
        raise NewerFormat(
            f"{path} is of format {number}, and this slm reads formats up to {FORMAT}: use the slm "
            "that wrote it, or point SLM_DATA at another folder; nothing was changed"
        )
    return number, fields


def unmark_complete(folder: Path) -> None:
    """Remove a folder's record, durably, so that it is no longer complete; its files stay."""
    (folder / RECORD).unlink(missing_ok=True)
    fsync_path(folder)


def check_files(folder: Path, names: Collection[str] | None = None) -> int:
    """Hash the files of a folder, or those of `names`, against its record, of whatever kind.

    Returns their number. Raises CorruptionError naming what is not as recorded.
    """
    _, fields = read_versioned(folder / RECORD, sealed=True)
    entries = Record.model_validate({key: fields.get(key) for key in ("key", "files")}).files
    chosen = {name: entries[name] for name in entries if names is None or name in names}
    wrong = [f"{folder / name}: not in the record" for name in set(names or ()) - set(chosen)]
    if wrong := wrong + mismatches(folder, chosen):
        raise CorruptionError("; ".join(wrong))
    return len(chosen)


def read_made(folder: Path) -> Made | None:
    """How a result was made; None where that was not recorded."""
    try:
        return Made.model_validate(read_versioned(folder / MADE)[1])
    except (OSError, SlmError, ValidationError):
        return None
