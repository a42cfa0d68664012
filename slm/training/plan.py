"""What is fixed before the first step of a run, written to `plan.json`, and never changes.

The config may leave things to the machine: the batch that fits, the precision that is fast, how
many steps fit into some seconds. They are decided once, here; from then on training, resuming and
reproducing are functions of the step, never of the clock or of how busy the machine is. Only the
cooldown of `wsd` under a limit in seconds is decided later, once too (`slm.training.clock`).
"""

import math
import os
import re
import resource
import statistics
import sys
from collections.abc import Callable
from typing import Literal, cast

import torch

from slm.config import PipelineConfig, TrainConfig
from slm.errors import UserError
from slm.machine import available_cores, available_memory, has_amx_bf16, pick_device
from slm.records import Decision, Plan, ShardCount
from slm.storage import sha256_json
from slm.training.needs import planned_steps

Precision = Literal["bf16", "fp16", "fp32"]
Device = Literal["cpu", "cuda", "mps"]

CPU_MICRO_TOKENS = 4096  # a pass on a CPU: larger ones are no faster, and take more memory
GPU_MICRO_TOKENS = 65_536
MIN_TOKENS_PER_DEVICE = 16_384
"""Tokens per step that are worth a GPU of their own.

With fewer, a GPU is not filled, and the exchange of gradients, which takes the same time for any
batch, outweighs what its share of the work saves.
"""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MAX_AUTO_MICRO_BATCHES = 8  # GPUs that can share a training without a setting
MIN_COMPILED_STEPS = 2000  # from which a minute of compiling is worth it on a GPU

# GPUs by the whole name that CUDA reports, since an H100 PCIe is no H100 SXM: dense rates of matrix
# products in TFLOP/s, in 16 bits with float32 sums, and in float32 as training makes them (in TF32
# from Ampere on). From the data sheet of each GPU by NVIDIA, halved where it counts sparsity; that
# of the A10G, for which NVIDIA has none, from AWS.
PEAK_TFLOPS = [
    (r"NVIDIA H100 80GB HBM3|NVIDIA H200", 989.4, 494.7),
    (r"NVIDIA H100 PCIe", 756.0, 378.0),
    (r"NVIDIA (H100|H200) NVL", 835.5, 417.5),
    (r"NVIDIA A100(-SXM4-(40|80)GB|-PCIE-40GB| 80GB PCIe)", 312.0, 156.0),
    (r"NVIDIA L40S", 362.0, 183.0),
    (r"NVIDIA L40", 181.0, 90.5),
    (r"NVIDIA L4", 121.0, 60.0),
    (r"NVIDIA A10", 125.0, 62.5),
    (r"NVIDIA A10G", 70.0, 35.0),
    (r"NVIDIA GeForce RTX 4090", 165.2, 82.6),
    (r"NVIDIA GeForce RTX 3090", 71.0, 35.6),
    (r"Tesla V100-SXM2-(16|32)GB", 125.0, 15.7),
    (r"Tesla V100-PCIE-(16|32)GB", 112.0, 14.0),
    (r"Tesla T4", 65.0, 8.1),
]


def autocast_dtype(plan: Plan) -> torch.dtype | None:
    """The dtype that matrix products are made in; None for float32."""
    return DTYPES.get(plan.precision)


def plan_sha256(plan: Plan) -> str:
    """What every checkpoint carries, so that it is resumed by its own plan alone."""
    fields = plan.model_dump(mode="json", exclude_defaults=True, exclude={"parallel"})
    return sha256_json({"world_size": plan.world_size, **fields})  # which once had no default


def decision_sha256(decision: Decision | None, step: int) -> str:
    """What a checkpoint of a step carries of the decision: nothing up to the cooldown."""
    if decision is None or step <= decision.cooldown_start:
        return ""
    return sha256_json(decision.model_dump(mode="json"))


def make_plan(config: PipelineConfig, data: ShardCount, world_size: int = 1) -> Plan:
    """All that is known before a probe; a limit in seconds leaves `max_steps` at 0.

    Args:
        data: what the training reads.
        world_size: the processes that it begins with, to refuse what they cannot do. No field of
            the plan depends on it.
    """
    device = cast(Device, pick_device(config.train.device).type)
    if device == "mps" and world_size > 1:
        raise UserError(f"train.processes={world_size}: one process trains on mps; use auto or 1")
    precision = pick_precision(config.train.precision, device)
    rows = config.train.tokens_per_step // config.model.seq_len
    micro_batches = pick_micro_batches(config, device)
    check_rows(config.train.parallel, rows, world_size)
    max_steps = planned_steps(config, data)
    pays = device == "cuda" and max_steps >= MIN_COMPILED_STEPS  # a limit in seconds: 0 steps yet
    compiles = pays if config.train.compile == "auto" else config.train.compile
    return Plan(
        max_steps=max_steps,
        cooldown_by_clock=config.train.schedule == "wsd" and config.train.max_seconds is not None,
        rows=rows,
        micro_batch_size=pick_micro_batch(config, rows // micro_batches, device, precision),
        device=device,
        precision=precision,
        threads=torch.get_num_threads(),
        compile=compiles,
        muon_precision=pick_muon_precision(config.train, device),
        parts=pick_parts(config, device, compiles),
        parallel=config.train.parallel,
        micro_batches=micro_batches,
    )


def check_rows(parallel: str, rows: int, world_size: int) -> None:
    """Raises UserError where the rows of a step do not divide among processes that need it."""
    if parallel != "elastic" and rows % world_size:
        raise UserError(
            f"train.tokens_per_step is {rows} rows of model.seq_len: they do not divide among "
            f"{world_size} processes, as train.parallel={parallel} needs it"
        )


def pick_micro_batches(config: PipelineConfig, device: str) -> int:
    """The micro-batches of a step, whose gradients are summed in a tree: as configured, or `auto`.

    That is 1 but on GPUs; there it is the largest power of two up to 8 that divides the rows and
    leaves each as many tokens as are worth a GPU. It never depends on the number of processes.
    """
    train = config.train
    rows = train.tokens_per_step // config.model.seq_len
    if train.parallel != "elastic":
        return 1  # each process has its share of the rows
    if train.micro_batches == "auto":
        paying = train.tokens_per_step // MIN_TOKENS_PER_DEVICE if device == "cuda" else 1
        count = MAX_AUTO_MICRO_BATCHES
        while count > 1 and (count > paying or rows % count):
            count //= 2
        return count
    if rows % train.micro_batches:
        divisors = [n for n in range(1, rows + 1) if rows % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - int(train.micro_batches)))[:2]
        raise UserError(
            f"train.micro_batches={train.micro_batches}: a step has {rows} rows "
            f"(train.tokens_per_step={train.tokens_per_step} of model.seq_len="
            f"{config.model.seq_len}), which they must divide: use {' or '.join(map(str, nearest))}"
        )
    return train.micro_batches


def steps_within(
    seconds: float, step: Callable[[], float], score: Callable[[], float], every: int
) -> tuple[int, dict[str, float]]:
    """How many steps fit into some seconds, the probe's own time included; and its measurements.

    Args:
        seconds: the limit.
        step: makes one step, on state that is thrown away; returns its seconds.
        score: does the periodic work once; returns its seconds.
        every: steps from one such work to the next.
    """
    times = [step()]  # allocations, thread pools, kernels
    while len(times) < 4 or (len(times) < 11 and sum(times) < seconds / 50):
        times.append(step())
    scoring = score()
    spent = sum(times) + scoring
    step_seconds, periodic = statistics.median(times[1:]), scoring / every
    return max(1, int((seconds - spent) / (step_seconds + periodic))), {
        "step_seconds": step_seconds,
        "periodic_seconds": periodic,
        "probe_seconds": spent,
    }


def thread_count(config: TrainConfig, processes: int = 1) -> int:
    """Threads of each process: as configured; `auto`: OMP_NUM_THREADS, or its share of the cores.

    The cores are shared among as many as can work, a configured number of micro-batches, so that
    the bits do not depend on how many do. `processes`: those that train on this machine.
    """
    if config.threads != "auto":
        return config.threads
    exported = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # "4,2": by nesting level
    if exported.isdigit() and int(exported) > 0:
        return int(exported)
    sharing = processes if config.micro_batches == "auto" else config.micro_batches
    return max(1, available_cores() // sharing)


def pick_precision(choice: Precision | Literal["auto"], device: str) -> Precision:
    """`auto`: bf16 on GPUs from Ampere on and on CPUs with AMX; else fp16 on a GPU, fp32 on a CPU.

    On mps it is fp32: 16 bits are no faster on every one of its GPUs, and fp16's scaler needs
    float64, which it has not.

    It follows from what the machine is, never from a measurement: the key of a run does not hold
    it, and near a threshold two runs of one key would differ.
    """
    if choice == "fp16" and device != "cuda":
        where = "a CPU" if device == "cpu" else device
        raise UserError(f"train.precision='fp16' is for GPUs: use bf16, fp32 or auto on {where}")
    if choice != "auto":
        return choice
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    if device == "mps":
        return "fp32"
    return "bf16" if has_amx_bf16() else "fp32"


def pick_muon_precision(config: TrainConfig, device: str) -> Literal["bf16", "fp32"]:
    """The precision of Muon's products: float32 where bf16 is emulated, as on CPUs without AMX.

    It does not depend on `train.precision`, and follows from what the machine is, as that does.
    """
    emulated = device == "mps" or (device == "cpu" and not has_amx_bf16())
    slow = config.optimizer == "muon" and emulated
    return "fp32" if slow else "bf16"


def pick_parts(config: PipelineConfig, device: str, compiles: bool) -> Literal["plain", "fused"]:
    """`fused` for qwen3 on any CPU: what a compiler would do otherwise. GPT-2 has no such parts."""
    fused = device == "cpu" and not compiles and config.model.architecture == "qwen3"
    return "fused" if fused else "plain"


def pick_micro_batch(config: PipelineConfig, rows: int, device: str, precision: Precision) -> int:
    """Rows per pass: as configured; `auto`: those whose activations fit.

    The largest divisor of the rows where that is at least half of what fits; else passes of nearly
    equal size, of which the last is padded. Of 256 rows with room for 100 a pass has 64. 257 rows
    are a prime number: three passes of 86 hold 258, one of padding.

    `rows`: of a micro-batch.
    """
    size = config.train.micro_batch_size
    if size != "auto":
        return min(size, rows)
    fitting = fitting_tokens(config, device, precision) // config.model.seq_len
    limit = min(rows, max(1, fitting))
    divisor = max(d for d in range(1, limit + 1) if rows % d == 0)
    return divisor if 2 * divisor >= limit else math.ceil(rows / math.ceil(rows / limit))


def fitting_tokens(config: PipelineConfig, device: str, precision: Precision) -> int:
    """Tokens per pass whose activations fit into half of a process's memory.

    It has a whole GPU, or its share of the machine where a configured number of micro-batches may
    be trained next to each other. Of all of it, not of what is free, and whatever the number of
    processes: the same machine decides the same each time.
    """
    if device == "cpu":
        sharing = config.train.micro_batches
        memory, limit = available_memory(), CPU_MICRO_TOKENS
        memory //= 1 if sharing == "auto" else sharing
    elif device == "mps":  # which shares the machine's memory
        memory, limit = available_memory(), GPU_MICRO_TOKENS
    else:
        memory, limit = torch.cuda.mem_get_info()[1], GPU_MICRO_TOKENS
    return min(limit, memory // 2 // activation_bytes(config, device, precision))


def activation_bytes(config: PipelineConfig, device: str, precision: Precision) -> int:
    """Bytes per token that a pass keeps for its gradients.

    Without recomputation a block keeps 34 bytes per token and channel in half precision, and 5 per
    token, head and position where all scores of attention exist, as they do on a CPU and on mps
    (Korthikanti et al. 2022, arXiv:2205.05198).
    """
    model = config.model
    size = 34 * model.n_embd
    if device != "cuda":
        size += 5 * model.n_head * model.seq_len
    if precision == "fp32":
        size *= 2
    return size * model.n_layer


def memory_bytes(device: str) -> int:
    """The peak of memory so far: of the GPU's allocator, or of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if device == "mps":  # which keeps no peak; its allocator hardly gives any memory back
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kB elsewhere


def peak_flops(device: str, precision: Precision) -> float | None:
    """The data-sheet rate of the GPU that trains, in FLOP/s; None for a CPU or an unknown GPU."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    for pattern, half, single in PEAK_TFLOPS:
        if re.fullmatch(pattern, name):
            return 1e12 * (single if precision == "fp32" else half)
    return None
