"""Local files of documents: those that `data.path` names, the split of each, and what is unread."""

import glob
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from slm.config import DataConfig
from slm.errors import UserError
from slm.source.documents import FORMATS, check_kept, check_name, format_of, unsupported
from slm.source.formats.archives import archive_of
from slm.source.formats.contents import is_hidden
from slm.source.remote import is_here, with_local_path
from slm.source.splits import Layout, assign, counted, examples, missing_shards

_NO_LINE = re.compile(  # neighbours of data that nobody misses
    r"(readme|licen[cs]e|notice|copying|authors|citation|changelog|contributing)(\..+)?",
    re.IGNORECASE,
)
_ESCAPED = re.compile(r"\[([*?\[])\]")  # as glob.escape writes it
MAX_SUFFIXES = 8  # that a line lists
STATE = "state.json"  # what `save_to_disk` of datasets writes next to its files


def find_files(data: DataConfig) -> tuple[Path, Layout[Path]]:
    """The files that `data.path` names: their common folder, and the files of each split in order.

    The path is a file, a folder (searched to its depths) or a glob. In a folder or glob, files
    and subfolders named like a split belong to it, as of `splits.assign`; all others are `train`.
    What is not read comes as notes. Raises UserError where there are no files, none for a split
    that the config names explicitly, or one whose name is not UTF-8.
    """
    given, data = data, with_local_path(data)
    path = Path(data.path).expanduser().absolute()
    check_name(path, "data.path: ")
    if given is not data and not is_here(given):
        raise UserError(
            f"data.path={given.path} was not fetched yet: `slm download` and `slm run` fetch it"
        )
    if path.is_file():
        if format_of(path, data.format) is None and archive_of(path) is None:
            raise unsupported(f"data.path={data.path}")
        check_kept(f"data.path={data.path}", path, data)
        return path.parent, Layout({"train": [path]}, {"train": f"1 file: {examples([path.name])}"})
    base, listing = _listing(data, path)
    listing.open_archives()
    notes = listing.notes()
    if not listing.files:
        problem = "does not exist"
        if path.is_dir() or glob.has_magic(data.path):
            problem = "matches no file of a supported format"
        raise UserError(
            f"data.path={data.path} {problem}: give a file, a folder or a glob of "
            + "; ".join([", ".join(FORMATS), *notes])
        )
    for file in listing.files:
        check_name(file, f"data.path={data.path}: ")
    formats = Counter(_format_name(file, data) for file in listing.files)
    if len(formats) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
        raise UserError(
            f"data.path={data.path} holds files of several formats ({counts}): choose one with a "
            f"glob, such as {base}/**/*{listing.files[0].suffix}"
        )
    check_kept(f"data.path={data.path}", listing.files[0], data)
    splits, decided = assign(data, listing.files)
    if not splits["train"]:
        raise UserError(
            f"data.path={data.path} has no file for the split {data.train_split or 'train'!r}, "
            f"only {examples(listing.files)}: name one of them as data.path, set data.train_split "
            "to the name of one, or data.val_split=null where these names are of no splits"
        )
    used = {split: files for split, files in splits.items() if files}
    notes += decided + missing_shards(str(file) for files in used.values() for file in files)
    return base, Layout(
        {split: [base / file for file in files] for split, files in used.items()},
        {split: f"{counted(len(f))}: {examples(f)}" for split, f in used.items()},
        notes,
    )


def _format_name(file: PurePath, data: DataConfig) -> str:
    return "archive" if archive_of(file) else str(format_of(file, data.format))


def list_files(data: DataConfig) -> tuple[Path, list[PurePath], list[PurePath]]:
    """The folder that a folder or glob searches; its files of documents; those of other formats.

    Both lists are sorted, by paths relative to that folder.
    """
    base, listing = _listing(data, Path(data.path).expanduser().absolute())
    others = (*listing.unread.get("unsupported", []), *listing.unread.get("archives", []))
    return base, listing.files, sorted(others)


@dataclass
class _Listing:
    """What is in a folder, by paths relative to it: files of documents, and what is not read."""

    base: Path
    format: str | None  # data.format
    files: list[PurePath] = field(default_factory=list)
    unread: dict[str, list[PurePath]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: Path) -> None:
        """Put a file, or a link of whatever kind, where it belongs."""
        name = path.relative_to(self.base)
        if is_hidden(name):
            return
        readable = format_of(name, self.format) is not None
        if not path.is_file():
            if path.is_symlink():
                self.unread["linked" if path.is_dir() else "dangling"].append(name)
            elif readable and not path.is_dir():
                self.unread["special"].append(name)
        elif any(part.startswith("_") for part in name.parts):
            self.unread["hidden"] += [name] * readable
        elif archive_of(name):
            self.unread["archives"].append(name)
        elif readable:
            self.files.append(name)
        elif not _NO_LINE.fullmatch(name.name):
            self.unread["unsupported"].append(name)

    def open_archives(self) -> None:
        """Where there are archives and no other files of documents, they are the files."""
        archives = sorted(self.unread.pop("archives", []))
        if self.files:
            self.unread["unsupported"] += archives
        else:
            self.files = archives

    def notes(self) -> list[str]:
        """A line for each kind of thing that is not read."""
        kinds = {kind: sorted(names) for kind, names in self.unread.items() if names}
        lines = []
        if names := kinds.get("unsupported"):
            lines.append(
                f"{counted(len(names))} left out: not in a supported format, {_suffixes(names)}: "
                f"{examples(names)} (convert or unpack what is to be read)"
            )
        for kind, noun, text in (
            ("hidden", "file", "left out: a name that begins with _"),
            ("cached", "file", f"left out: not of the dataset that {STATE} next to it names"),
            ("special", "file", "left out: no regular file"),
            ("dangling", "link", "left out: what they point to does not exist"),
            ("linked", "linked folder", "not followed (a glob such as */*.txt goes through links)"),
            ("folder", "folder", "not searched (the glob has no **)"),
            ("denied", "folder", "left out: cannot be read"),
        ):
            if names := kinds.get(kind):
                lines.append(f"{counted(len(names), noun)} {text}: {examples(names)}")
        return lines


def _suffixes(names: Iterable[PurePath]) -> str:
    """`12 .png, 1 .xz, 1 without a suffix`, the most frequent first."""
    counts = Counter(ascii(name.suffix.lower())[1:-1] or "without a suffix" for name in names)
    shown = [f"{number:,} {suffix}" for suffix, number in counts.most_common(MAX_SUFFIXES)]
    return ", ".join([*shown, "…"] if len(counts) > MAX_SUFFIXES else shown)


def _listing(data: DataConfig, path: Path) -> tuple[Path, _Listing]:
    """The folder that a folder or glob searches, and what matches in it, sorted."""
    if path.is_dir():
        base = path
        listing = _Listing(base, data.format)
        for each in _walk(listing):
            listing.add(each)
    else:
        base, pattern = _split_glob(data.path)
        listing = _Listing(base, data.format)
        try:
            for each in base.glob(pattern):
                if not each.is_dir():
                    listing.add(each)
                elif "**" not in pattern and not each.name.startswith("."):
                    listing.unread["folder"].append(each.relative_to(base))
        except ValueError as error:  # before Python 3.13, of ** next to other letters
            raise UserError(
                f"data.path={data.path} is not a glob: {error}; write for example {base}/**/*.txt"
            ) from error
        if "**" in pattern:  # it goes through no links, whatever follows
            for each in _walk(listing):
                if each.is_symlink() and each.is_dir():
                    listing.add(each)
    listing.files.sort()
    _only_saved(listing)
    return base, listing


def _only_saved(listing: _Listing) -> None:
    """Of a folder that `save_to_disk` wrote, keep the files of the dataset.

    What `map` and `filter` cached is next to them, in the same format.
    """
    for folder in dict.fromkeys(file.parent for file in listing.files):
        names = _saved_files(listing.base / folder)
        if names is None:
            continue
        others = {
            file
            for file in listing.files
            if file.parent == folder and file.suffix == ".arrow" and file.name not in names
        }
        listing.unread["cached"] += sorted(others)
        listing.files = [file for file in listing.files if file not in others]


def _saved_files(folder: Path) -> set[str] | None:
    """The files of the dataset that `save_to_disk` wrote into a folder; None where it did not.

    Raises UserError where one is missing, or where only some rows of them are the dataset.
    """
    try:
        state = json.loads((folder / STATE).read_bytes())
        names = {str(each["filename"]) for each in state["_data_files"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if missing := sorted(name for name in names if not (folder / Path(name).name).is_file()):
        raise UserError(f"{folder}: {examples(missing)}, which its {STATE} names, is missing")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"{folder} is a selection of rows, as an old version of datasets saved it: load it "
            "with datasets.load_from_disk, and save it again with flatten_indices().save_to_disk"
        )
    return names


def _split_glob(text: str) -> tuple[Path, str]:
    """A glob as the folder that it searches and the pattern in it.

    >>> _split_glob("/data/a[[]1]/*/x*.txt")  # the folder is named a[1]
    (Path("/data/a[1]"), "*/x*.txt")
    """
    path = Path(text).expanduser()
    plain = [_ESCAPED.sub(r"\1", part) for part in path.parts]
    count = next(
        (i for i, part in enumerate(path.parts) if glob.has_magic(_ESCAPED.sub("", part))),
        len(plain) - 1,
    )
    return Path(*plain[:count]).absolute(), Path(*path.parts[count:]).as_posix()


def _walk(listing: _Listing) -> Iterator[Path]:
    """All files below the folder, and the links to folders, which are not followed."""

    def denied(error: OSError) -> None:
        listing.unread["denied"].append(Path(error.filename).relative_to(listing.base))

    for folder, subfolders, names in os.walk(listing.base, onerror=denied):
        links = [name for name in subfolders if Path(folder, name).is_symlink()]
        subfolders[:] = [n for n in subfolders if not n.startswith(".") and n not in links]
        yield from (Path(folder, name) for name in (*names, *links))
