import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm import storage
from slm.config import PipelineConfig
from slm.errors import UserError
from slm.records import Source
from slm.source import download as download_stage
from slm.source.download import download, download_key
from slm.source.stories import stories

GOLDEN = "7db07411ecfcef9de12012f72223e7ac8843311348d335a7c52f5bfeccc6d4d3"
KEY_OF_USUAL_NAMES = "cb1b63ebf05ab8dec729fb1dbfad6753fb24a173d92ca69ce81d58401d545b3b"
TEXTS = [f"Story {i}: " + "a fox ran home. " * (i % 7) for i in range(300)]
Config = Callable[..., PipelineConfig]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data folder é"


@pytest.fixture
def files_config(tiny_config: Config) -> Config:
    """Makes configs of local files: `files_config(path, separator="|")`."""

    def make(path: Path | str, **fields: Any) -> PipelineConfig:
        data = {f"data.{name}": value for name, value in fields.items()}
        return tiny_config(
            **{"data.source": "files", "data.path": str(path), "data.documents": None, **data}
        )

    return make


def texts_of(record: Source, split: str = "train") -> list[str]:
    tables = [pq.read_table(record.path / name) for name in record.splits[split].files]
    assert all(table.schema.names == ["text"] for table in tables)
    return [text for table in tables for text in table["text"].to_pylist()]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_parquet(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path)
    return path


def hashes(record: Source) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in record.files.items()}


# ---- stories ----------------------------------------------------------------------------------


def test_stories_are_written_once(tiny_config: Config, root: Path) -> None:
    config = tiny_config(**{"data.documents": 30, "data.seed": 7})
    first = download(config, root=root)
    assert texts_of(first) == list(stories(7, 0, 30))
    assert first.path.parent == root / "sources"
    assert first.path.name == f"tiny-{first.key[:12]}"
    assert first.splits["train"].documents == first.documents == 30
    assert first.splits["train"].bytes == sum(len(t.encode()) for t in texts_of(first))
    assert not first.reused
    again = download(config, root=root)
    assert again.reused
    assert again == first.model_copy(update={"reused": True})


def test_only_what_is_read_changes_the_key(tiny_config: Config, root: Path) -> None:
    def key(**fields: Any) -> str:
        return download(tiny_config(**{"data.documents": 5, **fields}), root=root).key

    first = key()
    assert key(**{"data.vocab_size": 600, "data.separator": "x", "train.seed": 2}) == first
    assert len({first, key(**{"data.seed": 2}), key(**{"data.documents": 6})}) == 3


def test_stories_need_a_number(tiny_config: Config, root: Path) -> None:
    with pytest.raises(UserError, match="documents"):
        download(tiny_config(**{"data.documents": None}), root=root)
    assert not root.exists()


def test_progress_ends_at_the_total(tiny_config: Config, root: Path) -> None:
    seen: list[tuple[str, float, float | None]] = []
    download(tiny_config(), root=root, progress=lambda *args: seen.append(args))
    assert seen[-1][1:] == (80, 80)


# ---- local files --------------------------------------------------------------------------------


def test_the_bytes_do_not_depend_on_how_the_input_was_cut(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    one = write_parquet(tmp_path / "one/a.parquet", TEXTS).parent
    for i in range(3):
        write_jsonl(tmp_path / f"three/{i}.jsonl", TEXTS[i * 100 : (i + 1) * 100])
    records = [download(files_config(path), root=root) for path in (one, tmp_path / "three")]
    assert texts_of(records[0]) == TEXTS
    assert hashes(records[0]) == hashes(records[1])
    assert records[0].key != records[1].key


def test_the_datasets_own_splits_are_kept(tmp_path: Path, root: Path, files_config: Config) -> None:
    write_parquet(tmp_path / "in/train.parquet", TEXTS[:200])
    write_parquet(tmp_path / "in/validation.parquet", TEXTS[200:])
    record = download(files_config(tmp_path / "in"), root=root)
    assert texts_of(record) == TEXTS[:200]
    assert texts_of(record, "val") == TEXTS[200:]
    assert set(record.origin) == {"train.parquet", "validation.parquet"}
    assert record.origin["train.parquet"] == storage.sha256_file(tmp_path / "in/train.parquet")


def test_what_is_left_out_is_in_the_log_and_the_record_also_when_reused(
    tmp_path: Path, root: Path, files_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("wiki.train", "wiki.valid", "wiki.test"):
        write_jsonl(tmp_path / f"in/{name}.jsonl", TEXTS)
    (tmp_path / "in/more.jsonl.xz").write_text("x")
    for reused in (False, True):
        caplog.clear()
        record = download(files_config(tmp_path / "in"), root=root)
        assert record.reused == reused
        assert record.inputs["val"] == "1 file: wiki.valid.jsonl"
        assert record.notes == [line.partition(": ")[2] for line in caplog.messages]
        assert [line.partition(":")[0] for line in record.notes or ()] == ["1 file left out"] * 2
        assert {entry.levelname for entry in caplog.records} == {"WARNING"}
    (tmp_path / "in/more.jsonl.xz").unlink()
    record = download(files_config(tmp_path / "in"), root=root)
    assert record.reused
    assert len(record.notes or ()) == 1


def test_another_choice_of_val_is_another_key(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    for name in ("blog", "dev", "test"):
        write_jsonl(tmp_path / f"in/{name}/a.jsonl", [f"{name} {number}" for number in range(9)])
    choices: list[dict[str, str | None]] = [
        {}, {"val_split": "dev"}, {"train_split": "blog"}, {"val_split": None}
    ]  # fmt: skip
    records = [download(files_config(tmp_path / "in", **fields), root=root) for fields in choices]
    assert len({record.key for record in records}) == len(choices)
    assert [record.documents for record in records] == [27, 27, 18, 27]
    before = download(files_config(tmp_path / "in"), root=root)
    (tmp_path / "in/train").mkdir()
    write_jsonl(tmp_path / "in/train/a.jsonl", ["train"])
    after = download(files_config(tmp_path / "in"), root=root)
    assert texts_of(after, "val") == texts_of(records[1], "val")
    assert after.key != before.key


def test_the_key_of_files_with_the_usual_names_is_the_one_of_before(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    for name in ("train-0.jsonl", "validation/a.jsonl", "test.jsonl"):
        write_jsonl(tmp_path / "in" / name, [name])
    config = files_config(tmp_path / "in")
    record = download(config, root=root)
    assert download_stage.is_made_with(record, config)
    assert record.key == KEY_OF_USUAL_NAMES


def test_the_content_decides_the_key_and_the_path_does_not(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    path = write_jsonl(tmp_path / "here/a.jsonl", ["a", "b"])
    first = download(files_config(path), root=root)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert download(files_config(tmp_path / "there/a.jsonl"), root=root).reused
    write_jsonl(path, ["a", "c"])
    second = download(files_config(path), root=root)
    assert not second.reused
    assert second.key != first.key
    assert second.revision != first.revision
    assert texts_of(second) == ["a", "c"]


@pytest.mark.parametrize("documents", [1, 99, 100, 101, 300, 1000])
def test_at_most_so_many_documents_of_train(
    tmp_path: Path, root: Path, files_config: Config, documents: int
) -> None:
    for i in range(3):
        write_jsonl(tmp_path / f"in/train-{i}.jsonl", TEXTS[i * 100 : (i + 1) * 100])
    write_jsonl(tmp_path / "in/val.jsonl", TEXTS)
    record = download(files_config(tmp_path / "in", documents=documents), root=root)
    assert texts_of(record) == TEXTS[:documents]
    assert texts_of(record, "val") == TEXTS


def test_rows_left_out_are_counted_in_the_record(
    tmp_path: Path, root: Path, files_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n{"text": "\\udc00"}\n{"text": "b"}\n')
    record = download(files_config(path), root=root)
    assert record.dropped == {"not text": 1, "null": 1}
    assert texts_of(record) == ["a", "b"]
    assert "1 row(s) left out: null" in caplog.text


@pytest.mark.parametrize("content", ["", '{"text": null}\n'])
def test_an_empty_dataset_leaves_nothing(
    tmp_path: Path, root: Path, files_config: Config, content: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="no documents in the train split"):
        download(files_config(path), root=root)
    assert [p.name for p in (root / "sources").iterdir() if not p.name.startswith(".")] == []


def test_a_name_that_is_not_utf8_leaves_nothing(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    write_jsonl(tmp_path / "in" / os.fsdecode(b"caf\xe9.jsonl"), ["a"])
    with pytest.raises(UserError, match=r"data\.path=.*caf\\xe9\.jsonl is not UTF-8.*rename"):
        download(files_config(tmp_path / "in"), root=root)
    assert not root.exists()


@pytest.mark.parametrize("texts", [["one"], ["one", "two", "three"]])
def test_a_separator_that_occurs_nowhere_is_an_error(
    tmp_path: Path, root: Path, files_config: Config, texts: list[str]
) -> None:
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    path = tmp_path / "*.txt"
    message = rf"data\.separator='\\n\\n' occurs nowhere in {len(texts)} text file"
    with pytest.raises(UserError, match=message):
        download(files_config(path, separator="\n\n"), root=root)
    assert not list(root.glob("sources/[!.]*"))
    (tmp_path / "9.txt").write_text("four\r\n\r\n  five\n")
    record = download(files_config(path, separator="\n\n"), root=root)
    assert texts_of(record) == [*texts, "four", "  five"]


def test_files_that_are_something_else_are_counted_before_anything_is_made(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", TEXTS)
    for name in ("b", "c"):
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 0\n"
        (tmp_path / f"in/{name}.jsonl").write_text(pointer)
    with pytest.raises(UserError, match=r"2 of 3 files are git-lfs pointers \(b.jsonl, c.jsonl\)"):
        download(files_config(tmp_path / "in"), root=root)
    assert not root.exists()


def test_a_format_that_is_chosen_takes_every_file(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    for name in ("a.md", "b.py", "c"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    with pytest.raises(UserError, match="no file of a supported format"):
        download(files_config(tmp_path / "in"), root=root)
    record = download(files_config(tmp_path / "in", format="text"), root=root)
    assert texts_of(record) == ["a.md", "b.py", "c"]


def test_the_settings_of_the_format_change_the_key_only_where_they_are_set(
    tiny_config: Config,
) -> None:
    def key(**fields: Any) -> str:
        given = {f"data.{name}": value for name, value in fields.items()}
        return download_key(tiny_config(**{"data.source": "files", "data.path": "x", **given}), {})

    whole, pieces = key(), key(separator="|")
    # As both were before the first line of a piece kept its indentation.
    assert whole == "3a27b70b07bc9fc627dba9f22597902a594d1ed53c8061d6e75db9ff09f55b10"
    assert pieces != "fd976ef0f6aa15993d45fe507a8742a2660a8afbe8e99ccda72a0966ec4b12d3"
    assert len({whole, pieces, key(format="text"), key(format="csv"), key(separator="\n")}) == 5
    assert key(separator="\r\n") == key(separator="\n")


# ---- row groups and files ---------------------------------------------------------------------


@settings(max_examples=100)
@given(st.lists(st.lists(st.text(max_size=30), max_size=6), max_size=12), st.integers(1, 60))
def test_row_groups_are_cut_by_the_documents_alone(parts: list[list[str]], size: int) -> None:
    texts = [text for part in parts for text in part]

    def cut(arrays: list[pa.Array]) -> list[list[str]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(download_stage, "ROW_GROUP_BYTES", size)
            return [group.to_pylist() for group in download_stage.row_groups(arrays)]

    groups = cut([pa.array(part, pa.string()) for part in parts])
    assert [text for group in groups for text in group] == texts
    assert groups == cut([pa.array(texts, pa.string())])
    for group in groups[:-1]:
        assert (
            sum(len(t.encode()) for t in group[:-1]) < size <= sum(len(t.encode()) for t in group)
        )


def test_the_layout_is_the_one_of_this_version(
    tmp_path: Path, root: Path, files_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this fails on purpose, raise DOWNLOAD_VERSION and put the new digest in GOLDEN."""
    monkeypatch.setattr(download_stage, "ROW_GROUP_BYTES", download_stage.ROW_GROUP_BYTES >> 10)
    monkeypatch.setattr(download_stage, "FILE_BYTES", download_stage.FILE_BYTES >> 14)
    record = download(files_config(write_parquet(tmp_path / "a.parquet", TEXTS)), root=root)
    layout = {}
    for name in record.files:
        file = pq.ParquetFile(record.path / name)
        groups = [file.read_row_group(i)["text"].to_pylist() for i in range(file.num_row_groups)]
        layout[name] = [str(file.schema_arrow), file.metadata.row_group(0).column(0).compression]
        layout[name].append(groups)
    digest = storage.sha256_json(layout)
    assert (download_stage.DOWNLOAD_VERSION, digest) == (1, GOLDEN)


def test_files_end_after_their_size(
    tmp_path: Path, root: Path, files_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_stage, "ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(download_stage, "FILE_BYTES", 5000)
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    record = download(files_config(path), root=root)
    files = record.splits["train"].files
    assert files == [f"train_{i:05d}.parquet" for i in range(len(files))]
    assert len(files) > 2
    assert texts_of(record) == TEXTS
    for name in files[:-1]:
        sizes = [len(t.encode()) for t in pq.read_table(record.path / name)["text"].to_pylist()]
        assert 5000 <= sum(sizes) < 7000


def error_of(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except (UserError, OSError, RuntimeError) as error:
        return error
    return None


# ---- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["enospc", "eio", "raise"])
def test_a_fault_anywhere_leaves_no_half_and_the_next_call_succeeds(
    tmp_path: Path,
    files_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    write_parquet(tmp_path / "in/train.parquet", TEXTS)
    write_parquet(tmp_path / "in/val.parquet", TEXTS[:9])
    config = files_config(tmp_path / "in")
    expected = hashes(download(config, root=tmp_path / "whole"))
    fired = 0
    while True:
        root = tmp_path / f"{kind}{fired}"
        storage.reset_fault_points()
        monkeypatch.setenv("SLM_FAULT", f"*:{fired + 1}:{kind}")
        error = error_of(partial(download, config, root=root))
        monkeypatch.delenv("SLM_FAULT")
        if error is None:
            break
        fired += 1
        if kind == "enospc":
            assert isinstance(error, UserError)
            assert "free some space" in str(error)
        assert not list(root.glob("sources/*.tmp*"))
        assert hashes(download(config, root=root)) == expected
    assert fired >= 10


def test_after_a_kill_at_any_point_the_next_call_succeeds(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    path = write_parquet(tmp_path / "in/train.parquet", TEXTS)
    config = files_config(path)
    expected = hashes(download(config, root=tmp_path / "whole"))
    # One process forks for each point: the libraries are loaded once.
    code = (
        "import os, sys, pathlib\n"
        "from slm.config import PipelineConfig\n"
        "from slm.source.download import download\n"
        "config = PipelineConfig.model_validate_json(sys.argv[1])\n"
        "for n in range(1, 100):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.environ['SLM_FAULT'] = f'*:{n}:kill'\n"
        "        download(config, root=pathlib.Path(sys.argv[2]) / str(n))\n"
        "        os._exit(0)\n"
        "    _, status = os.waitpid(child, 0)\n"
        "    print(n, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)\n"
        "    if not os.WIFSIGNALED(status):\n"
        "        break\n"
    )
    environment = {**os.environ, "ARROW_IO_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, config.model_dump_json(), str(root)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=True,
    )
    points = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(points) >= 8
    assert {status for _, status in points[:-1]} == {signal.SIGKILL}
    assert points[-1][1] == 0
    for number, _ in points:
        assert hashes(download(config, root=root / str(number))) == expected


def test_a_damaged_result_is_quarantined_and_rebuilt(
    tmp_path: Path, root: Path, files_config: Config
) -> None:
    config = files_config(write_parquet(tmp_path / "a.parquet", TEXTS))
    first = download(config, root=root)
    file = first.path / "train_00000.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    second = download(config, root=root)
    assert not second.reused
    assert hashes(second) == hashes(first)
    assert len(list(root.glob("sources/*.corrupt-*"))) == 1


def test_a_data_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, files_config: Config
) -> None:
    config = files_config(write_parquet(tmp_path / "a.parquet", TEXTS))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to .*SLM_DATA"):
        download(config, root=tmp_path / "file")
