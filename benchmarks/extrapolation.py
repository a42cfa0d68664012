"""How well a ladder predicts trainings of four times the compute of its largest.

    python benchmarks/extrapolation.py tinystories-sample --data FOLDER \
        --budgets 0.5M,1M,2M --sizes 0.1M,0.3M,1M,3M --held-out 1M,3M,6M --workers 5

`slm ladder` trains, fits, and says which size is best for four times the compute of its largest
run. Then the sizes of `--held-out` are trained with that compute, two seeds each: a line each with
what was predicted, the band of a run, and what came out. Trainings end after a number of tokens, so
that no result depends on the speed of the machine.
"""

import argparse
import json
from typing import Any

import slm
from slm.recipes import load_recipe
from slm.sizing.ladder import SEEDS, SIZES
from slm.sizing.result import shape_of

FURTHER = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--data", help="data.path; left out: the recipe's own data")
    parser.add_argument("--documents", type=int, help="data.documents, of generated stories")
    parser.add_argument("--budgets", required=True, help="tokens, as of slm ladder")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--held-out", required=True, help="sizes of four times the compute")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    overrides: dict[str, Any] = {"evaluate.checkpoint": "last"}
    if given.data:
        overrides["data.path"] = given.data
    if given.documents:
        overrides["data.documents"] = given.documents
    ladder: dict[str, Any] = {
        "overrides": overrides,
        "sizes": given.sizes.split(","),
        "seeds": given.seeds,
        "workers": given.workers,
    }

    flops = FURTHER * slm.ladder(given.recipe, given.budgets, **ladder).max_flops
    result = slm.ladder(given.recipe, given.budgets, spend=f"{flops:.6e}", **ladder)
    fitted, unique, best = result.fit, result.unique_tokens, result.answers[0].best
    print(f"{given.recipe}: {len(result.rungs)} runs, {unique:,} unique tokens")
    print(f"law {fitted.law}, N counted as {fitted.counted}, runs {fitted.scatter:.2%} from it")
    print(f"best for {flops:.3g} FLOP: {best.shape.size}, {best.bpb}, {best.epochs:.1f} epochs")
    for size in given.held_out.split(","):
        config = load_recipe(given.recipe, {**overrides, "size": size, "train.max_tokens": 10**6})
        shape = shape_of(config, size)
        tokens = round(flops / shape.flops_per_token)
        expected = fitted.predict(shape.parameters[fitted.counted], tokens, unique)
        for seed in range(1, given.seeds + 1):
            settings = {"size": size, "train.max_tokens": tokens, "train.seed": seed}
            got = slm.run(given.recipe, {**overrides, **settings}, until="evaluate")["val_bpb"]
            print(json.dumps({
                "size": size, "parameters": shape.parameters, "tokens": tokens,
                "epochs": round(tokens / unique, 2), "seed": seed, "predicted": expected.value,
                "low": expected.low, "high": expected.high, "val_bpb": got,
                "off": expected.value / got - 1,
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
