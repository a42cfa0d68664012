"""What is settled before the first step of a run, written to `plan.json`, and never changes.

The config may leave things to the machine: the batch that fits, the precision that is fast, how
many steps fit into some seconds. They are decided once, here; from then on training, resuming and
reproducing are functions of the step, never of the clock or of the machine's mood.
"""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Literal

import psutil
import torch

from slm.config import PipelineConfig
from slm.errors import UserError
from slm.records import Plan, ShardSplit
from slm.storage import canonical_json, sha256_bytes

Precision = Literal["bf16", "fp16", "fp32"]

CPU_MICRO_TOKENS = 4096  # a pass on a CPU: larger ones are no faster, and take more memory
GPU_MICRO_TOKENS = 65_536
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_PAYS = 2000  # steps from which compiling for a minute is worth it on a GPU

# Dense bf16 (fp16 before Ampere) peak rates in FLOP/s, from the vendor's data sheets.
PEAK_FLOPS = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "4090": 165e12, "3090": 71e12, "A10G": 70e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


def autocast_dtype(plan: Plan) -> torch.dtype | None:
    """The dtype that matrix products are made in; None for float32."""
    return DTYPES.get(plan.precision)


def plan_sha256(plan: Plan) -> str:
    """What every checkpoint carries, so that no other plan goes on with it."""
    return sha256_bytes(canonical_json(plan.model_dump(mode="json", exclude_defaults=True)))


def make_plan(config: PipelineConfig, data: ShardSplit, world_size: int) -> Plan:
    """All that is known before a probe; a limit in seconds leaves `max_steps` at 0.

    `data`: the train split.
    """
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    rows = config.train.tokens_per_step // config.model.seq_len
    if rows % world_size:
        raise UserError(
            f"train.tokens_per_step={config.train.tokens_per_step} is {rows} rows of "
            f"model.seq_len={config.model.seq_len}: they do not divide among {world_size} processes"
        )
    max_steps = planned_steps(config, data)
    compiles = device == "cuda" and max_steps >= COMPILE_PAYS  # seconds are not spent on it
    return Plan(
        max_steps=max_steps,
        rows=rows,
        micro_batch_size=pick_micro_batch(config, rows // world_size, device, precision),
        world_size=world_size,
        device=device,
        precision=precision,
        threads=torch.get_num_threads(),
        compile=compiles if config.train.compile == "auto" else config.train.compile,
    )


def planned_steps(config: PipelineConfig, data: ShardSplit) -> int:
    """The optimizer steps that the config's limit comes to; 0 if it is a limit in seconds."""
    train = config.train
    if train.max_steps is not None:
        return train.max_steps
    if train.max_seconds is not None:
        return 0
    tokens = train.max_tokens or (train.epochs or 0) * data.tokens
    return max(1, math.ceil(tokens / train.tokens_per_step))


def steps_in(
    seconds: float, step: Callable[[], float], score: Callable[[], float], every: int
) -> tuple[int, dict[str, float]]:
    """How many steps fit into some seconds, the probe's own time included; and what says so.

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


def pick_device(wanted: str) -> Literal["cpu", "cuda"]:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("train.device='cuda': torch sees no CUDA GPU here; use cpu or auto")
    return "cuda" if available and wanted != "cpu" else "cpu"


def pick_precision(wanted: Precision | Literal["auto"], device: str) -> Precision:
    """`auto`: bf16 on GPUs from Ampere on, fp16 on older ones; on a CPU, whichever is faster."""
    if wanted == "fp16" and device == "cpu":
        raise UserError("train.precision='fp16' is for GPUs: use bf16, fp32 or auto on a CPU")
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return "bf16" if _bf16_speedup() > 1.3 else "fp32"


def _bf16_speedup() -> float:
    """How much faster this CPU multiplies matrices in bf16 than in float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(1024, 512, dtype=dtype)
        b = torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - begin)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def pick_micro_batch(config: PipelineConfig, rows: int, device: str, precision: Precision) -> int:
    """Rows a pass: the largest divisor of this device's rows whose activations fit."""
    wanted = config.train.micro_batch_size
    if wanted != "auto":
        if rows % wanted:
            raise UserError(
                f"train.micro_batch_size={wanted} does not divide the {rows} rows a step that each "
                "device has (train.tokens_per_step / model.seq_len / processes)"
            )
        return wanted
    most = max(1, fitting_tokens(config, device, precision) // config.model.seq_len)
    return max(d for d in range(1, min(rows, most) + 1) if rows % d == 0)


def fitting_tokens(config: PipelineConfig, device: str, precision: Precision) -> int:
    """Tokens a pass whose activations fit into half of the memory of the GPU, or of the machine.

    Of all of it, not of what is free: the same machine decides alike each time.

    Without recomputation a block keeps 34 bytes a token and channel in half precision, and 5 a
    token, head and position where all scores of attention exist, as they do on a CPU (Korthikanti
    et al. 2022, arXiv:2205.05198).
    """
    model = config.model
    size = 34 * model.n_embd
    if device == "cpu":
        memory, largest = psutil.virtual_memory().total, CPU_MICRO_TOKENS
        size += 5 * model.n_head * model.seq_len
    else:
        memory, largest = torch.cuda.mem_get_info()[1], GPU_MICRO_TOKENS
    if precision == "fp32":
        size *= 2
    return min(largest, memory // 2 // (size * model.n_layer))


def memory_bytes(device: str) -> int:
    """The peak of memory so far: of the GPU's allocator, or of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kB elsewhere


def peak_flops(device: str) -> float | None:
    """The data-sheet rate of the GPU that trains, where one does and its rate is known."""
    if device == "cpu":
        return None
    name = torch.cuda.get_device_name()
    return next((rate for model, rate in PEAK_FLOPS.items() if model in name), None)
