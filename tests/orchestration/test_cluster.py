"""Encoding by a Dask cluster: the same bytes as locally, whatever happens to its workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mixtures import mixture, write_sources
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

import slm
import slm.orchestration.cluster
import slm.source.download
from slm import storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, SlmError, UserError
from slm.orchestration import stages
from slm.orchestration.cluster import Terms, versions
from slm.orchestration.encoding import encode
from slm.orchestration.pipeline import pipeline
from slm.records import Shards, Source
from slm.source.download import download
from slm.tokens import units
from slm.tokens.encode import encode as encode_here

distributed = pytest.importorskip("distributed")
pytest.importorskip("prefect_dask")
Config = Callable[..., PipelineConfig]
LOST = "write:2:kill"  # each worker dies before it has written its second unit


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several units even of little text, and of those several in a batch."""
    monkeypatch.setattr(units, "UNIT_BYTES", 1)
    monkeypatch.setattr(slm.orchestration.cluster, "BATCHES_PER_WORKER", 1)
    storage.reset_fault_points()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with start_cluster() as cluster:
        yield cluster


def start_cluster() -> Any:
    return distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=100,
    )


def pids(cluster: Any) -> set[int]:
    """The worker processes of a cluster."""
    return {nanny.pid for nanny in cluster.workers.values()}


def many_row_groups(config: PipelineConfig, root: Path | None = None) -> Source:
    """A source of 40 units, by which a batch has several."""
    import pyarrow.parquet as pq

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


def on(cluster: Any, **data: Any) -> dict[str, Any]:
    """The settings that encode on a cluster."""
    address = cluster.scheduler_address
    return {"data.runner": "dask", "data.runner_address": address, **data}


def here(config: PipelineConfig, root: Path) -> dict[str, str]:
    """The hashes of what this process makes."""
    return hashes(encode_here(config, many_row_groups(config, root), root=root))


def left(root: Path) -> list[str]:
    """What an encoding leaves besides its shards."""
    names = sorted(path.name for path in (root / "shards").iterdir())
    return [name for name in names if name.startswith(".") and not name.endswith(".lock")]


# ---- the same bytes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bytes_are_those_of_this_process(
    server: str,
    cluster: Any,
    tiny_config: Config,
    data_root: Path,
    tmp_path: Path,
) -> None:
    config = tiny_config(**on(cluster))
    calls: list[tuple[str, float, float | None]] = []
    before = pids(cluster)
    shards = encode(config, many_row_groups(config), progress=lambda *call: calls.append(call))
    assert not shards.reused
    assert hashes(shards) == here(tiny_config(), tmp_path / "here")
    assert left(data_root) == []
    for task in ("encode", "trim"):
        steps = [(done, total) for name, done, total in calls if name == task]
        assert steps == sorted(steps)
        assert len(steps) == 41
        assert steps[-1][0] == steps[-1][1]
    assert pids(cluster) == before, "a cluster that was there is left as it is"


@pytest.mark.slow
def test_a_mixture_with_exclusions_and_columns_is_that_of_this_process(
    server: str,
    cluster: Any,
    project: Path,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slm.source.download, "ROW_GROUP_BYTES", 500)  # several units of each
    paths = write_sources(tmp_path / "texts")
    for path in paths["b"].glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        columns = ({**row, "n": i, "tags": [i % 7]} for i, row in enumerate(rows))
        path.write_text("".join(json.dumps(row) + "\n" for row in columns))
    (project / "own.py").write_text("def keep(text, columns): return columns['tags'] != [3]")
    (project / "pipelines.yaml").write_text(
        "recipes: {tiny: {data: {clean: {filter: own.py:keep}}}}"
    )
    of_b = {"columns": ["n", "tags"], "clean.filter": f"{project / 'own.py'}:keep"}
    settings = {f"data.sources.b.{name}": value for name, value in of_b.items()}
    config = mixture(paths, {**settings, **on(cluster)})
    shards = slm.encode(config, slm.download(config))
    assert shards.parts["b"].excluded
    assert shards.dropped["by data.clean.filter or map"] > 5
    alone = mixture(paths, settings)
    root = tmp_path / "here"
    expected = encode_here(alone, slm.download(alone, root=root), root=root)
    assert hashes(shards) == hashes(expected)
    for name, part in shards.parts.items():
        pair = [slm.DataRoot(where).shards(part.key) for where in (data_root, root)]
        assert pair[0] is not None
        assert pair[1] is not None
        assert hashes(pair[0]) == hashes(pair[1]), name


def test_shards_that_are_complete_need_no_cluster(tiny_config: Config, data_root: Path) -> None:
    shards = encode(tiny_config(), download(tiny_config()))
    config = tiny_config(**{"data.runner": "dask", "data.runner_address": "tcp://127.0.0.1:9"})
    stages.check_encoding(config)
    assert encode(config, download(config)).key == shards.key


@pytest.mark.slow
def test_a_flow_encodes_on_a_cluster_and_its_page_has_the_batches(
    client: SyncPrefectClient, cluster: Any, project: Path, data_root: Path
) -> None:
    state = pipeline("tiny", on(cluster), until="encode", return_state=True)
    shards = slm.DataRoot().shards(
        stages.encode(slm.load_recipe("tiny"), download(slm.load_recipe("tiny"))).key
    )
    assert Path(state.result()["shards"]) == shards.path
    run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    deadline = time.monotonic() + 20
    expected, names = {"download", "encode", "encode-units-0", "encode-units-1"}, set[str]()
    while not expected <= names and time.monotonic() < deadline:  # events arrive later
        names = {task.name for task in client.read_task_runs(flow_run_filter=run)}
        time.sleep(0.2)
    assert expected <= names


# ---- what goes wrong --------------------------------------------------------------------------


@pytest.mark.slow
def test_damage_is_named_as_it_is_here(
    server: str, cluster: Any, tiny_config: Config, data_root: Path
) -> None:
    import pyarrow.parquet as pq

    config = tiny_config(**on(cluster))
    source = many_row_groups(config)
    path = source.path / source.splits["train"].files[0]
    start = pq.read_metadata(path).row_group(5).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"train_00000\.parquet, row groups \d to \d"):
        encode(config, source)
    assert [name for name in left(data_root) if not name.endswith(".units")] == []


@pytest.mark.slow
def test_workers_that_do_not_reach_the_prefect_server_are_named(
    server: str, cluster: Any, tiny_config: Config, data_root: Path
) -> None:
    config = tiny_config(**on(cluster))
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(SlmError, match=r"127\.0\.0\.1:9/api: set PREFECT_API_URL to that of"),
    ):
        encode(config, many_row_groups(config))


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    beacon = tmp_path / "a.beacon"
    beacon.write_text("a")
    Terms(beacon, "a", versions()).check()
    for terms in (Terms(beacon, "b", versions()), Terms(tmp_path / "none", "a", versions())):
        with pytest.raises(UserError, match=r"does not see .*: the data folder must be on a file"):
            terms.check()


@pytest.mark.parametrize("name", ["slm", "Python", "tiktoken"])
def test_a_worker_with_other_code_is_refused(tmp_path: Path, name: str) -> None:
    beacon = tmp_path / "a.beacon"
    beacon.write_text("a")
    with pytest.raises(UserError, match=f"has {name} .* instead of 0, and might encode to other"):
        Terms(beacon, "a", versions() | {name: "0"}).check()


def test_a_cluster_that_does_not_answer_is_refused_before_the_download(
    project: Path, data_root: Path
) -> None:
    settings = {"data.runner": "dask", "data.runner_address": "tcp://127.0.0.1:9"}
    for until in ("encode", "train"):
        with pytest.raises(UserError, match=r"nothing answers at data\.runner_address=tcp://127"):
            slm.run("tiny", settings, until=until)
    assert list(data_root.glob("sources/*")) == []


@pytest.mark.parametrize(
    ("runner", "address"),
    [("dask", "ray://host:10001"), ("dask", "host"), ("ray", "tcp://host:1"), ("ray", "auto")],
)
def test_an_address_of_another_kind_is_refused(
    tiny_config: Config, runner: str, address: str
) -> None:
    with pytest.raises((UserError, ValidationError), match=f"is no address of a {runner} cluster"):
        tiny_config(**{"data.runner": runner, "data.runner_address": address})


# ---- long proofs ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_worker_costs_its_unit_alone(
    server: str,
    tiny_config: Config,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files: dict[str, set[int]] = defaultdict(set)  # a unit's file → its inodes, one after another

    def watch(*_: Any) -> None:
        for path in data_root.glob("shards/.*.units/*.unit"):
            files[path.name].add(path.stat().st_ino)

    with monkeypatch.context() as patch:
        patch.setenv("SLM_FAULT", LOST)  # for the first workers, not for those after them
        cluster = start_cluster()
    with cluster:
        before = pids(cluster)
        config = tiny_config(**on(cluster))
        shards = encode(config, many_row_groups(config), progress=watch)
        assert not pids(cluster) & before
    assert hashes(shards) == here(tiny_config(), tmp_path / "here")
    assert len(files) == 40
    assert {len(inodes) for inodes in files.values()} == {1}, "no finished unit is made again"


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_an_error_naming_the_units(
    server: str, tiny_config: Config, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_FAULT", "write:1:kill")
    monkeypatch.setattr(storage.faults, "requested_fault", lambda: None)  # here, not in the workers
    with start_cluster() as cluster:
        config = tiny_config(**on(cluster))
        with pytest.raises(SlmError, match=r"_00000\.parquet, row groups .* again and again"):
            encode(config, many_row_groups(config))


SCRIPT = """
import sys
import slm
config = slm.load_recipe("tiny", {"data.runner": sys.argv[1], "data.workers": 2})
print(slm.encode(config, slm.download(config)).path)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_and_without_a_server(
    project: Path, data_root: Path, tmp_path: Path
) -> None:
    (project / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py", "dask"], capture_output=True, text=True, check=True
    )
    shards = storage.read_record(Path(done.stdout.strip()), Shards)
    assert shards is not None
    config = slm.load_recipe("tiny")
    expected = encode_here(config, download(config, root=tmp_path / "x"), root=tmp_path / "x")
    assert hashes(shards) == hashes(expected)
    assert left(data_root) == []
    assert done.stderr == ""


@pytest.mark.slow
def test_ctrl_c_closes_the_cluster_and_keeps_what_is_done(project: Path, data_root: Path) -> None:
    command = [
        sys.executable, "-m", "slm.cli.main", "encode", "tiny", "--set", "data.runner=dask",
        "--set", "data.documents=200000",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while not list(data_root.glob("shards/.*.units/*.unit")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    group = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert b"Traceback" not in output
    assert psutil.wait_procs(group, timeout=30)[1] == []
    assert [name for name in left(data_root) if not name.endswith(".units")] == []
    assert list(data_root.glob("shards/.*.units/*.unit")), "the next call resumes from these"
    assert not list(data_root.glob("shards/.*.units/*.beacon"))
