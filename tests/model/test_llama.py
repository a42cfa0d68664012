"""Exports in transformers and in llama.cpp, by the benchmark whose table is in docs/export.md."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STORIES = ROOT.parent / "shared" / "data" / "tinystories"
MAX_LOGITS = {"gpt2": 0.05, "qwen3": 1e-3, "grouped": 1e-3}  # llama.cpp's GELU is a float16 table


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    for module in ("llama_cpp", "gguf", "transformers"):
        pytest.importorskip(module)
    data = ["--data", str(STORIES)] if STORIES.is_dir() else []
    command = [sys.executable, str(ROOT / "benchmarks" / "parity.py"), "--json", *data]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    measured: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["rows"]
    return measured


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_transformers_and_llama_write_and_tokenize_as_we_do(rows: list[dict[str, Any]]) -> None:
    assert {(row["model"], row["vocabulary"]) for row in rows} == {
        (model, vocabulary) for model in MAX_LOGITS for vocabulary in ("full", "trimmed")
    }
    for row in rows:
        assert row["greedy_hf"] == row["greedy_llama"] == row["prompts"] == 100
        assert row["logits_hf"] < 1e-3
        assert row["logits_llama"] < MAX_LOGITS[row["model"]]
        assert row["pieces_hf_differs"] == row["pieces_llama_differs"] == 0
        assert row["bpb_llama_f32"] == pytest.approx(row["bpb"], rel=1e-3)
        assert row["bpb_llama_q8_0"] == pytest.approx(row["bpb"], rel=5e-3)
    assert sum(row["megabytes"] >= 10 for row in rows) == 2
