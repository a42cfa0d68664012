"""Proofs of recovery: kill it anywhere, fill the disk, cut the power, flip a bit.

A short form of each runs with the other tests; `make test-faults` runs them whole.
"""

import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faults
import pytest
import torch
from faults import KILLED, RAISED, Bits, Disk, Lab, bits, fork, leftovers, wait
from run_folders import empty_store
from tiny_run import shards_of

import slm.training.loop
from slm.config import PipelineConfig, data_root
from slm.errors import CorruptionError, Interrupted, SlmError, TrainingError, UserError
from slm.evaluation.evaluate import evaluate
from slm.evaluation.scoring import Score
from slm.model.saved import load_model
from slm.records import Checkpoint, Record
from slm.registry import register
from slm.registry.versions import resolve
from slm.run_folder import CHECKPOINTS, JOURNAL, LOCK, LOG, PLAN, RunFolder
from slm.source.download import download
from slm.storage import RECORD, read_record
from slm.tokens.encode import encode
from slm.tokens.shards.reading import read_shards
from slm.tracking import mirror
from slm.tracking.server import connect, default_uri
from slm.training import gradients, launch, process, supervisor
from slm.training.checkpoint import latest_checkpoint
from slm.training.loop import train
from slm.training.provenance import environment
from slm.training.session import Session

Config = Callable[..., PipelineConfig]
Figure = Callable[[str, object], None]
short_and_long = partial(pytest.param, marks=pytest.mark.slow)

SETTINGS = {
    "data.documents": 60,
    "model.n_layer": 2,
    "model.dropout": 0.1,
    "train.optimizer": "muon",
    "train.max_steps": 8,
    "train.tokens_per_step": 64,
    "train.micro_batch_size": 1,
    "train.evaluate_every": 4,
    "train.evaluate_documents": 4,
    "train.checkpoint_every": 3,
    "train.keep_checkpoints": 2,
    "train.threads": 1,
    "train.precision": "fp32",
    "train.device": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def lab(data: Path, tiny_config: Config) -> Iterator[Lab]:
    """In memory, where that is a folder: a kill leaves it as it leaves a disk, and faster."""
    memory = Path("/dev/shm")
    config = tiny_config(**SETTINGS)
    environment()  # cached, so that no fork runs git
    torch.set_num_threads(1)
    shards = encode(config, download(config, root=data), root=data)
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Lab(config, shards, Path(folder), clock=ticking)


@pytest.fixture
def figure(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Figure:
    """Prints what a proof has shown, where it was run whole."""

    def show(name: str, value: object) -> None:
        if request.node.get_closest_marker("slow"):
            with capsys.disabled():
                print(f"\n{name}: {value}")

    return show


_uninterrupted: list[Bits] = []


@pytest.fixture
def expected(lab: Lab) -> Bits:
    """The bits of the uninterrupted training."""
    if not _uninterrupted:
        _uninterrupted.append(lab.uninterrupted())
    return _uninterrupted[0]


def longer(lab: Lab, **settings: object) -> Lab:
    trained = lab.config.train.model_copy(update=settings)
    return replace(lab, config=lab.config.model_copy(update={"train": trained}))


def ticking() -> Callable[[], float]:
    """A clock that moves on by a quarter of a second whenever it is read."""
    ticks = itertools.count()
    return lambda: next(ticks) / 4


@pytest.fixture
def timed(lab: Lab) -> Lab:
    """A training of about eight steps whose cooldown the clock decides."""
    return longer(lab, max_steps=None, max_seconds=4.0, schedule="wsd", cooldown=0.4)


# ---- fault points -----------------------------------------------------------------------------


def points(stride: int) -> Iterator[int]:
    """1, 1 + stride, …: as far as the caller asks."""
    at = 1
    while True:
        yield at
        at += stride


@pytest.mark.parametrize("stride", [61, short_and_long(1)])
@pytest.mark.timeout(500)
def test_killed_at_a_fault_point_it_gives_the_same_bits(
    lab: Lab, expected: Bits, stride: int, figure: Figure
) -> None:
    exercised = 0
    for at in points(stride):
        run = lab.prepare(lab.root())
        code = lab.train(run, f"*:{at}:kill")
        if code == 0:
            break
        assert code == KILLED
        exercised += 1
        assert lab.train(run) == 0, (run.path / LOG).read_text()
        assert bits(run) == expected, f"fault point {at}"
        assert not leftovers(run.path)
        shutil.rmtree(run.path)
    figure("kill points of training, all the same bits", exercised)
    assert exercised > 120 // stride


@pytest.mark.parametrize("stride", [47, short_and_long(1)])
@pytest.mark.timeout(500)
def test_killed_around_the_decision_of_the_clock_it_gives_the_bits_of_that_decision(
    timed: Lab, stride: int, figure: Figure
) -> None:
    """With a clock that all processes read alike, so that each decides the same."""
    expected = timed.uninterrupted()
    assert expected.decision is not None
    exercised = Counter[str]()
    for fault in (f"*:{at}:kill" for at in points(stride)):
        run = timed.prepare(timed.root())
        code = timed.train(run, fault)
        if code == 0:
            break
        assert code == KILLED
        exercised["after" if run.decision else "before"] += 1
        assert timed.train(run) == 0, (run.path / LOG).read_text()
        assert bits(run) == expected, fault
        assert not leftovers(run.path)
        shutil.rmtree(run.path)
    figure("kill points before and after the clock's decision, all its bits", dict(exercised))
    assert exercised["before"] > 50 // stride
    assert exercised["after"] > 30 // stride


@pytest.mark.parametrize(("kind", "stride"), [("enospc", 79), short_and_long("eio", 1)])
@pytest.mark.timeout(500)
def test_a_disk_that_fails_at_any_operation_costs_nothing_that_was_saved(
    lab: Lab, expected: Bits, kind: str, stride: int, figure: Figure
) -> None:
    exercised = 0
    for at in points(stride):
        run = lab.prepare(lab.root())
        code = lab.train(run, f"*:{at}:{kind}")
        if code == 0:
            break
        assert code == RAISED
        exercised += 1
        assert not list(run.path.rglob("*.tmp"))
        for path in (run.path / CHECKPOINTS).glob("step_*"):
            assert read_record(path, Checkpoint)
        assert lab.train(run) == 0, (run.path / LOG).read_text()
        assert bits(run) == expected, f"fault point {at}"
        shutil.rmtree(run.path)
    figure(f"operations that failed with {kind}, nothing lost", exercised)
    assert exercised > 120 // stride


def test_a_full_disk_in_earnest(lab: Lab, expected: Bits) -> None:
    """Files may grow to 60 kB, which the weights exceed: safetensors' own error."""
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
        train(run)

    run = lab.prepare(lab.root())
    assert wait(fork(limited, log=run.path / LOG)) == RAISED
    assert "OSError: cannot save" in (run.path / LOG).read_text()
    assert not leftovers(run.path)
    assert lab.train(run) == 0
    assert bits(run) == expected


def test_out_of_memory_keeps_the_checkpoint_and_names_a_batch_that_fits(
    lab: Lab, expected: Bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own error, in the fifth step; the batch is never made smaller silently."""
    lab = longer(lab, micro_batch_size=2)
    whole = lab.uninterrupted()
    run = lab.prepare(lab.root())
    honest, calls = gradients.cross_entropy, itertools.count(1)

    def hungry(*arguments: Any, **options: Any) -> torch.Tensor:
        return torch.empty(1 << 50) if next(calls) == 5 else honest(*arguments, **options)

    def train_child() -> None:
        os._exit(process.main(run))

    with monkeypatch.context() as patch:
        patch.setattr(gradients, "cross_entropy", hungry)
        code = wait(fork(train_child, log=run.path / LOG))
    with pytest.raises(
        TrainingError, match=r"out of memory .*try train\.micro_batch_size=1"
    ) as raised:
        supervisor.check_exit(code, run, 0)
    assert "the last checkpoint" in str(raised.value)
    saved = latest_checkpoint(run.path / CHECKPOINTS)
    assert saved is not None
    assert saved.step == 4
    assert lab.train(run) == 0
    assert bits(run) == whole


# ---- random kills -----------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [12, short_and_long(200)])
@pytest.mark.timeout(500)
def test_killed_at_random_it_gives_the_same_bits(lab: Lab, kills: int, figure: Figure) -> None:
    lab = longer(lab, max_steps=24, checkpoint_every=4)
    chance = random.Random(2)
    begin = time.monotonic()
    expected = lab.uninterrupted()
    seconds = time.monotonic() - begin
    outcomes = Counter[str]()
    while outcomes["saving"] + outcomes["training"] < kills:
        run = lab.prepare(lab.root())
        while (outcome := faults.kill_at_random(run, chance, seconds)) != "done":
            outcomes[outcome] += 1
        assert bits(run) == expected
        assert not leftovers(run.path)
        shutil.rmtree(run.path)
    figure("random kills of training, all the same bits", dict(outcomes))
    assert outcomes["saving"] >= kills / 4, outcomes


# ---- signals: the whole commands are in test_signals.py -----------------------------------------


def test_after_a_signal_training_resumes_to_the_same_bits(lab: Lab) -> None:
    lab = longer(lab, max_steps=40, checkpoint_every=100, evaluate_every=100)
    expected = lab.uninterrupted()
    for numbers, code in (
        ([signal.SIGTERM], Interrupted.exit_code),
        ([signal.SIGINT], Interrupted.exit_code),
        ([signal.SIGTERM, signal.SIGTERM, process.PARENT_DIED], Interrupted.exit_code),
        ([signal.SIGINT, signal.SIGKILL], KILLED),
    ):
        run = lab.prepare(lab.root())
        child = fork(lambda run=run: os._exit(process.main(run)), log=run.path / LOG)  # type: ignore[misc]
        while not any(event["event"] == "step" for event in run.journal):
            time.sleep(0.001)
        for number in numbers:
            os.kill(child, number)
            time.sleep(0.001)
        assert wait(child) == code, (run.path / LOG).read_text()
        saved = latest_checkpoint(run.path / CHECKPOINTS)
        if code != KILLED:
            assert saved is not None
            steps = [e["step"] for e in run.journal if e["event"] == "step"]
            assert saved.step == steps[-1]
        assert lab.train(run) == 0, (run.path / LOG).read_text()
        assert bits(run) == expected
        assert not leftovers(run.path)


# ---- power cuts -------------------------------------------------------------------------------


BY_CLOCK = {"max_steps": None, "max_seconds": 2.8, "schedule": "wsd", "cooldown": 0.4}


@pytest.mark.parametrize(
    ("stride", "limit"),
    [
        (97, {"max_steps": 5}),
        (89, BY_CLOCK),
        short_and_long(1, {"max_steps": 5}),
        short_and_long(1, BY_CLOCK),
    ],
)
@pytest.mark.timeout(500)
@pytest.mark.usefixtures("in_forks")
def test_after_a_power_cut_at_any_moment_training_resumes(
    lab: Lab, stride: int, limit: dict[str, object], figure: Figure
) -> None:
    lab = longer(lab, checkpoint_every=2, keep_checkpoints=1, evaluate_every=100, **limit)
    expected = lab.uninterrupted()
    assert len(expected.losses) == 5
    root = lab.root()
    disk = Disk(root)
    with disk.watching():
        train(lab.prepare(root), clock=lab.clock())
    cuts = list(faults.power_cuts(disk))
    ended = [cut for cut in cuts if any(re.fullmatch(r"runs/[^/]+/record.json", n) for n in cut[2])]
    cuts = cuts if stride == 1 else [*cuts[::stride], *ended]
    for moment, lost, tree in cuts:
        place = lab.link(faults.rebuild(tree, lab.folder / "cut"))
        saved = latest_checkpoint(lab.prepare(place).path / CHECKPOINTS)
        promised = last_promised(disk, moment)
        assert (saved.step if saved else 0) >= promised, (moment, lost)
        run = RunFolder.of(launch.train(lab.config, lab.shards, root=place))
        assert bits(run) == expected, (moment, lost)
        assert not promised or not list(run.path.parent.glob("*.corrupt-*")), (moment, lost)
        shutil.rmtree(place)
    figure("distinct folders after a power cut, all recovered", len(cuts))
    assert len(cuts) > 150 // stride


def last_promised(disk: Disk, moment: int) -> int:
    """The step of the last checkpoint that the journal had as saved before that moment."""
    now = disk.moments[moment]
    names = [name for name in now.numbers if name.endswith(JOURNAL)]
    journal = b"".join(now.contents[now.numbers[name]] or b"" for name in names)
    events = [json.loads(line) for line in journal.splitlines()]
    return max((e["step"] for e in events if e["event"] == "checkpoint"), default=0)


# ---- flipped bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [40, short_and_long(200)])
def test_every_flipped_bit_is_found_before_use(lab: Lab, flips: int, figure: Figure) -> None:
    run = lab.prepare(lab.root())
    assert lab.train(run) == 0
    shards = shutil.copytree(lab.shards.path, run.path.parents[1] / "copy" / lab.shards.name)
    checkpoint = run.verified_record.checkpoint("last")  # type: ignore[union-attr]
    users: dict[Path, Callable[[], object]] = {
        shards: lambda: read_shards(shards),
        checkpoint: lambda: read_record(checkpoint, Checkpoint),
        run.path: lambda: run.verified_record,
    }
    chance = random.Random(3)
    for _ in range(flips):
        folder, use = chance.choice(list(users.items()))
        record = use()
        assert isinstance(record, Record)
        names = [name for name, entry in record.files.items() if entry.bytes]
        path = folder / chance.choice([RECORD, *names])
        flip(path, chance)
        with pytest.raises(CorruptionError) as raised:
            use()
        assert path.name in str(raised.value)
        flip(path, None)
    assert use()
    figure("flipped bits, all found", flips)


_flipped: list[tuple[int, int]] = []


def flip(path: Path, chance: random.Random | None) -> None:
    """Flips a bit of a file, or the one that was flipped last back again."""
    data = bytearray(path.read_bytes())
    if chance is not None:
        _flipped.append((chance.randrange(len(data)), 1 << chance.randrange(8)))
    at, bit = _flipped[-1]
    data[at] ^= bit
    path.write_bytes(data)


def test_damaged_weights_are_not_sampled_from(lab: Lab, expected: Bits) -> None:
    run = lab.prepare(lab.root())
    assert lab.train(run) == 0
    folder = run.verified_record.checkpoint("last")  # type: ignore[union-attr]
    for name in ("model.safetensors", "config.json", "tokenizer.tiktoken"):
        flip(folder / name, random.Random(4))
        with pytest.raises(CorruptionError, match=name):
            load_model(folder)
        flip(folder / name, None)
    assert load_model(folder)


@pytest.fixture
def first_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every evaluation finds a worse model than the one before."""

    def evaluate(session: Session, held_out: list[Any]) -> Score:
        return replace(honest(session, held_out), nats=float(session.step))

    honest = slm.training.loop.evaluate_slice
    monkeypatch.setattr(slm.training.loop, "evaluate_slice", evaluate)


@pytest.fixture
def in_forks(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch.train` trains in a fork instead of a new process."""

    def supervise(run: RunFolder, *_: object) -> None:
        assert lab.train(run) == 0, (run.path / LOG).read_text()

    monkeypatch.setattr(supervisor, "supervise", supervise)


@pytest.mark.parametrize(
    ("place", "origin"),
    [("last", 6), ("best", 0), ("record.json", 8), ("metrics.jsonl", 0), ("plan.json", 0)],
)
@pytest.mark.usefixtures("in_forks", "first_is_best")
def test_a_finished_run_that_is_damaged_loses_the_least(lab: Lab, place: str, origin: int) -> None:
    """From the newest checkpoint before the damage; without settings or journal, from the start."""
    root = lab.root()
    record = launch.train(lab.config, lab.shards, root=root)
    run = RunFolder.of(record)
    expected = bits(run)
    assert (record.best, record.last) == ("step_000004", "step_000008")
    lines = len(list(run.journal))
    folder = record.checkpoint(place) if place in ("best", "last") else None
    flip(folder / "model.safetensors" if folder else run.path / place, random.Random(6))
    repaired = launch.train(lab.config, lab.shards, root=root)
    assert not repaired.reused
    assert repaired.model_dump(exclude={"seconds", "tok_per_sec", "files"}) == record.model_dump(
        exclude={"seconds", "tok_per_sec", "files"}
    )
    assert bits(run) == expected
    assert launch.train(lab.config, lab.shards, root=root).reused
    added = list(run.journal)[lines:]
    assert [e["step"] for e in added if e["event"] == "resume"] == ([origin] if origin else [])
    assert len(list(root.glob("runs/*.corrupt-*"))) == (place in ("metrics.jsonl", "plan.json"))


@pytest.mark.usefixtures("in_forks", "first_is_best")
def test_a_best_checkpoint_damaged_before_the_end_is_rebuilt(lab: Lab) -> None:
    expected = lab.uninterrupted()
    run = lab.prepare(lab.root())
    assert lab.train(run, "train.step:7:kill") == KILLED
    flip(run.path / CHECKPOINTS / "step_000004" / "model.safetensors", random.Random(7))
    assert lab.train(run) == 0
    assert bits(run) == expected
    record = run.verified_record
    assert record is not None
    assert read_record(record.checkpoint("best"), Checkpoint)


def test_a_journal_with_missing_steps_is_not_resumed_from(lab: Lab, expected: Bits) -> None:
    """A line that is broken in the middle: what follows it is cut off, and trained again."""
    run = lab.prepare(lab.root())
    assert lab.train(run, "train.step:8:kill") == KILLED
    data = (run.path / JOURNAL).read_bytes()
    lines = data.splitlines(keepends=True)
    (run.path / JOURNAL).write_bytes(b"".join([*lines[:4], b"\0" + lines[4][1:], *lines[5:]]))
    assert lab.train(run) == 0
    assert bits(run) == expected


# ---- two together -----------------------------------------------------------------------------


@pytest.mark.parametrize("races", [2, short_and_long(100)])
@pytest.mark.timeout(500)
def test_of_two_trainers_the_second_is_refused_at_once(
    lab: Lab, races: int, figure: Figure
) -> None:
    lab = longer(lab, max_steps=32)  # longer than the loser waits for the lock
    expected = lab.uninterrupted()
    root = lab.root()
    slowest = 0.0
    for _ in range(races):
        go, start = os.pipe()

        def race(go: int = go) -> None:
            os.read(go, 1)
            train(lab.prepare(root))

        children = [fork(race, log=root / "log") for _ in range(2)]
        os.write(start, b"..")
        begin = time.monotonic()
        first, status = os.waitpid(-1, 0)
        seconds = time.monotonic() - begin
        children.remove(first)
        assert os.waitstatus_to_exitcode(status) == SlmError.exit_code, (root / "log").read_text()
        assert wait(children[0]) == 0
        assert seconds < 1
        slowest = max(slowest, seconds)
        os.close(go)
        os.close(start)
        assert bits(lab.prepare(root)) == expected
        shutil.rmtree(root / "runs")
    figure("races of two trainers, one winner each; seconds of the slowest loser", (races, slowest))
    assert (root / "log").read_text().count("in use by another process") == races


def test_the_lock_of_a_killed_trainer_is_free(lab: Lab, expected: Bits) -> None:
    run = lab.prepare(lab.root())
    child = fork(lambda: train(run), log=run.path / LOG)
    while not (run.path / JOURNAL).is_file():
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    wait(child)
    assert lab.train(run) == 0
    assert bits(run) == expected


def test_a_second_trainer_is_refused_before_its_process_starts(lab: Lab) -> None:
    lab = longer(lab, max_steps=100_000)
    root = lab.root()
    run = lab.prepare(root)
    child = fork(lambda: train(run), log=run.path / LOG)
    while not (run.path / PLAN).is_file():
        time.sleep(0.001)
    begin = time.monotonic()
    with pytest.raises(SlmError, match="in use by another process"):
        launch.train(lab.config, lab.shards, root=root)
    assert time.monotonic() - begin < 1
    os.kill(child, signal.SIGKILL)
    wait(child)


# ---- several processes --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(550)
def test_two_processes_killed_and_resumed_give_the_same_bits(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    """Level F, on a CPU: torchrun's workers, killed together, one alone, and stopped."""
    lab = longer(lab, processes=2, micro_batches=2, max_steps=12)
    expected = bits(RunFolder.of(launch.train(lab.config, lab.shards, root=lab.root())))
    root = lab.root()
    run = lab.prepare(root)

    def train_again() -> None:
        launch.train(lab.config, lab.shards, root=root)

    for fault in ("train.micro_step:3:kill", "checkpoint.optimizer:2:kill", "rename:3:eio"):
        monkeypatch.setenv("SLM_FAULT", fault)
        with pytest.raises(TrainingError):
            train_again()
    monkeypatch.delenv("SLM_FAULT")
    report = supervisor.report

    def interrupt(*arguments: Any) -> None:
        report(*arguments)
        if arguments[1]:  # events: it trains
            raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "report", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_again()
    monkeypatch.setattr(supervisor, "report", report)
    assert "slm ended with 130: stopped after step" in (run.path / LOG).read_text()
    train_again()
    assert bits(run) == expected
    assert run.verified_record.level == "F"  # type: ignore[union-attr]
    figure("two processes killed or stopped, all the same bits", 4)


# ---- clocks, users, paths -----------------------------------------------------------------------


def test_a_clock_that_goes_backwards_changes_nothing(
    lab: Lab, expected: Bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour back at every reading: the same bits, and each point once in MLflow."""
    hours, steps = itertools.count(), itertools.count()
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start - 3600 * next(hours))
    run = lab.prepare(empty_store(lab.root()))
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(steps) == 4)
    mirror.sync(run)
    train(run)
    assert bits(run) == expected
    run_id = mirror.sync(run)
    client = connect(default_uri(run.path.parents[1]))
    history = client.get_metric_history(run_id, "train_loss")
    assert sorted(m.step for m in history) == list(range(1, 9))


@pytest.fixture
def as_nobody(lab: Lab) -> Callable[[Callable[[], object]], tuple[int, str]]:
    """Does something as a user who may read everything and write nothing of ours."""
    lab.folder.chmod(0o755)

    def do(work: Callable[[], object]) -> tuple[int, str]:
        def unprivileged() -> None:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            work()

        log = lab.folder / "log"
        log.touch()
        return wait(fork(unprivileged, log=log)), log.read_text()

    return do


def test_another_users_folders_are_refused_before_any_work(
    lab: Lab, as_nobody: Callable[[Callable[[], object]], tuple[int, str]]
) -> None:
    root = lab.root()
    root.chmod(0o555)
    code, text = as_nobody(lambda: launch.train(lab.config, lab.shards, root=root))
    assert (code, text.startswith(f"cannot write to {root}")) == (UserError.exit_code, True), text
    root.chmod(0o755)
    run = lab.prepare(root)
    (run.path / LOCK).touch()
    for path in (run.path, run.path / CHECKPOINTS, run.path / LOCK):
        path.chmod(0o555 if path.is_dir() else 0o444)
    code, text = as_nobody(lambda: launch.train(lab.config, lab.shards, root=root))
    assert (code, "Permission denied" in text) == (UserError.exit_code, True), text
    assert "Traceback" not in text
    for path in (run.path, run.path / CHECKPOINTS, run.path / LOCK):
        path.chmod(0o755)


PLACES = ["a naïve 日本語 😀 100% #1 x=y&z 'quoted\" " + "x" * 150, "link"]


@pytest.mark.parametrize("name", PLACES)
def test_a_data_folder_may_be_anywhere(tmp_path: Path, tiny_config: Config, name: str) -> None:
    """From the documents to the registered model, which is resolved by its version."""
    place = tmp_path / name
    if name == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to("elsewhere", target_is_directory=True)
    root = empty_store(place / "data")
    documents = place / "my documents.jsonl"
    documents.write_text(
        "".join(json.dumps({"text": f"Text number {i}."}) + "\n" for i in range(99))
    )
    config = tiny_config(
        **{"data.source": "files", "data.path": str(documents), "data.documents": None}
    )
    shards = encode(config, download(config, root=root), root=root)
    folder = launch.prepare(config, shards, root=root)
    train(folder)
    run = folder.verified_record
    assert run is not None
    version = register.register(
        config, run, evaluate(config, run, shards_of(run)), None, shards_of(run), root=root
    )
    resolved = resolve(f"models:/{version.model}/{version.version}", root)
    assert resolved == run.checkpoint("best")
    assert load_model(resolved)


def test_a_data_folder_that_no_database_can_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "why?"))
    with pytest.raises(UserError, match=r"'\?' in its path"):
        data_root()


# ---- the page that promises all this ------------------------------------------------------------


def test_the_page_names_tests_that_are_there() -> None:
    tests = Path(__file__).parents[1]
    page = (tests.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    file, count = "", 0
    for name, test in re.findall(r"`([\w/]*test_\w+\.py|…)(?:::(test_\w+))?`", page):
        file = name if name != "…" else file
        assert not test or f"\ndef {test}(" in (tests / file).read_text(), f"{file}::{test}"
        assert (tests / file).is_file(), file
        count += 1
    assert count > 40


# ---- what a killed encoding leaves --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_encoding_killed_at_random_gives_the_same_bytes(
    lab: Lab, data: Path, figure: Figure
) -> None:
    source = download(lab.config, root=data)
    chance = random.Random(5)

    def start(root: Path) -> int:
        return fork(lambda: encode(lab.config, source, root=root), log=root / "log")

    def empty_root() -> Path:
        root = lab.root()
        (root / "shards").unlink()
        return root

    begin = time.monotonic()
    assert wait(start(empty_root())) == 0
    whole = time.monotonic() - begin
    kills = 0
    while kills < 50:
        root = empty_root()
        while (code := killed_after(start(root), chance, 1.2 * whole)) != 0:
            assert code == KILLED, (root / "log").read_text()
            kills += 1
        encoded = read_shards(root / "shards" / lab.shards.name)
        assert encoded.files == lab.shards.files
        assert not leftovers(root)
        shutil.rmtree(root)
    figure("random kills of encoding, all the same bytes", kills)


def killed_after(child: int, chance: random.Random, seconds: float) -> int:
    time.sleep(chance.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    return wait(child)
