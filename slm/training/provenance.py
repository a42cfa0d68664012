"""What a result comes from next to its data: the code, the packages and the machine."""

import hashlib
import platform
import re
from functools import cache
from importlib.metadata import Distribution, distributions, version
from pathlib import Path
from typing import Any

from slm.code_state import state_of
from slm.machine import cpu_kind, cpu_name, has_mps


@cache
def code_state() -> dict[str, Any]:
    """Commit, differences and hash of this code, as they were at the first call: see `state_of`."""
    return state_of(Path(__file__).resolve().parents[1])


@cache
def packages() -> dict[str, str]:
    """Every installed distribution and its version, by name."""
    versions = {_field(d, "Name"): _field(d, "Version") for d in distributions()}
    return dict(sorted((name, of) for name, of in versions.items() if name))


def _field(distribution: Distribution, name: str) -> str:
    """A field of a distribution, as `metadata` has it, which parses the description as well."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]  # the rest is the description
    line = re.search(rf"^{name}:[ \t]*([^\r\n]*)", head, re.MULTILINE | re.IGNORECASE)
    return line[1] if line else ""


def environment() -> dict[str, Any]:
    """Code, packages and machine, as JSON values: what a checkpoint's bits may depend on."""
    import torch

    listing = "\n".join(f"{name}=={version}" for name, version in packages().items())
    return {
        **code_state(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "pyarrow": version("pyarrow"),
        "cpu": cpu_name(),
        "cpu_kind": cpu_kind(),
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
