"""What all tests share: an environment without network or telemetry, and a tiny project."""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_socket


def use_memory_as_disk(folder: Path = Path("/dev/shm"), room: int = 4 << 30) -> None:
    """Keep temporary files in memory, where there is room: a disk takes seconds for fsync alone."""
    if sys.platform == "linux" and os.access(folder, os.W_OK) and "TMPDIR" not in os.environ:
        status = os.statvfs(folder)
        if status.f_bavail * status.f_frsize >= room and not status.f_flag & os.ST_NOEXEC:
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


# Before anything is imported that reads them. The session's own data folder keeps libraries' homes.
use_memory_as_disk()
SESSION_DATA = tempfile.mkdtemp(prefix="slm-tests-")
os.environ.update(
    SLM_DATA=SESSION_DATA,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="passive",  # a spinning thread would starve the tests next to it
)
for name in ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "HF_HOME", "SLM_FAULT"):
    os.environ.pop(name, None)

from tiny_pipelines import PIPELINES  # noqa: E402

from slm.config import PipelineConfig  # noqa: E402
from slm.machine import prepare  # noqa: E402
from slm.recipes import load_recipe  # noqa: E402

prepare()


# Files of more than ten seconds. They are begun first: the other workers would wait for the last.
LONG_FILES = (
    "orchestration/test_flows.py", "registry/test_gate.py", "training/test_faults.py",
    "cli/test_ending.py", "training/test_derive.py", "orchestration/test_server_state.py",
    "registry/test_register.py", "retraining/test_decide.py", "reproduction/test_reproduce.py",
    "training/test_loop.py", "test_wheel.py", "training/test_parallel.py", "tokens/test_encode.py",
    "store/test_second_machine.py", "training/test_elastic.py", "tracking/test_mirror.py",
    "report/test_write.py", "store/test_s3.py", "test_overlap.py", "training/test_selection.py",
    "training/test_clock.py", "tokens/test_bpe.py", "model/test_sample.py", "cli/test_help.py",
    "orchestration/test_sweep_flow.py", "cli/test_commands.py", "cli/test_history_commands.py",
    "training/test_distributed.py", "planning/test_agreement.py", "training/test_golden.py",
    "orchestration/test_cluster.py", "project/test_start.py", "server/test_api.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Spare the garbage collector what stays: it takes a tenth of the time otherwise."""
    gc.disable()
    yield
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    shutil.rmtree(SESSION_DATA, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup() -> None:
    """Lets tests talk to this machine and to nobody else."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of this test's own, which `slm.config.data_root` names."""
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def project(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with one recipe, `tiny`, as the working folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pipelines.yaml").write_text(PIPELINES)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., PipelineConfig]:
    """Makes configs that run in a second; takes dotted keys: `tiny_config(**{"data.seed": 2})`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(PIPELINES)
    return lambda **overrides: load_recipe("tiny", overrides, path=path)
