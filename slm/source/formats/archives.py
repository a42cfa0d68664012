"""zip and tar archives of text files → documents. Nothing is unpacked to a disk.

The text files of an archive are read in its order, each as it would be from a folder. Their names
are for messages alone: whatever path one has, nothing is written there.
"""

import io
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import pyarrow as pa

from slm.config import DataConfig
from slm.errors import CorruptionError, UserError, excerpt
from slm.source.formats.contents import COMPRESSIONS, is_hidden
from slm.source.formats.text import decoded, documents_in, first_line
from slm.source.splits import split_of

ZIP, TAR = "zip", "tar"
LEFT_OUT = "file of an archive that is no text file"
MAX_RATIO = 200  # of what an archive holds to its size; text shrinks to a tenth or so
MIN_BOMB_BYTES = 64 << 20  # so much may be in any archive
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, pa.ArrowException)


def archive_of(path: PurePath) -> str | None:
    """`zip` or `tar`, by the name of a file: `.zip`, `.tar`, `.tar.gz`, `.tgz`, `.tar.zst`."""
    name = path.name.lower()
    if name.endswith(".zip"):
        return ZIP
    return TAR if name.endswith((".tar", ".tgz", *(f".tar{c}" for c in COMPRESSIONS))) else None


def archive_documents(path: Path, data: DataConfig, dropped: Counter[str]) -> Iterator[bytes]:
    """The documents of the text files in an archive, in its order.

    Args:
        data: `separator` of text; with `format: text` every file is one, whatever its name.
        dropped: gets the number of its other files.

    Raises UserError where it is encrypted, holds no text file, is named like several splits, or
    expands to far more than text does; CorruptionError where it is damaged.
    """
    others = count = 0
    splits: dict[str | None, str] = {}
    members = _zip_members(path) if archive_of(path) == ZIP else _tar_members(path)
    try:
        for name, file in members:
            if is_hidden(PurePosixPath(name)) or "__MACOSX" in name:
                continue
            if not _is_text(name, data):
                others += 1
                continue
            count += 1
            _check_split(path, name, splits, data)
            where = f"{path}: {excerpt(ascii(name)[1:-1])}"
            allowed = (data.separator or "").encode()
            chunks = decoded(_stream(name, file), where, allowed)
            yield from documents_in(where, chunks, data.separator)
    except _DAMAGED as error:
        raise CorruptionError(
            f"{path} is damaged or cut short: {first_line(error)}; get it again"
        ) from error
    except (RuntimeError, NotImplementedError) as error:  # of zipfile: a password, a method
        raise UserError(f"{path} cannot be read: {first_line(error)}; unpack it") from error
    if not count:
        raise UserError(
            f"{path} holds no text file (.txt), but {others:,} other file(s): unpack it, or --set "
            "data.format=text to read every one of its files as text"
        )
    dropped[LEFT_OUT] += others


def _is_text(name: str, data: DataConfig) -> bool:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return data.format == "text" or (data.format is None and suffixes[-1:] == [".txt"])


def _check_split(path: Path, name: str, splits: dict[str | None, str], data: DataConfig) -> None:
    """Raises UserError where a file is named like another split than those before it.

    An archive is of one split, by its own name; what is named like test must not become train.
    """
    if data.val_split is None:  # said to be no splits
        return
    parts = reversed(PurePosixPath(name).parts)
    split = next(filter(None, map(split_of, parts)), None)
    splits.setdefault(split, name)
    if len(splits.keys() - {None}) > 1:
        several = " and ".join(excerpt(ascii(name)[1:-1]) for key, name in splits.items() if key)
        raise UserError(
            f"{path} holds files named like several splits, such as {several}: unpack it into a "
            "folder, or set data.val_split=null to read all of it as train"
        )


def _stream(name: str, file: Any) -> Any:
    compression = COMPRESSIONS.get(PurePosixPath(name).suffix.lower())
    return pa.input_stream(pa.PythonFile(file, mode="r"), compression=compression)


def _zip_members(path: Path) -> Iterator[tuple[str, Any]]:
    budget = _Budget(path)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise UserError(
                    f"{path} is encrypted: unpack it with its password, and give the folder"
                )
            with archive.open(info) as file:
                yield info.filename, _Counting(file, budget)


def _tar_members(path: Path) -> Iterator[tuple[str, Any]]:
    """The files of a tar archive in one pass; links and devices are not read."""
    budget = _Budget(path)
    suffix = path.suffix.lower()
    compression = "gzip" if suffix == ".tgz" else COMPRESSIONS.get(suffix)
    with (
        pa.input_stream(str(path), compression=compression) as stream,
        tarfile.open(fileobj=_Counting(stream, budget), mode="r|") as archive,
    ):
        for info in archive:
            if info.isreg() and (file := archive.extractfile(info)):
                yield info.name, file
        _check_end(path, archive.fileobj)


def _check_end(path: Path, rest: Any) -> None:
    """Raises CorruptionError unless zeros alone follow the last file, a block of them at least.

    Python's reader takes a damaged header, and the end of a file that was cut, for the end.
    """
    size = 0
    while block := rest.read(1 << 20):
        size += len(block)
        if block.strip(b"\0"):
            raise CorruptionError(f"{path} is damaged: something follows its end; get it again")
    if size < tarfile.BLOCKSIZE:
        raise CorruptionError(f"{path} is damaged or cut short: no end mark; get it again")


class _Budget:
    """How many bytes may come out of an archive before it is no archive of text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = max(MIN_BOMB_BYTES, MAX_RATIO * path.stat().st_size)

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise UserError(
                f"{self.path} expands to more than {MAX_RATIO} times its size: no text does; if "
                "it is meant, unpack it and give the folder"
            )


class _Counting(io.RawIOBase):
    """A stream whose bytes are taken from a budget."""

    def __init__(self, file: Any, budget: _Budget) -> None:
        self._file, self._budget = file, budget

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._file.read(size))
        self._budget.take(len(data))
        return data
