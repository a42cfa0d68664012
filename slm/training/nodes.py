"""Several machines (nodes) that train one run: where they meet, and what torchrun is given.

On every node the same command is run, with the same config and a shared data folder. torchrun's
agents meet at the endpoint, count themselves, start the training processes and, where one is lost,
start those that are left again; these resume from the newest checkpoint.
"""

import os
import re
import socket
from dataclasses import dataclass, replace
from ipaddress import ip_address

from slm.config import ENDPOINT, LaunchConfig, node_range
from slm.errors import UserError

DEFAULT_PORT = 29_400  # torchrun's own
JOIN_SECONDS = 600  # that a node waits for as many others as must be there
LATE_SECONDS = 5
"""That those who may start wait for more to come, where their number is a range.

Who comes later joins too: the others save, and all start again from there.
"""
SHUTDOWN_SECONDS = 60  # for a step and its checkpoint, before torchrun kills a process
CONNECT_SECONDS = 3.0  # for a machine to answer
VISIBLE_SECONDS = 60.0  # for what one node wrote into a shared folder to be seen by another
MIN_NODES, LOST_SECONDS = "SLM_MIN_NODES", "SLM_LOST_SECONDS"  # for the training processes
FROM_TORCHRUN = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", MIN_NODES, LOST_SECONDS,
)  # fmt: skip
"""Variables that a training process reads, and that torchrun sets where it starts one.

A scheduler may have set them for the command: of another program's processes.
"""


@dataclass(frozen=True)
class Nodes:
    """The machines of a run, as this one sees them."""

    fewest: int
    most: int
    endpoint: str  # HOST:PORT where they meet
    others: tuple[str, ...]  # where they meet next, should that machine be lost
    address: str  # of this node, by which the others reach it
    max_restarts: int
    lost_seconds: float

    @property
    def count(self) -> str:
        """Their number, as torchrun and the config spell it."""
        return f"{self.fewest}:{self.most}" if self.fewest < self.most else str(self.fewest)

    def torchrun(self, run: str) -> list[str]:
        """torchrun's options for a run of this name."""
        conf = {
            "is_host": int(hosts_endpoint(self)),
            "join_timeout": JOIN_SECONDS,
            "last_call_timeout": LATE_SECONDS,
        }
        return [
            f"--nnodes={self.fewest}:{self.most}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-id={run}",
            f"--rdzv-conf={','.join(f'{key}={value}' for key, value in conf.items())}",
            f"--local-addr={self.address}",
            f"--max-restarts={self.max_restarts}",
        ]

    def environment(self) -> dict[str, str]:
        """Variables for torchrun and the training processes. What is exported wins."""
        interface = interface_of(self.address)
        exported = {name: os.environ[name] for name in _OPTIONAL if name in os.environ}
        return {
            # Else gloo takes the interface of the machine's name, which may be the loopback's.
            **({"GLOO_SOCKET_IFNAME": interface} if interface else {}),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
            **exported,
            # A store of the agents outlives a round of processes: nodes that joined later, or that
            # knew an earlier first node, would look in another one.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            MIN_NODES: str(self.fewest),
            LOST_SECONDS: str(self.lost_seconds),
        }


_OPTIONAL = ("GLOO_SOCKET_IFNAME", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")


def nodes_of(config: LaunchConfig) -> Nodes | None:
    """The machines of a run; None where this one trains alone.

    What the config leaves out is taken from the variables by which a scheduler configures torchrun.

    Raises UserError where they could not meet.
    """
    count = config.nnodes or os.environ.get("PET_NNODES") or "1"
    numbers = node_range(count)
    if numbers is None:
        raise UserError(f"PET_NNODES={count}: give a number of machines, or MIN:MAX, such as 1:4")
    if numbers[1] == 1:
        return None
    endpoint, others = _choose(_endpoints(config.rdzv_endpoint, count))
    address = local_address(endpoint)
    return Nodes(*numbers, endpoint, others, address, config.max_restarts, config.lost_seconds)


def elsewhere(nodes: Nodes) -> Nodes | None:
    """The same nodes at another endpoint; None where there is no other."""
    if not nodes.others:
        return None
    endpoint, others = _choose(nodes.others)
    return replace(nodes, endpoint=endpoint, others=others, address=local_address(endpoint))


def _choose(endpoints: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The first endpoint that answers, else the first, and the others."""
    first = endpoints[0]
    if len(endpoints) > 1:
        first = next((endpoint for endpoint in endpoints if answers(endpoint)), first)
    return first, tuple(endpoint for endpoint in endpoints if endpoint != first)


def _endpoints(given: str | None, count: str) -> tuple[str, ...]:
    """Where the nodes may meet, each as HOST:PORT."""
    master = os.environ.get("MASTER_ADDR")
    if master and "MASTER_PORT" in os.environ:
        master = f"{master}:{os.environ['MASTER_PORT']}"
    text = given or os.environ.get("PET_RDZV_ENDPOINT") or master
    if not text:
        raise UserError(
            f"train.launch.nnodes={count} needs train.launch.rdzv_endpoint: HOST:PORT of one of "
            "the machines, which all of them reach, such as node1:29400"
        )
    return tuple(dict.fromkeys(_with_port(part.strip()) for part in text.split(",")))


def _with_port(text: str) -> str:
    if not re.fullmatch(ENDPOINT, text):
        raise UserError(f"the endpoint {text!r} is not HOST:PORT, such as node1:29400")
    if not re.search(r":\d+$", text) or text.endswith("]"):
        return f"{text}:{DEFAULT_PORT}"
    if not 0 < split_endpoint(text)[1] < 2**16:
        raise UserError(f"the endpoint {text!r} has no port from 1 to 65535")
    return text


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, or of [IPv6]:PORT."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def answers(endpoint: str) -> bool:
    """Whether something listens at an endpoint, and this machine reaches it."""
    try:
        with socket.create_connection(split_endpoint(endpoint), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def local_address(endpoint: str) -> str:
    """This machine's address on the way to another; no packet is sent.

    Raises UserError where there is no way.
    """
    host, port = split_endpoint(endpoint)
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except socket.gaierror as error:
        raise UserError(
            f"train.launch.rdzv_endpoint: the machine {host!r} is not known here: give its "
            "address, or a name that every node knows"
        ) from error
    except OSError as error:
        raise UserError(
            f"train.launch.rdzv_endpoint: {host} cannot be reached from here ({error.strerror})"
        ) from error


def hosts_endpoint(nodes: Nodes) -> bool:
    """Whether the endpoint is of this node, and no other process here has taken its port."""
    host, port = split_endpoint(nodes.endpoint)
    family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if ip_address(target[0]) != ip_address(nodes.address):
        return False
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError:
            return False
    return True


def interface_of(address: str) -> str | None:
    """The network interface that has an address."""
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None
