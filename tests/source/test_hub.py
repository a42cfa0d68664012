import hashlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Fault, Hub, git_sha1, serve_this_process

from slm import storage
from slm.config import PipelineConfig
from slm.errors import CorruptionError, SlmError, UserError
from slm.records import Source
from slm.source.download import download, download_key, is_made_with
from slm.source.reading import columns_of

TOKEN = "hf_TopSecretToken"
FIRST, SECOND = "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"
VALIDATION = "data/validation-00000-of-00001.parquet"


def parquet(texts: list[str], column: str = "text") -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({column: texts}), file)
    return file.getvalue()


def some_texts(name: str) -> list[str]:
    return [hashlib.sha256(f"{name}{i}".encode()).hexdigest() for i in range(500)]


TALES = {
    FIRST: parquet(some_texts("first")),
    SECOND: parquet(some_texts("second")),
    VALIDATION: parquet(some_texts("val")[:20]),
    "data/test-00000-of-00001.parquet": parquet(["unseen"]),
    "README.md": b"---\nlicense: mit\n---\n# Tales\n",
}
TRAIN = some_texts("first") + some_texts("second")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each sleep of the client, which does not sleep."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:
    """A hub that the libraries of this process talk to, with short timeouts."""
    with serve_this_process(tmp_path / "hf", monkeypatch) as server:
        server.add("org/tales", TALES)
        yield server


@pytest.fixture
def get(
    hub: Hub, tmp_path: Path, tiny_config: Callable[..., PipelineConfig]
) -> Callable[..., Source]:
    """Downloads org/tales: `get(revision=…, root=…)`."""

    def call(root: Path = tmp_path / "data", **fields: Any) -> Source:
        data = {"source": "hub", "path": "org/tales", "documents": None, **fields}
        config = tiny_config(**{f"data.{name}": value for name, value in data.items()})
        return download(config, root=root)

    return call


Get = Callable[..., Source]


def texts_of(record: Source, split: str = "train") -> list[str]:
    tables = [pq.read_table(record.path / name) for name in record.splits[split].files]
    return [text for table in tables for text in table["text"].to_pylist()]


def cached(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "hf" / "files").rglob("*.parquet") if p.is_file()]


# ---- the files of a dataset --------------------------------------------------------------------


def test_a_dataset_by_its_splits_at_a_commit(hub: Hub, get: Get) -> None:
    commit = hub.repositories["org/tales"].branches["main"]
    record = get()
    assert record.dataset == "org/tales"
    assert record.revision == commit
    assert texts_of(record) == TRAIN
    assert texts_of(record, "val") == some_texts("val")[:20]
    expected = {
        name: hashlib.sha256(TALES[name]).hexdigest() for name in (FIRST, SECOND, VALIDATION)
    }
    assert record.origin == expected


def test_branch_and_commit_are_one_and_a_commit_needs_no_network(hub: Hub, get: Get) -> None:
    record = get()
    assert get(revision="main").reused
    hub.requests.clear()
    again = get(revision=record.revision)
    assert again.reused
    assert again.key == record.key
    assert hub.requests == []


def test_a_new_commit_downloads_only_what_changed(hub: Hub, get: Get) -> None:
    first = get()
    hub.add("org/tales", {**TALES, SECOND: parquet(["new"])})
    hub.requests.clear()
    second = get()
    assert second.key != first.key
    assert texts_of(second) == [*some_texts("first"), "new"]
    fetched = [r.line for r in hub.lines("GET /datasets/") if ".parquet" in r.line]
    assert [line.endswith(SECOND) for line in fetched] == [True]


def test_only_the_files_of_the_first_documents_are_downloaded(hub: Hub, get: Get) -> None:
    record = get(documents=40, val_split=None)
    assert texts_of(record) == TRAIN[:40]
    assert list(record.splits) == ["train"]
    assert not hub.lines(SECOND)
    assert list(record.origin) == [FIRST]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.csv", "train.txt"])
def test_every_format(hub: Hub, get: Get, name: str) -> None:
    import gzip

    content = {
        "jsonl": b'{"text": "one"}\n{"text": "two"}\n',
        "csv": b"text\none\ntwo\n",
        "txt": b"one|two",
    }[name.split(".")[1]]
    content = gzip.compress(content) if name.endswith(".gz") else content
    hub.add("org/tales", {name: content})
    record = get(separator="|")
    assert texts_of(record) == ["one", "two"]
    assert record.origin == {name: hashlib.sha256(content).hexdigest()}


CONFIGS = b"""---
configs:
- config_name: long
  data_files: [{split: train, path: "long/*"}, {split: holdout, path: "extra/*"}]
- config_name: short
  data_files: "short/*"
dataset_info:
- config_name: long
  features: [{name: text, dtype: string}]
- config_name: short
  features: [{name: text, dtype: string}, {name: title, dtype: string}]
---
"""


def test_configurations_of_the_readme(hub: Hub, get: Get) -> None:
    files = {f"{n}/a.parquet": parquet([n]) for n in ("long", "short", "extra", "else")}
    hub.add("org/tales", {"README.md": CONFIGS, **files})
    assert texts_of(get(config_name="short")) == ["short"]
    record = get(config_name="long", val_split="holdout")
    assert (texts_of(record), texts_of(record, "val")) == (["long"], ["extra"])
    with pytest.raises(UserError, match=r"several configurations.*long, short"):
        get()
    with pytest.raises(UserError, match=r"config_name 'shrot': did you mean 'short'"):
        get(config_name="shrot")
    with pytest.raises(UserError, match=r"unknown split 'train_': did you mean 'train'"):
        get(config_name="long", train_split="train_")
    hub.requests.clear()
    with pytest.raises(UserError, match=r"unknown column 'txt': did you mean 'text'"):
        get(config_name="short", text_column="txt")
    with pytest.raises(UserError, match=r"data\.columns: unknown column 'titel': did you mean 'ti"):
        get(config_name="short", columns=["titel"])
    assert not hub.lines("short/a.parquet")


def test_columns_of_the_hub_are_kept_in_every_split(hub: Hub, get: Get) -> None:
    def file(name: str) -> bytes:
        written = io.BytesIO()
        pq.write_table(pa.table({"text": [f"of {name}"], "lang": [name], "n": [1]}), written)
        return written.getvalue()

    files = {f"data/{name}-00000-of-00001.parquet": file(name) for name in ("train", "validation")}
    hub.add("org/tales", files)
    record = get(columns=["lang"])
    for split, name in (("train", "train"), ("val", "validation")):
        [path] = record.splits[split].files
        assert columns_of(record.path / path, 0) == {"lang": name}
    assert get().key != record.key
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: data\.columns: unknown"):
        get(columns=["lng"])


def splits_of(*names: str) -> dict[str, bytes]:
    """A dataset whose README names its splits, each of one file with the split's name as text."""
    listed = ", ".join(f'{{split: {name}, path: "{name}/*"}}' for name in names)
    readme = f"---\nconfigs:\n- config_name: default\n  data_files: [{listed}]\n---\n"
    files = {f"{name}/0.parquet": parquet([name]) for name in names}
    return {"README.md": readme.encode(), **files}


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (["train", "valid", "test"], "train", ["valid"]),
        (["train", "dev"], "train", ["dev"]),
        (["train", "val", "extra"], "train", ["val"]),
        (["train", "dev_clean", "dev_other"], "train", ["dev_clean", "dev_other"]),
        (["train", "validation", "valid"], "train", ["validation"]),
        (["training", "valid"], "training", ["valid"]),
        (["train", "test"], "train", []),
    ],
)
def test_a_split_with_a_word_for_val_is_val(
    hub: Hub,
    get: Get,
    caplog: pytest.LogCaptureFixture,
    names: list[str],
    train: str,
    val: list[str],
) -> None:
    hub.add("org/tales", splits_of(*names))
    for reused in (False, True):
        caplog.clear()
        record = get(revision=hub.repositories["org/tales"].branches["main"])
        assert record.reused == reused
        assert texts_of(record) == [train]
        assert (texts_of(record, "val") if "val" in record.splits else []) == val
        left_out = [name for name in names if name not in (train, *val)]
        listed = ", ".join(f"{name} (1 file)" for name in left_out)
        noun = "split" if len(left_out) == 1 else "splits"
        lines = [f"org/tales: {len(left_out)} {noun} left out: {listed}"] if left_out else []
        assert caplog.messages == lines
        hub.requests.clear()
    assert record.inputs["train"] == f"1 file: split {train}"


def test_a_reused_dataset_with_another_name_for_val_needs_no_network(hub: Hub, get: Get) -> None:
    commit = hub.add("org/tales", splits_of("train", "valid"))
    first = get(revision=commit)
    hub.requests.clear()
    assert get(revision=commit) == first.model_copy(update={"reused": True})
    assert hub.requests == []


@pytest.mark.parametrize("names", [("train", "valid"), ("train", "test")])
def test_a_source_of_an_earlier_version_is_reused_unless_it_left_val_out(
    hub: Hub,
    get: Get,
    tiny_config: Callable[..., PipelineConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    names: tuple[str, ...],
) -> None:
    commit = hub.add("org/tales", splits_of(*names))
    other = get(revision=commit, val_split=None, root=tmp_path / "other")
    fields = {"source": "hub", "path": "org/tales", "documents": None, "revision": commit}
    config = tiny_config(**{f"data.{name}": value for name, value in fields.items()})
    key = download_key(config, None, revision=commit)
    old = shutil.copytree(other.path, tmp_path / "data" / "sources" / f"tiny-{key[:12]}")
    storage.write_record(
        old, other.model_copy(update={"key": key, "inputs": {}, "notes": None, "path": old})
    )

    hub.faults = [Fault("/api/", "status", times=100)]
    offline = get(revision=commit)
    assert (offline.key, offline.reused) == (key, True)
    assert "whether it has a val split of its own is not known" in caplog.text
    hub.faults = []
    record = get(revision=commit)
    assert record.reused == ("valid" not in names)
    assert (record.key == key) == ("valid" not in names)
    assert ("val" in record.splits) == ("valid" in names)
    assert is_made_with(record, config)


def test_splits_that_the_config_names_are_taken_exactly(hub: Hub, get: Get) -> None:
    hub.add("org/tales", splits_of("train_sft", "test_sft", "train_gen", "dev"))
    record = get(train_split="train_sft", val_split="test_sft")
    assert (texts_of(record), texts_of(record, "val")) == (["train_sft"], ["test_sft"])
    record = get(train_split=None)
    assert texts_of(record) == ["train_sft", "test_sft", "train_gen"]
    assert texts_of(record, "val") == ["dev"]
    record = get(train_split="dev")
    assert (texts_of(record), list(record.splits)) == (["dev"], ["train"])
    with pytest.raises(UserError, match=r"val_split=dve: unknown split 'dve': did you mean 'dev'"):
        get(train_split="train_sft", val_split="dve")
    with pytest.raises(UserError, match=r"train_split=train: unknown split 'train'"):
        get()


def test_files_of_train_that_have_a_word_for_val_and_missing_shards_are_a_line(
    hub: Hub, get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["all/en-train-0-of-3.parquet", "all/en-train-1-of-3.parquet", "all/en-valid.parquet"]
    readme = b'---\nconfigs:\n- config_name: default\n  data_files: "all/*"\n---\n'
    hub.add("org/tales", {"README.md": readme, **{name: parquet([name]) for name in names}})
    assert texts_of(get()) == names
    assert caplog.messages == [
        "org/tales: 1 of 3 shards are missing: all/en-train-2-of-3.parquet",
        "org/tales: 1 file of train named like val or test: all/en-valid.parquet",
    ]


def test_a_column_that_is_missing_in_the_file_alone(get: Get) -> None:
    with pytest.raises(UserError, match=r"00000-of-00002\.parquet: unknown column 'story'"):
        get(text_column="story")


def test_a_local_folder_of_that_name_is_not_the_dataset(
    get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org/tales").mkdir(parents=True)
    (tmp_path / "org/tales/train.txt").write_text("wrong")
    monkeypatch.chdir(tmp_path)
    assert texts_of(get()) == TRAIN


# ---- what is missing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "org/none"}, "no such dataset"),
        ({"path": "not a/dataset/id"}, "not a dataset id"),
        ({"path": "../../etc"}, "not a dataset id"),
        ({"revision": "v9"}, "no revision 'v9'"),
        ({"revision": "0" * 40}, f"no revision '{'0' * 40}'"),
        ({"train_split": "trian"}, "did you mean 'train'"),
    ],
)
def test_what_is_missing_is_named(
    get: Get, tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        get(**fields)
    assert not list((tmp_path / "data").glob("sources/[!.]*"))


@pytest.mark.parametrize(
    "files",
    [
        {"README.md": b"nothing else"},
        {"notes.xyz": b"?"},
        {"odd.py": b"open('marker', 'w')", "train.parquet": parquet(["a"])},
        {"train/a.png": b"png", "train/b.png": b"png"},
        {"train.pkl": b"cposix\nsystem\n(S'touch marker'\ntR."},
        {"README.md": b"---\nconfigs: [}\n---\n", "train.parquet": parquet(["a"])},
        {"README.md": b"---\nconfigs: 5\n---\n", "train.parquet": parquet(["a"])},
    ],
    ids=["empty", "unknown", "script", "images", "pickle", "bad yaml", "bad configs"],
)
def test_a_repository_that_is_not_a_plain_dataset_is_refused(
    hub: Hub,
    get: Get,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.add("org/odd", files)
    with pytest.raises(UserError, match=r"data\.path=org/odd"):
        get(path="org/odd")
    assert not (tmp_path / "marker").exists()


def test_a_name_that_is_not_utf8_is_refused(hub: Hub, get: Get) -> None:
    hub.add("org/odd", {"train/caf\udce9.jsonl": b'{"text": "a"}\n'})
    with pytest.raises(UserError, match=r"data\.path=org/odd: .*caf\\xe9\.jsonl is not UTF-8"):
        get(path="org/odd")


# ---- the token --------------------------------------------------------------------------------


def test_a_gated_dataset_needs_a_token_which_appears_nowhere(
    hub: Hub,
    get: Get,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.add("org/gated", TALES, token=TOKEN)
    hub.storage_host = hub.endpoint.replace("127.0.0.1", "localhost")
    caplog.set_level(logging.DEBUG)
    for token in ("", "hf_WrongToken"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match=r"gated.*HF_TOKEN") as caught:
            get(path="org/gated")
        assert "hf_WrongToken" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.requests.clear()
    record = get(path="org/gated")
    assert texts_of(record) == TRAIN
    assert {request.token for request in hub.lines("/resolve/")} == {TOKEN}
    assert len(hub.lines("GET /storage/")) == 3
    assert {request.token for request in hub.lines("GET /storage/")} == {None}
    assert TOKEN not in caplog.text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_a_password_in_the_address_is_refused(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://me:secret@127.0.0.1:9")
    with pytest.raises(UserError, match="HF_ENDPOINT") as caught:
        get()
    assert "secret" not in str(caught.value)


def test_a_failure_shows_no_token(
    hub: Hub, get: Get, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults = [Fault(FIRST, "status", 99)]
    with pytest.raises(SlmError) as caught:
        get()
    assert TOKEN not in "".join(traceback.format_exception(caught.value)) + caplog.text
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\nX-Header: 1")
    with pytest.raises(UserError, match="HF_TOKEN holds characters") as refused:
        get()
    assert TOKEN not in str(refused.value)


# ---- transient faults --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["GET /api/datasets/org/tales", "/paths-info/", FIRST])
@pytest.mark.parametrize("header", [{"Retry-After": "7"}, {"RateLimit": '"api";r=0;t=7'}])
def test_a_rate_limit_is_waited_out(
    hub: Hub, get: Get, waits: list[float], where: str, header: dict[str, str]
) -> None:
    hub.faults = [Fault(where, "status", 2, status=429, headers=header)]
    assert texts_of(get()) == TRAIN
    assert len([seconds for seconds in waits if seconds >= 7]) == 2


def test_a_rate_limit_that_is_too_long_is_given_up(hub: Hub, get: Get, waits: list[float]) -> None:
    hub.faults = [Fault("/api/", "status", 9, status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(SlmError, match="answered 429"):
        get()
    assert sum(waits) == 0


@pytest.mark.parametrize(
    "where", ["GET /api/datasets/org", "README", "/tree/", "/paths-info/", FIRST]
)
@pytest.mark.parametrize("status", [500, 503])
def test_server_errors_are_retried(
    hub: Hub, get: Get, waits: list[float], where: str, status: int
) -> None:
    hub.faults = [Fault(where, "status", 2, status=status)]
    assert texts_of(get()) == TRAIN
    assert hub.faults[0].times == 0
    assert 0 < sum(waits) < 30


@pytest.mark.parametrize("where", ["GET /api/datasets/org", "README", "/paths-info/", FIRST])
def test_persistent_errors_end_in_one_message(
    hub: Hub, get: Get, waits: list[float], where: str, tmp_path: Path
) -> None:
    hub.faults = [Fault(where, "status", 10_000)]
    with pytest.raises(SlmError, match=r"data\.path=org/tales.* answered 500"):
        get()
    assert sum(waits) < 200
    assert not list((tmp_path / "data").glob("sources/[!.]*"))


@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
def test_a_broken_transfer_resumes_where_it_stopped(hub: Hub, get: Get, kind: str) -> None:
    hub.faults = [Fault(f"GET /datasets/org/tales/resolve/{main(hub)}/{FIRST}", kind, 2)]
    assert texts_of(get()) == TRAIN
    starts = [request.range for request in hub.lines(FIRST)]
    assert starts[0] is None
    offsets = [int(str(start).removeprefix("bytes=").rstrip("-")) for start in starts[1:]]
    assert len(offsets) == 2
    assert 0 < offsets[0] < offsets[1] < len(TALES[FIRST])


@pytest.mark.parametrize("where", ["/api/datasets/org/tales", "/tree/", "/paths-info/"])
def test_a_silent_hub_is_not_waited_for_forever(
    hub: Hub, get: Get, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults = [Fault(where, "silence", 1)]
    assert texts_of(get()) == TRAIN


def main(hub: Hub) -> str:
    return hub.repositories["org/tales"].branches["main"]


def test_an_unreachable_hub(hub: Hub, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SlmError, match=r"cannot reach http://127\.0\.0\.1:9.*data\.source=files"):
        get()


def test_offline_mode(hub: Hub, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = get().revision
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(revision=commit).reused
    with pytest.raises(SlmError, match="HF_HUB_OFFLINE"):
        get()


# ---- wrong bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["truncate", "flip"])
@pytest.mark.parametrize("name", [FIRST, VALIDATION])
def test_wrong_bytes_are_quarantined_and_downloaded_once_more(
    hub: Hub, get: Get, tmp_path: Path, kind: str, name: str
) -> None:
    hub.faults = [Fault(name, kind)]
    record = get()
    assert texts_of(record) == TRAIN
    quarantined = [path for path in cached(tmp_path) if ".corrupt-" in str(path)]
    assert len(quarantined) == 1
    assert quarantined[0].read_bytes() != TALES[name]


@pytest.mark.parametrize("kind", ["truncate", "flip"])
def test_bytes_that_stay_wrong_are_never_used(
    hub: Hub, get: Get, tmp_path: Path, kind: str
) -> None:
    hub.faults = [Fault(SECOND, kind, 99)]
    with pytest.raises(CorruptionError, match=SECOND):
        get()
    assert not list((tmp_path / "data").glob("sources/[!.]*"))
    assert len([path for path in cached(tmp_path) if ".corrupt-" in str(path)]) == 1  # the last
    hub.faults = []
    assert texts_of(get()) == TRAIN


def test_a_small_file_is_checked_by_its_git_hash(hub: Hub, get: Get) -> None:
    content = b'{"text": "one"}\n'
    hub.add("org/small", {"train.jsonl": content})
    hub.faults = [Fault("train.jsonl", "flip", 99)]
    with pytest.raises(CorruptionError, match=git_sha1(content)[:12]):
        get(path="org/small")


def test_every_flipped_bit_of_the_cache_is_detected(hub: Hub, get: Get, tmp_path: Path) -> None:
    get()
    for round_, path in enumerate(sorted(cached(tmp_path))):
        content = bytearray(path.read_bytes())
        content[len(content) * (round_ + 1) // 5] ^= 1 << round_
        path.write_bytes(content)
    assert texts_of(get(root=tmp_path / "other")) == TRAIN
    assert len([path for path in cached(tmp_path) if ".corrupt-" in str(path)]) == 3


def test_a_branch_that_moves_meanwhile_mixes_nothing(hub: Hub, get: Get) -> None:
    old = main(hub)

    def move(line: str) -> None:
        if FIRST in line and main(hub) == old:
            hub.add("org/tales", {name: parquet(["mixed"]) for name in TALES if "data/" in name})

    hub.on_request = move
    record = get()
    assert main(hub) != old
    assert record.revision == old
    assert texts_of(record) == TRAIN
    assert all(old in request.line for request in hub.lines("/resolve/"))


def test_a_damaged_page_in_a_file_with_the_right_hash(hub: Hub, get: Get, tmp_path: Path) -> None:
    content = bytearray(TALES[SECOND])
    start = pq.read_metadata(io.BytesIO(TALES[SECOND])).row_group(0).column(0)
    content[start.dictionary_page_offset + 3] ^= 0x55
    hub.add("org/tales", {**TALES, SECOND: bytes(content)})
    with pytest.raises(CorruptionError, match=r"00001-of-00002\.parquet, row group 0"):
        get()
    assert not list((tmp_path / "data").glob("sources/[!.]*"))


@pytest.mark.parametrize("kind", ["enospc", "raise"])
def test_after_a_fault_anywhere_the_next_call_succeeds(
    hub: Hub, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fired = 0
    while True:
        hub.faults = [Fault(SECOND, "flip")]  # so that the quarantine is passed as well
        storage.reset_fault_points()
        monkeypatch.setenv("SLM_FAULT", f"*:{fired + 1}:{kind}")
        try:
            record = get(root=tmp_path / str(fired))
            break
        except (UserError, RuntimeError):
            fired += 1
        finally:
            monkeypatch.delenv("SLM_FAULT")
            shutil.rmtree(tmp_path / "hf" / "files", ignore_errors=True)
    assert texts_of(record) == TRAIN
    assert fired >= 12
    for number in range(fired):
        folder = tmp_path / str(number)
        assert not list(folder.glob("sources/*.tmp"))
        assert texts_of(get(root=folder)) == TRAIN


# ---- kill -------------------------------------------------------------------------------------


def test_a_killed_download_resumes(
    hub: Hub, get: Get, tmp_path: Path, tiny_config: Callable[..., PipelineConfig]
) -> None:
    commit = main(hub)
    hub.faults = [Fault(f"GET /datasets/org/tales/resolve/{commit}/{FIRST}", "stall")]
    config = tiny_config(**{"data.source": "hub", "data.path": "org/tales", "data.documents": None})
    code = (
        "import sys, pathlib\n"
        "from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 4096\n"
        "from slm.config import PipelineConfig\n"
        "from slm.source.download import download\n"
        "config = PipelineConfig.model_validate_json(sys.argv[1])\n"
        "download(config, root=pathlib.Path(sys.argv[2]))\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code, config.model_dump_json(), str(tmp_path / "data")],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    pause = hub.closing.wait  # time.sleep is patched here
    for _ in range(600):
        partial = [path for path in cached(tmp_path) if path.stat().st_size]
        if partial or process.poll() is not None:
            break
        pause(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    present = partial[0].stat().st_size
    assert 0 < present < len(TALES[FIRST])
    hub.requests.clear()
    assert texts_of(get()) == TRAIN
    assert [request.range for request in hub.lines(FIRST)] == [f"bytes={present}-"]
