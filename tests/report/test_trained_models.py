"""The report's summary of models that were really trained: a sound one, one that has memorised its
documents, one that loops. Each is trained by the ordinary stages, in this process.
"""

from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tiny_run import shards_of

from slm.config import PipelineConfig
from slm.evaluation.evaluate import evaluate
from slm.report.facts import gather
from slm.report.summary import Summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPORT = {
    "prompts": ["Once upon a time", "One day", "There was a"],
    "temperatures": [0.7, 0.9],
    "top_ks": [20, 50],
    "max_new_tokens": 200,
}


def summary_of(root: Path, documents: int, model: dict[str, Any], train: dict[str, Any],
            report: dict[str, Any], data: dict[str, Any]) -> Summary:  # fmt: skip
    config = PipelineConfig.model_validate({
        "recipe": "assessed",
        "data": {"documents": documents, "vocab_size": 1024, "val_fraction": 0.1, **data},
        "model": {"architecture": "qwen3", "seq_len": 256, **model},
        "train": {"optimizer": "muon", "learning_rate": 6e-3, "schedule": "linear",
                  "final_lr": 0.0, "tokens_per_step": 2048, "evaluate_every": 25,
                  "checkpoint_every": 100, "threads": 2, **train},
        "evaluate": {"checkpoint": "last"},
        "report": {**REPORT, **report},
    })  # fmt: skip
    with tiny_run.code(tiny_run.CLEAN):
        run = tiny_run.make_run(root, config)
    evaluation = evaluate(config, run, shards_of(run))
    result: Summary = gather(config, run, evaluation, shards_of(run))[0]["summary"]
    return result


def test_a_model_that_has_memorised_its_documents_is_called_out(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, 30, {"n_layer": 3, "n_head": 4, "n_embd": 128},
                    {"max_steps": 250}, {}, {"val_fraction": 0.3})  # fmt: skip
    assert summary.level == "bad"
    assert "it overfits" in summary.sentence
    assert "it copies its training documents" in summary.sentence


def test_a_model_that_loops_is_called_out(tmp_path: Path) -> None:
    """Hardly trained, and always sampled for nearly the most likely token: the classic loop."""
    summary = summary_of(tmp_path, 2000, {"n_layer": 1, "n_head": 2, "n_embd": 32},
                    {"max_steps": 60}, {"temperatures": [0.01], "top_ks": [1, 2, 3]},
                    {})  # fmt: skip
    assert summary.level == "bad"
    assert "it loops" in summary.sentence
    assert "it overfits" not in summary.sentence


def test_a_sound_model_is_called_neither(tmp_path: Path) -> None:
    """So short a training leaves reservations, such as made-up words; those are not at stake."""
    summary = summary_of(tmp_path, 8000, {"n_layer": 3, "n_head": 3, "n_embd": 192},
                    {"max_steps": 400}, {}, {"val_fraction": 0.02})  # fmt: skip
    assert summary.level != "bad", summary
    for fault in ("it loops", "it repeats itself", "it overfits", "it copies"):
        assert fault not in summary.sentence
