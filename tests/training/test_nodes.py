"""Several nodes: what the config may ask for, what torchrun is given, and how a training ends."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from pydantic import ValidationError
from servers import free_port

from slm.config import LaunchConfig, PipelineConfig
from slm.errors import TrainingError, UserError
from slm.recipes import load_recipe
from slm.records import Shards
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.storage import RECORD
from slm.tokens.encode import encode
from slm.training import agent as agent_module
from slm.training import child, launch, nodes, peers, process
from slm.training.agent import Agent, EndpointLost
from slm.training.nodes import Nodes, nodes_of
from slm.training.peers import AGAIN, LOST, End, Peers
from slm.training.preflight import check_machine
from slm.training.provenance import environment

Config = Callable[..., PipelineConfig]
HERE = Nodes(2, 2, "127.0.0.1:29400", (), "127.0.0.1", max_restarts=10, lost_seconds=5.0)
SCHEDULERS = ("PET_NNODES", "PET_RDZV_ENDPOINT", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.1)


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SCHEDULERS, *nodes.FROM_TORCHRUN):
        monkeypatch.delenv(name, raising=False)


# ---- the config -------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["0", 0, "2:1", "two", "1:2:3", "-1", "1.5", True])
def test_a_number_of_nodes_that_is_none_is_refused(given: object) -> None:
    with pytest.raises(ValidationError, match="give a number of machines, such as 2"):
        LaunchConfig.model_validate({"nnodes": given})


def test_a_range_in_yaml_is_no_number_of_base_60(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(
        "recipes: {mine: {train: {max_steps: 1, launch: {nnodes: 1:4, rdzv_endpoint: a:1}}}}"
    )
    assert load_recipe("mine", path=path).train.launch.nnodes == "1:4"


def test_one_machine_trains_alone() -> None:
    assert nodes_of(LaunchConfig()) is None
    assert nodes_of(LaunchConfig(nnodes="1", rdzv_endpoint="node1:29400")) is None


@pytest.mark.parametrize(
    ("given", "endpoint", "others"),
    [
        ("127.0.0.1:7000", "127.0.0.1:7000", ()),
        ("127.0.0.1", "127.0.0.1:29400", ()),
        ("localhost:1,127.0.0.1", "localhost:1", ("127.0.0.1:29400",)),
        ("[::1]", "[::1]:29400", ()),
    ],
)
def test_where_the_nodes_meet(
    given: str, endpoint: str, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "answers", lambda endpoint: False)
    monkeypatch.setattr(nodes, "local_address", lambda endpoint: "10.0.0.2")
    meeting = nodes_of(LaunchConfig(nnodes="1:4", rdzv_endpoint=given))
    assert meeting is not None
    assert (meeting.endpoint, meeting.others, meeting.count) == (endpoint, others, "1:4")
    assert (meeting.fewest, meeting.most, meeting.address) == (1, 4, "10.0.0.2")


def test_a_meeting_that_is_held_already_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever returns after the first endpoint was lost goes to where the others are."""
    monkeypatch.setattr(nodes, "local_address", lambda endpoint: "127.0.0.1")
    monkeypatch.setattr(nodes, "answers", lambda endpoint: endpoint == "127.0.0.2:1")
    given = LaunchConfig(nnodes="3", rdzv_endpoint="127.0.0.1:1,127.0.0.2:1,127.0.0.3:1")
    meeting = nodes_of(given)
    assert meeting is not None
    assert meeting.endpoint == "127.0.0.2:1"
    monkeypatch.setattr(nodes, "answers", lambda endpoint: False)
    visited = []
    while meeting:
        visited.append(meeting.endpoint)
        meeting = nodes.elsewhere(meeting)
    assert visited == ["127.0.0.2:1", "127.0.0.1:1", "127.0.0.3:1"]


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({"PET_RDZV_ENDPOINT": "127.0.0.1:1"}, "127.0.0.1:1"),
        ({"PET_RDZV_ENDPOINT": "127.0.0.1:1", "MASTER_ADDR": "127.0.0.2"}, "127.0.0.1:1"),
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "2"}, "127.0.0.1:2"),
        ({"MASTER_ADDR": "127.0.0.1"}, "127.0.0.1:29400"),
    ],
)
def test_a_scheduler_s_variables(
    variables: dict[str, str], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PET_NNODES": "2:3", **variables}.items():
        monkeypatch.setenv(name, value)
    meeting = nodes_of(LaunchConfig())
    assert meeting is not None
    assert (meeting.endpoint, meeting.fewest, meeting.most) == (endpoint, 2, 3)
    assert nodes_of(LaunchConfig(nnodes="1")) is None  # the config wins


def test_what_cannot_meet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nnodes=2 needs train\.launch\.rdzv_endpoint: HOST:PORT"):
        nodes_of(LaunchConfig(nnodes="2"))
    with pytest.raises(UserError, match=r"'127\.0\.0\.1:70000' has no port from 1 to 65535"):
        nodes_of(LaunchConfig(nnodes="2", rdzv_endpoint="127.0.0.1:70000"))
    with pytest.raises(UserError, match=r"the machine 'no\.such\.host\.invalid' is not known"):
        nodes_of(LaunchConfig(nnodes="2", rdzv_endpoint="no.such.host.invalid:1"))
    monkeypatch.setenv("PET_NNODES", "many")
    with pytest.raises(UserError, match="PET_NNODES=many: give a number of machines"):
        nodes_of(LaunchConfig())


def test_machines_that_would_only_wait_are_a_warning(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "local_address", lambda endpoint: "10.0.0.2")
    settings: dict[str, object] = {
        "train.device": "cpu",
        "train.launch.nnodes": "1:4",
        "train.launch.rdzv_endpoint": "node1",
    }
    [warning] = check_machine(tiny_config(**settings))
    assert "up to 4 processes start, and a step has 1 of train.micro_batches" in warning
    assert check_machine(tiny_config(**settings, **{"train.micro_batches": 4})) == []
    with pytest.raises(UserError, match="needs train\\.launch\\.rdzv_endpoint"):
        check_machine(tiny_config(**settings | {"train.launch.rdzv_endpoint": None}))


# ---- torchrun ---------------------------------------------------------------------------------


def test_what_torchrun_is_given(tmp_path: Path) -> None:
    command = child.command(RunFolder(tmp_path / "mine-0123"), 2, HERE)
    assert {
        "--nnodes=2:2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:29400",
        "--rdzv-id=mine-0123", "--local-addr=127.0.0.1", "--max-restarts=10",
        "--nproc-per-node=2",
    } <= set(command)  # fmt: skip


def test_a_scheduler_s_ranks_reach_no_training_process(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the command, and a process of a training would take them for its own."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PET_NPROC_PER_NODE", "PET_MAX_RESTARTS"):
        monkeypatch.setenv(name, "3")
    alone = child.environment(tiny_config(), 1, None)
    together = child.environment(tiny_config(), 1, HERE)
    for variables in (alone, together):
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & variables.keys()
        assert not any(name.startswith("PET_") for name in variables)
    assert nodes.LOST_SECONDS not in alone
    assert together["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert child.environment(tiny_config(), 1, HERE)["GLOO_SOCKET_IFNAME"] == "eth7"


class Ended:
    """A process that has ended."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode


def ended(tmp_path: Path, code: int, *lines: str) -> Agent:
    log = tmp_path / "train-127.0.0.1.log"
    log.write_text("slm ended with 2: an earlier command\n")
    begin = log.stat().st_size
    log.write_text(log.read_text() + "".join(f"{line}\n" for line in lines))
    child: Any = Ended(code)
    return Agent(child, HERE, log, begin)


@pytest.mark.parametrize(
    ("code", "lines", "end"),
    [
        (0, ["slm ended with 0: it is trained"], None),
        (1, ["slm ended with 0: it is trained", "RendezvousConnectionError"], None),
        (0, ["x.RendezvousConnectionError", "slm ended with 130: stopped"], (130, "stopped")),
        (0, ["slm ended with 2: no such data"], (2, "no such data")),
        (1, ["RuntimeError: it is broken", "torch.ChildFailedError:"], (1, None)),
    ],
)
def test_how_a_training_on_several_nodes_ended(
    code: int, lines: list[str], end: tuple[int, str | None] | None, tmp_path: Path
) -> None:
    """torchrun's own code matters only where its processes did not end by themselves."""
    expected = (1, "RuntimeError: it is broken") if end == (1, None) else end
    assert ended(tmp_path, code, *lines).end(RunFolder(tmp_path)) == expected


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            "Connection",
            EndpointLost,
            r"nothing answers at 127\.0\.0\.1:29400, where the nodes meet",
        ),
        ("Timeout", TrainingError, r"fewer than 2 nodes came to 127\.0\.0\.1:29400 within 600 s"),
        ("Closed", TrainingError, "has just ended: run the same command again"),
    ],
)
def test_nodes_that_do_not_meet(
    kind: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    log = f"torch.distributed.elastic.rendezvous.api.Rendezvous{kind}Error: …"
    with pytest.raises(error, match=message):
        ended(tmp_path, 1, log).end(RunFolder(tmp_path))
    (tmp_path / RECORD).touch()  # the others have finished it meanwhile
    assert ended(tmp_path, 1, log).end(RunFolder(tmp_path)) is None


@pytest.mark.parametrize("stuck", ["after the end", "cut off"])
def test_a_torchrun_that_waits_in_vain_is_killed(
    stuck: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "ENDED_SECONDS", 0.0)
    monkeypatch.setattr(agent_module, "LOOK_SECONDS", 0.0)
    reached = iter([True])
    monkeypatch.setattr(agent_module, "answers", lambda endpoint: next(reached, False))
    log = tmp_path / "train.log"
    log.write_text("slm ended with 0: it is trained\n" if stuck == "after the end" else "")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    brief = Nodes(2, 2, HERE.endpoint, (), HERE.address, max_restarts=0, lost_seconds=0.3)
    agent = Agent(child, brief, log, 0)
    deadline = time.monotonic() + 20
    while child.poll() is None:
        assert time.monotonic() < deadline
        agent.check()
        time.sleep(0.02)
    if stuck == "cut off":
        with pytest.raises(EndpointLost):
            agent.end(RunFolder(tmp_path))
    else:
        assert agent.end(RunFolder(tmp_path)) is None


# ---- the processes of two nodes, in forks -----------------------------------------------------

Work = Callable[[int], object]


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., int]:
    """Does something as the process of one of two nodes; returns the fork's id."""
    port = str(free_port())

    def fork(node: int, work: Work, min_nodes: int = 1, lost_seconds: float = 60) -> int:
        def member() -> None:
            logging.disable(logging.NOTSET)
            logging.getLogger().handlers.clear()  # pytest's
            os.environ |= {
                "RANK": str(node), "LOCAL_RANK": "0", "GROUP_RANK": str(node),
                "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "SLM_MIN_NODES": str(min_nodes), "SLM_LOST_SECONDS": str(lost_seconds),
            }  # fmt: skip
            code = work(node)
            os._exit(code if isinstance(code, int) else 0)

        return faults.fork(member, log=tmp_path / f"log{node}")

    return fork


def test_a_process_that_is_not_heard_of_is_lost(start: Callable[..., int], tmp_path: Path) -> None:
    """As one whose machine has no power: it closes no connection."""

    def work(node: int) -> None:
        peers.connect()
        (tmp_path / f"connected{node}").touch()
        time.sleep(60)

    children = [start(node, work, lost_seconds=1.5) for node in range(2)]
    while not all((tmp_path / f"connected{node}").exists() for node in range(2)):
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(children[1], signal.SIGSTOP)
    begin = time.monotonic()
    assert faults.wait(children[0]) == LOST
    assert 1.0 < time.monotonic() - begin < 15
    os.kill(children[1], signal.SIGKILL)
    assert faults.wait(children[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("received", "min_nodes", "again"),
    [
        ([signal.SIGTERM], 2, True),  # torchrun's own, when a node joins
        ([peers.LEAVE], 1, True),
        ([peers.LEAVE], 2, False),
        ([peers.PARENT_DIED], 2, False),
        ([peers.STOP_ALL], 1, False),
        ([peers.LEAVE, peers.STOP_ALL], 1, False),
    ],
)
def test_whether_the_others_start_again_after_a_stop(
    received: list[int], min_nodes: int, again: bool, start: Callable[..., int], tmp_path: Path
) -> None:
    """Rank 0 announces the stop, the other process received the signals."""

    def work(node: int) -> int:
        peers_here = peers.connect()
        assert isinstance(peers_here, Peers)
        if node == 1:
            peers_here.pass_on(received)
            end = peers_here.announced(30)
            assert end is not None
        else:
            while not peers_here.asked:
                time.sleep(0.02)
            end = peers_here.announce(End(130, "stopped"))
        assert end == End(130, "stopped", again=again)
        return peers_here.leave(end)

    children = [start(node, work, min_nodes=min_nodes) for node in range(2)]
    logs = [tmp_path / f"log{node}" for node in range(2)]
    assert [faults.wait(child) for child in children] == [AGAIN if again else 0] * 2, [
        log.read_text() for log in logs
    ]


@pytest.fixture
def run(tiny_config: Config, tmp_path: Path) -> RunFolder:
    config = tiny_config(
        **{
            "data.documents": 60,
            "train.max_steps": 6,
            "train.tokens_per_step": 128,
            "train.evaluate_every": 3,
            "train.checkpoint_every": 100,
            "train.threads": 1,
            "train.precision": "fp32",
            "train.device": "cpu",
        }
    )
    torch.set_num_threads(1)
    environment()  # cached, so that no fork runs git
    torch.compiler.disable(len)  # loads what torch loads late, once instead of in each fork
    shards: Shards = encode(config, download(config, root=tmp_path), root=tmp_path)
    return launch.prepare(config, shards, root=tmp_path)


def test_all_processes_come_to_the_same_end(
    run: RunFolder, start: Callable[..., int], tmp_path: Path
) -> None:
    children = [start(node, lambda _: process.main(run)) for node in range(2)]
    logs = [tmp_path / f"log{node}" for node in range(2)]
    assert [faults.wait(child) for child in children] == [0, 0], logs[0].read_text()
    assert run.verified_record is not None
    for log in logs:
        assert f"slm ended with 0: {run.name} is trained" in log.read_text()
    assert not (run.path / process.SHARED_CHECK).exists()


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_is_the_end_of_all(
    failing: int, run: RunFolder, start: Callable[..., int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """torchrun would start them again and again; the other one waits in an exchange."""
    monkeypatch.setattr(peers, "ENDING_SECONDS", 0.5)

    def work(node: int) -> int:
        def fail(*_: object) -> None:
            raise UserError("no such thing here")

        if node == failing:
            monkeypatch.setattr(process, "check_shared", fail)
        return process.main(run)

    children = [start(node, work) for node in range(2)]
    assert [faults.wait(child) for child in children] == [0, 0]
    for node in range(2):
        text = (tmp_path / f"log{node}").read_text()
        assert "slm ended with 2: no such thing here" in text
