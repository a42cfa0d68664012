"""Storage: a folder is there whole or not at all, one process writes, nothing piles up."""

import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import time
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import faults
import pytest
from faults import KILLED, Disk, fork, leftovers, wait

from slm import keys, storage
from slm.errors import CorruptionError, InUse, NewerFormat, SlmError, UserError
from slm.records import Record, Version
from slm.storage import (
    RECORD,
    check_files,
    commit,
    delete_leftovers,
    discard,
    lock,
    make_folder,
    named,
    quarantine,
    read_record,
    run_stage,
    unmark_complete,
    write_file,
)

FILES = {"a.bin": b"a" * 5000, "deep/er/b.bin": b"b" * 3000, "empty": b""}


def build(staging: Path, key: str = "new") -> Record:
    assert not list(staging.iterdir()), "the staging folder is not empty"
    for name, data in FILES.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(data + key.encode())
    return Record(key=key)


def stage(root: Path, key: str = "new") -> Record:
    return run_stage(root / "stage-1", Record, key, lambda staging: build(staging, key))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


# ---- the commit rule --------------------------------------------------------------------------


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    first, second = stage(tmp_path), stage(tmp_path)
    assert (first.reused, second.reused) == (False, True)
    assert first.files == second.files
    assert set(first.files) == set(FILES)
    assert not leftovers(tmp_path)


def test_how_a_result_was_made_is_in_no_hash(tmp_path: Path) -> None:
    plain = stage(tmp_path / "plain")
    made = {"settings": {"data.seed": 3}, "cpu": "a"}
    folder = tmp_path / "noted" / "stage-1"
    noted = run_stage(folder, Record, "new", lambda staging: build(staging), made)
    assert noted.files == plain.files
    kept = storage.read_made(folder)
    assert kept is not None
    assert (kept.settings, kept.cpu) == (made["settings"], "a")
    assert kept.seconds >= 0
    assert storage.read_made(plain.path) is None
    (folder / storage.MADE).write_text("{")
    assert storage.read_made(folder) is None
    assert run_stage(folder, Record, "new", build, made).reused


def test_another_key_replaces_it(tmp_path: Path) -> None:
    stage(tmp_path, "old")
    record = stage(tmp_path, "new")
    assert not record.reused
    assert contents(record.path)["empty"] == b"new"
    assert not leftovers(tmp_path)


def test_a_damaged_result_is_quarantined_and_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        record = stage(tmp_path)
        (record.path / "a.bin").write_bytes(b"damaged")
        assert not stage(tmp_path).reused
        assert "a.bin: 7 bytes, recorded 5003" in caplog.text
    aside = list(tmp_path.glob("*.corrupt-*"))
    assert len(aside) == 1, "quarantined copies pile up"
    assert (aside[0] / "a.bin").read_bytes() == b"damaged"


def test_a_result_of_a_newer_slm_is_neither_quarantined_nor_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(storage.record, "PLAIN_FORMAT", storage.FORMAT + 1)
        before = stage(tmp_path)
    for key in ("new", "another"):
        with pytest.raises(NewerFormat, match=r"record\.json is of format"):
            stage(tmp_path, key)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["stage-1"]
    assert contents(before.path)["empty"] == b"new"


@pytest.mark.parametrize("before", [None, "old"])
def test_a_stage_killed_at_any_point_is_whole_or_rebuilt(
    tmp_path: Path, before: str | None
) -> None:
    fired = 0
    while True:
        root = tmp_path / str(fired)
        root.mkdir()
        if before:
            stage(root, before)
        code = wait(fork(lambda root=root: stage(root), fault=f"*:{fired + 1}:kill"))
        if code == 0:
            break
        assert code == KILLED
        fired += 1
        left = read_record(root / "stage-1", Record)  # raises where it is half there
        assert left is None or left.key in ("old", "new")
        assert contents(stage(root).path) == {name: d + b"new" for name, d in FILES.items()}
        assert not leftovers(root)
    assert fired >= 10


@pytest.mark.parametrize("kind", ["enospc", "eio"])
def test_a_disk_that_fails_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fired = 0
    while True:
        root = tmp_path / str(fired)
        stage(make_folder(root), "old")
        storage.reset_fault_points()
        monkeypatch.setenv("SLM_FAULT", f"*:{fired + 1}:{kind}")
        try:
            stage(root)
        except (OSError, UserError):
            monkeypatch.delenv("SLM_FAULT")
        else:
            break
        fired += 1
        assert not list(root.rglob("*.tmp"))
        read_record(root / "stage-1", Record)  # raises where it is half there
        assert stage(root).key == "new"
        assert not leftovers(root)
    assert fired >= 10


@pytest.mark.parametrize("before", [None, "old"])
def test_a_power_cut_at_any_moment_leaves_a_stage_whole_or_not_there(
    tmp_path: Path, before: str | None
) -> None:
    root = make_folder(tmp_path / "root")
    if before:
        stage(root, before)
    disk = Disk(root)
    with disk.watching():
        record = stage(root)
    cuts = list(faults.power_cuts(disk))
    assert len(cuts) > 20
    for i, (moment, lost, tree) in enumerate(cuts):
        place = faults.rebuild(tree, tmp_path / str(i))
        left = read_record(place / "stage-1", Record)  # raises where it is half there
        if moment == len(disk.moments) - 1:
            assert left is not None, lost  # the call had returned: it is durable
            assert left.key == "new"
        again = stage(place)
        assert again.files == record.files, (moment, lost)
        shutil.rmtree(place)


def test_new_folders_are_durable_down_from_the_first(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.watching():
        write_file(make_folder(tmp_path / "a" / "b") / "file", "text")
    assert faults.left_by(disk.moments[-1], "names dropped")["a/b/file"] == b"text"


# ---- records ----------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    folder = stage(tmp_path).path
    data = (folder / RECORD).read_bytes()
    chance = random.Random(1)
    for _ in range(200):
        at, bit = chance.randrange(len(data)), chance.randrange(8)
        (folder / RECORD).write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        with pytest.raises(CorruptionError, match=RECORD):
            read_record(folder, Record)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", '{"key": 1}', '{"files": {"a": 1}}', "[" * 100_000, "\0"]
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(CorruptionError, match="cannot be read"):
        read_record(tmp_path, Record)
    with pytest.raises(CorruptionError, match="cannot be read"):
        check_files(tmp_path)


def test_files_are_checked_whatever_the_record_is_of(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(b"1")
    version = Version(
        key="k", model="m", version="1", aliases=[], run_id="r", tracking_uri="sqlite:///x"
    )
    folder = storage.commit(tmp_path / "in", tmp_path / "out", version).path
    assert check_files(folder) == check_files(folder, ["x"]) == 1
    with pytest.raises(CorruptionError, match="y: not in the record"):
        check_files(folder, ["x", "y"])
    (folder / "x").write_bytes(b"2")
    with pytest.raises(CorruptionError, match="x: sha256"):
        check_files(folder)


def test_keys_depend_on_all_that_they_are_made_of() -> None:
    made = {
        keys.stage_key("encode", 1, {"a": 1}, "x"),
        keys.stage_key("train", 1, {"a": 1}, "x"),
        keys.stage_key("encode", 2, {"a": 1}, "x"),
        keys.stage_key("encode", 1, {"a": 2}, "x"),
        keys.stage_key("encode", 1, {"a": 1}, "y"),
    }
    assert len(made) == 5
    assert keys.stage_key("s", 1, {"a": 1, "b": 2}) == keys.stage_key("s", 1, {"b": 2, "a": 1})


# ---- files ------------------------------------------------------------------------------------


def test_a_file_is_the_old_or_the_new_one_at_every_kill(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fired = 0
    while True:
        write_file(path, "old")
        code = wait(fork(lambda: write_file(path, "new"), fault=f"*:{fired + 1}:kill"))
        assert path.read_text() in ("old", "new")
        if code == 0:
            break
        fired += 1
    assert fired == 5
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_does_not_fit_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, "old")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        with pytest.raises(OSError) as raised:
            write_file(path, "x" * 100_000)
        assert raised.value.errno == errno.EFBIG

    assert wait(fork(limited)) == 0
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_many_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write_often(letter: str) -> None:
        for _ in range(50):
            write_file(path, letter * 10_000)
            text = path.read_text()
            assert text == text[0] * 10_000

    children = [fork(lambda letter=letter: write_often(letter)) for letter in "abcd"]
    assert [wait(child) for child in children] == [0] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in ("step_1", "step_1.tmp", ".step_2.old", "step_3.corrupt-7", "other.tmp"):
        (tmp_path / name).mkdir()
    delete_leftovers(tmp_path, "step_[0-9]*")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["other.tmp", "step_1", "step_3.corrupt-7"]


def test_a_discarded_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "[a]").mkdir()
    (tmp_path / ".[a].old").mkdir()
    (tmp_path / ".[a].old" / "x").touch()
    discard(tmp_path / "[a]")
    assert not list(tmp_path.iterdir())


def test_quarantine_takes_names_as_they_are(tmp_path: Path) -> None:
    for name in ("[a]", "a.corrupt-1"):
        (tmp_path / name).mkdir()
    aside = quarantine(tmp_path / "[a]")
    assert {path.name for path in tmp_path.iterdir()} == {aside.name, "a.corrupt-1"}


# ---- names, folders, locks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc", "a/b", "", ".", "a\0b", "a\n", ".lock", "é"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not the name of anything"):
        named(tmp_path, name)
    assert named(tmp_path, "tiny-1.0_b") == tmp_path / "tiny-1.0_b"


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="point SLM_DATA at another folder"):
        make_folder(tmp_path / "file" / "below")


def test_one_process_holds_a_lock_and_its_death_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def hold() -> None:
        with lock(path):
            (tmp_path / "held").touch()
            time.sleep(60)

    child = fork(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.001)
    begin = time.monotonic()
    with pytest.raises(SlmError, match="in use by another process"), lock(path, wait=False):
        pass
    assert time.monotonic() - begin < 1
    os.kill(child, signal.SIGKILL)
    wait(child)
    with lock(path, wait=False):
        pass


def test_a_glance_at_a_lock_is_waited_for(tmp_path: Path) -> None:
    """Who looks whether a lock is held holds it for an instant: nobody is refused for that."""
    with ThreadPoolExecutor(1) as pool:
        with lock(tmp_path / "lock"):
            waiting = pool.submit(_take, tmp_path / "lock", 5.0)
            time.sleep(0.05)
            with pytest.raises(SlmError, match="in use by another process"):
                _take(tmp_path / "lock", 0.0)
        assert waiting.result() is None


def _take(path: Path, patience: float) -> None:
    with lock(path, wait=False, patience=patience):
        pass


def test_a_withdrawn_folder_is_not_done_and_keeps_its_files(tmp_path: Path) -> None:
    folder = stage(tmp_path).path
    files = contents(folder)
    for _ in range(2):
        unmark_complete(folder)
        assert read_record(folder, Record) is None
        assert contents(folder) == files
    assert not stage(tmp_path).reused


def test_of_many_processes_one_builds_and_all_have_its_result(tmp_path: Path) -> None:
    def slowly(staging: Path) -> Record:
        with (tmp_path / "built").open("a") as file:
            file.write("x")
        time.sleep(0.1)
        return build(staging)

    def work() -> None:
        assert contents(run_stage(tmp_path / "stage-1", Record, "new", slowly).path)

    children = [fork(work) for _ in range(4)]
    assert [wait(child) for child in children] == [0] * 4
    assert (tmp_path / "built").read_text() == "x"


def test_of_many_processes_that_find_damage_one_repairs_it(tmp_path: Path) -> None:
    (stage(tmp_path).path / "a.bin").write_bytes(b"damaged")
    children = [fork(lambda: stage(tmp_path)) for _ in range(4)]
    assert [wait(child) for child in children] == [0] * 4
    assert read_record(tmp_path / "stage-1", Record)
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1


# ---- fault points -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "error"), [("raise", RuntimeError), ("eio", OSError)])
def test_a_fault_fires_once_at_its_pass(
    monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception]
) -> None:
    storage.reset_fault_points()
    monkeypatch.setenv("SLM_FAULT", f"here:2:{kind}")
    storage.fault_point("here")
    storage.fault_point("elsewhere")
    with pytest.raises(error):
        storage.fault_point("here")
    storage.fault_point("here")


def test_a_fault_point_costs_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset: it looks at the environment and at nothing else."""
    monkeypatch.delenv("SLM_FAULT", raising=False)

    def shortest(call: Callable[[str], object]) -> float:
        return min(timeit.repeat(lambda: call("SLM_FAULT"), number=1000, repeat=5))

    assert shortest(storage.fault_point) < 10 * shortest(os.environ.get)


# ---- hashing and reading ----------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed, in order."""
    names: list[str] = []
    digest = hashlib.file_digest

    def counted(file: BinaryIO, *arguments: Any) -> Any:
        names.append(Path(file.name).name)
        return digest(file, *arguments)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


def test_within_a_stage_a_file_is_hashed_once_and_in_the_next_again(
    tmp_path: Path, reads: list[str]
) -> None:
    folder = commit_folder(tmp_path)
    reads.clear()
    with storage.hashing_once():
        for _ in range(3):
            read_record(folder, Record)
            with storage.hashing_once():  # a stage that calls another
                check_files(folder)
        assert reads == ["x"]
    check_files(folder)
    assert reads == ["x", "x"]


def test_a_file_that_changes_within_a_stage_is_hashed_again(
    tmp_path: Path, reads: list[str]
) -> None:
    folder = commit_folder(tmp_path)
    with storage.hashing_once():
        check_files(folder)
        (folder / "x").write_text("other bytes of another length")
        with pytest.raises(CorruptionError):
            check_files(folder)


def test_what_is_promoted_is_hashed_whatever_was_hashed_before(
    tmp_path: Path, reads: list[str]
) -> None:
    folder = commit_folder(tmp_path)
    with storage.hashing_once():
        check_files(folder)
        reads.clear()
        with storage.hashing_once(anew=True):
            check_files(folder)
    assert reads == ["x"]


def test_what_is_read_can_be_read_by_others_and_deleted_by_none(tmp_path: Path) -> None:
    folder = commit_folder(tmp_path)
    with (
        storage.reading(folder),
        storage.reading(folder),
        pytest.raises(InUse),
        lock(storage.lock_of(folder), wait=False),
    ):
        pytest.fail("it was locked to be deleted while it is read")
    with lock(storage.lock_of(folder), wait=False):
        pass


def test_what_is_gone_or_cannot_be_locked_is_read_all_the_same(tmp_path: Path) -> None:
    with storage.reading(tmp_path / "nowhere" / "folder"):
        assert not (tmp_path / "nowhere").exists()


def commit_folder(tmp_path: Path) -> Path:
    """A complete folder with one file, `x`."""
    staging = tmp_path / "result.tmp"
    staging.mkdir()
    (staging / "x").write_text("bytes")
    commit(staging, tmp_path / "result", Record(key="k"))
    return tmp_path / "result"


def test_on_macos_a_sync_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There fsync alone leaves the bytes in the disk's cache."""
    asked: list[int] = []
    monkeypatch.setattr(storage.files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(storage.files.fcntl, "fcntl", lambda _, command: asked.append(command))
    storage.fsync_path(tmp_path)
    assert asked == [51]

    def refuse(descriptor: int, command: int) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(storage.files.fcntl, "fcntl", refuse)
    storage.fsync_path(tmp_path)  # by os.fsync
