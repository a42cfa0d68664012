"""A Slurm of one machine for tests: a controller and two nodes, all on 127.0.0.1.

It needs root and Debian's `slurm-wlm`, whose daemons serve several nodes on one machine; it needs
no munge. Everything is in one folder and ends with the block.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("slurmctld", "slurmd", "sbatch", "scontrol")
NODES = ("node1", "node2")
PATIENCE_SECONDS = 600.0  # of a machine that others use as well
MISSING = (
    "needs slurmctld and slurmd (apt-get install slurm-wlm)"
    if not all(map(shutil.which, DAEMONS))
    else "needs root, as slurmd does"
    if os.geteuid()
    else None
)

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster that is up; `SLURM_CONF` of its environment makes Slurm's commands talk to it."""

    environment: dict[str, str]
    folder: Path

    def run(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job, such as JobState and Restarts."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(
        self, number: str, *states: str, seconds: float = PATIENCE_SECONDS
    ) -> dict[str, str]:
        """The fields of a job once it is in one of these states."""
        until(lambda: self.job(number)["JobState"] in states, f"{number} is {states}", seconds)
        return self.job(number)


def until(condition: Callable[[], object], words: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something is so; fails with the words where it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {words}"
        time.sleep(0.05)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """A cluster of two nodes with all cores of this machine each, and two partitions.

    A job in the partition `urgent` preempts those in `main`, which are requeued.
    """
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    text = CONF.format(host=host, folder=folder, ports=free_ports(3), cpus=os.cpu_count())
    conf.write_text(text)
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    cluster = Slurm(environment, folder)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / f"{command[-1]}.out").open("wb") as out:
            daemons.append(
                subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out)
            )

    try:
        start("slurmctld", "-D")
        for node in NODES:
            start("slurmd", "-D", "-N", node)
        until(lambda: _is_idle(cluster), f"the nodes of {folder} are idle", 60)
        yield cluster
    finally:
        end_jobs(cluster)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(300)


def end_jobs(cluster: Slurm) -> None:
    """Cancel whatever is queued or runs, and wait for its end: no process may outlive the test."""
    with suppress(AssertionError):  # no controller answers: there are no jobs
        for number in cluster.run("squeue", "--noheader", "--format=%A").split():
            with suppress(AssertionError):  # it has ended meanwhile
                cluster.run("scancel", number)
        until(lambda: not cluster.run("squeue", "--noheader"), "no job is left", 120)


def _is_idle(cluster: Slurm) -> bool:
    with suppress(AssertionError):
        return set(cluster.run("sinfo", "--noheader", "--format=%T").split()) == {"idle"}
    return False


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
