import os
import re
from pathlib import Path
from typing import Any

import pytest

from slm.config import DataConfig
from slm.errors import UserError
from slm.source.files import find_files


def data_of(path: Path | str, **fields: Any) -> DataConfig:
    return DataConfig(source="files", path=str(path), **fields)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a.txt", "b/c.txt"], {"train": ["a.txt", "b/c.txt"]}),
        (
            ["train.txt", "validation.txt", "test.txt"],
            {"train": ["train.txt"], "val": ["validation.txt"]},
        ),
        (
            [
                "data/train-00000-of-00002-ab.txt",
                "data/train-00001-of-00002-cd.txt",
                "data/val.txt",
            ],
            {
                "train": ["data/train-00000-of-00002-ab.txt", "data/train-00001-of-00002-cd.txt"],
                "val": ["data/val.txt"],
            },
        ),
        (["train/x.txt", "dev/x.txt"], {"train": ["train/x.txt"], "val": ["dev/x.txt"]}),
        (["Training_1.txt", "VALID.txt"], {"train": ["Training_1.txt"], "val": ["VALID.txt"]}),
        (
            ["trains.txt", "valley.txt", "testament.txt"],
            {"train": ["testament.txt", "trains.txt", "valley.txt"]},
        ),
        (["a.txt", ".hidden.txt", ".git/b.txt", "README.txt", "LICENSE.md"], {"train": ["a.txt"]}),
        (["a.txt", "holdout.txt"], {"train": ["a.txt", "holdout.txt"]}),
        (["readmes.txt", "state-of.txt"], {"train": ["readmes.txt", "state-of.txt"]}),
    ],
)
def test_files_and_folders_named_like_a_split_are_one(
    tmp_path: Path, names: list[str], splits: dict[str, list[str]]
) -> None:
    base = tmp_path / "train set"  # the name of the folder itself does not matter
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("x")
    for path in (base, f"{base}/**/*.txt"):
        common, files = find_files(data_of(path))
        relative = {s: [str(p.relative_to(common)) for p in paths] for s, paths in files.items()}
        assert relative == splits


def test_splits_may_have_other_names(tmp_path: Path) -> None:
    for name in ("big.txt", "holdout.txt", "validation.txt"):
        (tmp_path / name).write_text("x")
    _, files = find_files(data_of(tmp_path, train_split="big", val_split="holdout"))
    assert [path.name for path in files["val"]] == ["holdout.txt", "validation.txt"]
    _, files = find_files(data_of(tmp_path, val_split=None))
    assert list(files) == ["train"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_split": "trian"}, "data.train_split=trian: unknown split 'trian'.*'train'"),
        ({"val_split": "valdiation"}, "data.val_split=valdiation: .*'validation'"),
        ({"train_split": "trai"}, "did you mean 'train'"),
    ],
)
def test_a_split_that_no_file_is_named_like_is_refused(
    tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    for name in ("train-00000-of-00002.txt", "train-00001-of-00002.txt", "validation.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=message):
        find_files(data_of(tmp_path, **fields))


def test_a_single_file_is_train_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("x")
    assert find_files(data_of(tmp_path / "test.txt"))[1].keys() == {"train"}


def test_left_out_files_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text("x")
    with caplog.at_level("INFO", logger="slm"):
        find_files(data_of(tmp_path))
    assert "1 test file" in caplog.text


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        ([], "nowhere", "does not exist"),
        ([], "no*where.txt", "no file of a supported"),
        ([], "", "no file of a supported"),
        (["a.txt"], "**.jsonl", r"is not a glob|no file of a supported"),
        (["a.md"], "", "no file of a supported"),
        (["a.md"], "a.md", "not in a supported format"),
        (["a.txt", "b.jsonl"], "", "several formats .*1 jsonl, 1 text"),
        (["validation.txt"], "", "no file for the split 'train', only validation.txt"),
    ],
)
def test_a_path_without_documents_is_refused_before_any_work(
    tmp_path: Path, names: list[str], path: str, message: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("x")
    with pytest.raises(UserError, match=message):
        find_files(data_of(folder / path))


def stray(folder: Path, name: bytes) -> Path:
    """A file whose name is not UTF-8."""
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    return path


@pytest.mark.parametrize(
    ("name", "shown"), [(b"caf\xe9.txt", r"caf\xe9.txt"), (b"\xff/a.txt", r"\xff/a.txt")]
)
@pytest.mark.parametrize("path", ["", "*.txt", "**/*.txt"])
def test_a_name_that_is_not_utf8_is_refused_before_any_work(
    tmp_path: Path, name: bytes, shown: str, path: str
) -> None:
    stray(tmp_path, name)
    (tmp_path / "é.txt").write_text("x")
    if path == "*.txt" and b"/" in name:
        assert find_files(data_of(tmp_path / path))[1]["train"] == [tmp_path / "é.txt"]
        return
    with pytest.raises(UserError, match=re.escape(f"the name {shown} is not UTF-8")) as caught:
        find_files(data_of(tmp_path / path))
    assert "rename it" in str(caught.value)
    str(caught.value).encode()


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(r"caf\xe9.txt is not UTF-8")):
        find_files(data_of(stray(tmp_path, b"caf\xe9.txt")))


def test_a_stray_name_that_is_no_data_does_not_matter(tmp_path: Path) -> None:
    stray(tmp_path, b"caf\xe9.pdf")
    (tmp_path / "a.txt").write_text("x")
    assert find_files(data_of(tmp_path))[1]["train"] == [tmp_path / "a.txt"]
