"""Local files of documents: those that `data.path` names, and the split of each."""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath

from slm.config import DataConfig
from slm.errors import UserError, unknown
from slm.source.documents import FORMATS, check_name, format_of, unsupported

logger = logging.getLogger(__name__)

_LABELS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NO_DATA = re.compile(
    r"(readme|license|notice)\.[a-z]+|(dataset_infos?|state)\.json", re.IGNORECASE
)


def find_files(data: DataConfig) -> tuple[Path, dict[str, list[Path]]]:
    """The files that `data.path` names: their common folder, and the files of each split in order.

    The path is a file, a folder (searched to its depths) or a glob. In a folder or glob, files
    and subfolders named like a split (`train.parquet`, `validation/…`, `test-00000-of-00002.csv`)
    belong to it; test files are left out; all others are `train`. Raises UserError where there
    are none, none for a split that the config names explicitly, or one whose name is not UTF-8.
    """
    path = Path(data.path).expanduser().absolute()
    check_name(path, "data.path: ")
    if path.is_file():
        if format_of(path, data.format) is None:
            raise unsupported(f"data.path={data.path}")
        return path.parent, {"train": [path]}
    if path.is_dir():
        base, matches = path, path.rglob("*")
    else:
        base = next(p for p in path.parents if not glob.has_magic(str(p)))
        matches = base.glob(path.relative_to(base).as_posix())
    try:
        files = sorted(
            p for p in matches if p.is_file() and _is_data(p.relative_to(base), data.format)
        )
    except ValueError as error:  # before Python 3.13, of ** next to other letters
        raise UserError(
            f"data.path={data.path} is not a glob: {error}; write for example {base}/**/*.txt"
        ) from error
    if not files:
        problem = "does not exist"
        if path.is_dir() or glob.has_magic(data.path):
            problem = "matches no file of a supported format"
        raise UserError(
            f"data.path={data.path} {problem}: give a file, a folder or a glob of "
            + ", ".join(FORMATS)
        )
    for file in files:
        check_name(file.relative_to(base), f"data.path={data.path}: ")
    formats = Counter(str(format_of(file, data.format)) for file in files)
    if len(formats) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
        raise UserError(
            f"data.path={data.path} holds files of several formats ({counts}): choose one with a "
            f"glob, such as {base}/**/*{files[0].suffix}"
        )
    return base, _by_split(data, base, files)


def _is_data(relative: PurePath, chosen: str | None) -> bool:
    hidden = any(part.startswith((".", "_")) for part in relative.parts)
    known = format_of(relative, chosen) is not None
    return not hidden and known and not _NO_DATA.fullmatch(relative.name)


def _by_split(data: DataConfig, base: Path, files: list[Path]) -> dict[str, list[Path]]:
    _check_names(data, [file.relative_to(base) for file in files])
    splits: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for file in files:
        splits[_label(data, file.relative_to(base))].append(file)
    if not splits["train"]:
        raise UserError(
            f"data.path={data.path} has no file for the split {data.train_split!r}, only "
            + ", ".join(str(file.relative_to(base)) for file in files[:5])
            + ": name one of them as data.path, or set data.train_split"
        )
    used = {"train"} | ({"val"} if data.val_split and splits["val"] else set())
    for label in ("val", "test"):
        if splits[label] and label not in used:
            logger.info("%d %s file(s) in %s are left out", len(splits[label]), label, data.path)
    return {label: paths for label, paths in splits.items() if label in used}


def _check_names(data: DataConfig, files: list[PurePath]) -> None:
    """Raises UserError for a split that the config names explicitly and no file or folder has."""
    parts = {part.lower() for file in files for part in file.parts}
    for field in ("train_split", "val_split"):
        name = getattr(data, field)
        if name in (None, DataConfig.model_fields[field].default):
            continue
        if not any(map(_beginning([name.lower()]).match, parts)):
            words = {match[0] for part in parts if (match := re.match(r"[^\W\d_]+", part))}
            raise UserError(
                f"data.path={data.path}: no file or folder is named like data.{field}={name}: "
                f"{unknown('split', name, words)}"
            )


def _beginning(words: Iterable[str]) -> re.Pattern[str]:
    """Match a name that begins with one of the words, as a whole word: the longest one."""
    ordered = sorted(words, key=len, reverse=True)
    return re.compile(rf"({'|'.join(map(re.escape, ordered))})(?![a-z])")


def _label(data: DataConfig, relative: PurePath) -> str:
    """`train`, `val` or `test`, by the file's name or else by the nearest folder named so.

    `data/validation/train.txt` is `train`, `data/validation/0.txt` is `val`, `0.txt` is `train`.
    """
    labels = {word: label for label, words in _LABELS.items() for word in words}
    if data.val_split:
        labels[data.val_split.lower()] = "val"
    labels[data.train_split.lower()] = "train"
    pattern = _beginning(labels)
    for part in reversed(relative.parts):
        if match := pattern.match(part.lower()):
            return labels[match[1]]
    return "train"
