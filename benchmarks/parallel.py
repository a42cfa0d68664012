"""What `train.parallel` costs: two processes of one thread each next to one process with two.

The shape is that of `slm bench train`: GPT-2, 6 layers, width 384, 50,257 tokens: 29,995,392
parameters, trained by AdamW on random tokens, 4,096 a step. The processes exchange gradients by
gloo on one machine, so nothing is gained by a second one; what is lost is their exchange.

- `one process`: two threads, one micro-batch a step: the usual training of two cores.
- `elastic`, `ddp`, `fsdp`: two processes of one thread, half of the rows each. `ratio` is to one
  process; elastic's second row is to ddp.
- `8 passes`: one process whose step is in 8 passes, which are accumulated one after the other; and
  in a tree of 8 micro-batches, which is what `elastic` on one process costs. `ratio` is to those.

Every turn is in processes of its own, and they take turns; the medians count.
"""

import argparse
import faulthandler
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import limits
import torch
import torch.distributed as dist
from limits import row
from train import CONFIG, VOCAB_SIZE

from slm.config import PipelineConfig
from slm.records import ShardSplit
from slm.training.child import child_environment
from slm.training.plan import make_plan, memory_bytes
from slm.training.session import synthetic_session
from slm.training.step import train_step

TURN_SECONDS = 600  # after which a turn prints where its processes stand, and fails


@dataclass(frozen=True)
class Setting:
    """How a step is trained."""

    processes: int
    threads: int  # of each
    parallel: Literal["elastic", "ddp", "fsdp"]
    micro_batches: int
    passes: int = 1  # of each micro-batch

    @property
    def config(self) -> PipelineConfig:
        rows = CONFIG.train.tokens_per_step // CONFIG.model.seq_len
        parts = self.processes if self.parallel != "elastic" else self.micro_batches
        changed = {
            "device": "cpu",
            "threads": self.threads,
            "processes": self.processes,
            "parallel": self.parallel,
            "micro_batches": self.micro_batches if self.parallel == "elastic" else "auto",
            "micro_batch_size": rows // parts // self.passes,
        }
        return CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update=changed)})


SETTINGS = {
    "one process": Setting(1, 2, "elastic", 1),
    "elastic": Setting(2, 1, "elastic", 2),
    "ddp": Setting(2, 1, "ddp", 1),
    "fsdp": Setting(2, 1, "fsdp", 1),
    "one process, 8 passes": Setting(1, 2, "elastic", 1, passes=8),
    "one process, a tree of 8": Setting(1, 2, "elastic", 8),
}
COMPARED = {  # each setting → those that its speed and its memory are a ratio to
    "elastic": ("one process", "ddp"),
    "ddp": ("one process",),
    "fsdp": ("one process", "ddp"),
    "one process, a tree of 8": ("one process, 8 passes",),
}


def run(rounds: int = 3, batches: int = 6) -> dict[str, Any]:
    """Measure and return `{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        rounds: turns of each setting; the medians count.
        batches: steps that are timed in a turn.
    """
    speeds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    peaks: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for round_ in range(rounds):
        print(f"round {round_ + 1}", file=sys.stderr)
        for name in SETTINGS:
            measured = train_once(name, batches)
            speeds[name].append(measured["tok_per_sec"])
            peaks[name].append(measured["peak_bytes"])
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    peak = {name: statistics.median(values) for name, values in peaks.items()}
    rows = []
    for name in SETTINGS:
        others = COMPARED.get(name, ())
        rows += [row(name, "training", speed[name], "tokens/s")] if not others else []
        for other in others:
            ratio = speed[name] / speed[other]
            rows.append(row(f"{name}, next to {other}", "training", speed[name], "tokens/s", ratio))
        first = peak[others[0]] if others else None
        ratio_of_memory = peak[name] / first if first else None
        rows.append(row(name, "peak memory of a process", peak[name], "bytes", ratio_of_memory))
    return {"machine": limits.machine(), "rows": rows}


def train_once(name: str, batches: int) -> dict[str, float]:
    """One turn in processes of its own: what the first of them measured."""
    setting = SETTINGS[name]
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--setting", name, "--batches", str(batches)]
        environment = child_environment(setting.config, setting.processes)
        environment |= {"WORLD_SIZE": str(setting.processes), "MEETING": f"{folder}/group"}
        children = [
            subprocess.Popen(
                command,
                env={**environment, "RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(setting.processes)
        ]
        output = children[0].communicate()[0]
        codes = [child.wait() for child in children]
    assert codes == [0] * setting.processes, f"{name}: exit codes {codes}"
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def time_steps(name: str, batches: int) -> dict[str, float]:
    """Tokens/s by the median step, and the peak memory, of this process."""
    faulthandler.dump_traceback_later(TURN_SECONDS, exit=True)
    setting, rank = SETTINGS[name], int(os.environ["RANK"])
    config, count = setting.config, setting.processes
    torch.set_num_threads(setting.threads)
    if count > 1:
        meeting = f"file://{Path(os.environ['MEETING'])}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    unknown = ShardSplit(files=[], documents=0, tokens=0, bytes=0)
    plan = make_plan(config, unknown, count)
    session = synthetic_session(config, plan, VOCAB_SIZE, rank, count)
    session.model.train()
    x, y = session.loader.batch(0)
    train_step(session, x, y)
    times = []
    for _ in range(batches):
        begin = time.perf_counter()
        train_step(session, x, y)
        times.append(time.perf_counter() - begin)
    if count > 1:
        dist.barrier()  # none ends while another one is in its last exchange
    seconds = statistics.median(times)
    return {
        "tok_per_sec": config.train.tokens_per_step / seconds,
        "peak_bytes": float(memory_bytes("cpu")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.setting:
        print(json.dumps(time_steps(arguments.setting, arguments.batches)), flush=True)
        os._exit(0)
    result = run(arguments.rounds, arguments.batches)
    if arguments.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
