"""A store on S3: on a server of moto's, on this machine."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from servers import free_port
from stores import assert_whole, entries, facts, only_run, verify_folder
from tiny_run import copy_run

import slm
from slm.errors import CorruptionError, UserError
from slm.store.address import parse_address
from slm.store.entries import Entry, blob_place
from slm.store.remote import StoreError, open_store

pytest.importorskip("s3fs")
pytest.importorskip("moto")
SECRET = "verysecretkey"
BUCKET = "slm-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server with an empty bucket, which the environment names."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as out, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", url)
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=out, stderr=out,
        )  # fmt: skip
        try:
            for _ in range(300):
                with suppress(OSError), urllib.request.urlopen(url, timeout=5):
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request, timeout=30).close()
            yield url
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    copy_run(tmp_path / "a")
    return tmp_path / "a"


@pytest.fixture
def store(server: str, tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


def test_a_run_goes_over_s3(root: Path, store: str, tmp_path: Path) -> None:
    run = only_run(root)
    pushed = slm.push(run.name, store, root=root)
    assert pushed.sent > 10
    assert len(assert_whole(store)) == 4
    assert slm.push(run.name, store, root=root).sent == 0
    slm.pull(run.name[-12:-4], store, root=tmp_path / "b")
    assert facts(only_run(tmp_path / "b").verified_record) == facts(run.verified_record)
    assert verify_folder(tmp_path / "b") == verify_folder(root)


@pytest.mark.slow
def test_two_pushers_at_once_end_with_one_whole_result_on_s3(
    root: Path, store: str, tmp_path: Path
) -> None:
    name = only_run(root).name
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: slm.push(name, store, root=root), range(2)))
    assert len(assert_whole(store)) == 4
    slm.pull(name, store, root=tmp_path / "b")


def test_an_entry_is_written_once(store: str) -> None:
    remote = open_store(store)
    first, second = (Entry(kind="run", key="1" * 64, name=name) for name in ("a-1", "b-1"))
    assert remote.add(first)
    assert not remote.add(second)
    assert remote.entry("run", "1" * 64) == first


@pytest.mark.slow
def test_a_damaged_blob_on_s3_is_refused_and_repaired(
    root: Path, store: str, tmp_path: Path
) -> None:
    run = only_run(root)
    slm.push(run.name, store, root=root)
    [shards] = [entry for entry in entries(store) if entry.kind == "shards"]
    blob = shards.files["train_00000.bin"]
    place = f"{store}/{blob_place(blob.sha256)}"
    parse_address(store).filesystem().pipe_file(place, b"x" * blob.bytes)
    with pytest.raises(CorruptionError, match="is damaged"):
        slm.pull(run.name, store, root=tmp_path / "b")
    assert slm.push(run.name, store, root=root, verify=True).sent == 1
    slm.pull(run.name, store, root=tmp_path / "b")


def test_a_bucket_that_is_not_there_is_one_message(root: Path, server: str, tmp_path: Path) -> None:
    name = only_run(root).name
    with pytest.raises(StoreError, match="cannot be written"):
        slm.push(name, "s3://no-such-bucket/slm", root=root)
    with pytest.raises((StoreError, UserError)):
        slm.pull(name, "s3://no-such-bucket/slm", root=tmp_path / "b")


def test_a_server_that_is_down_is_one_message_within_a_minute(
    root: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(StoreError, match="cannot be read") as failed:
        slm.push(only_run(root).name, store, root=root)
    assert time.monotonic() - started < 60
    assert SECRET not in str(failed.value)


def test_credentials_are_kept_nowhere(root: Path, store: str, tmp_path: Path) -> None:
    slm.push(only_run(root).name, store, root=root)
    slm.pull(only_run(root).name, store, root=tmp_path / "b")
    for path in [*root.rglob("*"), *(tmp_path / "b").rglob("*")]:
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    for entry in entries(store):
        assert SECRET not in entry.to_json().decode()
        assert "127.0.0.1" not in json.dumps(entry.model_dump(mode="json"))
