"""What this machine offers: cores and memory within its container's limits, AMX, a device."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from slm.errors import UserError
from slm.machine import (
    available_cores,
    available_memory,
    cpu_features,
    cpu_kind,
    has_amx_bf16,
    pick_device,
)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr("sys.platform", "linux")


def machine(root: Path, group: str, files: dict[str, str]) -> Path:
    """The files of the kernel: this process's control group, and limits below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V1 = "5:memory:/box\n4:cpu,cpuacct:/box\n"
CORES = [
    ("0::/\n", {"cpu.max": "max 100000"}, 64),
    ("0::/\n", {"cpu.max": "400000 100000"}, 4),
    ("0::/\n", {"cpu.max": "150000 100000"}, 2),
    ("0::/\n", {"cpu.max": "1000 100000"}, 1),
    ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
    ("0::/not/here\n", {"cpu.max": "500000 100000"}, 5),
    (V1, {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, 64),
    (V1, {"cpu/box/cpu.cfs_quota_us": "200000", "cpu/box/cpu.cfs_period_us": "100000"}, 2),
    (V1, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    (V1, {}, 64),
    ("", {}, 64),
]


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(("group", "files", "cores"), CORES)
def test_cores_are_those_of_the_container(
    group: str, files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    assert available_cores(machine(tmp_path, group, files)) == cores


@pytest.mark.usefixtures("many")
def test_cores_are_at_most_those_of_the_affinity(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == 64
    assert available_cores(machine(tmp_path, "0::/\n", {"cpu.max": "9900000 100000"})) == 64


MEMORY = [
    ("0::/a\n", {"memory.max": "max", "a/memory.max": "max"}, None),
    ("0::/a\n", {"memory.max": "max", "a/memory.max": "1048576"}, 1 << 20),
    ("0::/a\n", {"memory.max": "1048576", "a/memory.max": "2097152"}, 1 << 20),
    (V1, {"memory/box/memory.limit_in_bytes": "9223372036854771712"}, None),
    (V1, {"memory/box/memory.limit_in_bytes": "1048576"}, 1 << 20),
    ("", {}, None),
]


@pytest.mark.parametrize(("group", "files", "limit"), MEMORY)
def test_memory_is_that_of_the_container(
    group: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    whole = psutil.virtual_memory().total
    assert available_memory(machine(tmp_path, group, files)) == (limit or whole)


# ---- the CPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "amx"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile amx_int8", True),
        ("flags\t\t: fpu avx512_bf16 amx_tile amx_int8", False),
        ("flags\t\t: fpu avx2", False),
        ("Features\t: fp asimd bf16", False),
        ("", False),
    ],
)
def test_amx_is_what_the_kernel_lists(
    flags: str, amx: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: a CPU\n{flags}\n\n")
    assert has_amx_bf16(path) == amx
    assert ("fpu" in cpu_features(path)) == ("fpu" in flags)
    assert not has_amx_bf16(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("limit", "amx"),
    [
        ("AVX512_CORE_AMX", True),
        ("avx10_1_512_amx_fp16", True),
        ("ALL", True),
        ("DEFAULT", True),
        ("AVX512_CORE_BF16", False),
        ("AVX2", False),
    ],
)
def test_amx_is_used_only_where_onednn_may_use_it(
    name: str, limit: str, amx: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("flags\t\t: amx_bf16 amx_tile\n")
    monkeypatch.setenv(name, limit)
    assert has_amx_bf16(path) == amx


# ---- the device -------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_each_process_has_a_gpu_of_its_own_by_its_index(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(choice) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device(choice) == torch.device("cuda", 3)
    assert pick_device("cpu") == torch.device("cpu")


def test_without_a_gpu_it_is_the_cpu_unless_a_gpu_is_demanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"train\.device='cuda': torch sees no CUDA GPU"):
        pick_device("cuda")


# ---- other systems ----------------------------------------------------------------------------


def test_an_apple_gpu_is_taken_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("mps") == torch.device("mps", 0)
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"train\.device='mps': torch sees no Apple GPU"):
        pick_device("mps")


def test_cores_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == os.cpu_count()


def test_without_proc_nothing_is_known_of_the_cpu(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    assert cpu_features(nowhere) == frozenset()
    assert not has_amx_bf16(nowhere)
    assert available_memory(nowhere) > 0


@pytest.mark.parametrize("arguments", [["--help"], ["run"]])
def test_a_system_without_flock_is_one_sentence(arguments: list[str]) -> None:
    """As Windows, which has no module `fcntl`."""
    script = (
        f"import runpy, sys; sys.modules['fcntl'] = None; sys.argv = ['slm', *{arguments}]; "
        "runpy.run_module('slm.cli.main', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: slm runs on Linux and macOS")
    assert "WSL" in line


def test_without_flock_the_library_says_so_too() -> None:
    script = (
        "import sys; sys.modules['fcntl'] = None; import slm\n"
        "try: slm.DataRoot\n"
        "except slm.UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "no flock" in done.stdout


@pytest.mark.parametrize(
    ("maker", "flags", "kind"),
    [
        ("vendor_id\t: GenuineIntel", "sse avx2 amx_bf16", "GenuineIntel (amx_bf16 avx2)"),
        ("vendor_id\t: AuthenticAMD", "sse avx2 avx512f", "AuthenticAMD (avx512f avx2)"),
        ("CPU implementer\t: 0x41", "fp asimd", "0x41 (asimd)"),
    ],
)  # fmt: skip
def test_a_kind_of_cpu_is_its_maker_and_its_instruction_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str, flags: str, kind: str
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    field = "Features" if "asimd" in flags else "flags"
    path = tmp_path / "cpuinfo"
    path.write_text(f"{maker}\n{field}\t: {flags}\n")
    assert cpu_kind(path) == kind
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cpu_kind(path) == f"{kind[:-1]} oneDNN up to AVX2)"
