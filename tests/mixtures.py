"""Small mixtures: two files of documents, some of them in both, and a recipe over them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slm.config import PipelineConfig
from slm.recipes import load_recipe

SENTENCE = "a cat and a dog went to the hills and found a small red ball under the old tree"
WORDS = SENTENCE.split(" ")


def text(kind: str, number: int) -> str:
    """A document of a kind; of a number always the same."""
    places = (number * 7 + i * (2 + number % 5) for i in range(12 + number % 9))
    words = [WORDS[place % len(WORDS)] for place in places]
    return f"{kind} {number}: {' '.join(words)}."


def write(path: Path, texts: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return path


def write_sources(folder: Path, documents: int = 60) -> dict[str, Path]:
    """Two sources with splits of their own, of which `b` shares documents with `a`.

    Of `b`, two train documents are in train of `a`, three in val of `a`, one in its own val too
    (which its own cleaning drops), and one val document is in val of `a`.
    """
    a = [text("a", i) for i in range(documents)]
    b = [text("b", i) for i in range(documents)]
    held_a, held_b = [text("a val", i) for i in range(8)], [text("b val", i) for i in range(5)]
    write(folder / "a" / "train.jsonl", a)
    write(folder / "a" / "validation.jsonl", held_a)
    write(folder / "b" / "train.jsonl", [*b[:20], *a[3:5], *held_a[1:4], held_b[0], *b[20:]])
    write(folder / "b" / "validation.jsonl", [*held_b, held_a[0]])
    return {"a": folder / "a", "b": folder / "b"}


def mixture(
    paths: Mapping[str, Path], changes: Mapping[str, Any] | None = None, recipe: str = "quickstart"
) -> PipelineConfig:
    """A recipe over these files, with a tiny model."""
    sources = {name: {"source": "files", "path": str(path)} for name, path in paths.items()}
    return load_recipe(recipe, {
        "data.documents": None, "data.vocab_size": 50_257, "data.sources": sources,
        "model.architecture": "qwen3", "model.n_layer": 1, "model.n_head": 2, "model.n_kv_head": 2,
        "model.n_embd": 32, "model.n_inner": 64, "model.seq_len": 16, "train.max_steps": 4,
        "train.tokens_per_step": 128, "train.evaluate_every": 2, "train.checkpoint_every": 2,
        "train.threads": 1, "report.temperatures": [0.8], "report.top_ks": [10],
        "report.max_new_tokens": 8, "report.prompts": ["a"], **(changes or {}),
    })  # fmt: skip
