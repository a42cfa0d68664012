"""Training speed: a step of ours next to Hugging Face's GPT-2 and the notebook's loop, in one run.

Three shapes of ours: the recipes `quickstart` and `tinystories-sample`, and GPT-2 with 6 layers,
6 heads, width 384, context 128 and 50,257 tokens (29,995,392 parameters), which the peers have too.
Random tokens, one batch size per shape. Each loop runs in a process of its own, they take turns,
and medians are reported.

- `slm`: our train_step, in the environment that `slm.training.launch` gives it.
- `transformers`: GPT2LMHeadModel in a plain loop with AdamW and clipping; float32 and bf16
  autocast as people run it, and bf16 in our environment.
- `notebook`: the Colab notebook's loop, written anew from its description with its defects:
  float32, all logits together, an optimizer step every 16 micro-steps, a schedule step at each.

The share of the limit is the FLOPs of a step over its seconds and the best large product that the
same process measures. For ours they are those in `STEP_FLOPS`, so that an algorithm with fewer
FLOPs is a gain; for peers, those that they make. The bound is the step's own products alone, each
in its shape at its fastest. `--isa` measures each kind of CPU that this one can show.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import limits
import torch
import torch.nn.functional as F
from limits import row
from torch import Tensor, nn

from slm.config import ModelConfig, PipelineConfig, TrainConfig
from slm.machine import available_cores
from slm.recipes import load_recipe
from slm.records import ShardSplit
from slm.training.child import child_environment
from slm.training.plan import make_plan, memory_bytes
from slm.training.session import Session, synthetic_session
from slm.training.step import train_step

SHAPE = ModelConfig(n_layer=6, n_head=6, n_embd=384, seq_len=128, dropout=0.1)
VOCAB_SIZE = 50_257
ROWS = 32
CONFIG = PipelineConfig(
    recipe="bench",
    model=SHAPE,
    train=TrainConfig(max_steps=1, tokens_per_step=ROWS * SHAPE.seq_len, learning_rate=1e-3),
)
ACCUMULATION = 16  # the notebook's micro-steps per optimizer step
STEP_FLOPS = {  # of a step's products, as this file counted them when the figures were fixed
    "slm": 742.5e9,
    "slm quickstart": 37.8e9,
    "slm tinystories-sample": 76.7e9,
}

Batch = Callable[[], tuple[Tensor, Tensor]]  # makes inputs and targets, (rows, T) each
Step = Callable[[], None]  # trains on one batch


@dataclass(frozen=True)
class Loop:
    """What is measured: a loop, the shape of its batches, and where it runs."""

    make: Callable[[Batch], tuple[Step, nn.Module]]
    ours: bool  # whether it runs in the environment that our launcher makes
    config: PipelineConfig = CONFIG
    vocab_size: int = VOCAB_SIZE

    @property
    def tokens(self) -> int:
        return self.config.train.tokens_per_step

    def random_batch(self) -> tuple[Tensor, Tensor]:
        length = self.config.model.seq_len
        ids = torch.randint(0, self.vocab_size, (self.tokens // length, length + 1))
        return ids[:, :-1], ids[:, 1:].contiguous()


def run(
    rounds: int = 3, batches: int = 4, both: bool = False, names: list[str] | None = None
) -> dict[str, Any]:
    """`{"machine": …, "limit": {isa: …}, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        rounds: turns that each loop takes, in a new process; their median counts.
        batches: timed in each turn, after one to warm up.
        both: whether to measure each kind of CPU that this one can show.
        names: the loops; None: all.

    `ratio` is our tokens/s over the row's, and for memory the row's over ours.
    """
    isas = limits.isas(both)
    turns: dict[tuple[str, str], list[dict[str, float]]] = {}
    for round_ in range(rounds):
        for isa in isas:
            for name in names or LOOPS:
                print(f"round {round_ + 1}: {name}, {isa}", file=sys.stderr)
                turns.setdefault((isa, name), []).append(_measure(name, batches, isa))
    rows, limit = [], {}
    for isa in isas:
        of_isa = {name: medians(values) for (each, name), values in turns.items() if each == isa}
        suffix = f" [{isa}]" if both else ""
        rows += [{**each, "name": each["name"] + suffix} for each in isa_rows(of_isa)]
        best = {k: max(m[k] for m in of_isa.values()) for k in ("float32", "bf16", "bandwidth")}
        limit[isa] = best
        rows += [
            {**each, "name": each["name"] + suffix} for each in limits.Limits(**best).as_rows()
        ]
    return {"machine": limits.machine(), "limit": limit, "rows": rows}


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}


def isa_rows(measured: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The rows of one instruction set."""
    rows = []
    ours = measured.get("slm")
    for name, figures in measured.items():
        peer = ours if LOOPS[name].config is CONFIG else None
        speed, peak = figures["tok_per_sec"], figures["peak_bytes"]
        faster = peer["tok_per_sec"] / speed if peer else None
        rows += [
            row(name, "speed", speed, "tokens/s", faster),
            row(name, "share of the best product", 100 * figures["share"], "%"),
            row(name, "products of a step", figures["flops"] / 1e9, "GFLOP"),
            row(name, "peak memory", peak, "bytes", peak / peer["peak_bytes"] if peer else None),
        ]
        if "bound" in figures:
            rows.append(
                row(name, "share that its products alone allow", 100 * figures["bound"], "%")
            )
    return rows


def _measure(name: str, batches: int, isa: str) -> dict[str, float]:
    """One turn of a loop in a process of its own."""
    loop = LOOPS[name]
    environment = child_environment(loop.config) if loop.ours else None
    arguments = ["--loop", name, "--batches", str(batches)]
    measured: dict[str, float] = limits.in_child(
        __file__, arguments, limits.with_isa(isa, environment)
    )
    return measured


def profiles(names: list[str], both: bool) -> dict[str, Any]:
    """`run`'s form, with the share of a step that each kind of operation takes."""
    rows = []
    for isa in limits.isas(both):
        for name in names:
            loop = LOOPS[name]
            environment = child_environment(loop.config) if loop.ours else None
            shares = limits.in_child(
                __file__, ["--loop", name, "--profile"], limits.with_isa(isa, environment)
            )
            label = f"{name} [{isa}]" if both else name
            rows += [row(label, kind, 100 * share, "%") for kind, share in shares.items()]
    return {"machine": limits.machine(), "limit": {}, "rows": rows}


def time_loop(name: str, batches: int) -> dict[str, float]:
    """Tokens/s (by the median batch), shares and peak memory of one loop, in this process."""
    loop, step = start(name)
    times = []
    for _ in range(batches):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    peak = memory_bytes("cpu")
    seconds = statistics.median(times)
    limit = limits.measure()
    with limits.Products() as products:
        step()
    flops = STEP_FLOPS.get(name, products.flops)
    figures = {
        "tok_per_sec": loop.tokens / seconds,
        "share": flops / seconds / limit.product,
        "flops": float(products.flops),
        "peak_bytes": float(peak),
        "float32": limit.float32,
        "bf16": limit.bf16,
        "bandwidth": limit.bandwidth,
    }
    if loop.ours and name in STEP_FLOPS:
        figures["bound"] = flops / products.bound_seconds() / limit.product
    return figures


def start(name: str) -> tuple[Loop, Step]:
    """A loop after its first step, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(available_cores())
    loop = LOOPS[name]
    step, _ = loop.make(loop.random_batch)
    step()
    return loop, step


# ---- the loops --------------------------------------------------------------------------------


def new_session(config: PipelineConfig = CONFIG, vocab_size: int = VOCAB_SIZE) -> Session:
    """Our training at a shape, before its first step."""
    rows = config.train.tokens_per_step // config.model.seq_len
    train = config.train.model_copy(update={"device": "cpu", "micro_batch_size": rows})
    config = config.model_copy(update={"train": train})
    split = ShardSplit(files=[], documents=0, tokens=0, bytes=0)
    plan = make_plan(config, split, world_size=1)
    session = synthetic_session(config, plan, vocab_size)
    session.model.train()
    return session


def ours(
    batch: Batch, config: PipelineConfig = CONFIG, vocab_size: int = VOCAB_SIZE
) -> tuple[Step, nn.Module]:
    session = new_session(config, vocab_size)

    def step() -> None:
        train_step(session, *batch())

    return step, session.model


def recipe_loop(name: str) -> Loop:
    """A step of a recipe, at its vocabulary's largest size."""
    config = load_recipe(name, {"data.path": "unused"} if name == "tinystories-sample" else {})
    size = config.data.vocab_size
    return Loop(partial(ours, config=config, vocab_size=size), True, config, size)


def transformers_model(shape: ModelConfig = SHAPE, vocab_size: int = VOCAB_SIZE) -> Any:
    """Hugging Face's GPT-2 of a shape; its dropout is 0.1 by default."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=shape.seq_len,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
    )
    return GPT2LMHeadModel(config)


def transformers_loop(batch: Batch, *, bf16: bool) -> tuple[Step, nn.Module]:
    model = transformers_model().train()
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

    def __init__(self, shape: ModelConfig = SHAPE) -> None:
        super().__init__()
        self.shape, width = shape, shape.n_embd
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows, places, width = x.shape
        heads = (rows, places, self.shape.n_head, width // self.shape.n_head)
        q, k, v = (p.view(heads).transpose(1, 2) for p in self.qkv(self.norm_1(x)).chunk(3, -1))
        dropped = self.shape.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropped, is_causal=True)
        x = x + self.dropout(self.out(y.transpose(1, 2).reshape(rows, places, width)))
        out: Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))
        return out


class NotebookModel(nn.Module):
    """Embeddings, blocks, and all logits together through the tied embedding."""

    def __init__(self, shape: ModelConfig = SHAPE, vocab_size: int = VOCAB_SIZE) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, shape.n_embd)
        self.places = nn.Embedding(shape.seq_len, shape.n_embd)
        self.blocks = nn.Sequential(*(NotebookBlock(shape) for _ in range(shape.n_layer)))
        self.norm = nn.LayerNorm(shape.n_embd)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.hidden(x), self.tokens.weight)

    def hidden(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.blocks(self.tokens(x) + self.places.weight[: x.shape[1]]))
        return out


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
        loss.backward()  # type: ignore[no-untyped-call]
        micro_steps += 1
        if micro_steps % ACCUMULATION == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        schedule.step()

    return step, model


LOOPS: dict[str, Loop] = {
    "slm": Loop(ours, True),
    "transformers float32": Loop(partial(transformers_loop, bf16=False), False),
    "transformers bf16": Loop(partial(transformers_loop, bf16=True), False),
    "transformers bf16, our environment": Loop(partial(transformers_loop, bf16=True), True),
    "notebook": Loop(notebook_loop, False),
    "slm quickstart": recipe_loop("quickstart"),
    "slm tinystories-sample": recipe_loop("tinystories-sample"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--isa", action="store_true", help="each kind of CPU this one can show")
    parser.add_argument("--only", nargs="+", choices=LOOPS, help="these loops alone")
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="by kind of operation instead")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.loop and arguments.profile:
        print(json.dumps(limits.by_kind(start(arguments.loop)[1])))
        return
    if arguments.loop:
        print(json.dumps(time_loop(arguments.loop, arguments.batches)))
        return
    if arguments.profile:
        result = profiles(
            arguments.only or [n for n in LOOPS if n.startswith("slm")], arguments.isa
        )
    else:
        result = run(arguments.rounds, arguments.batches, arguments.isa, arguments.only)
    if arguments.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
