"""A training on a mixture: the same rows and bits however often, and by however many processes."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
import torch
from faults import KILLED, RAISED, Lab, bits, fork_group, wait
from mixed import as_mixture, mixed_config

from slm.config import Phase, PipelineConfig
from slm.errors import Interrupted, UserError
from slm.records import Run
from slm.reproduction.replay import verify_steps
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.tokens.loader import Loader
from slm.tokens.mixture.order import order_of, realised
from slm.tokens.mixture.reading import train_streams
from slm.training import derive, launch
from slm.training.loop import train
from slm.training.provenance import environment

Config = Callable[..., PipelineConfig]

SETTINGS = {
    "data.documents": 80,
    "data.shard_tokens": 3000,
    "data.val_fraction": 0.1,
    "train.max_steps": 12,
    "train.tokens_per_step": 16 * 32,
    "train.micro_batches": 2,
    "train.evaluate_every": 6,
    "train.evaluate_documents": 2,
    "train.checkpoint_every": 2,
    "train.threads": 1,
    "train.precision": "fp32",
    "train.device": "cpu",
}
PHASES = (Phase(until=0.5), Phase(weights={"wiki": 0.2, "code": 0.8}))


@pytest.fixture
def lab(tmp_path: Path, tiny_config: Config) -> Iterator[Lab]:
    """Two sources, 0.7 to 0.3 up to step 6 of 12 and 0.2 to 0.8 from there on."""
    memory = Path("/dev/shm")
    config = tiny_config(**SETTINGS)
    environment()
    torch.set_num_threads(1)
    torch.compiler.disable(len)
    shards = as_mixture(encode(config, download(config, root=tmp_path), root=tmp_path))
    config = mixed_config(config, PHASES, wiki={"weight": 0.7}, code={"weight": 0.3})
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Lab(config, shards, Path(folder))


def replaced(lab: Lab, **settings: object) -> Lab:
    train = lab.config.train.model_copy(update=settings)
    folder = Path(mkdtemp(dir=lab.folder))
    return Lab(lab.config.model_copy(update={"train": train}), lab.shards, folder)


def test_a_run_knows_what_it_had_of_each_source(lab: Lab) -> None:
    """It is computed from config, plan and step, and so are the rows of every step."""
    run = lab.prepare(lab.root())
    assert realised(run) == {}
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: True)
    plan = run.plan
    assert plan is not None
    assert sum(part.rows for part in realised(run).values()) == plan.rows
    assert train(run) is not None
    order = order_of(lab.config, lab.shards, plan)
    streams = train_streams(lab.shards)
    assert order is not None
    loader = Loader(*streams, seq_len=32, rows=plan.rows, seed=lab.config.train.seed, order=order)
    counted = torch.zeros(2, dtype=torch.int64)
    for step in range(12):
        counted += torch.bincount(torch.from_numpy(loader.rows_at(step)[0]), minlength=2)
    parts = realised(run)
    assert {name: part.rows for name, part in parts.items()} == dict(
        zip(("code", "wiki"), counted.tolist(), strict=True)
    )
    for part, stream in zip(parts.values(), loader.streams, strict=True):
        assert part.tokens == 32 * part.rows
        assert math.isclose(part.epochs, part.rows / stream.windows)
    assert verify_steps(run, 1, 12).verdict == "identical"


def test_what_cannot_be_trained_on_leaves_no_run_folder(lab: Lab) -> None:
    config = mixed_config(lab.config, (), wiki={"max_epochs": 0.5}, code={"max_epochs": 0.5})
    root = lab.root()
    with pytest.raises(UserError, match="no source has rows left for a cycle"):
        launch.prepare(config, lab.shards, root=root)
    assert not (root / "runs").exists()


@pytest.mark.slow
def test_a_longer_training_is_one_whose_rows_so_far_are_the_same(lab: Lab) -> None:
    """The second phase begins at step 6 of 12 and 8 of 16, and the cooldown at 6 and 8."""
    annealed = replaced(lab, schedule="wsd", cooldown=0.5)
    run = annealed.prepare(annealed.root())
    train(run)
    longer = derive.train_longer(run, 4)
    assert longer.step == 16
    planned = replaced(annealed, max_steps=16)
    other = planned.prepare(planned.root())
    train(other)
    assert longer.weights_sha256 == recorded(other.verified_record).weights_sha256
    assert realised(RunFolder.of(longer)) == realised(other)
    ended = derive.finish(interrupted_at(lab, 2))
    assert sum(part.rows for part in realised(RunFolder.of(ended)).values()) == 2 * 16


def interrupted_at(lab: Lab, step: int) -> RunFolder:
    run, steps = lab.prepare(lab.root()), iter(range(1, 99))
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(steps) == step)
    return run


def test_a_longer_training_with_other_rows_so_far_is_refused(lab: Lab) -> None:
    """Its cooldown begins in the second phase, after step 9, which is of the first one of 16."""
    late = replaced(lab, schedule="wsd", cooldown=0.25, evaluate_every=99)
    run = late.prepare(late.root())
    train(run)
    with pytest.raises(UserError, match=r"in a training of 16 the rows before step 9 are others"):
        derive.train_longer(run, 4)


def recorded(record: Run | None) -> Run:
    assert record is not None
    return record


@pytest.mark.slow
def test_killed_and_resumed_by_one_and_two_processes_it_gives_the_same_weights(lab: Lab) -> None:
    """Killed after the third step of each; the same rows, as the losses of every step are."""
    expected = lab.uninterrupted()
    run = lab.prepare(lab.root())
    for count in (1, 2, 1):
        faulty = partial(fails_at, "train.step:3:kill", partial(train, run))
        children = fork_group(faulty, count, run.path)
        codes = [wait(children[0])]
        for child in children[1:]:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            codes.append(wait(child))
        assert KILLED in codes
        assert set(codes) <= {KILLED, RAISED}, (run.path / "log0").read_text()
    children = fork_group(partial(train, run), 2, run.path)
    assert [wait(child) for child in children] == [0, 0], (run.path / "log0").read_text()
    counts = [e["processes"] for e in run.journal if e["event"] in ("start", "resume")]
    assert counts == [1, 2, 1, 2]
    assert bits(run) == expected


def fails_at(fault: str, work: Callable[[], object]) -> None:
    os.environ["SLM_FAULT"] = fault
    work()
