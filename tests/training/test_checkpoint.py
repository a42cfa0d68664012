"""Checkpoints: saved whole from a copy, resumed from the newest valid one, pruned last."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from faults import KILLED, fork, leftovers, wait
from run_folders import CONFIG, TOKENIZER

from slm import storage
from slm.errors import CorruptionError, NewerFormat
from slm.model.gpt import GPT
from slm.model.saved import load_model
from slm.records import Checkpoint
from slm.storage import RECORD, read_record
from slm.training import checkpoint as module
from slm.training.checkpoint import (
    CheckpointWriter,
    checkpoint_name,
    clear_leftovers,
    latest_checkpoint,
    load_training_state,
    prune,
)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG.model, TOKENIZER.n_vocab)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CheckpointWriter]:
    with CheckpointWriter(tmp_path / "checkpoints", TOKENIZER) as writer:
        yield writer


def record(step: int) -> Checkpoint:
    return Checkpoint(
        key="k",
        step=step,
        tokens=step,
        config_sha256="c",
        shards_key="s",
        tokenizer_sha256=TOKENIZER.sha256,
        parent_sha256=None,
        train_loss=1.0,
    )


def save(writer: CheckpointWriter, model: GPT, step: int) -> Checkpoint:
    moments = {"embed.weight/step": torch.tensor(float(step))}
    writer.save(record(step), model, moments, {"step": step}, then=lambda _: None)
    saved = writer.wait()
    assert saved is not None
    return saved


def test_what_is_saved_is_loaded(writer: CheckpointWriter, model: GPT) -> None:
    saved = save(writer, model, 5)
    weights, moments, state = load_training_state(saved.path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert moments["embed.weight/step"] == 5
    assert state == {"step": 5}
    again, tokenizer = load_model(saved.path)
    assert tokenizer.sha256 == TOKENIZER.sha256
    assert torch.equal(again.embed.weight, model.embed.weight)
    assert not leftovers(writer.folder)


def test_it_is_written_from_a_copy_while_training_continues(
    writer: CheckpointWriter, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = GPT(CONFIG.model, TOKENIZER.n_vocab)
    before = changed.embed.weight.detach().clone()
    go = threading.Event()
    real = module.commit
    monkeypatch.setattr(module, "commit", lambda *a: go.wait(10) and real(*a))
    writer.save(record(1), changed, {}, {}, then=lambda _: None)
    with torch.no_grad():
        changed.embed.weight.zero_()
    go.set()
    saved = writer.wait()
    assert saved is not None
    assert torch.equal(load_training_state(saved.path)[0]["embed.weight"], before)


@pytest.mark.parametrize("fault", ["checkpoint.weights", "checkpoint.optimizer", "fsync", "rename"])
def test_a_save_that_fails_is_reported_and_the_one_before_is_kept(
    writer: CheckpointWriter, model: GPT, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    save(writer, model, 1)
    storage.reset_fault_points()
    monkeypatch.setenv("SLM_FAULT", f"{fault}:1:enospc")
    writer.save(record(2), model, {}, {}, then=lambda _: None)
    with pytest.raises(OSError, match="No space left"):
        writer.save(record(3), model, {}, {}, then=lambda _: None)
    assert [path.name for path in writer.folder.iterdir()] == [checkpoint_name(1)]
    assert save(writer, model, 3).step == 3


def test_an_error_after_the_save_is_reported_too(writer: CheckpointWriter, model: GPT) -> None:
    def broken(_: Checkpoint) -> None:
        raise ValueError("the journal is gone")

    writer.save(record(1), model, {}, {}, then=broken)
    with pytest.raises(ValueError, match="journal"):
        writer.wait()
    latest = latest_checkpoint(writer.folder)
    assert latest is not None
    assert latest.step == 1


def test_the_thread_ends_with_the_block(tmp_path: Path, model: GPT) -> None:
    with CheckpointWriter(tmp_path, TOKENIZER) as writer:
        writer.save(record(1), model, {}, {}, then=lambda _: None)
    assert latest_checkpoint(tmp_path)
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]


# ---- the newest valid one -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "record"])
def test_a_damaged_newest_one_is_quarantined_with_a_warning(
    writer: CheckpointWriter, model: GPT, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for step in (1, 2):
        save(writer, model, step)
    name = RECORD if damage == "record" else "optimizer.safetensors"
    path = writer.folder / checkpoint_name(2) / name
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "truncated" else bytes([data[0] ^ 1]) + data[1:])
    latest = latest_checkpoint(writer.folder)
    assert latest is not None
    assert latest.step == 1
    assert name in caplog.text
    assert list(writer.folder.glob("step_000002.corrupt-*"))


def test_one_of_a_newer_slm_is_neither_quarantined_nor_passed_over(
    writer: CheckpointWriter, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(writer, model, 1)
    with monkeypatch.context() as newer:
        newer.setattr(storage.record, "PLAIN_FORMAT", storage.FORMAT + 1)
        save(writer, model, 2)
    with pytest.raises(NewerFormat, match=r"record\.json is of format"):
        latest_checkpoint(writer.folder)
    assert sorted(path.name for path in writer.folder.iterdir()) == [
        checkpoint_name(1),
        checkpoint_name(2),
    ]


def test_leftovers_are_no_checkpoints_and_are_cleared(writer: CheckpointWriter, model: GPT) -> None:
    saved = save(writer, model, 1)
    for name in ("step_000002.tmp", ".step_000003.old"):
        shutil.copytree(saved.path, writer.folder / name)
    latest = latest_checkpoint(writer.folder)
    assert latest is not None
    assert latest.step == 1
    clear_leftovers(writer.folder)
    assert [path.name for path in writer.folder.iterdir()] == [checkpoint_name(1)]


def test_one_that_is_pruned_while_it_is_read_is_no_error(
    writer: CheckpointWriter, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(writer, model, step)
    real = module.read_record

    def slow(path: Path, kind: type[Checkpoint]) -> Checkpoint | None:
        if path.name == checkpoint_name(2):
            shutil.rmtree(path)
            raise CorruptionError("its files are missing")
        return real(path, kind)

    monkeypatch.setattr(module, "read_record", slow)
    latest = latest_checkpoint(writer.folder)
    assert latest is not None
    assert latest.step == 1


def test_they_are_in_the_order_of_their_steps_past_a_million(
    writer: CheckpointWriter, model: GPT
) -> None:
    for step in (999_900, 1_000_000, 1_000_100):
        save(writer, model, step)
    shutil.copytree(writer.folder / "step_1000000", writer.folder / "step_1000000_backup")
    latest = latest_checkpoint(writer.folder)
    assert latest is not None
    assert latest.step == 1_000_100
    prune(writer.folder, 1, set())
    left = sorted(path.name for path in writer.folder.iterdir())
    assert left == ["step_1000000_backup", "step_1000100"]


# ---- old ones ---------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(writer: CheckpointWriter, model: GPT) -> None:
    for step in range(1, 7):
        save(writer, model, step)
    prune(writer.folder, 2, {checkpoint_name(2)})
    left = sorted(path.name for path in writer.folder.iterdir())
    assert left == [checkpoint_name(step) for step in (2, 5, 6)]


def test_a_kill_at_any_point_of_pruning_leaves_whole_checkpoints(
    writer: CheckpointWriter, model: GPT, tmp_path: Path
) -> None:
    for step in range(1, 5):
        save(writer, model, step)
    fired = 0
    while True:
        folder = Path(shutil.copytree(writer.folder, tmp_path / str(fired)))
        code = wait(
            fork(lambda folder=folder: prune(folder, 1, set()), fault=f"*:{fired + 1}:kill")
        )
        for path in folder.glob("step_*"):
            assert read_record(path, Checkpoint), path
        assert (folder / checkpoint_name(4)).is_dir()
        clear_leftovers(folder)
        prune(folder, 1, set())
        assert [path.name for path in folder.iterdir()] == [checkpoint_name(4)]
        if code == 0:
            break
        assert code == KILLED
        fired += 1
    assert fired >= 9


# ---- no checkpoint ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.tiktoken"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[3]", b"\x80\x04\x95no tensors"])
def test_a_folder_that_holds_no_model_is_refused(
    writer: CheckpointWriter, model: GPT, name: str, content: bytes
) -> None:
    folder = save(writer, model, 1).path
    (folder / name).write_bytes(content)
    with pytest.raises(CorruptionError, match=name):
        load_model(folder)
    (folder / RECORD).unlink()  # as a folder from elsewhere has none
    with pytest.raises(CorruptionError):
        load_model(folder)


def test_weights_of_another_shape_are_refused(writer: CheckpointWriter, model: GPT) -> None:
    folder = save(writer, model, 1).path
    (folder / RECORD).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(CorruptionError, match="holds no model that can be read"):
        load_model(folder)


def test_tensors_are_what_safetensors_reads(writer: CheckpointWriter, model: GPT) -> None:
    saved = save(writer, model, 1)
    names = set(safetensors.torch.load_file(saved.path / "model.safetensors"))
    assert names == set(model.state_dict())
