"""What the runs of benchmarks/sizing.py show: the figures of slm/size/ and of docs/sizing.md.

Prints, of each corpus: the law L(N, D) of slm/sizing/fit.py and the tokens per parameter at which a
FLOP is best spent; the peak rates at which a parabola through the best ones is lowest; and the
tables of batches, repetitions and shapes.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import UserError
from slm.size import ASPECT

Run = dict[str, Any]
SETTINGS = ("learning_rate", "muon_learning_rate", "tokens_per_step")
SAME = ("corpus", "n_layer", "n_embd", "n_head", "tokens", "unique_tokens", "seed")
BUDGETS = (1e12, 1e13, 1e14, 1e15, 1e16)  # FLOP


def read_runs(path: Path) -> list[Run]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- rates and batches ------------------------------------------------------------------------


def scans(runs: Iterable[Run], setting: str) -> dict[tuple[Any, ...], list[tuple[float, float]]]:
    """Runs that differ in one setting alone: what they share → (setting, bits per byte)."""
    others = [name for name in SETTINGS if name != setting]
    groups: dict[tuple[Any, ...], dict[float, float]] = defaultdict(dict)
    for run in runs:
        key = tuple(run[name] for name in (*SAME, *others))
        groups[key][run[setting]] = run["val_bpb"]
    return {key: sorted(points.items()) for key, points in groups.items() if len(points) > 2}


def lowest(points: list[tuple[float, float]]) -> tuple[float, bool]:
    """Where a parabola over the logarithm is lowest, and whether the points enclose that.

    It goes through the best point and its neighbours: 0.01, 0.02 and 0.04 with 1.2, 1.1 and 1.2 are
    lowest at 0.02.
    """
    x, y = np.log([p[0] for p in points]), np.array([p[1] for p in points])
    best = int(y.argmin())
    if best in (0, len(x) - 1):
        return float(np.exp(x[best])), False
    near = slice(best - 1, best + 2)
    a, b, _ = np.polyfit(x[near], y[near], 2)
    return float(np.exp(-b / (2 * a))), True


def show_scans(runs: list[Run]) -> None:
    for setting in SETTINGS:
        print(f"\n{setting}")
        for key, points in sorted(scans(runs, setting).items()):
            corpus, layers, width, _, tokens, *_ = key
            value, inside = lowest(points)
            shown = "  ".join(f"{x:g}: {y:.4f}" for x, y in points)
            end = f"{value:.3g}" + ("" if inside else ", at the end of the scan")
            print(f"  {corpus} {layers} x {width}, {tokens:,} tokens: {shown}  lowest {end}")


# ---- the law ----------------------------------------------------------------------------------


def optimum(law: Any, counted: str, flops: float, vocab: int, seq_len: int = 256) -> Run:
    """The depth on a fine grid at which a budget of FLOPs is best spent, were all tokens new.

    A model of d blocks is 64 d wide, and d need not be whole.
    """
    best: Run = {}
    for depth in np.geomspace(0.5, 40, 100):
        width = ASPECT * depth
        inside = depth * 12 * width**2
        vocabulary = vocab * width
        cost = 6 * (inside + vocabulary) + 6 * depth * width * seq_len
        size = inside if counted == "non-embedding" else inside + vocabulary
        bpb = float(law.bpb(size, flops / cost))
        if not best or bpb < best["bpb"]:
            best = {"inside": inside, "tokens": flops / cost, "bpb": bpb}
    return best


def show_law(runs: list[Run], resamples: int) -> None:
    from slm.sizing.fit import fit
    from slm.sizing.law import Point

    for corpus in sorted({run["corpus"] for run in runs}):
        own = [r for r in runs if r["corpus"] == corpus and r["part"] in ("ladder", "repeats")]
        points = [
            Point(
                cell=f"{r['n_layer']}x{r['n_embd']}, {r['tokens']} of {r['unique_tokens']}",
                parameters={"non-embedding": r["non_embedding"], "total": r["parameters"]},
                tokens=r["tokens"],
                unique_tokens=r["unique_tokens"],
                seed=r["seed"],
                bpb=r["val_bpb"],
            )
            for r in own
        ]
        try:
            fitted = fit(points, resamples=resamples)
        except UserError as error:
            print(f"{corpus}: {error}")
            continue
        print(f"\n{corpus}: {len(points)} runs, {fitted.law}, N counted as {fitted.counted}")
        print(f"  scatter {fitted.scatter:.2%}, compared {fitted.compared}, {fitted.assumed}")
        for name, value in fitted.intervals.items():
            print(f"  {name} {value.value:.4g} ({value.low:.4g} to {value.high:.4g})")
        vocab = own[0]["vocab_size"]
        for flops in BUDGETS:
            ratios = []
            for law in (fitted.law, *fitted.resampled):
                best = optimum(law, fitted.counted, flops, vocab)
                ratios.append(best["tokens"] / best["inside"])
            low, high = np.quantile(ratios[1:], (0.025, 0.975))
            best = optimum(fitted.law, fitted.counted, flops, vocab)
            print(
                f"  {flops:.0e} FLOP: {best['inside']:,.0f} inside, {best['tokens']:,.0f} tokens, "
                f"{ratios[0]:.1f} for each ({low:.1f} to {high:.1f}), {best['bpb']:.4f} bpb"
            )


def show_ladder(runs: list[Run]) -> None:
    """Mean bits per byte of the seeds, by corpus and size, over tokens."""
    cells = defaultdict(list)
    for run in runs:
        if run["part"] in ("ladder", "repeats"):
            epochs = f"{run['epochs']:.2f}"
            key = (run["part"], run["corpus"], run["non_embedding"], run["tokens"], epochs)
            cells[key].append(run["val_bpb"])
    for key, values in sorted(cells.items()):
        spread = (
            f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
        )
        print(*key, f"{np.mean(values):.4f}{spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the file that benchmarks/sizing.py writes")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap")
    arguments = parser.parse_args()
    runs = read_runs(arguments.runs)
    show_ladder(runs)
    show_scans(runs)
    for run in runs:
        if run["part"] == "shapes":
            print(
                f"{run['n_layer']} x {run['n_embd']}, {run['n_head']} heads: {run['val_bpb']:.4f}"
            )
    show_law(runs, arguments.resamples)


if __name__ == "__main__":
    main()
