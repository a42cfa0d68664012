"""Which code this is: its commit, what differs from that, and one hash over its modules.

In a checkout git knows. A wheel carries what git knew when it was built, in `BUILD`, and is dirty
once its modules are no longer those that were packed. `setup.py` imports this module where nothing
is installed yet, so it needs the standard library alone.
"""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

BUILD = "_build.json"  # in a package that was built; never in a checkout
MODULES = ("*.py", "*.j2", "*.css")  # modules and templates: they can change a result
CODE = ("slm", "flows", "pyproject.toml", "setup.py", "constraints.txt")  # tracked in a checkout
UNTRACKED = tuple(f"{folder}/{name}" for folder in ("slm", "flows") for name in MODULES)


def state_of(package: Path) -> dict[str, Any]:
    """The state of the code of a package, as JSON values.

    commit: that it was made from; None where none is known
    dirty: whether it differs from that; None where nothing is known to compare with
    diff_sha256: of what differs; None where nothing does
    modules_sha256: over its modules, as they are now
    """
    modules = modules_sha256(package)
    built = (package / BUILD).is_file()
    state = _as_built(package, modules) if built else _in_checkout(package.parent)
    return {**state, "modules_sha256": modules}


def modules_sha256(package: Path) -> str:
    """One hash over the modules and templates of a package, by their paths and contents."""
    paths = {path for pattern in MODULES for path in package.rglob(pattern)}
    lines = "".join(
        f"{path.relative_to(package).as_posix()}\0{_sha256(path)}\n" for path in sorted(paths)
    )
    return hashlib.sha256(lines.encode()).hexdigest()


def _as_built(package: Path, modules: str) -> dict[str, Any]:
    """The state of a package that was built, by what was recorded then."""
    try:
        built = json.loads((package / BUILD).read_bytes())
        commit, dirty, difference = (built[name] for name in ("commit", "dirty", "diff_sha256"))
        is_edited = built["modules_sha256"] != modules
    except (ValueError, KeyError, TypeError):
        return {"commit": None, "dirty": True, "diff_sha256": modules}
    if is_edited:
        return {"commit": commit, "dirty": True, "diff_sha256": modules}
    return {"commit": commit, "dirty": bool(dirty), "diff_sha256": difference}


def _in_checkout(folder: Path) -> dict[str, Any]:
    """The state of a checkout; all None outside of one.

    Of the files that git does not track, modules and templates are included.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not (folder / ".git").exists():
        return {"commit": None, "dirty": None, "diff_sha256": None}
    plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    difference = _git(folder, "diff", *plain, "HEAD", "--", *CODE) or b""
    listing = ("ls-files", "--others", "--exclude-standard", "-z", "--", *UNTRACKED)
    for name in (_git(folder, *listing) or b"").split(b"\0")[:-1]:
        path = folder / os.fsdecode(name)
        content = _sha256(path) if path.is_file() else "gone"
        difference += name + b"\0" + content.encode() + b"\n"
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(difference),
        "diff_sha256": hashlib.sha256(difference).hexdigest() if difference else None,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
