"""A ladder of `tinystories-sample` that an H100 trained, and trainings of four times its compute.

`python benchmarks/extrapolation.py tinystories-sample --data FOLDER --budgets 0.5M,1M,2M
--sizes 0.1M,0.3M,1M,3M --held-out 1M,3M,6M`: two seeds of everything.
"""

from slm.sizing.best import Shape
from slm.sizing.budgets import Budget
from slm.sizing.result import Rung

UNIQUE = 1_018_450

# size: layers, width, parameters inside the blocks, all, FLOPs of a token
SIZES = {
    "0.1M": (2, 64, 106_496, 369_216, 2_408_448.0),
    "0.3M": (2, 112, 315_392, 774_928, 4_988_928.0),
    "1M": (3, 160, 952_320, 1_609_280, 10_383_360.0),
    "3M": (5, 224, 3_046_400, 3_966_928, 25_503_744.0),
    "6M": (5, 320, 6_195_200, 7_510_080, 47_493_120.0),
}

# (size, tokens): bits per byte of two seeds
LADDER = {
    ("0.1M", 501_760): (1.2281, 1.2381),
    ("0.1M", 1_001_472): (1.1209, 1.1213),
    ("0.1M", 2_000_896): (1.0404, 1.0416),
    ("0.3M", 501_760): (1.159, 1.1636),
    ("0.3M", 1_001_472): (1.0363, 1.0463),
    ("0.3M", 2_000_896): (0.9527, 0.9634),
    ("1M", 501_760): (1.1122, 1.1159),
    ("1M", 1_001_472): (0.9872, 0.9977),
    ("1M", 2_000_896): (0.879, 0.8768),
    ("3M", 501_760): (1.0897, 1.0897),
    ("3M", 1_001_472): (0.9572, 0.9638),
    ("3M", 2_000_896): (0.8459, 0.853),
}
FURTHER = {
    ("6M", 4_297_914): (0.7704, 0.7721),
    ("3M", 8_003_584): (0.8094, 0.8042),
    ("1M", 19_658_507): (0.9109, 0.9065),
}


def shape(size: str) -> Shape:
    layers, width, inside, total, flops = SIZES[size]
    return Shape(
        size=size,
        n_layer=layers,
        n_embd=width,
        parameters={"non-embedding": inside, "total": total},
        flops_per_token=flops,
    )


def rungs() -> list[Rung]:
    return [
        Rung(
            size=size,
            budget=Budget(kind="tokens", amount=tokens),
            seed=seed,
            run=f"{size}-{tokens}-{seed}",
            shape=shape(size),
            tokens=tokens,
            unique_tokens=UNIQUE,
            seconds=1.0,
            val_bpb=bpb,
        )
        for (size, tokens), scores in LADDER.items()
        for seed, bpb in enumerate(scores)
    ]
