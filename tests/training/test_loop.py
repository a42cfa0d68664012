"""Training: killed and resumed it gives the same bits; it refuses damaged and foreign data."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.config import PipelineConfig
from slm.errors import CorruptionError, Interrupted, InUse, SlmError, TrainingError, UserError
from slm.evaluation.evaluate import evaluate
from slm.evaluation.scoring import DocumentScore
from slm.model.saved import load_model
from slm.records import Run, Shards
from slm.reproduction.replay import verify_steps
from slm.run_folder import PLAN, DataRoot, RunFolder
from slm.source.download import download
from slm.storage import RECORD, lock, lock_of, reading
from slm.tokens.encode import encode
from slm.training import gradients, held_out, launch, loop
from slm.training import plan as plan_module
from slm.training.checkpoint import latest_checkpoint
from slm.training.child import child_environment, command
from slm.training.log import final_message
from slm.training.loop import train
from slm.training.plan import make_plan

Config = Callable[..., PipelineConfig]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data root")


@pytest.fixture
def config(tiny_config: Config) -> PipelineConfig:
    return tiny_config(
        **{
            "model.dropout": 0.1,
            "train.optimizer": "muon",
            "train.max_steps": 12,
            "train.micro_batch_size": 2,
            "train.evaluate_every": 4,
            "train.checkpoint_every": 3,
            "train.threads": 1,
            "train.precision": "bf16",
        }
    )


@pytest.fixture
def shards(config: PipelineConfig, root: Path) -> Shards:
    return encode(config, download(config, root=root), root=root)


def changed(config: PipelineConfig, **fields: object) -> PipelineConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=fields)})


@pytest.fixture
def uninterrupted(config: PipelineConfig, shards: Shards, root: Path) -> Run:
    """The run that no other test touches; trained once, then reused."""
    return launch.train(changed(config, seed=99), shards, root=root)


def losses(run: RunFolder | Run) -> list[tuple[int, str]]:
    steps = [event for event in RunFolder(run.path).journal if event["event"] == "step"]
    return [(event["step"], float(event["train_loss"]).hex()) for event in steps]


def test_a_run_and_what_it_leaves(uninterrupted: Run, shards: Shards, root: Path) -> None:
    run = uninterrupted
    assert run.step == 12
    assert run.tokens == 12 * 128
    assert run.last == "step_000012"
    assert [step for step, _ in losses(run)] == list(range(1, 13))
    events = [event["event"] for event in RunFolder.of(run).journal]
    assert events[0] == "start"
    assert events[-1] == "end"
    assert events.count("evaluate") == 3
    model, tokenizer = load_model(run.checkpoint("last"))
    assert model.vocab_size == tokenizer.n_vocab == shards.vocab_size
    assert DataRoot(root).run(run.name).path == run.path


def test_a_finished_run_is_reused_immediately(
    uninterrupted: Run, config: PipelineConfig, shards: Shards, root: Path
) -> None:
    start = time.monotonic()
    again = launch.train(changed(config, seed=99), shards, root=root)
    assert again.reused
    assert again.weights_sha256 == uninterrupted.weights_sha256
    assert time.monotonic() - start < 1


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is hashed in this process."""
    counts, file_digest = Counter[str](), hashlib.file_digest

    def count(file: Any, *arguments: Any) -> Any:
        counts[file.name] += 1
        return file_digest(file, *arguments)

    monkeypatch.setattr(hashlib, "file_digest", count)
    return counts


def test_each_file_of_a_finished_run_is_hashed_once_in_a_call(
    uninterrupted: Run,
    config: PipelineConfig,
    shards: Shards,
    root: Path,
    hashed: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared, prepare = [], launch.prepare
    monkeypatch.setattr(launch, "prepare", lambda *a, **o: prepared.append(1) or prepare(*a, **o))
    ours = changed(config, seed=99)
    run = launch.train(ours, shards, root=root)
    assert len(prepared) == 1
    assert hashed.keys() == {str(run.path / name) for name in run.files}
    assert set(hashed.values()) == {1}
    for evaluated in range(2):
        hashed.clear()
        assert evaluate(ours, run, shards).reused == bool(evaluated)
        assert set(hashed.values()) == {1}


def test_the_end_of_a_training_hashes_each_file_once(
    config: PipelineConfig, shards: Shards, root: Path, hashed: Counter[str]
) -> None:
    """After the last checkpoint, which is hashed when it is written."""
    run = launch.prepare(changed(config, seed=14), shards, root=root)
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: (run.path / "checkpoints" / "step_000012").exists())
    finish = loop.finish

    def counted(*arguments: Any) -> Run:
        hashed.clear()
        return finish(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "finish", counted)
        record = train(run)
    assert record is not None
    assert hashed.keys() == {str(run.path / name) for name in record.files}
    assert set(hashed.values()) == {1}


def test_a_stop_while_the_final_weights_are_scored_leaves_the_rest_to_the_next_start(
    uninterrupted: Run, config: PipelineConfig, shards: Shards, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "shards").symlink_to(root / "shards")
    run = launch.prepare(changed(config, seed=99), shards, root=tmp_path)
    torch.set_num_threads(1)
    with pytest.raises(Interrupted, match="stopped after step 12, the last"):
        train(run, should_stop=lambda: len(losses(run)) == 12)
    assert not run.is_finished
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == 12
    record = train(run)
    assert record.weights_sha256 == uninterrupted.weights_sha256
    assert record.val_loss == uninterrupted.val_loss


def test_shards_in_use_are_locked(config: PipelineConfig, shards: Shards, root: Path) -> None:
    """So that nobody deletes them; others may read them too."""
    run = launch.prepare(changed(config, seed=15), shards, root=root)
    in_use = []

    def should_stop() -> bool:
        with pytest.raises(InUse), lock(lock_of(shards.path), wait=False):
            pass
        with reading(shards.path):
            in_use.append(1)
        return True

    with pytest.raises(Interrupted):
        train(run, should_stop=should_stop)
    assert in_use
    with lock(lock_of(shards.path), wait=False):
        pass


def test_what_another_trainer_has_just_finished_stays_as_it_is(uninterrupted: Run) -> None:
    run = RunFolder.of(uninterrupted)
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    assert train(run).weights_sha256 == uninterrupted.weights_sha256
    assert {path: path.stat().st_mtime_ns for path in before} == before


def slow(value: object) -> Any:
    """Of a parameter whose property has a faster one here, or forks in test_faults.py."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "fault",
    [
        "train.micro_step:3:kill",  # inside the second step
        "checkpoint.optimizer:2:enospc",
        slow("train.step:7:kill"),
        slow("train.evaluate:2:kill"),
        slow("checkpoint.optimizer:3:kill"),
        slow("rename:4:kill"),
        slow("train.finish:1:kill"),
    ],
)
def test_killed_and_resumed_gives_the_same_bits(
    fault: str,
    uninterrupted: Run,
    config: PipelineConfig,
    shards: Shards,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = tmp_path / "own"  # a data folder of its own, with the same shards
    own.mkdir()
    (own / "shards").symlink_to(root / "shards")
    monkeypatch.setenv("SLM_FAULT", fault)
    with pytest.raises(TrainingError):
        launch.train(changed(config, seed=99), shards, root=own)
    monkeypatch.delenv("SLM_FAULT")
    run = train(launch.prepare(changed(config, seed=99), shards, root=own))
    assert run.weights_sha256 == uninterrupted.weights_sha256
    assert losses(run) == losses(uninterrupted)
    final, expected = (latest_checkpoint(r.path / "checkpoints") for r in (run, uninterrupted))
    assert final is not None
    assert expected is not None
    state = "optimizer.safetensors"
    assert final.files[state].sha256 == expected.files[state].sha256
    assert not list(run.path.rglob("*.tmp"))


def test_a_stop_saves_and_the_next_start_resumes(
    uninterrupted: Run, config: PipelineConfig, shards: Shards, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "shards").symlink_to(root / "shards")
    run = launch.prepare(changed(config, seed=99), shards, root=tmp_path)
    steps = iter(range(100))
    torch.set_num_threads(1)
    with pytest.raises(Interrupted, match="stopped after step 5"):
        train(run, should_stop=lambda: next(steps) == 4)
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == 5
    assert train(run).weights_sha256 == uninterrupted.weights_sha256


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT)])
def test_a_signal_ends_the_child_with_its_state_saved(
    number: signal.Signals, config: PipelineConfig, shards: Shards, root: Path
) -> None:
    long = changed(config, max_steps=100_000, seed=int(number), checkpoint_every=100_000)
    run = launch.prepare(long, shards, root=root)
    environment = child_environment(long)
    child = subprocess.Popen(
        command(run, 1),
        env=environment,
        stderr=subprocess.PIPE,
    )
    while not losses(run):
        time.sleep(0.05)
        assert child.poll() is None
    child.send_signal(number)
    _, words = child.communicate(timeout=20)
    assert child.returncode == 130
    assert b"its checkpoint is saved" in words.splitlines()[-1]
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == losses(run)[-1][0]


def test_the_child_ends_with_its_parent(config: PipelineConfig, shards: Shards, root: Path) -> None:
    """The parent is killed outright: no orphan trains on, and the state is saved."""
    long = changed(config, max_steps=100_000, seed=5, checkpoint_every=100_000)
    run = launch.prepare(long, shards, root=root)
    script = (
        "from pathlib import Path; from slm.run_folder import RunFolder; "
        "from slm.training import supervisor; "
        f"run = RunFolder(Path({str(run.path)!r})); "
        "supervisor.supervise(run, run.config, lambda *a: None, lambda e: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    while not losses(run):
        time.sleep(0.05)
        assert parent.poll() is None
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 15
    while latest_checkpoint(run.path / "checkpoints") is None:
        assert time.monotonic() < deadline, "no checkpoint after the parent's death"
        time.sleep(0.1)


def test_two_trainers_on_one_run(config: PipelineConfig, shards: Shards, root: Path) -> None:
    long = changed(config, max_steps=100_000, seed=6)
    run = launch.prepare(long, shards, root=root)
    first = subprocess.Popen(command(run, 1))
    try:
        while not losses(run):
            time.sleep(0.05)
        with pytest.raises(SlmError, match="in use by another process"):
            train(run)
    finally:
        first.send_signal(signal.SIGTERM)
        first.wait()
    before = losses(run)
    assert [step for step, _ in before] == list(range(1, len(before) + 1))


def test_a_loss_that_is_not_finite_is_never_stepped_on(
    config: PipelineConfig, shards: Shards, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch.prepare(changed(config, seed=7), shards, root=root)
    real, calls = gradients.cross_entropy, iter(range(10**6))

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        poison = float("nan") if next(calls) == 13 else 1.0  # in the 7th step: 2 micro-steps each
        return real(*arguments, **options) * poison

    monkeypatch.setattr(gradients, "cross_entropy", broken)
    with pytest.raises(TrainingError, match=r"step 7: train_loss is nan.*those of step 6"):
        train(run)
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == 6
    assert losses(run)[-1][0] == 6


def test_a_held_out_loss_that_is_not_finite_is_one_message_at_every_try(
    config: PipelineConfig, shards: Shards, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch.prepare(changed(config, seed=12), shards, root=root)
    real = held_out.score_each

    def broken(*arguments: object, **options: object) -> list[DocumentScore]:
        scores = real(*arguments, **options)  # type: ignore[arg-type]
        return [score._replace(nats=float("nan")) for score in scores]

    monkeypatch.setattr(held_out, "score_each", broken)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"step 4: val_loss is nan"):
            train(run)
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == 3


def test_a_damaged_checkpoint_is_quarantined(
    config: PipelineConfig, shards: Shards, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = launch.prepare(changed(config, seed=8), shards, root=root)
    train(run)
    newest = run.path / "checkpoints" / "step_000012" / "model.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-3] ^= 4
    newest.write_bytes(damaged)
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step < 12
    assert "model.safetensors" in caplog.text


def test_a_damaged_shard_is_refused_before_the_first_step(
    config: PipelineConfig, shards: Shards, root: Path, tmp_path: Path
) -> None:
    target = tmp_path / "shards" / shards.name
    target.mkdir(parents=True)
    for path in shards.path.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    damaged = bytearray((target / "train_00000.bin").read_bytes())
    damaged[2000] ^= 1
    (target / "train_00000.bin").write_bytes(damaged)
    run = launch.prepare(config, shards, root=tmp_path)
    with pytest.raises(CorruptionError, match=r"train_00000\.bin"):
        train(run)
    assert losses(run) == []


def test_a_config_edited_after_the_crash_is_refused(
    config: PipelineConfig, shards: Shards, root: Path
) -> None:
    run = launch.prepare(changed(config, seed=9), shards, root=root)
    train(run)
    (run.path / RECORD).unlink()
    described = json.loads((run.path / "config.json").read_text())
    described["config"]["train"]["learning_rate"] = 1.0
    (run.path / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="another config"):
        train(run)


def test_a_plan_edited_after_the_crash_is_refused(
    config: PipelineConfig, shards: Shards, root: Path
) -> None:
    run = launch.prepare(changed(config, seed=13), shards, root=root)
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: True)
    plan = json.loads((run.path / "plan.json").read_text())
    (run.path / "plan.json").write_text(json.dumps({**plan, "max_steps": 13}))
    with pytest.raises(CorruptionError, match=r"plan\.json is not the plan .* step_000001"):
        train(run)


OLD_CHOICES = {"muon_precision": "bf16", "parts": "plain"}
NEW_CHOICES = {"muon_precision": "fp32", "parts": "fused"}


@pytest.mark.parametrize("choices", [OLD_CHOICES, NEW_CHOICES])
def test_a_run_keeps_its_plans_choices_through_a_stop_and_a_verification(
    choices: dict[str, str],
    config: PipelineConfig,
    shards: Shards,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever this CPU would choose; an old plan does not name them at all."""
    changes = changed(config, seed=31)
    plan = make_plan(changes, shards.splits["train"], 1).model_copy(update=choices)
    runs = []
    for stops in (False, True):
        data = tmp_path / str(stops)
        data.mkdir()
        (data / "shards").symlink_to(root / "shards")
        run = launch.prepare(changes, shards, root=data)
        run.write_plan(plan)
        if choices == OLD_CHOICES:
            described = json.loads((run.path / PLAN).read_text())
            kept = {name: value for name, value in described.items() if name not in choices}
            (run.path / PLAN).write_text(json.dumps(kept))
        if stops:
            with pytest.raises(Interrupted):
                train(run, should_stop=lambda: True)
            amx = choices == NEW_CHOICES  # the opposite of what the choice follows from
            monkeypatch.setattr(plan_module, "has_amx_bf16", lambda amx=amx: amx)
        runs.append(train(run))
    whole, resumed = runs
    assert resumed.weights_sha256 == whole.weights_sha256
    assert losses(resumed) == losses(whole)
    assert verify_steps(RunFolder(resumed.path), 2, 6).verdict == "identical"


def test_the_choices_of_a_plan_change_the_bits(
    config: PipelineConfig, shards: Shards, tmp_path: Path, root: Path
) -> None:
    """So each is in the plan."""
    changes = changed(config, seed=31, max_steps=2)
    weights = set()
    for number, choice in enumerate(({}, {"muon_precision": "fp32"}, {"parts": "fused"})):
        data = tmp_path / str(number)
        data.mkdir()
        (data / "shards").symlink_to(root / "shards")
        run = launch.prepare(changes, shards, root=data)
        plan = make_plan(changes, shards.splits["train"], 1)
        run.write_plan(plan.model_copy(update={**OLD_CHOICES, **choice}))
        weights.add(train(run).weights_sha256)
    assert len(weights) == 3


def test_seconds_become_steps_once(config: PipelineConfig, shards: Shards, root: Path) -> None:
    timed = changed(config, max_steps=None, max_seconds=2.0, seed=10)
    run = train(launch.prepare(timed, shards, root=root))
    plan = json.loads((run.path / "plan.json").read_text())
    assert plan["max_steps"] == run.step
    assert plan["probe"]["step_seconds"] > 0
    same = train(launch.prepare(changed(config, max_steps=run.step, seed=10), shards, root=root))
    assert same.weights_sha256 == run.weights_sha256


def test_how_often_is_evaluated_changes_no_weight(
    uninterrupted: Run, config: PipelineConfig, shards: Shards, root: Path
) -> None:
    often = changed(config, seed=99, evaluate_every=1, checkpoint_every=5)
    run = train(launch.prepare(often, shards, root=root))
    assert run.weights_sha256 == uninterrupted.weights_sha256


def test_a_missing_gpu_is_reported(config: PipelineConfig, shards: Shards, root: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="torch sees no CUDA GPU"):
        train(launch.prepare(changed(config, device="cuda"), shards, root=root))


@pytest.mark.slow
def test_two_processes_train_on_the_same_rows(
    config: PipelineConfig, shards: Shards, root: Path
) -> None:
    """DDP over gloo: the losses of one process, up to the order of a sum."""
    exact = changed(config, precision="fp32", seed=11, micro_batch_size=1)
    exact = exact.model_copy(update={"model": exact.model.model_copy(update={"dropout": 0.0})})
    alone = launch.train(exact, shards, root=root)
    pair = launch.train(changed(exact, processes=2, parallel="ddp"), shards, root=root)
    assert pair.level == "E"
    for (_, one), (_, two) in zip(losses(alone), losses(pair), strict=True):
        assert float.fromhex(one) == pytest.approx(float.fromhex(two), rel=1e-4)


def test_the_first_error_is_the_reason(tmp_path: Path) -> None:
    """torchrun's own errors, which come after it, do not name the cause."""
    log = tmp_path / "train.log"
    log.write_text(
        "RuntimeError: of an earlier start\n"
        "[rank1]: RuntimeError: CUDA error: an assert\n"
        "[rank0]: RuntimeError: Connection closed by peer\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "============\n"
    )
    assert final_message(log, 34) == "[rank1]: RuntimeError: CUDA error: an assert"
    log.write_text("starting\n============\n")
    assert final_message(log, 0) == "============"
