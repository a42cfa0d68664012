"""A trained vocabulary next to GPT-2's trimmed to the same size: bits per byte at equal seconds.

    python benchmarks/vocabulary.py --data FOLDER_OF_JSONL --seconds 120 --seeds 1 2 3

Each seed trains one model with each vocabulary, of equal size, shape and seconds. The two train at
the same moment, with half of the cores each, so that whatever else the machine does slows both.
Both are scored on all held-out documents, in bits per byte.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import slm
from slm.machine import available_cores

SHAPE = {"model.n_layer": 4, "model.n_embd": 256, "model.n_head": 4}


def val_bpb(recipe: str, settings: Mapping[str, object]) -> float:
    """Train and evaluate a recipe with these settings."""
    return float(slm.run(recipe, settings, until="evaluate")["val_bpb"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="files")
    parser.add_argument("--data", help="data.path of the recipe files; left out: the recipe's own")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--pattern", default="qwen35")
    given = parser.parse_args()
    common: dict[str, object] = {
        **SHAPE,
        "train.max_seconds": given.seconds,
        "train.threads": max(1, available_cores() // 2),
    }
    if given.data:
        common["data.path"] = given.data
    vocabularies: dict[str, dict[str, object]] = {
        "gpt2": {"data.vocab_size": given.vocab_size},
        "own": {
            "data.tokenizer.train": "bpe",
            "data.tokenizer.vocab_size": given.vocab_size,
            "data.tokenizer.pattern": given.pattern,
        },
    }
    for settings in vocabularies.values():  # out of the seconds that are compared
        slm.run(given.recipe, {**common, **settings}, until="encode")

    differences = []
    scores: dict[str, list[float]] = {name: [] for name in vocabularies}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for seed in given.seeds:
            pending = {
                name: pool.submit(val_bpb, given.recipe, {**common, **settings, "train.seed": seed})
                for name, settings in vocabularies.items()
            }
            made = {name: future.result() for name, future in pending.items()}
            for name, score in made.items():
                scores[name].append(score)
            differences.append(made["own"] - made["gpt2"])
            print(json.dumps({"seed": seed, **made}), flush=True)
    print(json.dumps({
        **{f"{name}_bpb": statistics.mean(values) for name, values in scores.items()},
        "difference": statistics.mean(differences),
        "stdev": statistics.stdev(differences) if len(differences) > 1 else None,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
