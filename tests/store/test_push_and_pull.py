"""Push and pull: what goes over, that it is the same there, and what is refused."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from scored import add_scores, task_of
from stores import (
    assert_whole,
    blob_path,
    entries,
    facts,
    files_below,
    memory_store,
    only_run,
    verify_folder,
)
from tiny_run import copy_run, flip_byte

import slm
from slm import storage
from slm.errors import CorruptionError, UserError
from slm.evaluation.benchmark.results import read_items
from slm.run_folder import DataRoot
from slm.store.entries import Blob, Entry, place
from slm.store.remote import StoreError, open_store

KINDS = ["source", "shards", "run", "evaluation"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The data folder of a machine with a finished, evaluated run."""
    copy_run(tmp_path / "a")
    return tmp_path / "a"


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return memory_store() if request.param == "memory" else f"file://{tmp_path / 'store'}"


def test_a_run_comes_over_whole_with_its_data_and_its_evaluation(
    root: Path, store: str, tmp_path: Path
) -> None:
    run = only_run(root)
    pushed = slm.push(run.name, store, root=root)
    assert [name.partition("/")[0] for name in pushed.results] == KINDS
    assert [entry.kind for entry in assert_whole(store)] == KINDS
    other_root = tmp_path / "b"
    pulled = slm.pull(run.name, store, root=other_root)
    assert len(pulled.pulled) == len(KINDS)
    assert pulled.path == str(other_root / "runs" / run.name)
    for kind in ("sources", "shards"):
        assert files_below(other_root / kind) == files_below(root / kind)
    other = only_run(other_root)
    assert facts(other.verified_record) == facts(run.verified_record)
    assert facts(other.evaluation) == facts(run.evaluation)
    assert verify_folder(other_root) == verify_folder(root)
    assert other.shards
    assert other.source
    assert [path.name for _, path in other.checkpoints] == [p.name for _, p in run.checkpoints]


def test_scores_on_tasks_come_over_with_their_items(root: Path, store: str, tmp_path: Path) -> None:
    run = only_run(root)
    scored = add_scores(run.verified_record, task_of(4), [True, True, False, True])  # type: ignore[arg-type]
    slm.push(run.name, store, root=root)
    assert [entry.kind for entry in assert_whole(store)] == [*KINDS, "benchmarks"]
    slm.pull(run.name, store, root=tmp_path / "b")
    [pulled] = only_run(tmp_path / "b").all_benchmarks
    assert facts(pulled) == facts(scored)
    assert read_items(pulled, "pairs").equals(read_items(scored, "pairs"))


def test_a_second_push_and_a_second_pull_do_nothing(root: Path, store: str, tmp_path: Path) -> None:
    name = only_run(root).name
    first, again = (slm.push(name, store, root=root) for _ in range(2))
    assert first.sent > 10
    assert (again.sent, again.sent_bytes, again.bytes) == (0, 0, first.bytes)
    other_root = tmp_path / "b"
    slm.pull(name, store, root=other_root)
    before = files_below(other_root)
    again_pulled = slm.pull(name, store, root=other_root)
    assert (again_pulled.pulled, again_pulled.bytes) == ((), 0)
    assert len(again_pulled.results) == len(KINDS)
    assert files_below(other_root) == before


def test_only_missing_blobs_are_sent(root: Path, tmp_path: Path) -> None:
    store, name = f"file://{tmp_path / 'store'}", only_run(root).name
    first = slm.push(name, store, root=root)
    shutil.rmtree(tmp_path / "store" / "run")  # as where the push was killed before its end
    [shards] = [entry for entry in entries(store) if entry.kind == "shards"]
    run = only_run(root)
    weights = run.verified_record.weights_sha256  # type: ignore[union-attr]
    blob_path(store, weights).unlink()
    size = run.last.files["model.safetensors"].bytes  # type: ignore[union-attr]
    again = slm.push(name, store, root=root)
    assert (again.sent, again.sent_bytes) == (1, size)
    assert again.sent + again.kept >= first.sent
    assert shards in assert_whole(store)


def test_shards_and_a_source_go_alone(root: Path, store: str, tmp_path: Path) -> None:
    run = only_run(root)
    assert run.shards
    assert run.source
    slm.push(run.source, store, root=root)
    assert [entry.kind for entry in entries(store)] == ["source"]
    slm.push(run.shards.name, store, root=root)
    assert [entry.kind for entry in entries(store)] == ["source", "shards"]
    other_root = DataRoot(tmp_path / "b")
    slm.pull(run.shards.name, store, root=other_root.path)
    assert facts(other_root.shards(run.shards.key)) == facts(run.shards)
    assert facts(other_root.source(run.source.key)) == facts(run.source)


def test_data_can_be_left_out(root: Path, store: str, tmp_path: Path) -> None:
    name = only_run(root).name
    slm.push(name, store, root=root, data=False)
    assert [entry.kind for entry in entries(store)] == ["run", "evaluation"]
    slm.pull(name, store, root=tmp_path / "b")
    assert only_run(tmp_path / "b").verified_record
    assert not (tmp_path / "b" / "shards").exists()
    slm.push(name, store, root=root)
    slm.pull(name, store, root=tmp_path / "c", data=False)
    assert not (tmp_path / "c" / "shards").exists()


def test_entries_hold_no_path_host_or_region(root: Path, tmp_path: Path) -> None:
    """Nor is any of it in their names: a key is the same on every machine."""
    slm.push(only_run(root).name, f"file://{tmp_path / 'store'}", root=root)
    texts = [p.read_text() for p in (tmp_path / "store").rglob("*.json")]
    assert len(texts) == len(KINDS)
    for text in texts:
        assert str(tmp_path) not in text
        assert socket.gethostname() not in text.replace(json.loads(text)["name"], "")
        assert not any(name.startswith("/") for name in json.loads(text)["files"])


def test_a_key_s_beginning_names_a_result(root: Path, store: str, tmp_path: Path) -> None:
    run = only_run(root)
    slm.push(run.name, store, root=root)
    slm.pull(run.settings.key[:6], store, root=tmp_path / "b", data=False)
    assert only_run(tmp_path / "b").name == run.name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-000000000000", "has no result"), ("quickstart", "not the name of a result"),
        ("abc", "not the name of a result"), ("slm@champion", "no version of 'slm'"),
    ],
)  # fmt: skip
def test_what_the_store_lacks_is_one_message(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        slm.pull(name, memory_store(), root=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_unfinished_run_is_not_pushed(root: Path) -> None:
    run = only_run(root)
    storage.unmark_complete(run.path)
    with pytest.raises(UserError, match="is not finished"):
        slm.push(run.name, memory_store(), root=root)


# ---- damage ------------------------------------------------------------------------------------


def test_a_damaged_local_file_is_not_pushed(root: Path) -> None:
    store, run = memory_store(), only_run(root)
    flip_byte(run.path / "checkpoints" / run.last.name / "model.safetensors")  # type: ignore[union-attr]
    with pytest.raises(CorruptionError):
        slm.push(run.name, store, root=root)
    assert "run" not in [entry.kind for entry in entries(store)]


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_blob_is_refused_by_its_hash_and_repaired(
    how: str, root: Path, tmp_path: Path
) -> None:
    store, run, other_root = f"file://{tmp_path / 'store'}", only_run(root), tmp_path / "b"
    slm.push(run.name, store, root=root)
    shards = run.shards
    assert shards
    blob = blob_path(store, shards.files["train_00000.bin"].sha256)
    content = blob.read_bytes()
    if how == "flipped":
        flip_byte(blob)
    elif how == "cut":
        blob.write_bytes(content[:-10])
    else:
        blob.unlink()
    with pytest.raises(CorruptionError, match=blob.name):
        slm.pull(run.name, store, root=other_root)
    assert not list((other_root / "shards").glob("[!.]*")), "nothing half-written"
    repaired = slm.push(run.name, store, root=root, verify=True)
    assert repaired.sent == 1
    assert blob.read_bytes() == content
    slm.pull(run.name, store, root=other_root)
    assert facts(only_run(other_root).verified_record) == facts(run.verified_record)


def test_what_is_whole_here_survives_a_damaged_store(root: Path, tmp_path: Path) -> None:
    store, run = f"file://{tmp_path / 'store'}", only_run(root)
    slm.push(run.name, store, root=root)
    for blob in (tmp_path / "store" / "blobs").rglob("*"):
        if blob.is_file() and blob.stat().st_size:  # nothing was dropped, so that list is empty
            flip_byte(blob)
    before = files_below(root)
    evaluation = run.evaluation
    assert evaluation
    shutil.rmtree(evaluation.path)
    with pytest.raises(CorruptionError):
        slm.pull(run.name, store, root=root)
    after = files_below(root)
    assert after == {name: before[name] for name in after}
    assert not list(root.rglob("*.tmp"))


def test_a_damaged_local_result_is_replaced_by_a_pull(root: Path, tmp_path: Path) -> None:
    store, run = memory_store(), only_run(root)
    record = run.verified_record
    slm.push(run.name, store, root=root)
    flip_byte(run.path / "metrics.jsonl", 0)
    pulled = slm.pull(run.name, store, root=root)
    assert pulled.pulled == (f"runs/{run.name}", f"runs/{run.name}/evaluation")
    assert run.verified_record == record


def test_an_unfinished_run_is_replaced_by_its_end_unless_it_is_trained_now(root: Path) -> None:
    store, run = memory_store(), only_run(root)
    slm.push(run.name, store, root=root)
    storage.unmark_complete(run.path)
    with storage.lock(run.path / "lock"), pytest.raises(slm.SlmError, match="in use"):
        slm.pull(run.name, store, root=root)
    assert not run.is_finished
    slm.pull(run.name, store, root=root)
    assert run.verified_record


def test_a_damaged_entry_is_one_message(root: Path, tmp_path: Path) -> None:
    store, run = f"file://{tmp_path / 'store'}", only_run(root)
    slm.push(run.name, store, root=root)
    entry = tmp_path / "store" / place("run", run.settings.key)
    entry.write_text(entry.read_text().replace("weights", "w"))
    flip_byte(entry, 40)
    with pytest.raises(CorruptionError, match="cannot be read"):
        slm.pull(run.name, store, root=tmp_path / "b")


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "a\\b", ""])
def test_an_entry_cannot_name_a_file_outside(name: str) -> None:
    blob = {name: Blob(bytes=1, sha256="0" * 64)}
    text = Entry.model_construct(kind="run", key="1" * 64, name="a-1", files=blob).to_json()
    with pytest.raises(CorruptionError, match="cannot be read"):
        Entry.from_json(text, "there")


def test_what_belongs_to_a_run_cannot_replace_another_part_of_it(
    root: Path, tmp_path: Path
) -> None:
    store, run = memory_store(), only_run(root)
    slm.push(run.name, store, root=root, data=False)
    [evaluation] = [entry for entry in entries(store) if entry.kind == "evaluation"]
    other = evaluation.model_copy(update={"name": "checkpoints", "key": "1" * 64})
    open_store(store).add(other)
    with pytest.raises(CorruptionError, match="folder 'checkpoints'"):
        slm.pull(run.name, store, root=tmp_path / "b")
    assert only_run(tmp_path / "b").verified_record


def test_an_entry_of_a_newer_format_is_refused() -> None:
    fields = {"format": 99}
    text = json.dumps({**fields, "sha256": storage.sha256_json(fields)}).encode()
    with pytest.raises(UserError, match="format 99"):
        Entry.from_json(text, "there")


# ---- a store that fails ------------------------------------------------------------------------


def test_a_store_that_cannot_be_reached_is_one_message(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store, name = f"file://{tmp_path / 'file' / 'store'}", only_run(root).name
    with pytest.raises(StoreError, match="cannot be"):
        slm.push(name, store, root=root)
    with pytest.raises(StoreError, match="cannot be"):
        slm.pull(name, store, root=tmp_path / "b")


@pytest.mark.parametrize("fault", ["store.blob:3:enospc", "store.entry:2:eio", "rename:4:enospc"])
def test_a_full_store_is_one_message_and_the_next_push_sends_the_rest(
    fault: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name = f"file://{tmp_path / 'store'}", only_run(root).name
    monkeypatch.setenv("SLM_FAULT", fault)
    storage.reset_fault_points()
    with pytest.raises(StoreError, match="cannot be written"):
        slm.push(name, store, root=root)
    monkeypatch.delenv("SLM_FAULT")
    assert_whole(store)
    slm.push(name, store, root=root)
    assert [entry.kind for entry in assert_whole(store)] == KINDS


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_is_pulled_from_and_not_pushed_to(root: Path, tmp_path: Path) -> None:
    store, name = f"file://{tmp_path / 'store'}", only_run(root).name
    slm.push(name, store, root=root, data=False)
    for folder in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    with pytest.raises(StoreError, match="Permission denied"):
        slm.push(name, store, root=root)
    slm.pull(name, store, root=tmp_path / "b")


@pytest.mark.parametrize("number", [1, 2, 5, 12, 20, 30])
def test_a_full_disk_here_leaves_no_part_of_a_result(
    number: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name, other_root = memory_store(), only_run(root).name, tmp_path / "b"
    slm.push(name, store, root=root)
    monkeypatch.setenv("SLM_FAULT", f"fsync:{number}:enospc")
    storage.reset_fault_points()
    with pytest.raises((OSError, UserError)):
        slm.pull(name, store, root=other_root)
    monkeypatch.delenv("SLM_FAULT")
    assert not list(other_root.rglob("*.tmp"))
    slm.pull(name, store, root=other_root)
    assert verify_folder(other_root) == verify_folder(root)
