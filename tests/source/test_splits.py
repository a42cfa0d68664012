"""Which split the names of files, folders and splits of the hub belong to."""

from pathlib import PurePosixPath
from typing import Any

import pytest

from slm.config import DataConfig
from slm.errors import UserError
from slm.source.splits import assign, missing_shards, split_of


def assigned(names: list[str], **fields: Any) -> tuple[list[str], list[str], list[str]]:
    """The files of train, those of val, and the notes."""
    data = DataConfig(source="files", path="in", **fields)
    splits, notes = assign(data, [PurePosixPath(name) for name in names])
    train, val = ([str(file) for file in splits[split]] for split in ("train", "val"))
    return train, val, notes


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Training_1", "wiki.train", "en-train-v2", "train2019", "trainset"]),
        (
            "val",
            [
                "validation",
                "c4-validation.00000-of-00008.json.gz",
                "TinyStoriesV2-GPT4-valid.txt",
                "wiki.valid",
                "babylm_dev",
                "split=validation",
                "my val",
                "(dev)",
                "VALID1",
                "train_dev",
            ],
        ),
        (
            "test",
            [
                "my_dataset_test.csv",
                "test-00000-of-00002",
                "x.eval",
                "evaluation",
                "flores_devtest",
            ],
        ),
        (
            None,
            ["trains", "valley", "testament", "a1b2", "invalid", "validated", "latest", "", "é"],
        ),
    ],
)
def test_a_word_between_separators_names_a_split(split: str | None, names: list[str]) -> None:
    assert {name: split_of(name) for name in names} == dict.fromkeys(names, split)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("c4-train.{}-of-2.json.gz", "c4-validation.{}-of-2.json.gz", None),
        ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt", None),
        ("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"),
        ("babylm_train/{}.txt", "babylm_dev/{}.txt", "babylm_test/{}.txt"),
        ("split=train/{}.txt", "split=validation/{}.txt", "split=test/{}.txt"),
        ("my_dataset_train.csv", "my_dataset_dev.csv", "my_dataset_test.csv"),
        ("train.tsv", "dev_matched.txt", "test_mismatched.txt"),
        ("corpus.txt", "corpus_val.txt", "corpus_test.txt"),
        ("{}.txt", "validation.txt", "eval.txt"),
        ("articles/{}.txt", "validation/{}.txt", None),
        ("train/Test_cricket_{}.txt", "dev/{}_train_journey.txt", "test/{}.txt"),
        ("train/wiki.train.txt", "train/wiki.valid.txt", "train/wiki.test.txt"),
        ("dev/train.txt", "train/validation.txt", "train/test.txt"),
    ],
)
def test_layouts_of_published_datasets(train: str, val: str, test: str | None) -> None:
    def files(pattern: str | None) -> list[str]:
        return sorted({pattern.format(number) for number in range(2)}) if pattern else []

    left_out = files(test)
    names = sorted([*files(train), *files(val), *left_out])
    taken, held_out, notes = assigned(names)
    assert (taken, held_out) == (files(train), files(val))
    assert [note.partition(" ")[0] for note in notes] == ([str(len(left_out))] if test else [])


@pytest.mark.parametrize(
    "names",
    [
        ["a.txt", "test drive.txt", "test-kitchen.txt", "testing the boat.txt", "test_of_time.txt"],
        ["a.txt", "dev diary.txt", "eval/b.txt"],
        ["blog/0.txt", "dev/0.txt", "dev/1.txt", "test/0.txt"],
    ],
)
def test_words_in_titles_are_no_splits_where_nothing_is_named_like_train(names: list[str]) -> None:
    train, val, (note,) = assigned(names)
    assert (train, val) == (names, [])
    number = sum(split_of(name) is not None for name in names)
    assert note.startswith(f"{number} files taken as train")
    assert "data.val_split" in note
    assert "data.train_split" in note


def test_a_note_counts_what_is_in_a_folder() -> None:
    names = [f"{folder}/{number}.txt" for folder in ("blog", "dev", "test") for number in range(9)]
    assert assigned(names)[2][0].endswith("dev/ (9), test/ (9)")
    assert assigned(["a/train.txt", "a/test.txt"])[2][0].endswith(": a/test.txt")


def test_the_config_names_exactly_what_is_taken() -> None:
    sft = [f"data/{s}_{k}-00000-of-00001.txt" for s in ("test", "train") for k in ("gen", "sft")]
    train, val, notes = assigned(sft, train_split="train_sft", val_split="test_sft")
    assert (train, val) == ([sft[3]], [sft[1]])
    assert len(notes) == 2
    assert all(note.startswith("1 file left out") for note in notes)
    assert [name in " ".join(notes) for name in sft] == [True, False, True, False]

    names = ["big.txt", "holdout.txt", "other.txt", "validation.txt"]
    train, val, notes = assigned(names, train_split="big", val_split="holdout")
    assert (train, val, len(notes)) == (["big.txt"], ["holdout.txt"], 2)
    train, val, notes = assigned(names, val_split="holdout")
    assert (train, val, len(notes)) == (["big.txt", "other.txt"], ["holdout.txt"], 1)

    numbered = ["big1.txt", "big2.txt", "bigger.txt", "my-big.txt"]
    assert assigned(numbered, train_split="big")[0] == numbered[:2]
    assert assigned(numbered[2:], train_split="big")[0] == ["my-big.txt"]
    assert assigned(["test_a.txt", "test_b.txt"], train_split="test_a", val_split="test")[:2] == (
        ["test_a.txt"],
        ["test_b.txt"],
    )
    projects = ["blog/0.txt", "dev/0.txt", "test/0.txt"]
    assert assigned(projects, val_split="dev")[:2] == (["blog/0.txt", "test/0.txt"], ["dev/0.txt"])
    assert assigned(projects, train_split="blog")[:2] == (["blog/0.txt"], ["dev/0.txt"])


def test_null_means_no_split_words() -> None:
    names = ["test.txt", "train.txt", "validation.txt"]
    train, val, notes = assigned(names, val_split=None)
    assert (train, val, len(notes)) == (["train.txt"], [], 2)
    assert assigned(names, train_split=None) == (["test.txt", "train.txt"], ["validation.txt"], [])
    assert assigned(names, train_split=None, val_split=None) == (names, [], [])
    for names in (["a.txt", "test1.txt", "validation.txt"], ["test1.txt", "test2.txt"]):
        assert assigned(names, val_split=None)[:2] == (names, [])


def test_train_and_val_cannot_have_one_name() -> None:
    with pytest.raises(UserError, match=r"both big: .*data\.val_split=null"):
        assigned(["big.txt"], train_split="big", val_split="big")


def test_a_misspelt_split_lists_few_names() -> None:
    with pytest.raises(UserError, match="unknown split 'zzz': valid: ") as caught:
        assigned([f"{number}-article.txt" for number in range(5000)], train_split="zzz")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (["a-00000-of-00002.txt", "a-00001-of-00002.txt"], []),
        (["m-1-of-2.txt", "m-2-of-2.txt", "plain.txt"], []),
        (["m-2-of-2.txt"], ["1 of 2 shards are missing: m-1-of-2.txt"]),
        (
            ["part-00000-of-00004.txt", "part-00003-of-00004.txt"],
            ["2 of 4 shards are missing: part-00001-of-00004.txt, part-00002-of-00004.txt"],
        ),
        (
            ["train-00000-of-00003-ab.txt", "train-00002-of-00003-cd.txt", "val-0-of-1.txt"],
            ["1 of 3 shards are missing: train-00001-of-00003…"],
        ),
        (
            ["a/x-0-of-9999999999.txt", "b/x-1-of-2.txt"],
            [
                "9,999,999,998 of 9,999,999,999 shards are missing: a/x-0000000001-of-9999999999"
                ".txt, a/x-0000000002-of-9999999999.txt, a/x-0000000003-of-9999999999.txt, …",
                "1 of 2 shards are missing: b/x-0-of-2.txt",
            ],
        ),
    ],
)
def test_missing_shards_are_named(names: list[str], notes: list[str]) -> None:
    assert missing_shards(names) == notes
