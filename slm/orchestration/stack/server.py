"""A temporary Prefect server for one pipeline: on this machine alone, gone when its parent is.

`python -m slm.orchestration.stack.server` prints its port and serves until its standard input ends.
It replaces the one that Prefect starts by itself, which a Ctrl-C on the terminal kills before the
flow can report how it ended.
"""

import os
import socket
import sys
import threading
from contextlib import AbstractContextManager

import uvicorn

from slm.config import data_root
from slm.storage import lock, make_folder


class Server(uvicorn.Server):
    """Starts while no other server of this data folder does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with only_one_starting():
            await super().startup(sockets)


def only_one_starting() -> AbstractContextManager[None]:
    """Prefect makes and changes its tables as it starts; two servers would break each other's."""
    return lock(make_folder(data_root() / "prefect") / "start.lock")


def main() -> None:
    """Serve the API of Prefect, without its pages, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)  # connections wait until we are ready
        from prefect.server.api.server import create_app  # seconds

        free_expired_leases()
        app = create_app(ephemeral=True, final=True)
        server = Server(uvicorn.Config(app, log_level="error"))
        threading.Thread(target=_stop_with_parent, args=(server,), daemon=True).start()
        server.run(sockets=[listener])


def free_expired_leases() -> None:
    """Let a temporary server, too, free the slots of runs that have died.

    Its database is that of `slm up`: a slot that stays taken blocks runs on either.
    """
    from prefect.server.services.perpetual_services import get_perpetual_services
    from prefect.server.services.repossessor import monitor_expired_leases

    for service in get_perpetual_services():
        if service.function is monitor_expired_leases:
            service.run_in_ephemeral = True


def _stop_with_parent(server: uvicorn.Server) -> None:
    """Ask the server to end when the other end of our standard input closes."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    server.should_exit = True


if __name__ == "__main__":
    main()
