"""Proofs of recovery: kill it anywhere, fill the disk, cut the power, flip a bit.

A short form of each runs with the other tests; `make test-faults` runs them whole.
"""

import json
import os
import random
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

import slm.train
from slm import launch
from slm.checkpoint import latest_checkpoint, load_model
from slm.config import PipelineConfig
from slm.errors import CorruptionError, SlmError
from slm.journal import JOURNAL, read_journal
from slm.metrics import Score
from slm.provenance import environment
from slm.records import Checkpoint, Record
from slm.session import Session
from slm.shards import encode, read_shards
from slm.source import download
from slm.storage import RECORD, read_record
from slm.train import train

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
    environment()  # remembered, so that no fork has to ask git
    torch.set_num_threads(1)
    shards = encode(config, download(config, root=data), root=data)
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Lab(config, shards, Path(folder))


@pytest.fixture
def figure(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Figure:
    """Prints what a proof has shown, where it was run whole."""

    def show(what: str, value: object) -> None:
        if request.node.get_closest_marker("slow"):
            with capsys.disabled():
                print(f"\n{what}: {value}")

    return show


_wanted: list[Bits] = []


@pytest.fixture
def wanted(lab: Lab) -> Bits:
    """The bits of the uninterrupted training."""
    if not _wanted:
        _wanted.append(lab.uninterrupted())
    return _wanted[0]


def longer(lab: Lab, **settings: object) -> Lab:
    trained = lab.config.train.model_copy(update=settings)
    return replace(lab, config=lab.config.model_copy(update={"train": trained}))


# ---- fault points -----------------------------------------------------------------------------


def points(stride: int) -> Iterator[int]:
    """1, 1 + stride, …: as far as the caller goes on."""
    at = 1
    while True:
        yield at
        at += stride


@pytest.mark.parametrize("stride", [61, short_and_long(1)])
@pytest.mark.timeout(500)
def test_killed_at_a_fault_point_it_gives_the_same_bits(
    lab: Lab, wanted: Bits, stride: int, figure: Figure
) -> None:
    exercised = 0
    for at in points(stride):
        run = lab.prepare(lab.root())
        code = lab.train(run, f"*:{at}:kill")
        if code == 0:
            break
        assert code == KILLED
        exercised += 1
        assert lab.train(run) == 0, (run / "train.log").read_text()
        assert bits(run) == wanted, f"fault point {at}"
        assert not leftovers(run)
        shutil.rmtree(run)
    figure("kill points of training, all the same bits", exercised)
    assert exercised > 120 // stride


@pytest.mark.parametrize(("kind", "stride"), [("enospc", 79), short_and_long("eio", 1)])
@pytest.mark.timeout(500)
def test_a_disk_that_fails_at_any_operation_costs_nothing_that_was_saved(
    lab: Lab, wanted: Bits, kind: str, stride: int, figure: Figure
) -> None:
    exercised = 0
    for at in points(stride):
        run = lab.prepare(lab.root())
        code = lab.train(run, f"*:{at}:{kind}")
        if code == 0:
            break
        assert code == RAISED
        exercised += 1
        assert not list(run.rglob("*.tmp"))
        for path in (run / "checkpoints").glob("step_*"):
            assert read_record(path, Checkpoint)
        assert lab.train(run) == 0, (run / "train.log").read_text()
        assert bits(run) == wanted, f"fault point {at}"
        shutil.rmtree(run)
    figure(f"operations that failed with {kind}, nothing lost", exercised)
    assert exercised > 120 // stride


def test_a_full_disk_in_earnest(lab: Lab, wanted: Bits) -> None:
    """Files may grow to 60 kB, which the weights exceed: safetensors' own error."""
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
        train(run)

    run = lab.prepare(lab.root())
    assert wait(fork(limited, log=run / "train.log")) == RAISED
    assert "OSError: cannot save" in (run / "train.log").read_text()
    assert not leftovers(run)
    assert lab.train(run) == 0
    assert bits(run) == wanted


# ---- random kills -----------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [12, short_and_long(200)])
@pytest.mark.timeout(500)
def test_killed_at_random_it_gives_the_same_bits(lab: Lab, kills: int, figure: Figure) -> None:
    lab = longer(lab, max_steps=24, checkpoint_every=4)
    chance = random.Random(2)
    begin = time.monotonic()
    wanted = lab.uninterrupted()
    seconds = time.monotonic() - begin
    outcomes = Counter[str]()
    while outcomes["saving"] + outcomes["training"] < kills:
        run = lab.prepare(lab.root())
        while (outcome := faults.kill_at_random(run, chance, seconds)) != "done":
            outcomes[outcome] += 1
        assert bits(run) == wanted
        assert not leftovers(run)
        shutil.rmtree(run)
    figure("random kills of training, all the same bits", dict(outcomes))
    assert outcomes["saving"] >= kills / 4, outcomes


# ---- power cuts -------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [97, short_and_long(1)])
@pytest.mark.timeout(500)
def test_after_a_power_cut_at_any_moment_training_goes_on(
    lab: Lab, stride: int, figure: Figure
) -> None:
    lab = longer(lab, max_steps=5, checkpoint_every=2, keep_checkpoints=1, evaluate_every=100)
    wanted = lab.uninterrupted()
    root = lab.root()
    disk = Disk(root)
    with disk.watching():
        train(lab.prepare(root))
    cuts = list(faults.power_cuts(disk))[::stride]
    for moment, lost, tree in cuts:
        place = lab.link(faults.rebuild(tree, lab.folder / "cut"))
        run = lab.prepare(place)
        found = latest_checkpoint(run / "checkpoints")
        assert (found.step if found else 0) >= last_promised(disk, moment), (moment, lost)
        assert lab.train(run) == 0, (run / "train.log").read_text()
        assert bits(run) == wanted, (moment, lost)
        shutil.rmtree(place)
    figure("unlike folders after a power cut, all recovered", len(cuts))
    assert len(cuts) > 150 // stride


def last_promised(disk: Disk, moment: int) -> int:
    """The step of the last checkpoint that the journal says was saved before that moment."""
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
    shards = shutil.copytree(lab.shards.path, run.parents[1] / "copy" / lab.shards.name)
    checkpoint = launch.read_run(run).checkpoint("last")  # type: ignore[union-attr]
    users: dict[Path, Callable[[], object]] = {
        shards: lambda: read_shards(shards),
        checkpoint: lambda: read_record(checkpoint, Checkpoint),
        run: lambda: launch.read_run(run),
    }
    chance = random.Random(3)
    for _ in range(flips):
        folder, use = chance.choice(list(users.items()))
        record = use()
        assert isinstance(record, Record)
        path = folder / chance.choice([RECORD, *record.files])
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


def test_damaged_weights_are_not_sampled_from(lab: Lab, wanted: Bits) -> None:
    run = lab.prepare(lab.root())
    assert lab.train(run) == 0
    folder = launch.read_run(run).checkpoint("last")  # type: ignore[union-attr]
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

    honest = slm.train.evaluate_slice
    monkeypatch.setattr(slm.train, "evaluate_slice", evaluate)


@pytest.fixture
def in_forks(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch.train` trains in a fork instead of a new process."""

    def supervise(run: Path, *_: object) -> None:
        assert lab.train(run) == 0, (run / "train.log").read_text()

    monkeypatch.setattr(launch, "supervise", supervise)


@pytest.mark.parametrize(
    ("place", "origin"),
    [("last", 6), ("best", 0), ("record.json", 8), ("metrics.jsonl", 0), ("plan.json", 0)],
)
@pytest.mark.usefixtures("in_forks", "first_is_best")
def test_a_finished_run_that_is_damaged_loses_the_least(lab: Lab, place: str, origin: int) -> None:
    """From the newest checkpoint before the damage; without settings or journal, from the start."""
    root = lab.root()
    run = launch.train(lab.config, lab.shards, root=root)
    wanted = bits(run.path)
    assert (run.best, run.last) == ("step_000004", "step_000008")
    lines = len(list(read_journal(run.path)))
    folder = run.checkpoint(place) if place in ("best", "last") else None
    flip(folder / "model.safetensors" if folder else run.path / place, random.Random(6))
    mended = launch.train(lab.config, lab.shards, root=root)
    assert not mended.reused
    assert mended.model_dump(exclude={"seconds", "tok_per_sec", "files"}) == run.model_dump(
        exclude={"seconds", "tok_per_sec", "files"}
    )
    assert bits(run.path) == wanted
    assert launch.train(lab.config, lab.shards, root=root).reused
    added = list(read_journal(run.path))[lines:]
    assert [e["step"] for e in added if e["event"] == "resume"] == ([origin] if origin else [])
    assert len(list(root.glob("runs/*.corrupt-*"))) == (place in ("metrics.jsonl", "plan.json"))


@pytest.mark.usefixtures("in_forks", "first_is_best")
def test_a_best_checkpoint_that_is_damaged_before_the_end_is_made_again(lab: Lab) -> None:
    wanted = lab.uninterrupted()
    run = lab.prepare(lab.root())
    assert lab.train(run, "train.step:7:kill") == KILLED
    flip(run / "checkpoints" / "step_000004" / "model.safetensors", random.Random(7))
    assert lab.train(run) == 0
    assert bits(run) == wanted
    record = launch.read_run(run)
    assert record is not None
    assert read_record(record.checkpoint("best"), Checkpoint)


def test_a_journal_that_misses_steps_is_not_gone_on_with(lab: Lab, wanted: Bits) -> None:
    """A line that is broken in the middle: what follows it is cut off, and trained again."""
    run = lab.prepare(lab.root())
    assert lab.train(run, "train.step:8:kill") == KILLED
    data = (run / JOURNAL).read_bytes()
    lines = data.splitlines(keepends=True)
    (run / JOURNAL).write_bytes(b"".join([*lines[:4], b"\0" + lines[4][1:], *lines[5:]]))
    assert lab.train(run) == 0
    assert bits(run) == wanted


# ---- two at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("races", [5, short_and_long(100)])
@pytest.mark.timeout(500)
def test_of_two_trainers_one_wins_and_the_other_leaves_at_once(
    lab: Lab, wanted: Bits, races: int, figure: Figure
) -> None:
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
        assert bits(lab.prepare(root)) == wanted
        shutil.rmtree(root / "runs")
    figure("races of two trainers, one winner each; seconds of the slowest loser", (races, slowest))
    assert (root / "log").read_text().count("in use by another process") == races


def test_the_lock_of_a_killed_trainer_is_free(lab: Lab, wanted: Bits) -> None:
    run = lab.prepare(lab.root())
    child = fork(lambda: train(run), log=run / "train.log")
    while not (run / JOURNAL).is_file():
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    wait(child)
    assert lab.train(run) == 0
    assert bits(run) == wanted


def test_a_second_trainer_is_refused_before_its_process_starts(lab: Lab) -> None:
    lab = longer(lab, max_steps=100_000)
    root = lab.root()
    run = lab.prepare(root)
    child = fork(lambda: train(run), log=run / "train.log")
    while not (run / "plan.json").is_file():
        time.sleep(0.001)
    begin = time.monotonic()
    with pytest.raises(SlmError, match="in use by another process"):
        launch.train(lab.config, lab.shards, root=root)
    assert time.monotonic() - begin < 1
    os.kill(child, signal.SIGKILL)
    wait(child)


def test_the_death_of_a_parent_told_twice_does_not_cut_the_save_short() -> None:
    """Linux tells it once for each thread that the parent had."""
    numbers = (signal.SIGTERM, signal.SIGINT, launch.PARENT_DIED)
    before = [signal.getsignal(number) for number in numbers]
    try:
        asked = launch.install_signal_handlers()
        for _ in range(3):
            os.kill(os.getpid(), launch.PARENT_DIED)
        assert asked == [launch.PARENT_DIED] * 3
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


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
        found = read_shards(root / "shards" / lab.shards.name)
        assert found.files == lab.shards.files
        assert not leftovers(root)
        shutil.rmtree(root)
    figure("random kills of encoding, all the same bytes", kills)


def killed_after(child: int, chance: random.Random, seconds: float) -> int:
    time.sleep(chance.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    return wait(child)
