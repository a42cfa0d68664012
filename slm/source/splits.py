"""Which split a file, a folder or a split of the hub belongs to, by the words of its name.

A name belongs to a split if one of its words, between any separators, is one of `_WORDS`: the last
such word, and a file's own name before those of its folders. A word is sure if the name is nothing
else (`validation.txt`, `train/`), or if a neighbour's name differs by it alone (`wiki.train.txt`
and `wiki.valid.txt`, `corpus.txt` and `corpus_test.txt`). Any other may be part of a title: a sure
folder around it outweighs it (`train/Test_cricket.txt` is train), and where nothing is named like
train it is no split (`test drive.txt` among notes).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import count, islice
from pathlib import PurePath
from typing import Generic, TypeVar

from slm.config import DataConfig
from slm.errors import UserError, unknown

_WORDS = {
    "train": ("train", "training", "trainset"),
    "val": ("validation", "valid", "val", "dev", "valset", "devset"),
    "test": ("test", "testing", "eval", "evaluation", "testset", "devtest"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
_FILLERS = {"data", "of", "part", "set", "shard", "split"}  # next to a split's word: no title
_SURE_FOLDERS = {"validation", "valid", "val"}  # even where no name is like train, unlike dev/
_SHARD = re.compile(r"(?<!\d)(\d+)-of-(\d+)(?!\d)")
_COMPRESSIONS = {"gz", "zst", "xz", "bz2"}
MAX_EXAMPLES = 3
MAX_CANDIDATES = 10  # names that a message lists

T = TypeVar("T")
Place = tuple[PurePath, str]  # a folder, and the name of what is in it


@dataclass(frozen=True)
class Layout(Generic[T]):
    """The input files of each split in order, and what a person should know of the choice."""

    files: Mapping[str, Iterable[T]]
    inputs: dict[str, str] = field(default_factory=dict)  # split → what it is read from
    notes: list[str] = field(default_factory=list)  # what is left out or missing, a line per kind


def split_of(name: str) -> str | None:
    """`train`, `val` or `test`, by the last word of a name that is one of a split; else None."""
    word = split_word(name)
    return _SPLIT_OF_WORD[word] if word else None


def split_word(name: str) -> str | None:
    """The last word of a name that is one of a split, such as `dev`; else None."""
    words = [word for word in _words(name) if word in _SPLIT_OF_WORD]
    return words[-1] if words else None


def examples(names: Iterable[object]) -> str:
    """The first few names; those with control characters or stray bytes escaped."""
    listed = [str(name) for name in names]
    shown = [name if name.isprintable() else ascii(name) for name in listed[:MAX_EXAMPLES]]
    return ", ".join([*shown, "…"] if len(listed) > MAX_EXAMPLES else shown)


def counted(number: int, noun: str = "file") -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def check_settings(data: DataConfig) -> None:
    """Raises UserError where train and val are asked to be the same split."""
    if (name := explicit(data, "train_split")) and name == explicit(data, "val_split"):
        raise UserError(
            f"data.train_split and data.val_split are both {name}: name two splits, or "
            "set data.val_split=null to hold out documents of train"
        )


def explicit(data: DataConfig, setting: str) -> str | None:
    """The split that a setting names, unless it is the default, which matches all its words."""
    value: str | None = getattr(data, setting)
    return None if value == DataConfig.model_fields[setting].default else value


# ---- files ------------------------------------------------------------------------------------


def assign(data: DataConfig, files: list[PurePath]) -> tuple[dict[str, list[PurePath]], list[str]]:
    """The files of `train` and `val`, and a note for each kind that is left out or is doubtful.

    A split that the config names is taken exactly; `data.train_split` null takes every file that
    is not val. Raises UserError where no file is named like a split that the config names.

    Args:
        files: relative to the dataset's folder, in order.
    """
    check_settings(data)
    names = _Names(files)
    named: dict[Place, str] = {}  # by the config: the longer name counts where both match
    chosen = {split: explicit(data, f"{split}_split") for split in ("train", "val")}
    for split, name in sorted(chosen.items(), key=lambda item: len(item[1] or "")):
        if name is not None:
            named |= dict.fromkeys(names.named(data, split, name), split)
    dataset = chosen["train"] is not None or names.any_train
    splits: dict[str, list[PurePath]] = {"train": [], "val": []}
    others: dict[str, list[PurePath]] = defaultdict(list)
    for file in files:
        by_config = next((named[p] for p in _places(file) if p in named), None)
        label, sure = names.label(file)
        counts = dataset or (sure and data.val_split is not None)
        if by_config:
            splits[by_config].append(file)
        elif label == "val" and counts and data.val_split is not None and not chosen["val"]:
            splits["val"].append(file)
        elif data.train_split is None:
            splits["train"].append(file)
        elif label in ("val", "test") and counts:
            others[label].append(file)
        elif chosen["train"]:
            others["unnamed"].append(file)
        else:
            splits["train"].append(file)
            if label in ("val", "test"):
                others["doubtful"].append(file)
    return splits, _notes(data, others)


def _notes(data: DataConfig, others: dict[str, list[PurePath]]) -> list[str]:
    texts = {
        "val": f"left out: named like validation, but data.val_split={data.val_split or 'null'}",
        "test": "left out: named like test (data.train_split=null trains on every file)",
        "unnamed": f"left out: not named like data.train_split={data.train_split}",
        "doubtful": "taken as train: named like val or test, but nothing is named like train, so "
        "the words may be just names (data.val_split=NAME and data.train_split=NAME decide)",
    }
    return [
        f"{counted(len(others[kind]))} {text}: {_groups(others[kind])}"
        for kind, text in texts.items()
        if others.get(kind)
    ]


def _groups(files: list[PurePath]) -> str:
    """A few of the names that made them this split: `dev/ (60), wiki.test.txt`."""
    numbers: dict[str, int] = defaultdict(int)
    for file in files:
        folder, name = next((p for p in _places(file) if split_of(p[1])), (file.parent, file.name))
        numbers[f"{folder / name}" + "/" * (folder / name != file)] += 1
    return examples(f"{n} ({c:,})" if n.endswith("/") else n for n, c in numbers.items())


def misnamed(files: list[PurePath]) -> list[str]:
    """A note where files that somebody else put into train are named like val or test."""
    names = _Names(files)
    others = [file for file in files if names.label(file)[0] in ("val", "test")]
    if not others:
        return []
    return [f"{counted(len(others))} of train named like val or test: {_groups(others)}"]


class _Names:
    """The names of files and of the folders that they are in, each read once."""

    def __init__(self, files: Iterable[PurePath]) -> None:
        self._titles: dict[Place, tuple[str, ...]] = {}
        self._neighbours: dict[tuple[PurePath, tuple[str, ...]], set[str | None]] = {}
        for file in files:
            for folder, name in _places(file):
                if (folder, name) in self._titles:
                    break  # and so are the folders around it
                self._titles[folder, name] = title = _title(name)
                self._neighbours.setdefault((folder, title), set()).add(split_of(name))
        self.any_train = any("train" in splits for splits in self._neighbours.values())

    def label(self, file: PurePath) -> tuple[str | None, bool]:
        """The split of a file by its name or its folders', and whether that is no mere title.

        `data/validation/train.txt` is `train`, `data/validation/0.txt` is `val`, `0.txt` is None.
        """
        labels = [(p, split) for p in _places(file) if (split := split_of(p[1]))]
        for (folder, name), split in labels:
            title = self._titles[folder, name]
            if title and len(self._neighbours[folder, title]) > 1:
                return split, True
            if not title:
                return split, name == file.name or name.lower() in _SURE_FOLDERS
        return (labels[0][1], False) if labels else (None, False)

    def named(self, data: DataConfig, split: str, name: str) -> list[Place]:
        """The files and folders with a name that the config gives: just it, or else it as words.

        `train_sft` is `train_sft-00000-of-00001.parquet`, or else `my-train_sft-v2.parquet`.
        """
        lower, places = name.lower(), list(self._titles)
        exact = [place for place in places if lower in _plain(place[1])]
        pattern = _as_words(lower)
        if matching := exact or [place for place in places if pattern.search(place[1].lower())]:
            return matching
        candidates = {plain for _, each in places for plain in _plain(each)}
        candidates |= {word for plain in candidates for word in _words(plain)}
        near = get_close_matches(lower, sorted(candidates), n=1, cutoff=0.5)
        raise UserError(
            f"data.path={data.path}: no file or folder is named like data.{split}_split={name}: "
            f"{unknown('split', name, near or sorted(candidates)[:MAX_CANDIDATES])}"
        )


def _places(file: PurePath) -> Iterator[Place]:
    """A file's name and those of its folders, from the inside, each with the folder it is in."""
    while file.name:
        yield file.parent, file.name
        file = file.parent


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


def _stem(name: str) -> str:
    """A name without suffixes and what follows the number of a shard.

    wiki.valid.txt.gz → wiki.valid, train-00000-of-00002-ab.parquet → train-.
    """
    if shard := _SHARD.search(name):
        return name[: shard.start()]
    stem, _, suffix = name.rpartition(".")
    if suffix.lower() in _COMPRESSIONS:
        name = stem
        stem, _, suffix = name.rpartition(".")
    return name if split_of(suffix) else stem or name


def _title(name: str) -> tuple[str, ...]:
    """The words of a name that have nothing to do with splits and shards."""
    return tuple(w for w in _words(_stem(name)) if w not in _SPLIT_OF_WORD and w not in _FILLERS)


def _plain(name: str) -> set[str]:
    """A name without its suffixes and shard, as the config would give it."""
    stem = _stem(name).lower()
    return {stem, stem.rstrip("-_. "), stem.rstrip("-_. 0123456789")} - {""}


def _as_words(name: str) -> re.Pattern[str]:
    """Match a name between separators: no letter next to a letter, no digit next to a digit."""
    letter, digit = r"[^\W\d_]", r"\d"
    before = letter if name[0].isalpha() else digit if name[0].isdigit() else r"[^\s\S]"
    after = letter if name[-1].isalpha() else digit if name[-1].isdigit() else r"[^\s\S]"
    return re.compile(rf"(?<!{before}){re.escape(name)}(?!{after})")


# ---- shards -----------------------------------------------------------------------------------


def missing_shards(names: Iterable[str]) -> list[str]:
    """A note for each series of `…-00001-of-00003…` that lacks some; they count from 0 or 1."""
    series: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)  # → number → what follows
    for name in names:
        if shard := _SHARD.search(name):
            series[name[: shard.start()], shard[2]][int(shard[1])] = name[shard.end() :]
    notes = []
    for (head, of), present in sorted(series.items()):
        total = int(of)
        first = 1 if total in present else 0
        missing = total - sum(first <= number < first + total for number in present)
        if missing > 0:
            tails = set(present.values())
            tail = tails.pop() if len(tails) == 1 else "…"
            absent = (
                f"{head}{number:0{len(of)}d}-of-{of}{tail}"
                for number in count(first)
                if number not in present
            )
            few = islice(absent, min(missing, MAX_EXAMPLES))
            more = ", …" if missing > MAX_EXAMPLES else ""
            notes.append(f"{missing:,} of {total:,} shards are missing: {examples(few)}{more}")
    return notes
