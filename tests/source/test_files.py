import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from slm.config import DataConfig
from slm.errors import UserError
from slm.source.documents import read_documents
from slm.source.files import find_files


def files_of(path: Path | str, **fields: Any) -> dict[str, list[str]]:
    """The files of each split, relative to their folder."""
    base, layout = find_files(data_of(path, **fields))
    return {s: [str(p.relative_to(base)) for p in paths] for s, paths in layout.files.items()}


def notes_of(path: Path | str, **fields: Any) -> list[str]:
    return find_files(data_of(path, **fields))[1].notes


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
        assert files_of(path) == splits


def test_splits_may_have_other_names(tmp_path: Path) -> None:
    for name in ("big.txt", "holdout.txt", "validation.txt"):
        (tmp_path / name).write_text("x")
    named = files_of(tmp_path, train_split="big", val_split="holdout")
    assert named == {"train": ["big.txt"], "val": ["holdout.txt"]}
    assert list(files_of(tmp_path, val_split=None)) == ["train"]


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
    assert files_of(tmp_path / "test.txt") == {"train": ["test.txt"]}


# ---- what is not read -------------------------------------------------------------------------


def test_each_kind_of_file_left_out_is_a_line_with_its_count(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in (
        "train.txt", "test.txt", "x.bin.xz", "b.xz", "c.png", "odd", "_draft.txt", "_old/a.txt",
        "_SUCCESS", "README.md", "LICENSE", ".gitattributes", ".git/x.txt", "dataset_infos.json",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (folder / "loop").symlink_to("loop")
    (folder / "more").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.txt")
    lines = notes_of(folder)
    counts = [line.partition(":")[0] for line in lines]
    assert counts == [
        "4 files left out",
        "2 files left out",
        "1 file left out",
        "2 links left out",
        "1 linked folder not followed (a glob such as */*.txt goes through links)",
        "1 file left out",
    ]
    assert "2 .xz, 1 .png, 1 without a suffix" in lines[0]
    assert "_draft.txt, _old/a.txt" in lines[1]
    assert "pipe.txt" in lines[2]
    assert "gone.txt, loop" in lines[3]
    assert "more" in lines[4]
    assert "test.txt" in lines[5]
    assert files_of(folder) == {"train": ["train.txt"]}
    globbed = [line.partition(":")[0] for line in notes_of(f"{folder}/**/*.txt")]
    assert globbed == [*counts[1:3], "1 link left out", *counts[4:]]
    assert "more/in/train.txt" in files_of(f"{folder}/**/more/*/*.txt")["train"]


def test_a_folder_that_a_glob_matches_but_does_not_search_is_a_line(tmp_path: Path) -> None:
    for name in ("wiki.txt", "wiki-more/a.txt", "other/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert notes_of(tmp_path / "w*") == ["1 folder not searched (the glob has no **): wiki-more"]
    assert notes_of(tmp_path / "*.txt") == notes_of(tmp_path / "**/*.txt") == []


def test_missing_shards_of_what_is_read_are_a_line(tmp_path: Path) -> None:
    for name in ("train-00000-of-00003.txt", "train-00002-of-00003.txt", "test-00001-of-00009.txt"):
        (tmp_path / name).write_text("x")
    lines = notes_of(tmp_path)
    assert len(lines) == 2
    assert "1 of 3 shards are missing: train-00001-of-00003.txt" in lines


def test_what_is_not_read_is_named_where_nothing_else_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_text("x")
    with pytest.raises(
        UserError, match=r"no file of a supported .*1 file left out: .*a\.jsonl\.xz"
    ):
        find_files(data_of(tmp_path))


def test_a_folder_that_cannot_be_read_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def denied(path: Any) -> Any:  # root may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert notes_of(tmp_path) == ["1 folder left out: cannot be read: closed"]


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
        assert files_of(tmp_path / path) == {"train": ["é.txt"]}
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
    assert files_of(tmp_path) == {"train": ["a.txt"]}
    (line,) = notes_of(tmp_path)
    assert r"caf\udce9.pdf" in line
    line.encode()


# ---- datasets on disk -------------------------------------------------------------------------


def saved(folder: Path, texts: list[str], name: str = "data-00000-of-00001.arrow") -> Path:
    """A folder as `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": texts})
    with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": name}], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_dataset_that_datasets_saved_is_read_without_what_it_cached(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", ["kept"])
    with pa.ipc.new_stream(str(folder / "cache-1a2b.arrow"), pa.schema([])):
        pass
    for path in (folder, f"{folder}/*.arrow"):
        assert files_of(path) == {"train": ["data-00000-of-00001.arrow"]}
        assert any("cache-1a2b.arrow" in note for note in notes_of(path))


def test_a_saved_dict_of_datasets_has_its_splits(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        saved(tmp_path / split, [split])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    assert files_of(tmp_path) == {
        "train": ["train/data-00000-of-00001.arrow"],
        "val": ["validation/data-00000-of-00001.arrow"],
    }


def test_a_saved_dataset_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", ["kept"])
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].append({"filename": "data-00001-of-00002.arrow"})
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow.*is missing"):
        files_of(folder)
    saved(folder, ["kept"])
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{}]}))
    with pytest.raises(UserError, match="flatten_indices"):
        files_of(folder)


@pytest.mark.slow  # datasets takes seconds to import
def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": [f"t{n}" for n in range(10)]})
    chosen = whole.select([7, 3, 5])
    both = datasets.DatasetDict({"train": chosen, "test": whole})
    both.save_to_disk(str(tmp_path / "both"), num_proc=1)
    data = data_of(tmp_path / "both", val_split="test")
    _, layout = find_files(data)
    [train], [val] = layout.files["train"], layout.files["val"]
    texts = [
        [text for array in read_documents(path, data, Counter()) for text in array.to_pylist()]
        for path in (train, val)
    ]
    assert texts == [["t7", "t3", "t5"], [f"t{n}" for n in range(10)]]
