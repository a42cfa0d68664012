"""Datasets at addresses of fsspec's file systems."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from servers import free_port
from tiny_run import tiny_config

import slm
from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.source.download import download
from slm.source.files import find_files
from slm.source.reading import source_texts
from slm.source.remote import is_here

FILES = {"a.txt": "eins", "b/c.txt": "zwei", "image.png": "no", "README.md": "no"}


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of `memory://`, with a dataset in `/data`."""
    system = fsspec.filesystem("memory")
    for name, text in FILES.items():
        system.pipe(f"/data/{name}", text.encode())
    yield system
    system.store.clear()


@pytest.fixture
def root(tmp_path: Path, data_root: Path) -> Path:
    return data_root


def config_of(address: str) -> PipelineConfig:
    config = tiny_config(Path("x"))
    return config.model_copy(update={"data": config.data.model_copy(update={"path": address})})


def texts(config: PipelineConfig) -> list[str]:
    return list(source_texts(download(config)))


def test_a_remote_folder_is_a_source_by_its_content(
    memory: Any, root: Path, tmp_path: Path
) -> None:
    config = config_of("memory://data")
    assert not is_here(config.data)
    with pytest.raises(UserError, match="was not fetched yet"):
        find_files(config.data)
    source = download(config)
    assert list(source_texts(source)) == ["eins", "zwei"]
    assert source.dataset == "memory://data"
    assert list(source.origin) == ["a.txt", "b/c.txt"]
    for name, text in FILES.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_text(text)
    local = download(config_of(str(tmp_path / "local")))
    assert (local.key, local.reused) == (source.key, True)  # the same files elsewhere
    assert texts(config_of(f"file://{tmp_path / 'local'}")) == ["eins", "zwei"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("memory://data/a.txt", ["eins"]),
        ("memory://data/*.txt", ["eins"]),
        ("memory://data/**/*.txt", ["eins", "zwei"]),
        ("memory://data/b/", ["zwei"]),
    ],
)
def test_an_address_may_be_of_a_file_or_have_stars(
    memory: Any, root: Path, address: str, expected: list[str]
) -> None:
    assert texts(config_of(address)) == expected


def test_only_what_has_changed_is_fetched_again(
    memory: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("memory://data")
    assert texts(config) == ["eins", "zwei"]
    fetched: list[str] = []
    get_file = type(memory).get_file

    def counted(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        fetched.append(path)
        return get_file(self, path, *arguments, **options)

    monkeypatch.setattr(type(memory), "get_file", counted)
    assert download(config).reused
    assert fetched == []
    memory.pipe("/data/b/c.txt", b"drei")
    memory.pipe("/data/new.txt", b"neu")
    memory.rm("/data/a.txt")
    assert texts(config) == ["drei", "neu"]
    assert [Path(path).name for path in fetched] == ["c.txt", "new.txt"]


def test_a_plan_asks_nothing_and_says_so(
    memory: Any, root: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data.source": "files", "data.path": "memory://data"}
    stage = slm.plan("tiny", settings).stages[0]
    assert stage.key is None
    assert any("is asked for its files" in reason for reason in stage.reasons)
    config = slm.load_recipe("tiny", settings)
    assert config.data.path == "memory://data"
    download(config)
    assert slm.plan("tiny", settings).stages[0].action == "reused"


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("memory://nothing", UserError, "no file of a supported format"),
        ("nofs://x/y", UserError, "there is no file system 'nofs'"),
        ("s3://key:secret@bucket/x", UserError, "may hold no credentials"),
        ("memory://", UserError, "names no place"),
        ("simplecache::memory://data", UserError, "does not exist"),
        ("file:///no/such/folder", UserError, "does not exist"),
    ],
)
def test_a_bad_address_is_one_message(
    memory: Any, root: Path, address: str, error: type[SlmError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        download(config_of(address))
    assert "secret" not in str(raised.value)


def test_a_name_that_leads_elsewhere_is_refused(memory: Any, root: Path, tmp_path: Path) -> None:
    memory.store["/data/../../out.txt"] = memory.store["/data/a.txt"]
    with pytest.raises(UserError, match="is no name of a file in it"):
        download(config_of("memory://data"))
    assert not list(tmp_path.rglob("out.txt"))


# ---- S3 ---------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket on a server of moto's, with the dataset in it."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretkey")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "log").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            assert process.poll() is None
            time.sleep(0.1)
        for path, data in [("", b""), *((f"/data/{n}", t.encode()) for n, t in FILES.items())]:
            request = urllib.request.Request(f"{url}/bucket{path}", data=data, method="PUT")
            request.add_header("Content-Type", "text/plain")  # else moto reads it as a form
            urllib.request.urlopen(request, timeout=30).close()
        yield "s3://bucket/data"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow  # moto takes seconds to start
def test_a_dataset_in_a_bucket(bucket: str, root: Path) -> None:
    config = config_of(bucket)
    assert texts(config) == ["eins", "zwei"]
    assert download(config).reused
    assert texts(config_of(f"{bucket}/a.txt")) == ["eins"]
    with pytest.raises(UserError, match=r"no file of a supported format|does not exist"):
        download(config_of("s3://bucket/nothing"))
    with pytest.raises(SlmError, match="no-such-bucket"):
        download(config_of("s3://no-such-bucket/x"))
