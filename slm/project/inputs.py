"""A file of a dataset, wherever it is, and as much of it as is looked at."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, TypeVar

from slm import storage
from slm.config import DataConfig
from slm.progress import silent
from slm.source import hub
from slm.source.documents import format_of
from slm.source.formats.contents import COMPRESSIONS

HEAD_BYTES = 8 << 20  # of a file that is too large to be read as a whole
_OF_LINES = ("jsonl", "csv", "tsv")

T = TypeVar("T")


@dataclass(frozen=True)
class Input:
    """A file on this disk, or one on the hub, of which only what is read is downloaded."""

    path: PurePath
    size: int
    at: tuple[DataConfig, str] | None = None  # the dataset on the hub, and the commit
    file: hub.HubFile | None = None

    def read(self, reader: Callable[[BinaryIO], T]) -> T:
        """What `reader` returns of the open file."""
        if self.at:
            return hub.read_ranges(*self.at, str(self.path), reader)
        with Path(self.path).open("rb") as stream:
            return reader(stream)

    def on_disk(self) -> Path:
        """The whole file, downloaded where it is on the hub."""
        if self.at and self.file:
            return hub.fetch(*self.at, self.file, silent)
        return Path(self.path)


def local_inputs(paths: Iterable[Path]) -> list[Input]:
    return [Input(path, path.stat().st_size) for path in paths]


def hub_inputs(data: DataConfig, commit: str, files: Iterable[hub.HubFile]) -> list[Input]:
    return [Input(PurePath(file.path), file.size, (data, commit), file) for file in files]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, at equal distances: of 10 four are the 1st, 3rd, 6th, 8th."""
    number = min(count, len(items))
    return [items[index * len(items) // number] for index in range(number)]


@dataclass(frozen=True)
class Part:
    """What is looked at of an input: a file on this disk, whole or the beginning."""

    path: Path
    taken: int  # bytes of the input
    whole: bool


def part_of(given: Input, folder: Path, data: DataConfig) -> Part:
    """An input that is small or on this disk as it is; else its beginning, copied into a folder.

    Of lines the beginning ends with a whole one.
    """
    kind = format_of(given.path, data.format)
    if kind == "arrow" or (given.at is None and given.size <= HEAD_BYTES):
        return Part(given.on_disk(), given.size, True)
    head = given.read(lambda stream: stream.read(HEAD_BYTES))
    if len(head) < given.size and kind in _OF_LINES and not is_packed(given.path):
        head = head[: head.rfind(b"\n") + 1] or head
    target = storage.make_folder(folder / str(len(list(folder.iterdir())))) / given.path.name
    target.write_bytes(head)
    return Part(target, len(head), len(head) == given.size)


def is_packed(path: PurePath) -> bool:
    return path.suffix.lower() in COMPRESSIONS
