"""Training: killed and resumed it gives the same bits, and it refuses what it must not train on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slm.config import PipelineConfig
from slm.errors import CorruptionError, Interrupted, SlmError, TrainingError, UserError
from slm.evaluation.scoring import Score
from slm.model.saved import load_model
from slm.records import Run, Shards
from slm.run_folder import DataRoot, RunFolder
from slm.source.download import download
from slm.storage import RECORD
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.checkpoint import latest_checkpoint
from slm.training.loop import train

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
    """The run that no other test touches; trained once, then found done."""
    return launch.train(changed(config, seed=99), shards, root=root)


def losses(run: Path) -> list[tuple[int, str]]:
    steps = [event for event in RunFolder(run).journal if event["event"] == "step"]
    return [(event["step"], float(event["train_loss"]).hex()) for event in steps]


def test_a_run_and_what_it_leaves(uninterrupted: Run, shards: Shards, root: Path) -> None:
    run = uninterrupted
    assert run.step == 12
    assert run.tokens == 12 * 128
    assert run.last == "step_000012"
    assert [step for step, _ in losses(run.path)] == list(range(1, 13))
    events = [event["event"] for event in RunFolder(run.path).journal]
    assert events[0] == "start"
    assert events[-1] == "end"
    assert events.count("evaluate") == 3
    model, tokenizer = load_model(run.checkpoint("last"))
    assert model.vocab_size == tokenizer.n_vocab == shards.vocab_size
    assert DataRoot(root).run(run.name).path == run.path


def test_a_finished_run_is_reused_at_once(
    uninterrupted: Run, config: PipelineConfig, shards: Shards, root: Path
) -> None:
    start = time.monotonic()
    again = launch.train(changed(config, seed=99), shards, root=root)
    assert again.reused
    assert again.weights_sha256 == uninterrupted.weights_sha256
    assert time.monotonic() - start < 1


def test_what_another_trainer_has_just_finished_stays_as_it_is(uninterrupted: Run) -> None:
    run = uninterrupted.path
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    assert train(RunFolder(run)).weights_sha256 == uninterrupted.weights_sha256
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    "fault",
    [
        "train.micro_step:3:kill",  # inside the second step
        "train.step:7:kill",
        "train.evaluate:2:kill",
        "checkpoint.optimizer:3:kill",
        "rename:4:kill",
        "checkpoint.optimizer:2:enospc",
        "train.finish:1:kill",
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
    assert losses(run.path) == losses(uninterrupted.path)
    final, wanted = (latest_checkpoint(r.path / "checkpoints") for r in (run, uninterrupted))
    assert final is not None
    assert wanted is not None
    assert final.optimizer_sha256 == wanted.optimizer_sha256
    assert not list(run.path.rglob("*.tmp"))


def test_asked_to_stop_it_saves_and_goes_on(
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_child_with_its_state_saved(
    number: signal.Signals, config: PipelineConfig, shards: Shards, root: Path
) -> None:
    long = changed(config, max_steps=100_000, seed=int(number), checkpoint_every=100_000)
    run = launch.prepare(long, shards, root=root)
    environment = launch.child_environment(long)
    child = subprocess.Popen(
        [sys.executable, "-m", "slm.training.process", str(run)],
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
        "import sys; from pathlib import Path; from slm import launch; "
        "from slm.config import PipelineConfig; "
        f"run = Path({str(run.path)!r}); config = RunFolder(run).config; "
        "launch.supervise(run, config, lambda *a: None, lambda e: None)"
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
    first = subprocess.Popen([sys.executable, "-m", "slm.training.process", str(run)])
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
    from slm.training import loop as module

    real, calls = module.cross_entropy, iter(range(10**6))

    def broken(*arguments: torch.Tensor) -> torch.Tensor:
        poison = float("nan") if next(calls) == 13 else 1.0  # in the 7th step: 2 micro-steps each
        return real(*arguments) * poison

    monkeypatch.setattr(module, "cross_entropy", broken)
    with pytest.raises(TrainingError, match=r"step 7: train_loss is nan.*step 6 were the last"):
        train(run)
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == 6
    assert losses(run)[-1][0] == 6


def test_a_held_out_loss_that_is_not_finite_is_one_message_at_every_try(
    config: PipelineConfig, shards: Shards, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch.prepare(changed(config, seed=12), shards, root=root)
    from slm.training import loop as module

    real = module.score

    def broken(*arguments: object, **options: object) -> Score:
        return replace(real(*arguments, **options), nats=float("nan"))  # type: ignore[arg-type]

    monkeypatch.setattr(module, "score", broken)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"step 4: val_loss is nan"):
            train(run)
    saved = latest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == 3


def test_a_damaged_checkpoint_is_passed_over(
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


def test_a_missing_gpu_is_said(config: PipelineConfig, shards: Shards, root: Path) -> None:
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
    pair = launch.train(changed(exact, processes=2), shards, root=root)
    assert pair.level == "E"
    for (_, one), (_, two) in zip(losses(alone.path), losses(pair.path), strict=True):
        assert float.fromhex(one) == pytest.approx(float.fromhex(two), rel=1e-4)


def test_the_first_error_is_what_ended_it(tmp_path: Path) -> None:
    """torchrun's own words, which come after it, say nothing of the cause."""
    log = tmp_path / "train.log"
    log.write_text(
        "RuntimeError: of an earlier start\n"
        "[rank1]: RuntimeError: CUDA error: an assert\n"
        "[rank0]: RuntimeError: Connection closed by peer\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "============\n"
    )
    assert launch.last_words(log, 34) == "[rank1]: RuntimeError: CUDA error: an assert"
    log.write_text("starting\n============\n")
    assert launch.last_words(log, 0) == "============"
