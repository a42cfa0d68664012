"""Level F: the same bits for any number of processes, and a run that changes it on its way."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
import torch
import torch.distributed as dist
from faults import KILLED, RAISED, Bits, Lab, bits, fork_group, wait
from hypothesis import given
from hypothesis import strategies as st

from slm.config import PipelineConfig
from slm.errors import Interrupted
from slm.reproduction.replay import verify_steps
from slm.run_folder import JOURNAL, RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import exchange
from slm.training.elastic import Node, TreeSum, max_nodes, nodes_of, share_of
from slm.training.exchange import StepSum
from slm.training.loop import train
from slm.training.provenance import environment

Config = Callable[..., PipelineConfig]

SETTINGS = {
    "data.documents": 60,
    "model.n_layer": 2,
    "model.dropout": 0.1,
    "train.optimizer": "muon",
    "train.max_steps": 6,
    "train.tokens_per_step": 8 * 32,
    "train.micro_batches": 4,
    "train.micro_batch_size": 1,  # two passes each: accumulation too
    "train.evaluate_every": 3,
    "train.evaluate_documents": 2,
    "train.checkpoint_every": 2,
    "train.threads": 1,
    "train.precision": "fp32",
    "train.device": "cpu",
}
COUNTS = st.integers(1, 20)


@pytest.fixture
def lab(tmp_path: Path, tiny_config: Config) -> Iterator[Lab]:
    memory = Path("/dev/shm")
    config = tiny_config(**SETTINGS)
    environment()  # cached, so that no fork runs git
    torch.set_num_threads(1)
    torch.compiler.disable(len)  # loads what torch loads late, once instead of in each fork
    shards = encode(config, download(config, root=tmp_path), root=tmp_path)
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Lab(config, shards, Path(folder))


def changed(lab: Lab, **settings: object) -> Lab:
    config = lab.config
    train = config.train.model_copy(update=settings)
    folder = Path(mkdtemp(dir=lab.folder))
    return replace(lab, config=config.model_copy(update={"train": train}), folder=folder)


def together(work: Callable[[], object], count: int, folder: Path) -> list[int]:
    """The exit codes of the same work in several processes."""
    return [wait(child) for child in fork_group(work, count, folder)]


def trained_by(lab: Lab, count: int) -> Bits:
    run = lab.prepare(lab.root())
    codes = together(lambda: train(run), count, run.path)
    assert codes == [0] * count, (run.path / "log0").read_text()
    return bits(run)


# ---- the tree ---------------------------------------------------------------------------------


def as_defined(leaves: list[torch.Tensor]) -> torch.Tensor:
    """The sum, by the tree's definition: the left child has the largest power of two of leaves."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return as_defined(leaves[:half]) + as_defined(leaves[half:])


def summed(leaves: list[torch.Tensor], share: range) -> TreeSum:
    tree = TreeSum()
    for index in share:
        tree.add(Node(index, 1, leaves[index].clone()))
    return tree


@given(count=COUNTS, processes=COUNTS, seed=st.integers(0, 2**16))
def test_the_sum_has_the_same_bits_for_any_number_of_processes(
    count: int, processes: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(5, generator=generator) * 10.0 ** (i % 7) for i in range(count)]
    last = TreeSum()
    for rank in range(processes):
        share = share_of(count, rank, processes)
        own = summed(leaves, share)
        assert [(node.start, node.size) for node in own.nodes] == nodes_of(share)
        for node in own.nodes:
            last.add(node)
    assert torch.equal(last.total(), as_defined(leaves))


@given(count=COUNTS, processes=COUNTS)
def test_every_micro_batch_is_one_process_s(count: int, processes: int) -> None:
    shares = [share_of(count, rank, processes) for rank in range(processes)]
    assert list(itertools.chain(*shares)) == list(range(count))
    if count % processes == 0:
        assert {len(share) for share in shares} == {count // processes}


def test_a_process_with_a_whole_subtree_sends_one_sum() -> None:
    for processes in (1, 2, 4, 8):
        for rank in range(processes):
            assert len(nodes_of(share_of(8, rank, processes))) == 1


def test_a_process_holds_as_many_sums_as_the_tree_is_deep_and_one_more() -> None:
    assert [max_nodes(count) for count in (1, 2, 4, 8, 16)] == [1, 2, 3, 4, 5]
    assert [max_nodes(8, processes) for processes in (1, 2, 4, 8)] == [4, 3, 2, 1]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_all_processes_get_the_sum_of_gradients_and_losses(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several buckets, and twice; the last of five processes has no leaf of the four."""
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 4 * 10)
    generator = torch.Generator().manual_seed(0)
    leaves = [
        [torch.randn(shape, generator=generator) for shape in ((3, 2), (7,), (20,), ())]
        for _ in range(4)
    ]

    def work() -> None:
        parameters = [torch.zeros_like(tensor).requires_grad_() for tensor in leaves[0][:-1]]
        rank = dist.get_rank() if processes > 1 else 0
        total = StepSum(parameters, 4, rank, processes)
        for _ in range(2):
            for index in share_of(4, rank, processes):
                *gradient, loss = leaves[index]
                halves = [  # of two passes, whose gradients are summed first
                    sum(((p * g).sum() for p, g in zip(parameters, gradient, strict=True)), x)
                    for x in (torch.zeros(()), torch.zeros(()))
                ]
                (halves[0] * 0.5).backward()
                total.expect(index)
                (halves[1] * 0.5).backward()
                total.add_loss(loss.clone())
                assert all(parameter.grad is None for parameter in parameters)
            gradients, loss = total.finish()
            for place, tensor in enumerate([*gradients, loss]):
                expected = as_defined([leaf[place] for leaf in leaves])
                assert torch.equal(tensor, expected)

    assert together(work, processes, tmp_path) == [0] * processes, (tmp_path / "log0").read_text()


# ---- trainings --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_any_number_of_processes_trains_to_the_same_bits(optimizer: str, lab: Lab) -> None:
    """3 do not divide the 4 micro-batches; one of 5 has none."""
    lab = changed(lab, optimizer=optimizer)
    alone = lab.uninterrupted()
    for count in (2, 3, 4, 5):
        assert trained_by(lab, count) == alone, count


def test_a_run_resumes_with_another_number_of_processes(lab: Lab) -> None:
    """Stopped after every step, by 4, 1, 2, 3, … processes; and one verifies it."""
    expected = lab.uninterrupted()
    run = lab.prepare(lab.root())
    for step, count in enumerate((4, 1, 2, 3, 5), start=1):
        stop = partial(train, run, should_stop=lambda: True)
        codes = together(stop, count, run.path)
        assert codes == [Interrupted.exit_code] + [0] * (count - 1), (run.path / "log0").read_text()
        assert [e["step"] for e in run.journal if e["event"] == "step"][-1] == step
    assert together(lambda: train(run), 2, run.path) == [0, 0]
    assert bits(run) == expected
    record = run.verified_record
    assert record is not None
    assert record.level == "F"
    counts = [e["processes"] for e in run.journal if e["event"] in ("start", "resume")]
    assert counts == [4, 1, 2, 3, 5, 2]
    assert verify_steps(run, 1, 6).verdict == "identical"


def test_a_larger_number_of_micro_batches_gives_other_bits(lab: Lab) -> None:
    """So it is in the key, and the number of processes is not."""
    one, two = (changed(lab, micro_batches=count) for count in (1, 2))
    assert one.uninterrupted().weights != two.uninterrupted().weights
    names = {one.prepare(lab.root()).name, two.prepare(lab.root()).name}
    assert len(names | {changed(two, processes=2).prepare(lab.root()).name}) == 2


def test_an_older_run_of_two_processes_is_resumed_by_any_number(lab: Lab) -> None:
    """Its plan has a world size; each process had a micro-batch, and a sum of two has no order."""
    two = changed(lab, micro_batches=2)
    expected = two.uninterrupted()
    made = two.prepare(lab.root())
    with pytest.raises(Interrupted):
        train(made, should_stop=lambda: True)
    plan = made.plan
    assert plan is not None
    older = two.prepare(lab.root())
    older.write_plan(plan.model_copy(update={"micro_batches": 1, "world_size": 2}))
    assert together(lambda: train(older), 2, older.path) == [0, 0]
    assert bits(older) == expected
    assert older.verified_record is not None


def await_lines(run: RunFolder, count: int, child: int) -> None:
    """Until the journal has so many lines more, or a process has ended."""
    path = run.path / JOURNAL
    begin = path.stat().st_size if path.exists() else 0
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if not count or (path.exists() and path.read_bytes()[begin:].count(b"\n") >= count):
            return
        time.sleep(0.002)


# ---- proofs -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_at_random_with_any_number_of_processes_it_gives_the_same_bits(
    optimizer: str, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 steps by 1, 2 and 4 processes; and by 4, 1, 2, 4, … each killed at some moment."""
    settings = {"optimizer": optimizer, "max_steps": 200, "evaluate_every": 50}
    lab = changed(lab, checkpoint_every=10, **settings)
    expected = trained_by(lab, 1)
    for count in (2, 4):
        assert trained_by(lab, count) == expected
    chance, kills, run = random.Random(7), 0, lab.prepare(lab.root())
    for count in itertools.cycle((4, 1, 4, 2)):
        children = fork_group(lambda: train(run), count, run.path)
        await_lines(run, chance.choice((0, 1, 3, 10, 30)), children[0])
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(children[chance.randrange(count)], signal.SIGKILL)
        time.sleep(chance.choice((0.0, 0.05, 0.3)))  # the others notice it, or are killed as well
        for child in children:
            os.kill(child, signal.SIGKILL)
        codes = [wait(child) for child in children]
        assert set(codes) <= {0, KILLED, RAISED}, codes
        if run.is_finished:
            break
        kills += 1
        assert kills < 200
    assert bits(run) == expected
    with capsys.disabled():
        print(f"\nlevel F, {optimizer}: {kills} kills with 4, 1 and 2 processes, the same bits")
