"""Pushes that are killed, and pushes of two at once: never seen as complete, in the end whole."""

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from faults import KILLED, UNSYNCED, Disk, fork, left_by, power_cuts, rebuild, wait
from stores import assert_whole, entries, facts, files_below, only_run, verify_folder
from tiny_run import copy_run

import slm
from slm.errors import UserError
from slm.storage import MADE

KILLS = 50
POINTS = 160  # that a push of this run passes at least: each file is written, synced and renamed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    copy_run(tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.slow
def test_a_push_that_is_killed_anywhere_is_never_seen_as_complete(
    root: Path, tmp_path: Path
) -> None:
    """50 kills at random points: what a pull gets between them is whole, and so is the end."""
    chance, name, kills, done = random.Random(17), only_run(root).name, 0, 0
    log, store, seen = tmp_path / "log", tmp_path / "store", 0
    push = partial(slm.push, name, f"file://{store}", root=root)
    while kills < KILLS:
        seen = len(entries(f"file://{store}"))
        code = wait(fork(push, fault=f"*:{chance.randint(1, POINTS)}:kill", log=log))
        every = assert_whole(f"file://{store}")
        assert len(every) >= seen, "what was complete stays"
        if "run" in [entry.kind for entry in every]:
            other_root = tmp_path / "b"
            slm.pull(name, f"file://{store}", root=other_root)
            assert facts(only_run(other_root).verified_record) == facts(
                only_run(root).verified_record
            )
            shutil.rmtree(other_root)
        else:
            with pytest.raises(UserError, match="has no result"):
                slm.pull(name, f"file://{store}", root=tmp_path / "b")
        if code == KILLED:
            kills += 1
        else:
            assert code == 0, log.read_text()
            done += 1
        if code == 0 or len(every) == 4:
            shutil.rmtree(store)
    push()
    assert len(assert_whole(f"file://{store}")) == 4
    slm.pull(name, f"file://{store}", root=tmp_path / "b")
    assert verify_folder(tmp_path / "b") == verify_folder(root)


def test_a_push_that_is_killed_at_any_moment_sends_only_the_rest(
    root: Path, tmp_path: Path
) -> None:
    """Killed by the clock, again and again, in one store: its work adds up."""
    chance, name, store = random.Random(3), only_run(root).name, f"file://{tmp_path / 'store'}"
    started = time.monotonic()
    assert wait(fork(partial(slm.push, name, f"file://{tmp_path / 'whole'}", root=root))) == 0
    seconds = time.monotonic() - started
    blobs = tmp_path / "store" / "blobs"
    before: dict[Path, int] = {}
    for _ in range(12):
        child = fork(partial(slm.push, name, store, root=root))
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        wait(child)
        assert_whole(store)
        now = {p: p.stat().st_mtime_ns for p in blobs.rglob("*") if p.suffix != ".tmp"}
        assert all(now.get(path) == stamp for path, stamp in before.items() if path.is_file())
        before = now
    slm.push(name, store, root=root)
    whole = files_below(tmp_path / "whole")
    assert {n: c for n, c in files_below(tmp_path / "store").items() if n in whole} == whole


def test_a_pull_that_is_killed_anywhere_leaves_a_whole_result_or_none(
    root: Path, tmp_path: Path
) -> None:
    chance, name, store = random.Random(5), only_run(root).name, f"file://{tmp_path / 'store'}"
    slm.push(name, store, root=root)
    other_root = tmp_path / "b"
    pull = partial(slm.pull, name, store, root=other_root)
    kills = 0
    while kills < 15:
        code = wait(fork(pull, fault=f"*:{chance.randint(1, 60)}:kill"))
        kills += code == KILLED
        verify_folder_but_leftovers(other_root)
        if code == 0:
            shutil.rmtree(other_root)
    pull()
    assert verify_folder(other_root) == verify_folder(root)
    assert not list(other_root.rglob("*.tmp"))


def test_after_a_power_cut_at_any_moment_of_a_push_what_is_seen_is_whole(
    root: Path, tmp_path: Path
) -> None:
    """And what a push has reported as sent survives every one that comes later."""
    shards, disk = only_run(root).shards, Disk(tmp_path / "disk")
    assert shards
    disk.root.mkdir()
    with disk.watching():
        slm.push(shards, f"file://{disk.root / 'store'}", root=root)
    cuts = 0
    for _, _, tree in power_cuts(disk):
        target = tmp_path / "left"
        rebuild(tree, target)
        assert_whole(f"file://{target / 'store'}")
        shutil.rmtree(target)
        cuts += 1
    assert cuts > 50
    for unsynced in UNSYNCED:
        kept = rebuild(left_by(disk.moments[-1], unsynced), tmp_path / unsynced)
        assert len(entries(f"file://{kept / 'store'}")) == 2


def verify_folder_but_leftovers(root: Path) -> None:
    for kind in ("sources", "shards", "runs"):
        for folder in (root / kind).glob("[!.]*"):
            if folder.suffix != ".tmp":
                assert verify_folder(folder)


def test_two_pushers_at_once_end_with_one_whole_result_without_faults(
    root: Path, tmp_path: Path
) -> None:
    """They made the same result at another time, so that what is around its files differs."""
    other, store = tmp_path / "other", f"file://{tmp_path / 'store'}"
    shutil.copytree(root, other)
    for made in other.rglob(MADE):
        made.write_text(made.read_text().replace('"seconds": ', '"seconds": 9'))
    name = only_run(root).name
    for _ in range(5):
        pushers = [fork(partial(slm.push, name, store, root=r)) for r in (root, other)]
        assert [wait(child) for child in pushers] == [0, 0]
        assert len(assert_whole(store)) == 4
        slm.pull(name, store, root=tmp_path / "b")
        assert verify_folder(tmp_path / "b") == verify_folder(root)
        for folder in ("store", "b"):
            shutil.rmtree(tmp_path / folder)
