"""zip and tar archives of text files."""

import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny_run import tiny_config

from slm.config import DataConfig
from slm.errors import CorruptionError, UserError
from slm.source.documents import read_documents
from slm.source.download import download
from slm.source.files import find_files
from slm.source.formats import archives
from slm.source.formats.archives import LEFT_OUT
from slm.source.reading import source_texts

FILES = {"b/two.txt": "zwei\r\n", "a.txt": "eins ä", "b/image.png": "\x89", "README.txt": "no"}
NAMES = ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.zst"]


def write(path: Path, files: dict[str, str | bytes]) -> Path:
    """An archive of the kind that its name has."""
    contents = {n: t.encode() if isinstance(t, str) else t for n, t in files.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
        return path
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    compression = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.output_stream(str(path), compression=compression) as stream:
        stream.write(held.getvalue())
    return path


def read(path: Path, dropped: Counter[str] | None = None, **fields: Any) -> list[str]:
    data = DataConfig(source="files", path=str(path), **fields)
    counts = Counter[str]() if dropped is None else dropped
    return [text for array in read_documents(path, data, counts) for text in array.to_pylist()]


@pytest.mark.parametrize("name", NAMES)
def test_the_text_files_of_an_archive_are_documents_in_its_order(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, FILES)
    dropped: Counter[str] = Counter()
    assert read(path, dropped) == ["zwei\n", "eins ä"]
    assert dropped == {LEFT_OUT: 1, "null": 0}
    assert read(write(path, {"x": "a\n\nb", "y.md": "c"}), separator="\n\n", format="text") == [
        "a", "b", "c",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_written_nowhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = write(folder / name, {"../../out.txt": "x", "/etc/out.txt": "y", "c/../../d.txt": "z"})
    assert read(path) == ["x", "y", "z"]
    assert sorted(tmp_path.rglob("*")) == [folder, path]


def test_an_archive_is_a_source_by_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "in.zip", FILES)

    config = tiny_config(path)
    source = download(config, root=tmp_path / "data")
    assert list(source_texts(source)) == ["zwei\n", "eins ä"]
    assert list(source.origin) == ["in.zip"]
    assert source.dropped == {LEFT_OUT: 1}
    assert download(config, root=tmp_path / "data").reused
    write(path, {**FILES, "a.txt": "anders"})
    assert download(config, root=tmp_path / "data").key != source.key


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_archive_is_one_message(tmp_path: Path, name: str) -> None:
    files = {f"{number}.txt": f"{number} text " * 400 for number in range(20)}
    whole = write(tmp_path / name, dict(files)).read_bytes()
    for cut in (len(whole) // 3, 2 * len(whole) // 3, 100):
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(CorruptionError, match=r"damaged|empty"):
            read(tmp_path / name)


def test_a_tar_that_ends_between_two_files_is_damaged(tmp_path: Path) -> None:
    """Python's reader takes both for the end of the archive."""
    path = write(tmp_path / "a.tar", {"a.txt": "x" * 100, "b.txt": "y" * 100})
    whole = path.read_bytes()
    path.write_bytes(whole[:1024])
    with pytest.raises(CorruptionError, match="no end mark"):
        read(path)
    path.write_bytes(whole[:1024] + b"\xff" * 512 + whole[1536:])  # the second header
    with pytest.raises(CorruptionError, match="damaged"):
        read(path)


def test_a_byte_that_changed_in_a_zip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a text of some length")
    path.write_bytes(path.read_bytes().replace(b"some", b"Some"))
    with pytest.raises(CorruptionError, match="CRC"):
        read(path)


def test_an_encrypted_zip_is_one_message(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.txt": "x"})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="encrypted: unpack it with its password"):
        read(path)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_bomb_is_not_expanded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MIN_BOMB_BYTES", 1 << 20)
    path = write(tmp_path / name, {"a.txt": b"a " * (4 << 20)})
    with pytest.raises(UserError, match="expands to more than 200 times its size"):
        read(path)


def test_what_is_no_text_in_an_archive_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.txt": "fine", "b.txt": b"\xff\xfe\n"})
    with pytest.raises(UserError, match=r"a\.zip: b\.txt, line 1: not UTF-8"):
        read(path)
    with pytest.raises(UserError, match=r"holds no text file.*2 other.*data\.format=text"):
        read(write(path, {"a.md": "x", "b.md": "y"}))


def test_an_archive_of_several_splits_is_refused(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"c/train/1.txt": "a", "c/test/1.txt": "b"}
    path = write(tmp_path / "a.tar.gz", files)
    with pytest.raises(UserError, match=r"c/train/1\.txt and c/test/1\.txt: unpack it"):
        read(path)
    assert read(path, val_split=None) == ["a", "b"]


def test_archives_in_a_folder_are_read_where_nothing_else_is(tmp_path: Path) -> None:
    for name in ("train.zip", "val.zip"):
        write(tmp_path / name, {"a.txt": "x"})
    data = DataConfig(source="files", path=str(tmp_path))
    _, layout = find_files(data)
    assert {split: [p.name for p in files] for split, files in layout.files.items()} == {
        "train": ["train.zip"], "val": ["val.zip"],
    }  # fmt: skip
    (tmp_path / "a.txt").write_text("x")
    _, layout = find_files(data)
    assert [path.name for path in layout.files["train"]] == ["a.txt"]
    assert any("2 .zip" in note for note in layout.notes)


def test_what_is_no_archive_is_one_message(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text("not an archive")
        with pytest.raises(CorruptionError, match="damaged"):
            read(tmp_path / name)
