"""What a file is by its bytes, where that is not what its name promises."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

import pyarrow as pa

from slm.errors import UserError, listing

HEAD_BYTES = 4096
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_MAX_CONTROL_SHARE = 0.05  # of control characters in text; a few may be part of it
_MIN_CONTROLS = 4
_CONTROLS = bytes({*range(32), 127} - {*b"\b\t\n\v\f\r\x1b"})

_NO_DATA = re.compile(
    r"(readme|license|notice)\.[a-z]+|(dataset_infos?|dataset_dict|state)\.json", re.IGNORECASE
)


def is_hidden(name: PurePath) -> bool:
    """Whether a file is no document by its name: `.git/x.txt`, `README.txt`, `state.json`."""
    hidden = any(part.startswith(".") and part != ".." for part in name.parts)
    return hidden or _NO_DATA.fullmatch(name.name) is not None


@dataclass(frozen=True)
class Content:
    """A kind of file that is recognised by how it begins."""

    noun: str
    remedy: str
    begins: bytes  # a regular expression
    name: str = ""  # as a format or a compression, where it is one of ours

    def describe(self, count: int) -> str:
        """`is a tar archive`, `are tar archives`."""
        return f"is {self.noun}" if count == 1 else f"are {self.noun.partition(' ')[2]}s"


_UNPACK = "unpack it, for example with "
_EXPORT = "export its text"
_UTF16 = "convert it, for example with iconv -f utf-16{} -t utf-8"
CONTENTS = (
    Content(
        "a git-lfs pointer",
        "the data itself is not here: get it with git lfs pull",
        rb"version https://(git-lfs|hawser)\.github\.com/spec/v",
    ),
    Content("a tar archive", _UNPACK + "tar -xf", rb"(?s:.{257})ustar(\0|  \0)"),
    Content(
        "a zip archive",
        _UNPACK + "unzip (from .docx, .xlsx or .epub, export the text)",
        rb"PK(\x03\x04|\x05\x06)",
    ),
    Content(
        "a gzip file", "add .gz to its name, or unpack it with gunzip", rb"\x1f\x8b\x08", "gzip"
    ),
    Content(
        "a zstd file",
        "add .zst to its name, or unpack it with unzstd",
        rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
        "zstd",
    ),
    Content("an xz file", _UNPACK + "unxz", rb"\xfd7zXZ\0"),
    Content("a bzip2 file", _UNPACK + "bunzip2", rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    Content("an lz4 file", _UNPACK + "lz4 -d", rb"\x04\x22\x4d\x18"),
    Content("a 7z archive", _UNPACK + "7z x", rb"7z\xbc\xaf\x27\x1c"),
    Content("a rar archive", _UNPACK + "unrar x", rb"Rar!\x1a\x07"),
    Content("a parquet file", "name it .parquet", rb"PAR1[\0-\x08\x0e-\x1f]", "parquet"),
    Content("an Arrow file", "name it .arrow", rb"ARROW1\0\0|\xff{4}(?s:...)\0", "arrow"),
    Content("a PDF", _EXPORT + ", for example with pdftotext", rb"%PDF-\d"),
    Content("an RTF document", _EXPORT, rb"\{\\rtf\d"),
    Content("an Office document", _EXPORT, rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    Content("a PNG image", "leave it out", rb"\x89PNG\r\n\x1a\n"),
    Content("a JPEG image", "leave it out", rb"\xff\xd8\xff"),
    Content("a GIF image", "leave it out", rb"GIF8[79]a"),
    Content("a program", "leave it out", rb"\x7fELF|MZ(?s:..)[\0-\x20]\0|\xcf\xfa\xed\xfe"),
    Content(
        "a sound or video file",
        "leave it out",
        rb"ID3[\2-\4]\0|RIFF(?s:.{4})(WAVE|AVI |WEBP)|OggS\0|\0\0(?s:..)ftyp",
    ),
    Content("an SQLite database", "export its text as CSV", rb"SQLite format 3\0"),
    Content("an HDF5 file", _EXPORT, rb"\x89HDF\r\n\x1a\n"),
    Content("a NumPy file", _EXPORT, rb"\x93NUMPY"),
    Content("a pickle file", "write it as parquet or JSON lines", rb"\x80[\2-\5][\x8c\x95\]}c(]"),
    Content("a UTF-32 file", _UTF16.replace("16{}", "32"), rb"\xff\xfe\0\0|\0\0\xfe\xff"),
    Content("a UTF-16 file", _UTF16.format(""), rb"\xff\xfe|\xfe\xff"),
)
_ANY = re.compile(b"|".join(b"(?:" + content.begins + b")" for content in CONTENTS))
_UTF16_LE = Content("a UTF-16 file", _UTF16.format("le"), b"")
_UTF16_BE = Content("a UTF-16 file", _UTF16.format("be"), b"")
_BINARY = Content("a binary file", "leave it out, or export its text", b"")


def recognise(head: bytes, allowed: bytes = b"") -> Content | None:
    """What a file is that begins with these bytes; None for text and for what is not known.

    Args:
        allowed: control characters that the text is meant to have, such as a separator.
    """
    if _ANY.match(head):  # one search, for the many files that are none of them
        return next(content for content in CONTENTS if re.match(content.begins, head))
    # UTF-16 without a mark: the high bytes of "ab" in little endian are the zeros in 61 00 62 00,
    # those of Cyrillic are 04. So half of such a pair is below 20, and the other half is not.
    even, odd = (_share_of_controls(head[i::2], allowed) for i in (0, 1))
    if len(head) >= 8 and min(even, odd) < 0.1 and max(even, odd) > 0.5:
        return _UTF16_LE if odd > even else _UTF16_BE
    return _BINARY if is_binary(head, allowed) else None


def is_binary(data: bytes, allowed: bytes = b"") -> bool:
    """Whether so many of the bytes are control characters that this is no text."""
    share = _share_of_controls(data, allowed)
    return share > _MAX_CONTROL_SHARE and share * len(data) >= _MIN_CONTROLS


def _share_of_controls(data: bytes, allowed: bytes) -> float:
    controls = bytes(set(_CONTROLS) - set(allowed))
    return 1 - len(data.translate(None, controls)) / len(data) if data else 0.0


def refuse_others(
    where: object, paths: Iterable[Path], expected: str | None, allowed: bytes = b""
) -> None:
    """Raise UserError for files that are something else than their name promises, with counts.

    Args:
        where: what the message begins with where there are several files.
        expected: a name of `CONTENTS`, or None for text, which is compressed where the file's
            name ends so.
        allowed: as in `recognise`.
    """
    every = list(paths)
    others: dict[Content, list[Path]] = {}
    for path in every:
        if content := _unexpected(path, expected, allowed):
            others.setdefault(content, []).append(path)
    if not others:
        return
    if len(every) == 1:
        [content] = others
        raise UserError(f"{every[0]} {content.describe(1)}: {content.remedy}")
    shown = (
        f"{len(files):,} of {len(every):,} files {content.describe(len(files))} "
        f"({listing((path.name for path in files), 3)}): {content.remedy}"
        for content, files in sorted(others.items(), key=lambda other: -len(other[1]))
    )
    raise UserError(f"{where}: {'; '.join(shown)}")


def _unexpected(path: Path, expected: str | None, allowed: bytes) -> Content | None:
    """What a file is instead; None where it may be what its name promises."""
    head = _head(path, None)
    content = recognise(head, allowed)
    packed = COMPRESSIONS.get(path.suffix.lower())
    if packed is None:
        if content is None or content.name == expected:
            return None
        # Of a binary format the bytes may be damaged: its reader reports that.
        return content if content.begins or expected is None else None
    if content and content.name == packed:
        return recognise(_head(path, packed), allowed)
    if content is None and head:
        return Content(f"a file without {packed} compression", f"remove {path.suffix}", b"")
    return content if content and content.begins else None


def _head(path: Path, compression: str | None) -> bytes:
    """The beginning of a file, decompressed; what cannot be read is left to its reader."""
    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            return bytes(stream.read(HEAD_BYTES))
    except (pa.ArrowException, OSError):
        return b""
