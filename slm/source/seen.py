"""The hashes of local files that a download has read, known again by their size and time.

With them a plan knows the key of a source without reading its files. Nothing else relies on them:
a download hashes its files at every call. `data/cache/inputs.json` can be deleted.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from slm.errors import UserError
from slm.storage import make_folder, write_json

FILE = Path("cache", "inputs.json")
Stamp = tuple[int, int]  # bytes, and nanoseconds of the last change


def stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """Size and time of files. To be taken before they are hashed: what changes then is seen."""
    statuses = ((path, path.stat()) for path in paths)
    return {path: (status.st_size, status.st_mtime_ns) for path, status in statuses}


def remember(root: Path, digests: Mapping[Path, str], stamped: Mapping[Path, Stamp]) -> None:
    """Keep the hashes of files, and drop those of files that are gone.

    A data folder that cannot be written to keeps none.
    """
    known = _read(root)
    kept = {path: entry for path, entry in known.items() if Path(path).exists()}
    kept |= {str(path): [*stamped[path], digest] for path, digest in digests.items()}
    if kept == known:
        return
    with suppress(OSError, UserError):
        make_folder((root / FILE).parent)
        write_json(root / FILE, kept)


def recall(root: Path, paths: Iterable[Path]) -> dict[Path, str]:
    """The hashes of those files whose size and time are as when they were hashed."""
    known = _read(root)
    return {
        path: known[str(path)][2]
        for path, stamp in stamps(paths).items()
        if known.get(str(path), [])[:2] == list(stamp)
    }


def _read(root: Path) -> dict[str, list[Any]]:
    try:
        entries = json.loads((root / FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    is_whole = isinstance(entries, dict) and all(
        isinstance(entry, list) and len(entry) == 3 for entry in entries.values()
    )
    return entries if is_whole else {}
