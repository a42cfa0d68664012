"""Time to quality: bits per byte on held-out documents against seconds of training.

All train on the same documents of a folder in the hub's layout (train and validation parquet) and
are scored on the same held-out ones; bits per byte do not depend on the vocabulary.

- `slm`: the recipe `tinystories-sample` as a user runs it, for every limit in seconds and every
  seed. Its time is the wall clock of the training process from its first step on, with evaluation,
  checkpoints and journal in it.
- `transformers`, `notebook`: the loops of benchmarks/train.py, 29,995,392 parameters over the whole
  vocabulary, on real batches. Their time is that of their steps alone.

The notebook's whole training takes hours: its final score is given as measured elsewhere, on its
own held-out split.

`--isa` measures each kind of CPU that this one can show.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import limits
import torch
from limits import row
from torch import Tensor
from train import LOOPS, ROWS, SHAPE

import slm.source.download
import slm.training.launch
from slm.config import GPT2_VOCAB_SIZE
from slm.evaluation.scoring import score
from slm.machine import available_cores
from slm.model.gpt import GPT
from slm.recipes import load_recipe
from slm.records import Shards
from slm.run_folder import RunFolder
from slm.tokens.encode import encode
from slm.tokens.loader import Loader
from slm.tokens.shards.reading import documents, read_shards, read_tokens
from slm.tokens.tokenizer.bpe import Tokenizer

RECIPE = "tinystories-sample"
PEERS = ("transformers float32", "transformers bf16", "notebook")
SCORED = 64  # held-out documents per point of a curve: the recipe's evaluate_documents
EVALUATE_EVERY = 50  # steps; an evaluation takes about as long as three of them
BPB = "bits per byte"
REPORT_EVERY = 30.0  # seconds of a peer's training between two points
WHOLE_NOTEBOOK = {"tokens": 4_096_000, "val_bpb": 1.28}  # its 20,000 micro-steps, run elsewhere

Curve = list[tuple[float, float]]  # (seconds, bits per byte)


def run(
    data: Path, durations: list[float], seeds: list[int], peer_seconds: float
) -> dict[str, Any]:
    """`{"machine": …, "limit": …, "rows": [{name, metric, value, unit, ratio}], "curves": …}`.

    `curves`: name → [(seconds, bits per byte)].
    """
    curves: dict[str, Curve] = {}
    rows = []
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        for seconds in durations:
            finals = []
            for seed in seeds:
                print(f"slm: {seconds:.0f} s, seed {seed}", file=sys.stderr)
                curve, final = train_ours(data, root, seconds, seed)
                curves[f"slm, {seconds:.0f} s, seed {seed}"] = curve
                finals.append(final)
            name = f"slm after {seconds:.0f} s, median of {len(seeds)} seeds"
            rows.append(row(name, "val_bpb", statistics.median(finals), BPB))
        shards = whole_vocabulary(data, root)
        for name in PEERS if peer_seconds else ():
            print(name, file=sys.stderr)
            peer = measure_peer(name, shards.path, peer_seconds)
            curves[name] = peer["curve"]
            rows.append(
                row(f"{name} after {peer_seconds:.0f} s", "val_bpb", peer["curve"][-1][1], BPB)
            )
            if name == "notebook":
                whole = WHOLE_NOTEBOOK["tokens"] / peer["tok_per_sec"]
                ours = first_below(curves, WHOLE_NOTEBOOK["val_bpb"])
                rows.append(row("notebook, its whole training", "seconds", whole, "s"))
                if ours is not None:
                    name = f"slm passes its {WHOLE_NOTEBOOK['val_bpb']} bits per byte"
                    rows.append(row(name, "seconds", ours, "s", whole / ours))
    limit = limits.measure()
    rows += limit.as_rows()
    result = {"machine": limits.machine(), "limit": limit._asdict(), "rows": rows}
    return {**result, "curves": curves}


def run_isas(arguments: argparse.Namespace) -> dict[str, Any]:
    """`run` for each instruction set; names of rows and curves end in it, `limit` is by it."""
    common = ["--json", "--data", str(arguments.data)]
    common += ["--seconds", *map(str, arguments.seconds), "--seeds", *map(str, arguments.seeds)]
    common += ["--peer-seconds", str(arguments.peer_seconds)]
    whole: dict[str, Any] = {"limit": {}, "rows": [], "curves": {}}
    for isa in limits.isas(both=True):
        result = limits.in_child(__file__, common, limits.with_isa(isa))
        suffix = f" [{isa}]"
        whole["machine"] = result["machine"]
        whole["limit"][isa] = result["limit"]
        whole["rows"] += [{**each, "name": each["name"] + suffix} for each in result["rows"]]
        whole["curves"] |= {name + suffix: curve for name, curve in result["curves"].items()}
    return whole


# ---- ours -------------------------------------------------------------------------------------


def train_ours(data: Path, root: Path, seconds: float, seed: int) -> tuple[Curve, float]:
    """The curve over the scored slice, and the bits per byte of the last weights on all of val."""
    config = load_recipe(
        RECIPE,
        {
            "data.path": str(data),
            "train.max_seconds": seconds,
            "train.seed": seed,
            "train.evaluate_every": EVALUATE_EVERY,
            "train.evaluate_documents": SCORED,
        },
    )
    shards = encode(config, slm.source.download.download(config, root=root), root=root)
    trained = slm.training.launch.train(config, shards, root=root)
    events = list(RunFolder(trained.path).journal)
    start = next(event["time"] for event in events if event["event"] == "start")
    curve = [(e["time"] - start, e["val_bpb"]) for e in events if e["event"] == "evaluate"]
    return curve, trained.val_bpb


def first_below(curves: dict[str, Curve], bpb: float) -> float | None:
    """When ours first passes `bpb`: the median over the seeds, of the limit that is soonest."""
    passed: dict[str, list[float]] = {}
    for name, curve in curves.items():
        if name.startswith("slm"):
            times = [seconds for seconds, value in curve if value <= bpb]
            passed.setdefault(name.partition(", seed")[0], []).append(min(times, default=math.inf))
    soonest = min(statistics.median(times) for times in passed.values())
    return soonest if math.isfinite(soonest) else None


# ---- peers ------------------------------------------------------------------------------------


def whole_vocabulary(data: Path, root: Path) -> Shards:
    overrides = {"data.path": str(data), "data.vocab_size": GPT2_VOCAB_SIZE}
    config = load_recipe(RECIPE, overrides)
    return encode(config, slm.source.download.download(config, root=root), root=root)


def measure_peer(name: str, shards: Path, seconds: float) -> dict[str, Any]:
    """A peer's curve and speed, from a process of its own in its usual environment."""
    command = [sys.executable, __file__, "--peer", name, "--shards", str(shards)]
    command += ["--peer-seconds", str(seconds)]
    done = subprocess.run(command, env={**os.environ}, stdout=subprocess.PIPE, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def train_peer(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(available_cores())
    shards = read_shards(folder)
    tokens = [read_tokens(folder / file) for file in shards.splits["train"].files]
    loader = Loader(tokens, seq_len=SHAPE.seq_len, rows=ROWS, seed=0)
    batches: Iterator[tuple[Tensor, Tensor]] = loader.batches(0)
    step, model = LOOPS[name].make(lambda: next(batches))
    held_out = [d for d, _ in zip(documents(shards, "val"), range(SCORED), strict=False)]
    tokenizer = Tokenizer.load(folder / "tokenizer.tiktoken")
    curve: Curve = []
    spent, steps, due = 0.0, 0, 0.0
    while spent < seconds:
        begin = time.perf_counter()
        step()
        spent += time.perf_counter() - begin
        steps += 1
        if spent >= due or spent >= seconds:
            due = spent + REPORT_EVERY
            scored = score(cast(GPT, Scored(model)), held_out, tokenizer.eot, tokenizer.token_bytes)
            curve.append((spent, scored.val_bpb))
    return {"curve": curve, "tok_per_sec": steps * ROWS * SHAPE.seq_len / spent}


class Scored:
    """A peer's model in the form in which `scoring.score` takes ours: hidden states, tied table."""

    def __init__(self, model: Any) -> None:
        hugging_face = hasattr(model, "transformer")
        table = model.transformer.wte if hugging_face else model.tokens
        self.model, self.embed = model, SimpleNamespace(weight=table.weight)
        self.config = SimpleNamespace(seq_len=SHAPE.seq_len)
        self.training, self.eval, self.train = model.training, model.eval, model.train
        self.hidden = (
            (lambda ids: model.transformer(ids).last_hidden_state) if hugging_face else model.hidden
        )

    def __call__(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.hidden(ids)
        return hidden


# ---- the plot ---------------------------------------------------------------------------------


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Draw all curves; those of a CPU without AMX are dashed."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "slm"
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    colours = {
        "slm": "tab:blue",
        "transformers float32": "tab:green",
        "transformers bf16": "tab:orange",
        "notebook": "tab:red",
    }
    labelled: set[str] = set()
    for name, curve in curves.items():
        family = name.partition(",")[0].partition(" [")[0]
        without_amx = name.endswith(f"[{limits.NO_AMX}]")
        label = f"{family}, no AMX" if without_amx else family
        axes.plot(
            *zip(*curve, strict=True),
            color=colours[family],
            linestyle="--" if without_amx else "-",
            marker=".",
            label=None if label in labelled else label,
        )
        labelled.add(label)
    axes.axhline(WHOLE_NOTEBOOK["val_bpb"], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="seconds of training, 2 CPU cores", ylabel="bits per byte, held-out stories")
    axes.set_ylim(0.75, 4)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train and validation parquet files")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60, 300])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--peer-seconds", type=float, default=120)
    parser.add_argument("--plot", type=Path, help="where to draw the curves (svg)")
    parser.add_argument("--isa", action="store_true", help="each kind of CPU this one can show")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(train_peer(arguments.peer, arguments.shards, arguments.peer_seconds)))
        return
    if arguments.data is None:
        parser.error("--data is needed: a folder with train and validation parquet files")
    if arguments.isa:
        result = run_isas(arguments)
    else:
        result = run(arguments.data, arguments.seconds, arguments.seeds, arguments.peer_seconds)
    if arguments.plot:
        plot(result["curves"], arguments.plot)
    if arguments.json:
        print(json.dumps(result))
        return
    limits.show(result)


if __name__ == "__main__":
    main()
