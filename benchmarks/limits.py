"""What this machine allows at most, measured in the process that is benchmarked.

A speed alone is about the machine as much as about the program. Every benchmark therefore measures
the best large matrix product in float32 and in bf16 and the memory bandwidth next to what it times,
and prints the share of them that was reached.

`ONEDNN_MAX_CPU_ISA` holds oneDNN, which makes torch's products, to older instruction sets: so a CPU
with AMX shows what one without it would reach. `isas` names those that are possible here.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from slm.machine import INSTRUCTION_SETS, available_cores, cpu_features, cpu_name

SIDE = 2048  # of the square matrices of the best product
NO_AMX = "AVX512_CORE"  # the value of ONEDNN_MAX_CPU_ISA that leaves AMX and bf16 out


class Limits(NamedTuple):
    """Best products in FLOP/s, and memory bandwidth in bytes/s."""

    float32: float
    bf16: float
    bandwidth: float

    @property
    def product(self) -> float:
        """The best product in any precision, in FLOP/s."""
        return max(self.float32, self.bf16)

    def as_rows(self) -> list[dict[str, Any]]:
        """Rows of a benchmark's table."""
        return [
            row(f"product of {SIDE}³, float32", "limit", self.float32 / 1e9, "GFLOP/s"),
            row(f"product of {SIDE}³, bf16", "limit", self.bf16 / 1e9, "GFLOP/s"),
            row("reading memory", "limit", self.bandwidth / 1e9, "GB/s"),
        ]


def row(
    name: str, metric: str, value: float, unit: str, ratio: float | None = None
) -> dict[str, Any]:
    """A row of a benchmark's table."""
    return {"name": name, "metric": metric, "value": value, "unit": unit, "ratio": ratio}


def machine() -> dict[str, Any]:
    """The machine's name, what it can do and how busy it is."""
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in cpu_features()],
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def describe(machine: dict[str, Any]) -> str:
    """One line for people."""
    sets = ", ".join(machine["instruction_sets"])
    return (
        f"{machine['cpu']}, {machine['cores']} cores used ({sets}), torch {machine['torch']}, "
        f"load {machine['load']}"
    )


def show(result: dict[str, Any]) -> None:
    """Print a benchmark's result as a table."""
    print(describe(result["machine"]))
    for each in result["rows"]:
        ratio = "" if each["ratio"] is None else f"{each['ratio']:9.3g} ×"
        value = each["value"]
        shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        print(f"{each['name'] + ': ' + each['metric']:72} {shown:>16} {each['unit']:13}{ratio}")


# ---- limits -----------------------------------------------------------------------------------


def measure() -> Limits:
    """Measure all three with torch's present number of threads; takes about two seconds."""
    return Limits(
        float32=best_product(torch.float32),
        bf16=best_product(torch.bfloat16),
        bandwidth=bandwidth(),
    )


def best_product(dtype: torch.dtype, repeats: int = 8) -> float:
    """FLOP/s of the fastest of some products of two square matrices."""
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return 2 * SIDE**3 / fastest(lambda: a @ b, repeats)


def bandwidth() -> float:
    """Bytes/s at which all threads read memory that no cache holds."""
    data = torch.ones(1 << 26)  # 256 MB
    return data.numel() * data.element_size() / fastest(data.sum, 4)


def fastest(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


# ---- the products of a step ---------------------------------------------------------------------


Shape = tuple[str, tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]]


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the matrix products that are made within it: their FLOPs and their shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.shapes: Counter[tuple[Any, Shape]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            tensors = tuple(
                (tuple(a.shape), a.stride(), a.dtype) for a in args if isinstance(a, Tensor)
            )
            self.shapes[(func, (str(func), tensors))] += 1
        return out

    def bound_seconds(self) -> float:
        """Seconds of these products alone, each in its own shape at its fastest.

        Attention kernels that are no plain product are left out.
        """
        total = 0.0
        for (func, (_, tensors)), count in self.shapes.items():
            if "attention" in str(func):
                continue
            arrays = [torch.randn(_room(s, t)).to(d).as_strided(s, t) for s, t, d in tensors]
            total += count * fastest(partial(func, *arrays), 5)
        return total


def _room(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements that a strided tensor spans."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


# ---- a step by kind of operation ----------------------------------------------------------------


KINDS = {  # parts of an operation's name → its kind; the first that matches
    "products": ("mm", "attention", "linear", "dot"),
    "copies, casts and joins": ("copy", "cat", "stack", "clone", "contiguous", "fill", "zero"),
    "softmax, norms and sums": ("softmax", "norm", "amax", "sum", "mean", "max"),
}
ELEMENTWISE = "element-wise passes and the rest"


def by_kind(step: Callable[[], None], steps: int = 3) -> dict[str, float]:
    """The share of a step's time that each kind of operation takes, by torch's profiler.

    Operations within Muon's step are counted apart.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step()
    shares: Counter[str] = Counter()
    for event in profiled.events():
        parent, muon = event, False
        while parent is not None:
            muon |= parent.name.startswith("Optimizer.step#Muon")
            parent = parent.cpu_parent
        kind = next(
            (k for k, parts in KINDS.items() if any(part in event.name for part in parts)),
            ELEMENTWISE,
        )
        shares[f"Muon: {kind}" if muon else kind] += event.self_cpu_time_total
    total = shares.total()
    return {kind: count / total for kind, count in shares.most_common()}


# ---- instruction sets ---------------------------------------------------------------------------


def with_isa(isa: str, environment: dict[str, str] | None = None) -> dict[str, str]:
    """An environment, by default this process's own, that holds oneDNN to an instruction set."""
    return {**(os.environ if environment is None else environment), "ONEDNN_MAX_CPU_ISA": isa}


def isas(both: bool) -> list[str]:
    """The values of ONEDNN_MAX_CPU_ISA to measure: this machine's own, and without AMX if asked."""
    own = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL")
    other = "amx_bf16" in cpu_features() and own.upper() in ("ALL", "DEFAULT")
    return [own, NO_AMX] if both and other else [own]


def in_child(
    script: str,
    arguments: list[str],
    environment: dict[str, str] | None = None,
    timeout: float | None = None,
) -> Any:
    """Run a benchmark's part in a process of its own; its last line is JSON.

    `environment`: None is this process's own.
    """
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        timeout=timeout,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    torch.set_num_threads(available_cores())
    limit = measure()
    result = {"machine": machine(), "limit": limit._asdict(), "rows": limit.as_rows()}
    if parser.parse_args().json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
