"""A trained vocabulary next to GPT-2's trimmed to the same size: bits per byte at equal seconds.

    python benchmarks/vocabulary.py --data FOLDER_OF_JSONL --seconds 120 --seeds 1 2 3

Each seed trains one model with each vocabulary, of equal size, shape and seconds; both are scored
on all held-out documents, in bits per byte.
"""

import argparse
import json
import statistics

import slm

SHAPE = {"model.n_layer": 4, "model.n_embd": 256, "model.n_head": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="files")
    parser.add_argument("--data", help="data.path of the recipe files; left out: the recipe's own")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--pattern", default="qwen35")
    given = parser.parse_args()
    data = {"data.path": given.data} if given.data else {}
    vocabularies = {
        "gpt2": {"data.vocab_size": given.vocab_size},
        "own": {
            "data.tokenizer.train": "bpe",
            "data.tokenizer.vocab_size": given.vocab_size,
            "data.tokenizer.pattern": given.pattern,
        },
    }
    scores: dict[str, list[float]] = {name: [] for name in vocabularies}
    for seed in given.seeds:
        for name, settings in vocabularies.items():
            limit = {"train.max_seconds": given.seconds, "train.seed": seed}
            made = slm.run(given.recipe, {**data, **SHAPE, **settings, **limit}, until="evaluate")
            scores[name].append(made["val_bpb"])
            print(json.dumps({"vocabulary": name, "seed": seed, "val_bpb": made["val_bpb"]}))
    differences = [own - base for own, base in zip(scores["own"], scores["gpt2"], strict=True)]
    print(json.dumps({
        **{f"{name}_bpb": statistics.mean(values) for name, values in scores.items()},
        "difference": statistics.mean(differences),
        "stdev": statistics.stdev(differences) if len(differences) > 1 else None,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
