"""Text files: bytes → normalised UTF-8 in chunks → lines or documents."""

import codecs
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from slm.errors import CorruptionError, UserError, excerpt
from slm.source.formats.contents import COMPRESSIONS, is_binary

CHUNK_BYTES = 4 << 20
MAX_DOCUMENT_BYTES = 2_000_000_000  # of a document: Arrow's strings end at 2 GiB
_MAX_WINDOW = "Frame requires too much memory"  # what Arrow reports of zstd's long windows


def read_chunks(path: Path, allowed: bytes = b"") -> Iterator[bytes]:
    """A UTF-8 file in pieces of whole characters, decompressed, newlines as `\\n`.

    Args:
        allowed: control characters that the text is meant to have, such as a separator.

    Raises UserError where it is not UTF-8 text, CorruptionError where its bytes are damaged.
    """
    try:
        if path.suffix.lower() in COMPRESSIONS and not path.stat().st_size:
            raise EOFError
        with pa.input_stream(str(path), compression="detect") as stream:
            yield from decoded(stream, path, allowed)
    except EOFError as error:
        raise CorruptionError(f"{path} is empty, not even a compressed file") from error
    except (pa.ArrowException, OSError) as error:
        if not path.is_file():
            raise UserError(f"{path} does not exist") from error
        if _MAX_WINDOW in str(error):
            raise UserError(
                f"{path} was compressed with a longer window than 128 MiB (zstd --long or "
                f"--ultra): write it anew with zstd -d --long=31 {path.name} and then zstd "
                f"{path.stem}"
            ) from error
        raise CorruptionError(f"{path} is damaged or cut short: {first_line(error)}") from error


def decoded(stream: pa.NativeFile, where: object, allowed: bytes = b"") -> Iterator[bytes]:
    """The bytes of a text in pieces of whole characters, newlines as `\\n`.

    Raises UserError, naming `where` and the line, for what is not UTF-8 text.
    """
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    lines, ended = 1, False
    try:
        while not ended:
            data = stream.read(CHUNK_BYTES)
            if is_binary(data, allowed):
                raise UserError(
                    f"{where}, after line {lines}: not text but control characters; leave the "
                    "file out, or repair it"
                )
            ended = not data
            text = decoder.decode(data, final=ended)
            lines += text.count("\n")
            yield text.encode()
    except UnicodeDecodeError as error:
        lines += bytes(error.object)[: error.start].count(b"\n")
        raise UserError(
            f"{where}, line {lines}: not UTF-8 text ({error.reason}); convert the file, for "
            "example with iconv -t utf-8"
        ) from error


def split(path: object, chunks: Iterable[bytes], separator: bytes) -> Iterator[bytes]:
    """The pieces between separators, each joined once, however many chunks it spans.

    A separator may begin in one chunk and end in a later one: so the last bytes of a chunk, one
    fewer than the separator has, are searched again with the next. With `||` and the chunks
    `a|`, `|b` the `|` is kept back, and `||b` has the separator.
    """
    keep = len(separator) - 1
    pending: list[bytes] = []  # of the piece that has not ended
    size = 0
    kept = b""
    for chunk in chunks:
        *whole, last = (kept + chunk).split(separator)
        for piece in whole:
            pending.append(piece)
            size = 0
            yield _joined(pending)
        cut = max(0, len(last) - keep)
        kept = last[cut:]
        if cut:
            pending.append(last[:cut])
            size += cut
        check_size(path, size)
    pending.append(kept)
    yield _joined(pending)


def _joined(parts: list[bytes]) -> bytes:
    """The parts in one; the list is empty afterwards, so that a large piece is there once."""
    joined = b"".join(parts)
    parts.clear()
    return joined


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file, without their ends."""
    return (line.decode() for line in split(path, read_chunks(path), b"\n"))


def occurs(path: Path, separator: str) -> bool:
    """Whether a separator is anywhere in a text file, which is read up to there."""
    encoded = separator.encode()
    end = b""  # of what was searched, in which the separator may begin
    for chunk in read_chunks(path, encoded):
        text = end + chunk
        if encoded in text:
            return True
        end = text[max(0, len(text) - len(encoded) + 1) :]
    return False


def text_documents(path: Path, separator: str | None) -> Iterator[bytes]:
    """One document per file, or the pieces between separators that are not blank."""
    return documents_in(path, read_chunks(path, (separator or "").encode()), separator)


def documents_in(where: object, chunks: Iterable[bytes], separator: str | None) -> Iterator[bytes]:
    """The document of a text, or those between its separators, as of `text_documents`."""
    if separator is None:
        yield _whole(where, chunks)
        return
    pieces = split(where, chunks, separator.encode())
    yield from filter(None, map(_trimmed, pieces))  # nothing follows the last separator


def _whole(where: object, chunks: Iterable[bytes]) -> bytes:
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        check_size(where, size)
    return _joined(parts)


def check_size(path: object, size: int) -> None:
    """Raise UserError for a document of so many bytes that Arrow cannot hold it."""
    if size > MAX_DOCUMENT_BYTES:
        raise UserError(
            f"{path}: a document of {size:,} bytes or more; the largest possible has "
            f"{MAX_DOCUMENT_BYTES:,}; set data.separator to split a text file"
        )


def first_line(error: Exception) -> str:
    """A library's message on one line."""
    return excerpt((str(error).splitlines() or [type(error).__name__])[0], 300)


def _trimmed(piece: bytes) -> bytes:
    """A piece without the blank lines at its ends and the blanks at its end.

    The first line keeps its indentation: `"\\n\\n    x = 1 \\n"` becomes `"    x = 1"`.
    """
    text = piece.decode()
    end = len(text.rstrip())
    lead = text[: len(text) - len(text.lstrip())]
    indentation = f"{lead}x".splitlines()[-1][:-1]
    return text[len(lead) - len(indentation) : end].encode() if end else b""
