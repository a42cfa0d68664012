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


# ---- references -------------------------------------------------------------------------------


def three_runs(root: Path) -> list[RunFolder]:
    """Two whose keys begin alike, and one of another name; the second was started last."""
    keys = ("abcd1" + "0" * 59, "abcd2" + "0" * 59, "0123" + "0" * 60)
    runs = [RunFolder(start_run(root, key=key)) for key in keys]
    for run, moment in zip(runs, (1.0, 3.0, 2.0), strict=True):
        (run.path / "metrics.jsonl").write_text(f'{{"event": "start", "time": {moment}}}\n')
    return runs


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        ("abcd1", 0),
        ("ABCD2", 1),
        ("abcd20000000", 1),
        ("abcd2" + "0" * 59, 1),
        ("0123", 2),
        ("tiny-0123", 2),
        ("latest", 1),
    ],
)
def test_a_run_is_found_by_the_beginning_of_its_key_or_as_the_latest(
    tmp_path: Path, reference: str, number: int
) -> None:
    runs = three_runs(tmp_path)
    assert DataRoot(tmp_path).run(reference).name == runs[number].name


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("abcd", r"keys of 2 runs: tiny-abcd10000000, tiny-abcd20000000; give more digits"),
        ("tiny-abcd", r"keys of 2 runs: tiny-abcd10000000, tiny-abcd20000000"),
        ("012", r"'012' is too short for the beginning of a key: give 4 digits"),
        ("other-0123", "unknown run 'other-0123'"),
        ("abcd2" + "0" * 20 + "1", "unknown run"),  # the name ends so, the key does not
        ("beef", "unknown run 'beef'"),
    ],
)
def test_a_reference_to_no_run_or_to_several_is_refused(
    tmp_path: Path, reference: str, message: str
) -> None:
    three_runs(tmp_path)
    with pytest.raises(UserError, match=message):
        DataRoot(tmp_path).run(reference)


def test_a_path_inside_a_run_names_the_run(tmp_path: Path) -> None:
    path = start_run(tmp_path)
    (path / "checkpoints" / "step_000001").mkdir()
    root = DataRoot(tmp_path)
    for inside in (path / "checkpoints" / "step_000001", path / "config.json", path):
        assert root.run(str(inside)) == RunFolder(path.resolve())
    assert RunFolder(str(path)) == RunFolder(path)  # type: ignore[arg-type]


def test_a_damaged_journal_does_not_hide_the_latest_run(tmp_path: Path) -> None:
    runs = three_runs(tmp_path)
    (runs[0].path / "metrics.jsonl").write_text("no entry\n")
    assert DataRoot(tmp_path).run("latest").name == runs[1].name
