"""The experiments that the rules of the size dial (slm/size/, docs/sizing.md) are fitted on.

Ordinary trainings of qwen3 by Muon, with a linear schedule down to 0, on two corpora: the local
TinyStories of `--data`, and the generated stories of `quickstart`. Every finished one is a line of
JSON in `--out`; one that has a line is not trained again, so the script can be stopped and started
at will. The result depends on steps alone, never on the speed of the machine.

- `ladder`: four sizes × three budgets of tokens × two seeds; all but the largest on a fourth
  budget, with one seed.
- `held-out`: four times the compute of the ladder's third budget, to see what the law predicts.
- `rates`: both learning rates around those of the ladder, one at a time.
- `batch`: tokens per step around those of the ladder.
- `repeats`: the same budgets from few documents, which are seen many times.
- `shapes`: wide and deep models of one size, and heads half as wide.

`val_bpb` is that of the final weights on every held-out document. An evaluation during training
costs as much as a small training and is left out; so the last checkpoint is scored, not the best.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import slm
from slm.recipes import load_recipe
from slm.size import block_matrices
from slm.training.needs import measure

SIZES = {64: 2, 128: 2, 192: 3, 256: 4}  # width → blocks
BUDGETS = {65_536: 512, 196_608: 1024, 589_824: 1024, 1_769_472: 1024}  # tokens → per step
HELD_OUT = 2_359_296  # tokens of the largest size
SEEDS = (1, 2)
CORPORA = ("tinystories", "stories")
PARTS = ("ladder", "held-out", "rates", "batch", "repeats", "shapes")
HEAD_WIDTH = 64
NEVER = 10**6  # steps between evaluations and checkpoints: only the last step has them


class Experiment(NamedTuple):
    """One training of the experiments."""

    part: str
    corpus: str
    width: int
    tokens: int
    seed: int = 1
    layers: int | None = None  # None: those of SIZES
    batch: int | None = None  # None: that of BUDGETS
    rate: float = 1.2e-2  # AdamW's
    muon_rate: float = 0.02
    documents: int | None = None
    head_width: int = HEAD_WIDTH

    def overrides(self, data: Path) -> dict[str, Any]:
        """The settings by which a recipe becomes this training."""
        corpus: dict[str, Any] = {"data.documents": self.documents} if self.documents else {}
        if self.corpus == "tinystories":
            corpus["data.path"] = str(data)
        return corpus | {
            "name": f"sizing-{self.corpus}",
            "model.architecture": "qwen3",
            "model.n_layer": self.layers or SIZES[self.width],
            "model.n_embd": self.width,
            "model.n_head": self.width // self.head_width,
            "model.seq_len": 256,
            "train.max_tokens": self.tokens,
            "train.tokens_per_step": self.batch or BUDGETS[self.tokens],
            "train.optimizer": "muon",
            "train.learning_rate": self.rate,
            "train.muon_learning_rate": self.muon_rate,
            "train.schedule": "linear",
            "train.final_lr": 0.0,
            "train.threads": 1,  # two processes, one per corpus, are faster than two threads
            "train.seed": self.seed,
            "train.evaluate_every": NEVER,
            "train.checkpoint_every": NEVER,
            "evaluate.checkpoint": "last",
        }

    @property
    def recipe(self) -> str:
        return {"tinystories": "tinystories-sample", "stories": "quickstart"}[self.corpus]


def experiments() -> Iterator[Experiment]:
    """All of them, so ordered that a part of them is a ladder already."""
    small, middle, large, longest = BUDGETS
    yield from ladder(small, seed=1)
    yield from rates("tinystories", small, (64, 256), (0.5, 2.0, 4.0), (0.25, 0.5, 2.0, 4.0))
    yield from ladder(middle, seed=1)
    yield from rates("tinystories", middle, (64, 192), (0.5, 2.0), (0.5, 2.0))
    yield from ladder(large, seed=1)
    yield from ladder(small, seed=2)
    yield from ladder(middle, seed=2)
    yield from batches("tinystories", small, (128,))
    yield from repeats("tinystories", (640, 160), (64, 128))
    yield from batches("tinystories", large, (64,))
    yield from ladder(large, seed=2)
    yield from ladder(longest, seed=1, widths=list(SIZES)[:-1])
    for corpus in CORPORA:
        batch = BUDGETS[longest]
        yield Experiment("held-out", corpus, max(SIZES), HELD_OUT, batch=batch)
    yield from rates("stories", middle, (64, 192), (0.5, 2.0), (0.5, 2.0))
    yield from shapes("tinystories", middle)


def ladder(tokens: int, seed: int, widths: Iterable[int] = SIZES) -> Iterator[Experiment]:
    for width in widths:
        for corpus in CORPORA:
            yield Experiment("ladder", corpus, width, tokens, seed)


def rates(
    corpus: str,
    tokens: int,
    widths: tuple[int, ...],
    muon: tuple[float, ...],
    adamw: tuple[float, ...],
) -> Iterator[Experiment]:
    """Both rates times factors, one at a time."""
    for width in widths:
        base = Experiment("rates", corpus, width, tokens)
        for factor in muon:
            yield base._replace(muon_rate=base.muon_rate * factor)
        for factor in adamw:
            yield base._replace(rate=base.rate * factor)


def batches(corpus: str, tokens: int, widths: tuple[int, ...]) -> Iterator[Experiment]:
    for width in widths:
        for batch in (256, 512, 1024, 2048):
            if batch != BUDGETS[tokens]:
                yield Experiment("batch", corpus, width, tokens, batch=batch)


def repeats(
    corpus: str, documents: tuple[int, ...], widths: tuple[int, ...]
) -> Iterator[Experiment]:
    _, middle, large, _ = BUDGETS
    for count in documents:
        for width in widths:
            for tokens in (large, middle):
                yield Experiment("repeats", corpus, width, tokens, documents=count)


def shapes(corpus: str, tokens: int) -> Iterator[Experiment]:
    """About as many parameters inside the blocks as 128 wide and 4 blocks have, 0.80 million."""
    for width, layers in ((128, 4), (96, 7), (192, 2), (256, 1)):
        head = 48 if width == 96 else HEAD_WIDTH
        yield Experiment("shapes", corpus, width, tokens, layers=layers, head_width=head)
    yield Experiment("shapes", corpus, 128, tokens, layers=4, head_width=32)


def record(experiment: Experiment, data: Path) -> dict[str, Any]:
    """Train; returns the line of a finished training."""
    began = time.monotonic()
    overrides = experiment.overrides(data)
    made = slm.run(experiment.recipe, overrides, until="train")
    run = slm.open_run(made["run"])
    config, result, shards = run.config, run.record, run.shards
    assert result is not None
    assert shards is not None
    model, unique = config.model, shards.splits["train"].tokens
    inside = model.n_layer * sum(block_matrices(model))
    return {
        "part": experiment.part,
        "corpus": experiment.corpus,
        "recipe": experiment.recipe,
        "overrides": {k: v for k, v in overrides.items() if k not in ("data.path", "name")},
        "n_layer": model.n_layer,
        "n_embd": model.n_embd,
        "n_head": model.n_head,
        "seq_len": model.seq_len,
        "vocab_size": config.data.vocab_size,
        "non_embedding": inside,
        "vocabulary": config.data.vocab_size * model.n_embd,
        "parameters": result.parameters,
        "flops_per_token": measure(config).flops_per_token,
        "tokens": result.tokens,
        "steps": result.step,
        "tokens_per_step": config.train.tokens_per_step,
        "unique_tokens": unique,
        "epochs": result.tokens / unique,
        "learning_rate": config.train.learning_rate,
        "muon_learning_rate": config.train.muon_learning_rate,
        "seed": config.train.seed,
        "val_loss": result.val_loss,
        "val_bpb": result.val_bpb,
        "train_loss": result.train_loss,
        "weights_sha256": result.weights_sha256,
        "run": run.name,
        "seconds": round(time.monotonic() - began, 2),
    }


def run_all(
    data: Path, out: Path, parts: list[str], corpora: list[str], *, at_once: int = 1
) -> None:
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = [(line["corpus"], line["overrides"]) for line in lines]
    missing: dict[str, Experiment] = {}  # by settings: parts share experiments
    for experiment in experiments():
        asked = experiment.overrides(data)
        same = {k: v for k, v in asked.items() if k not in ("data.path", "name")}
        chosen = experiment.part in parts and experiment.corpus in corpora
        if chosen and (experiment.corpus, same) not in done:
            load_recipe(experiment.recipe, asked)  # raises before anything is trained
            missing.setdefault(json.dumps([experiment.corpus, same]), experiment)
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        pending = {pool.submit(record, each, data): each for each in missing.values()}
        for future in as_completed(pending):
            line = future.result()
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{pending[future]}: {line['val_bpb']:.4f}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of TinyStories' parquet")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to add to")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=CORPORA)
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time")
    arguments = parser.parse_args()
    run_all(
        arguments.data,
        arguments.out,
        arguments.parts,
        arguments.corpora,
        at_once=arguments.at_once,
    )


if __name__ == "__main__":
    main()
