"""What `slm` has to work with here: programs, machine, folders, servers; and what is broken."""

import json
import os
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import Field

import slm
from slm import machine
from slm.config import PIPELINES, PipelineConfig, data_root, project_root
from slm.errors import SlmError
from slm.figures import counted, size, two_lines
from slm.orchestration.addresses import check_mlflow, check_prefect, prefect_environment, stack_lock
from slm.recipes import check_recipes, find_recipes, given_later, load_recipe
from slm.records import Frozen
from slm.run_folder import CONFIG
from slm.storage import FORMAT, RECORD, is_held
from slm.tracking.entities import public_uri
from slm.tracking.server import store_uri

State = Literal["ok", "note", "broken"]
PORTS = {"Prefect": (4200, "--prefect-port"), "MLflow": (5000, "--mlflow-port")}
PACKAGES = ("torch", "prefect", "mlflow", "pyarrow", "datasets", "tiktoken")
SECONDS = 3.0  # for a server to answer
MIN_FREE = 500_000_000  # bytes of disk below which hardly anything can be made
INSTRUCTIONS = (
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve",
)  # fmt: skip
VARIABLES = (
    "SLM_DATA", "SLM_STORE", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip


class Finding(Frozen):
    """One thing that was looked at."""

    name: str
    value: str
    state: State = "ok"
    remedy: str = ""  # what to do, where it is not ok
    facts: dict[str, Any] = Field(default_factory=dict)  # the same as JSON values


class Health(Frozen):
    """Everything that was looked at. `ok`: nothing is broken."""

    findings: list[Finding]

    @property
    def ok(self) -> bool:
        return all(finding.state != "broken" for finding in self.findings)

    def __repr__(self) -> str:
        problems = ", ".join(f"{problem.name} ({problem.state})" for problem in self.problems)
        return two_lines("Health", {"ok": self.ok, "problems": problems or "none"})

    __str__ = __repr__

    @property
    def problems(self) -> list[Finding]:
        """What is not ok, the broken first."""
        return sorted(
            (finding for finding in self.findings if finding.state != "ok"),
            key=lambda finding: finding.state != "broken",
        )


def doctor() -> Health:
    """Look at Python, packages, device, CPU, memory, folders, ports and servers. Changes nothing.

    >>> health = slm.doctor()
    >>> health.ok, [problem.remedy for problem in health.problems]
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _packages, _device, _cpu, _memory, _project, _data, _formats, _prefect, _mlflow,
        _ports, _environment,
    )  # fmt: skip
    return Health(findings=[finding for check in checks for finding in check()])


# ---- programs ---------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    number = ".".join(map(str, sys.version_info[:3]))
    facts = {"version": number, "executable": sys.executable}
    yield Finding(name="Python", value=f"{number}, {sys.executable}", facts=facts)
    folder = Path(slm.__file__).parent
    facts = {"version": slm.__version__, "folder": str(folder)}
    yield Finding(name="slm", value=f"{slm.__version__}, {folder}", facts=facts)


def _packages() -> Iterator[Finding]:
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    missing = [package for package, number in versions.items() if number is None]
    yield Finding(
        name="packages",
        value=", ".join(f"{name} {number or 'is missing'}" for name, number in versions.items()),
        state="broken" if missing else "ok",
        remedy=f"pip install {' '.join(missing)}" if missing else "",
        facts=versions,
    )


def _device() -> Iterator[Finding]:
    try:
        import torch

        device = machine.pick_device("auto")
    except Exception as error:  # whatever a broken installation raises
        remedy = "install PyTorch again: pip install --force-reinstall torch"
        value = f"PyTorch cannot be imported ({type(error).__name__}: {error})"
        yield Finding(name="device", value=value, state="broken", remedy=remedy)
        return
    facts: dict[str, Any] = {"torch": torch.__version__, "device": str(device)}
    value, state, remedy = str(device), "ok", ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpus": torch.cuda.device_count()}
        value = f"{facts['gpus']} × {properties.name}, {size(properties.total_memory)} each"
    elif shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        state = "note"
        remedy = (
            "torch sees no GPU, though a driver of NVIDIA is here: install a build of torch for "
            "CUDA (https://pytorch.org/get-started), or check CUDA_VISIBLE_DEVICES"
        )
    value += f" (torch {torch.__version__})"
    yield Finding.model_validate(
        {"name": "device", "value": value, "state": state, "remedy": remedy, "facts": facts}
    )


# ---- the machine ------------------------------------------------------------------------------


def _cpu() -> Iterator[Finding]:
    features = machine.cpu_features()
    known = [name for name in INSTRUCTIONS if name in features]
    precision = "bf16" if machine.has_amx_bf16() else "float32"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    value = f"{machine.cpu_name()}: {', '.join(known) or 'instruction sets not known'}"
    value += f"; trains in {precision}" + (f" (ONEDNN_MAX_CPU_ISA={limit})" if limit else "")
    yield Finding(
        name="CPU", value=value,
        facts={"cpu": machine.cpu_name(), "instructions": known, "precision": precision},
    )  # fmt: skip
    cores, all_cores = machine.available_cores(), os.cpu_count() or 1
    of = "" if cores == all_cores else f" of {all_cores}, by affinity or the container's quota"
    facts: dict[str, Any] = {"available": cores, "machine": all_cores}
    yield Finding(name="cores", value=f"{cores}{of}", facts=facts)


def _memory() -> Iterator[Finding]:
    limit, free = machine.available_memory(), machine.free_memory()
    total: int = psutil.virtual_memory().total
    of = "" if limit == total else f" of {size(total)}, by the container's limit"
    facts = {"available": limit, "free": free, "machine": total}
    yield Finding(name="memory", value=f"{size(limit)}{of}; {size(free)} are free now", facts=facts)


# ---- folders ----------------------------------------------------------------------------------


def _project() -> Iterator[Finding]:
    path = project_root() / PIPELINES
    try:
        count, recipes = check_recipes(), find_recipes()
    except SlmError as error:
        yield Finding(
            name=PIPELINES, value=str(error), state="broken", remedy="`slm check` names it"
        )
        return
    is_there = path.is_file()
    facts = {"path": str(path) if is_there else None, "recipes": list(recipes)}
    where = str(path) if is_there else "none here, which is fine"
    shipped = sum(recipe.shipped for recipe in recipes.values())
    value = f"{where}: {counted(count, 'recipe')}, {shipped} of them shipped"
    yield Finding(name=PIPELINES, value=value, facts=facts)


def _data() -> Iterator[Finding]:
    origin = "in the working folder"
    if os.environ.get("SLM_DATA"):
        origin = "SLM_DATA"
    elif (project_root() / PIPELINES).is_file():
        origin = f"next to {PIPELINES}"
    try:
        root = data_root()
    except SlmError as error:
        yield Finding(
            name="data folder", value=str(error), state="broken",
            remedy="point SLM_DATA at a folder that can be written to",
        )  # fmt: skip
        return
    nearest = next(folder for folder in (root, *root.parents) if folder.is_dir())
    facts = {"path": str(root), "from": origin, "exists": root.is_dir()}
    writable = os.access(nearest, os.W_OK | os.X_OK)
    yield Finding(
        name="data folder",
        value=f"{root} ({origin}){'' if writable else ': cannot be written to'}",
        state="ok" if writable else "broken",
        remedy="" if writable else f"repair the permissions of {nearest}, or set SLM_DATA",
        facts=facts,
    )
    free = shutil.disk_usage(nearest).free
    yield Finding(
        name="disk",
        value=f"{size(free)} free",
        state="ok" if free >= MIN_FREE else "broken",
        remedy="" if free >= MIN_FREE else "free some space (`slm gc --dry-run`), or set SLM_DATA",
        facts={"free": free},
    )


def _formats() -> Iterator[Finding]:
    """The format numbers of what is in the data folder, and the versions of torch that trained."""
    try:
        root = data_root()
    except SlmError:
        return
    formats: Counter[int] = Counter()
    torches: Counter[str] = Counter()
    unreadable = 0
    for path in sorted((*root.glob(f"*/[!.]*/{RECORD}"), *root.glob(f"runs/[!.]*/{CONFIG}"))):
        try:
            fields = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            unreadable += 1
            continue
        formats[fields.get("format", 1)] += 1
        if trained_by := (fields.get("environment") or {}).get("torch"):
            torches[trained_by] += 1
    newer = [number for number in formats if number > FORMAT]
    parts = [
        f"format {number}: {counted(count, 'file')}" for number, count in sorted(formats.items())
    ]
    parts += [
        f"torch {number}: {counted(count, 'run')}" for number, count in sorted(torches.items())
    ]
    parts += [f"{counted(unreadable, 'file')} cannot be read"] if unreadable else []
    remedy = ""
    if newer:
        remedy = (
            f"this slm reads formats up to {FORMAT}: use the slm that wrote the newer ones, or "
            "point SLM_DATA at another folder"
        )
    elif unreadable:
        remedy = f"`slm verify {root}` names what is damaged"
    yield Finding(
        name="data versions",
        value=", ".join(parts) or "nothing there yet",
        state="broken" if newer else "note" if unreadable else "ok",
        remedy=remedy,
        facts={"formats": formats, "torch": torches, "unreadable": unreadable, "reads": FORMAT},
    )


# ---- servers ----------------------------------------------------------------------------------


def _prefect() -> Iterator[Finding]:
    if api := os.environ.get("PREFECT_API_URL"):
        yield _server(
            "Prefect", api, "PREFECT_API_URL", partial(check_prefect, api, seconds=SECONDS)
        )
        return
    value = "a temporary server for each command (default)"
    if _stack_is_up():
        address = prefect_environment()["PREFECT_API_URL"]
        value += f"; that of `slm up` is at {address}: set PREFECT_API_URL to use it"
    yield Finding(name="Prefect", value=value, facts={"address": None, "from": "default"})


def _mlflow() -> Iterator[Finding]:
    given = os.environ.get("MLFLOW_TRACKING_URI")
    addresses = {"MLFLOW_TRACKING_URI": given} if given else {}
    if not given:
        with suppress(SlmError):  # of the data folder, reported there
            uri = store_uri(data_root())
            facts = {"address": uri, "from": "default"}
            yield Finding(name="MLflow", value=f"{uri} (default)", facts=facts)
    for recipe, own in _uris_of_recipes().items():
        addresses[f"registry.tracking_uri of {recipe}"] = own
    for origin, uri in addresses.items():
        yield _server("MLflow", uri, origin, partial(check_mlflow, uri, seconds=SECONDS))


def _server(name: str, address: str, origin: str, check: Callable[[], None]) -> Finding:
    """An address in force, where it comes from, and whether it answers."""
    facts = {"address": public_uri(address), "from": origin}
    value = f"{public_uri(address)} ({origin})"
    try:
        check()
    except SlmError as error:
        return Finding(name=name, value=value, state="broken", remedy=str(error), facts=facts)
    return Finding(name=name, value=value, facts=facts)


def _uris_of_recipes() -> dict[str, str]:
    """The recipes that name a tracking server of their own, with its address."""
    uris = {}
    with suppress(SlmError):  # of pipelines.yaml, reported there
        for recipe in find_recipes().values():
            config: PipelineConfig = load_recipe(recipe.name, dict(given_later(recipe.fields)))
            if config.registry.tracking_uri:
                uris[config.recipe] = config.registry.tracking_uri
    return uris


def _ports() -> Iterator[Finding]:
    ours = _stack_is_up()
    for name, (port, option) in PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(1)
            used = probe.connect_ex(("127.0.0.1", port)) == 0
        value = "free" if not used else "in use by `slm up`" if ours else "in use"
        remedy = f"`slm up {option} {port + 1}`, or end what uses it" if used and not ours else ""
        yield Finding(
            name=f"port {port}",
            value=f"{value} (of `slm up`, {name})" if not (used and ours) else value,
            state="note" if remedy else "ok",
            remedy=remedy,
            facts={"port": port, "used": used, "by_slm_up": used and ours},
        )


def _stack_is_up() -> bool:
    try:
        return (data_root() / "logs").is_dir() and is_held(stack_lock())
    except (SlmError, OSError):
        return False


def _environment() -> Iterator[Finding]:
    given = {name: public_uri(os.environ[name]) for name in VARIABLES if os.environ.get(name)}
    value = ", ".join(f"{name}={text}" for name, text in given.items())
    yield Finding(name="variables", value=value or "none that changes anything", facts=given)
