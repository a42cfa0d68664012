"""Runs that a known law made, with the noise of their seeds."""

import numpy as np

from slm.sizing.best import Shape
from slm.sizing.budgets import Budget
from slm.sizing.law import Law, Point
from slm.sizing.result import Rung

NOISE = 0.004  # of the logarithm of a run's bits per byte
VOCABULARY = 4096
LAW = Law(E=0.4, A=0.25 * 1e6**0.4, alpha=0.4, B=0.35 * 8e6**0.5, beta=0.5)
SHAPES = {"0.1M": (64, 2), "0.6M": (128, 3), "3M": (256, 4), "14M": (448, 6)}  # width, blocks
TOKENS = (2e6, 8e6, 32e6)
UNIQUE = 20_000_000


def shape(size: str, width: int, blocks: int) -> Shape:
    inside, vocabulary = 12 * width**2 * blocks, VOCABULARY * width
    flops = 6.0 * (inside + vocabulary) + 6.0 * blocks * width * 256
    return Shape(
        size=size,
        n_layer=blocks,
        n_embd=width,
        parameters={"non-embedding": inside, "total": inside + vocabulary},
        flops_per_token=flops,
        tok_per_sec=1e12 / (flops + 2e7),  # of a machine that takes a while for anything
    )


def rungs(
    seed: int, *, tokens=TOKENS, shapes=SHAPES, law: Law = LAW, unique: int = UNIQUE
) -> list[Rung]:
    """Two runs of each size on each number of tokens; N is the non-embedding parameters."""
    generator = np.random.default_rng(seed)
    return [
        Rung(
            size=size,
            budget=Budget(kind="tokens", amount=count),
            seed=number,
            run=f"{size}-{count:.0f}-{number}",
            shape=(made := shape(size, *shapes[size])),
            tokens=int(count),
            unique_tokens=unique,
            seconds=count / made.tok_per_sec,
            val_bpb=noisy(law, made, count, unique, generator),
        )
        for size in shapes
        for count in tokens
        for number in (1, 2)
    ]


def noisy(law: Law, made: Shape, tokens: float, unique: float, generator) -> float:
    exact = float(law.bpb(made.parameters["non-embedding"], tokens, unique))
    return exact * float(np.exp(NOISE * generator.standard_normal()))


def points(seed: int, **changed) -> list[Point]:
    return [rung.point for rung in rungs(seed, **changed)]
