"""Encoding by a Ray cluster: the same bytes as locally, and a killed worker costs its unit."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from servers import free_port

from slm import storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError
from slm.orchestration.encoding import encode
from slm.records import Shards, Source
from slm.source.download import download
from slm.tokens import units
from slm.tokens.encode import encode as encode_here

pytest.importorskip("prefect_ray")
Config = Callable[..., PipelineConfig]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of this process
]


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several units even of little text."""
    monkeypatch.setattr(units, "UNIT_BYTES", 4_000)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of one machine, which is started as people start it."""
    ports = {name: free_port() for name in ("port", "ray-client-server-port")}
    options = [f"--{name}={port}" for name, port in ports.items()]
    with (tmp_path / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
             "--include-dashboard=false", "--num-cpus=2", "--node-ip-address=127.0.0.1",
             "--object-store-memory=134217728", "--disable-usage-stats", *options],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(600):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", ports["ray-client-server-port"])).close()
                break
            time.sleep(0.1)
        yield f"ray://127.0.0.1:{ports['ray-client-server-port']}"
    finally:
        process.terminate()
        process.wait(60)


def many_row_groups(config: PipelineConfig, root: Path | None = None) -> Source:
    """A source of 40 units, by which a batch has several."""
    source = download(config, root=root)
    for name in source.files:
        path = source.path / name
        pq.write_table(pq.read_table(path), path, row_group_size=2)
    files = storage.describe_files(source.path, [source.path / name for name in source.files])
    source = source.model_copy(update={"files": files})
    storage.write_record(source.path, source)
    return source


def hashes(shards: Shards) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in shards.files.items()}


def here(config: PipelineConfig, root: Path) -> dict[str, str]:
    """The hashes of what this process makes."""
    return hashes(encode_here(config, many_row_groups(config, root), root=root))


def ray_workers() -> list[psutil.Process]:
    """The worker processes below this process."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "ray::" in " ".join(child.cmdline())]


def test_a_cluster_of_its_own_is_closed_and_a_killed_worker_costs_its_unit(
    server: str, tiny_config: Config, data_root: Path, tmp_path: Path
) -> None:
    killed: list[int] = []
    files: dict[str, set[int]] = defaultdict(set)  # a unit's file → its inodes, one after another

    def watch(task: str, done: float, total: float | None) -> None:
        for path in data_root.glob("shards/.*.units/*.unit"):
            files[path.name].add(path.stat().st_ino)
        if done and not killed:
            for worker in ray_workers():
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

    config = tiny_config(**{"data.runner": "ray", "data.workers": 2})
    shards = encode(config, many_row_groups(config), progress=watch)
    assert killed
    assert hashes(shards) == here(tiny_config(), tmp_path / "here")
    assert len(files) == 40
    assert {len(inodes) for inodes in files.values()} == {1}, "no finished unit is made again"
    assert ray_workers() == []


def test_a_cluster_that_was_there_is_left_as_it_is(
    server: str, head: str, tiny_config: Config, data_root: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"data.runner": "ray", "data.runner_address": head}
    expected = here(tiny_config(), tmp_path / "here")
    assert hashes(encode(tiny_config(**settings), many_row_groups(tiny_config()))) == expected
    config = tiny_config(**settings, **{"data.seed": 2})
    source = many_row_groups(config)
    path = source.path / source.splits["train"].files[0]
    start = pq.read_metadata(path).row_group(5).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"train_00000\.parquet, row groups \d to \d"):
        encode(config, source)
    host, _, port = head.removeprefix("ray://").partition(":")
    socket.create_connection((host, int(port))).close()
