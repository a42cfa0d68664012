"""Where everything is, and what a run's folder says of itself."""

import re
from pathlib import Path

import pytest
from run_folders import start_run

from slm import storage
from slm.errors import UserError
from slm.records import Shards
from slm.run_folder import DataRoot, RunFolder


def test_the_results_of_a_recipe_are_not_those_of_a_longer_one(tmp_path: Path) -> None:
    digits = "0123456789ab"
    names = ("a-", "a-b-", "ab-", "a.", ".a-")
    for name in (*(f"{n}{digits}" for n in names), f"a-{digits}.corrupt-1", f"a-{digits}.tmp"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    root = DataRoot(tmp_path)
    assert [path.name for path in root.results("runs", "a")] == [f"a-{digits}"]
    assert [path.name for path in root.results("runs", "a-b")] == [f"a-b-{digits}"]
    assert root.results("sources", "a") == []


def test_a_result_is_found_by_its_key_alone(tmp_path: Path) -> None:
    keys = ("ab" * 32, "ab" * 31 + "cd")  # whose folders end alike
    root = DataRoot(tmp_path)
    for name, key in zip(("one", "two"), keys, strict=True):
        folder = root.folder("shards", name, key)
        folder.mkdir(parents=True)
        shards = Shards(
            key=key, source_key="s", tokenizer_sha256="t", vocab_size=9, eot=8, splits={}
        )
        storage.write_record(folder, shards)
    records = [root.shards(key) for key in keys]
    assert [record and record.path.name[:3] for record in records] == ["one", "two"]
    (root.folder("shards", "one", keys[0]) / storage.RECORD).write_text("{}")
    assert root.shards(keys[0]) is None
    assert root.shards("none") is root.shards("") is root.shards(None) is None


def test_runs_are_found_by_folder_or_name_below_the_data_folder(tmp_path: Path) -> None:
    run = start_run(tmp_path)
    root = DataRoot(tmp_path)
    assert root.run(run.name) == root.run(str(run)) == RunFolder(run.resolve())
    for name in ("../../etc", "..", "/etc", "../runs", f"x{run.name}"):
        with pytest.raises(UserError, match="unknown run"):
            root.run(name)
    with pytest.raises(UserError, match="there are none"):
        DataRoot(tmp_path / "empty").run("x")


def test_a_run_with_a_seed_that_is_refused_today_is_read(tmp_path: Path) -> None:
    path = start_run(tmp_path)
    text = (path / "config.json").read_text()
    older = re.sub(r'"seed": ?1337', '"seed": -1', text)
    assert older != text
    (path / "config.json").write_text(older)
    assert RunFolder(path).config.train.seed == -1
