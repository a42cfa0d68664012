"""Training speed: ours next to Hugging Face's GPT-2 and the notebook's loop, in one run.

One shape for all: GPT-2, 6 layers, 6 heads, width 384, context 128, 50,257 tokens: 29,995,392
parameters; random tokens, one batch size. Each loop runs in a process of its own, they take turns,
and medians count.

- `slm`: our train_step, in the environment that `slm.training.launch` gives it.
- `transformers`: GPT2LMHeadModel in a plain loop with AdamW and clipping; float32 and bf16
  autocast as people run it, and bf16 in our environment.
- `notebook`: the Colab notebook's loop, written anew from its description with its defects:
  float32, all logits together, an optimizer step every 16 micro-steps, a schedule step at each.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config import ModelConfig, PipelineConfig, TrainConfig
from slm.machine import available_cores
from slm.records import Plan
from slm.training.launch import child_environment
from slm.training.loop import train_step
from slm.training.plan import pick_precision
from slm.training.session import Session, synthetic_session

SHAPE = ModelConfig(n_layer=6, n_head=6, n_embd=384, seq_len=128, dropout=0.1)
VOCAB_SIZE = 50_257
ROWS = 32
CONFIG = PipelineConfig(
    recipe="bench",
    model=SHAPE,
    train=TrainConfig(max_steps=1, tokens_per_step=ROWS * SHAPE.seq_len, learning_rate=1e-3),
)
ACCUMULATION = 16  # the notebook's micro-steps per optimizer step

Batch = Callable[[], tuple[Tensor, Tensor]]  # makes inputs and targets, (ROWS, T) each
Step = Callable[[], None]  # trains on one batch


def run(rounds: int = 3, batches: int = 4) -> dict[str, Any]:
    """Measure and return `{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        rounds: turns that each loop takes, in a new process; their median counts.
        batches: timed in each turn, after one to warm up.

    `ratio` is our tokens/s over the row's, and for memory the row's over ours.
    """
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in LOOPS}
    for round_ in range(rounds):
        for name in LOOPS:
            print(f"round {round_ + 1}: {name}", file=sys.stderr)
            turns[name].append(_measure(name, batches))
    rows = []
    for metric, unit in (("tok_per_sec", "tokens/s"), ("peak_bytes", "bytes")):
        medians = {name: statistics.median(r[metric] for r in rs) for name, rs in turns.items()}
        ours = medians["slm"]
        for name, value in medians.items():
            ratio = ours / value if metric == "tok_per_sec" else value / ours
            rows.append(
                {"name": name, "metric": metric, "value": value, "unit": unit, "ratio": ratio}
            )
    machine = f"{platform.processor() or platform.machine()}, {available_cores()} threads"
    return {"machine": f"{machine}, torch {torch.__version__}", "rows": rows}


def _measure(name: str, batches: int) -> dict[str, float]:
    """One turn of a loop in a process of its own."""
    _, ours = LOOPS[name]
    environment = child_environment(CONFIG) if ours else {**os.environ}
    command = [sys.executable, __file__, "--loop", name, "--batches", str(batches)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def time_loop(name: str, batches: int) -> dict[str, float]:
    """Tokens/s (by the median batch) and peak memory of one loop, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(available_cores())
    step, _ = LOOPS[name][0](random_batch)
    step()
    times = []
    for _ in range(batches):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tok_per_sec": ROWS * SHAPE.seq_len / statistics.median(times),
        "peak_bytes": float(peak),
    }


def random_batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, VOCAB_SIZE, (ROWS, SHAPE.seq_len + 1))
    return ids[:, :-1], ids[:, 1:].contiguous()


# ---- the loops --------------------------------------------------------------------------------


def new_session() -> Session:
    """Our training at this shape, before its first step."""
    plan = Plan(
        max_steps=1,
        rows=ROWS,
        micro_batch_size=ROWS,
        world_size=1,
        device="cpu",
        precision=pick_precision("auto", "cpu"),
        threads=available_cores(),
        compile=False,
    )
    session = synthetic_session(CONFIG, plan, VOCAB_SIZE)
    session.model.train()
    return session


def ours(batch: Batch) -> tuple[Step, nn.Module]:
    session = new_session()

    def step() -> None:
        train_step(session, session.model, *batch())

    return step, session.model


def transformers_loop(batch: Batch, *, bf16: bool) -> tuple[Step, nn.Module]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=SHAPE.seq_len,
        n_embd=SHAPE.n_embd,
        n_layer=SHAPE.n_layer,
        n_head=SHAPE.n_head,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> None:
        x, _ = batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(x, labels=x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, model


class NotebookBlock(nn.Module):
    """A GPT-2 block as the notebook builds it: one fused projection, dropout, GELU."""

    def __init__(self) -> None:
        super().__init__()
        width = SHAPE.n_embd
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(SHAPE.dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows, places, width = x.shape
        heads = (rows, places, SHAPE.n_head, width // SHAPE.n_head)
        q, k, v = (p.view(heads).transpose(1, 2) for p in self.qkv(self.norm_1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=SHAPE.dropout, is_causal=True)
        x = x + self.dropout(self.out(y.transpose(1, 2).reshape(rows, places, width)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))


class NotebookModel(nn.Module):
    """Embeddings, blocks, and all logits together through the tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB_SIZE, SHAPE.n_embd)
        self.places = nn.Embedding(SHAPE.seq_len, SHAPE.n_embd)
        self.blocks = nn.Sequential(*(NotebookBlock() for _ in range(SHAPE.n_layer)))
        self.norm = nn.LayerNorm(SHAPE.n_embd)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.hidden(x), self.tokens.weight)

    def hidden(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.tokens(x) + self.places.weight[: x.shape[1]]))


def notebook_loop(batch: Batch) -> tuple[Step, nn.Module]:
    model = NotebookModel().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20_000, eta_min=5e-4)
    micro_steps = 0

    def step() -> None:
        nonlocal micro_steps
        x, y = batch()
        logits = model(x)
        loss = F.cross_entropy(logits.view(-1, VOCAB_SIZE), y.reshape(-1)) / ACCUMULATION
        loss.backward()
        micro_steps += 1
        if micro_steps % ACCUMULATION == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        schedule.step()

    return step, model


# name → (what makes its step, whether it runs in our environment)
LOOPS: dict[str, tuple[Callable[[Batch], tuple[Step, nn.Module]], bool]] = {
    "slm": (ours, True),
    "transformers float32": (partial(transformers_loop, bf16=False), False),
    "transformers bf16": (partial(transformers_loop, bf16=True), False),
    "transformers bf16, our environment": (partial(transformers_loop, bf16=True), True),
    "notebook": (notebook_loop, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.loop:
        print(json.dumps(time_loop(arguments.loop, arguments.batches)))
        return
    result = run(arguments.rounds, arguments.batches)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print(f"{row['name']:36} {row['value']:16,.0f} {row['unit']:9} {row['ratio']:6.2f}")


if __name__ == "__main__":
    main()
