"""What a result comes from next to its data: the code, the packages and the machine."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from slm.machine import cpu_name, has_mps
from slm.storage import sha256_file

CODE = ("slm", "flows", "pyproject.toml", "constraints.txt")
UNTRACKED = ("slm/*.py", "flows/*.py", "slm/*.j2", "slm/*.css")  # modules and templates


@cache
def code_state() -> dict[str, Any]:
    """The commit of this code, and the sha256 of what differs from it; None outside a checkout.

    Of the files that git does not track, modules and templates are included: they can change a
    result.
    """
    folder = Path(__file__).resolve().parents[2]
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not (folder / ".git").exists():
        return {"commit": None, "dirty": None, "diff_sha256": None}
    plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    difference = _git(folder, "diff", *plain, "HEAD", "--", *CODE) or b""
    listing = ("ls-files", "--others", "--exclude-standard", "-z", "--", *UNTRACKED)
    for name in (_git(folder, *listing) or b"").split(b"\0")[:-1]:
        path = folder / os.fsdecode(name)
        content = sha256_file(path) if path.is_file() else "gone"
        difference += name + b"\0" + content.encode() + b"\n"
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(difference),
        "diff_sha256": hashlib.sha256(difference).hexdigest() if difference else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@cache
def packages() -> dict[str, str]:
    """Every installed distribution and its version, by name."""
    versions = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(versions.items()))


def environment() -> dict[str, Any]:
    """Code, packages and machine, as JSON values: what a checkpoint's bits may depend on."""
    import torch

    listing = "\n".join(f"{name}=={version}" for name, version in packages().items())
    return {
        **code_state(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "packages_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "gpu": _gpu_name(),
    }


def _gpu_name() -> str | None:
    """The GPU that `auto` would train on; one of Apple's has no name of its own."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"mps, {platform.machine()}" if has_mps() else None
