"""The figures of an evaluation next to the loss, each recomputed; and those of a real run."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import copy_run, tiny_config

from slm.config import DataConfig, EvaluateConfig
from slm.errors import CorruptionError, InUse
from slm.evaluation.baselines import FIVE_GRAM, XZ
from slm.evaluation.calibration import Calibration, predictions
from slm.evaluation.evaluate import (
    ScoredDocuments,
    by_length,
    device_of,
    evaluate,
    evaluate_file,
    score_details,
    score_documents,
    scoring_device,
)
from slm.evaluation.scoring import DocumentScore, token_losses
from slm.model.saved import load_model
from slm.records import Evaluation
from slm.run_folder import RunFolder, Settings
from slm.storage import lock, lock_of, read_record, write_record
from slm.tokens.shards.reading import documents


def test_confidence_that_is_right_as_often_as_it_claims_is_calibrated() -> None:
    draws = np.random.default_rng(0)
    confidence = draws.uniform(0.05, 1, 200_000).astype(np.float32)
    correct = (draws.uniform(size=len(confidence)) < confidence).astype(np.float32)
    honest, overconfident = Calibration(), Calibration()
    honest.add(confidence, correct)
    overconfident.add(np.minimum(1, confidence + 0.2), correct)
    assert honest.summary()["error"] < 0.01
    assert overconfident.summary()["error"] == pytest.approx(0.18, abs=0.03)
    assert honest.summary()["accuracy"] == pytest.approx(correct.mean())
    assert sum(row[0] for row in honest.summary()["bins"]) == len(confidence)


def test_predictions_are_those_of_the_softmax() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 9), torch.randint(0, 9, (50,))
    probabilities = logits.softmax(-1)
    figures = predictions(logits, targets)
    torch.testing.assert_close(figures[:, 0], -probabilities[range(50), targets].log())
    torch.testing.assert_close(figures[:, 1], probabilities.max(-1).values)
    assert figures[:, 2].tolist() == (probabilities.argmax(-1) == targets).float().tolist()


def test_every_prediction_is_counted_once(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    shards = RunFolder(run).shards
    assert shards is not None
    model, tokenizer = load_model(run / "checkpoints" / "step_000004")
    held_out = [ids for ids, _ in zip(documents(shards, "val"), range(5), strict=False)]
    scored = score_documents(model, tokenizer, held_out, None)
    losses = token_losses(model, held_out, shards.eot)
    for row, nats in zip(scored.rows, losses, strict=True):
        assert row[:2] == (pytest.approx(float(nats.sum())), len(nats))
    details = score_details(scored)
    assert details["by_position"][0] == (1, 1, pytest.approx(np.mean([nats[0] for nats in losses])))
    fourth = [nats[place] for nats in losses for place in range(3, 7)]
    assert details["by_position"][2] == (4, 7, pytest.approx(np.mean(fourth)))
    counted = sum(len(ids) + 1 for ids in held_out)
    assert sum(row[0] for row in details["calibration"]["bins"]) == counted
    assert sum(row[2] for row in details["by_length"]) == 5


def test_lengths_are_grouped_by_powers_of_two() -> None:
    bit = math.log(2)
    spent = [(3 * bit, 3, 3), (8 * bit, 3, 2), (10 * bit, 5, 10), (0.0, 1, 0)]
    rows = [DocumentScore(*row) for row in spent]
    assert by_length(rows) == [(3, 3, 2, pytest.approx(11 / 5)), (5, 5, 1, pytest.approx(1))]
    assert by_length([]) == []


def test_no_documents_give_no_totals() -> None:
    totals = ScoredDocuments().totals()
    assert math.isnan(totals["val_loss"])
    assert math.isnan(totals["val_bpb"])


@pytest.mark.parametrize(
    ("device", "here", "expected"),
    [("cpu", True, "cpu"), ("cpu", False, "cpu"), ("auto", True, "cuda:0"), ("auto", False, "cpu"),
     ("cuda", True, "cuda:0"), ("cuda", False, "cpu")],
)  # fmt: skip
def test_scoring_follows_the_device_of_the_training(
    device: str, here: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a config, and of the run that a checkpoint is in; weights elsewhere may go anywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    config = tiny_config(tmp_path / "data.jsonl", device=device)
    assert scoring_device(config) == expected
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    anywhere = "cuda:0" if here else "cpu"
    assert device_of(checkpoint) == device_of(tmp_path) == anywhere
    settings = Settings(key="k", config=config, shards_key="s", parent_key=None)
    RunFolder(tmp_path / "run").write_settings(settings)
    assert device_of(checkpoint) == expected
    (tmp_path / "run" / "config.json").write_text("{")
    assert device_of(checkpoint) == anywhere


def test_a_run_trained_on_a_cpu_is_evaluated_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every caller that loads weights to score them asks for the CPU."""
    run = RunFolder(copy_run(tmp_path))
    settings = run.settings
    train = settings.config.train.model_copy(update={"device": "cpu"})
    config = settings.config.model_copy(update={"train": train})
    run.write_settings(replace(settings, config=config))
    record, shards = run.record, run.shards
    assert record is not None
    assert shards is not None
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a cat.")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # where none is: it would fail
    shutil.rmtree(run.path / "evaluation")
    assert math.isfinite(evaluate(config, record, shards).val_bpb)
    assert evaluate_file(record.checkpoint("best"), text, DataConfig())["documents"] == 1


def test_shards_are_locked_while_they_are_scored_on(tmp_path: Path) -> None:
    run = RunFolder(copy_run(tmp_path))
    record, shards = run.record, run.shards
    assert record is not None
    assert shards is not None
    shutil.rmtree(run.path / "evaluation")
    locked = []

    def progress(*_: object) -> None:
        with pytest.raises(InUse), lock(lock_of(shards.path), wait=False):
            pass
        locked.append(1)

    evaluate(run.config, record, shards, progress=progress)
    assert locked


def test_other_settings_make_an_evaluation_next_to_the_runs_own(tmp_path: Path) -> None:
    run = RunFolder(copy_run(tmp_path))
    record, shards, own = run.record, run.shards, run.evaluation
    assert record is not None
    assert shards is not None
    config = run.config
    fewer = config.model_copy(update={"evaluate": EvaluateConfig(documents=3)})
    other = evaluate(fewer, record, shards)
    assert (other.documents, other.path) == (3, run.path / f"evaluation-{other.key[:12]}")
    for settings in (config, fewer):  # in turn, neither is rebuilt
        assert evaluate(settings, record, shards).reused
    assert run.evaluation == own


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"val_bpb": 0.01}, r"val_bpb is 0\.01, its \d+ documents give 4\.\d+"),
        ({"val_loss": 0.5}, r"val_loss is 0\.5"),
        ({"documents": 1}, r"documents is 1"),
        ({"tokens": 7}, r"tokens is 7"),
        ({"bytes": 9}, r"bytes is 9"),
        (
            {"details": {"calibration": {"error": 0.0}}},
            r"details are not those of evaluation\.json",
        ),
    ],
)
def test_figures_that_contradict_the_scores_are_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The record was written anew, with its own hash renewed."""
    run = RunFolder(copy_run(tmp_path))
    record, shards, evaluation = run.record, run.shards, run.evaluation
    assert record is not None
    assert shards is not None
    assert evaluation is not None
    write_record(evaluation.path, evaluation.model_copy(update=fields))
    with pytest.raises(CorruptionError, match=message) as refused:
        evaluate(run.config, record, shards)
    assert f"delete {evaluation.path} and `slm evaluate {run.name}` again" in str(refused.value)
    shutil.rmtree(evaluation.path)
    assert evaluate(run.config, record, shards).val_bpb == evaluation.val_bpb


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = copy_run(tmp_path) / "checkpoints" / "step_000004"
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(CorruptionError, match=r"bad\.parquet cannot be read as parquet"):
        evaluate_file(folder, tmp_path / "bad.parquet", DataConfig())


def test_a_run_is_compared_with_baselines(tmp_path: Path) -> None:
    evaluation = read_record(copy_run(tmp_path) / "evaluation", Evaluation)
    assert evaluation is not None
    baselines = evaluation.details["beside"]
    assert (baselines["documents"], baselines["bytes"]) == (evaluation.documents, evaluation.bytes)
    assert baselines["val_bpb"] == pytest.approx(evaluation.val_bpb)
    bits = {row["name"]: row["bpb"] for row in baselines["references"]}
    assert list(bits.values()) == sorted(bits.values(), reverse=True)
    assert bits[FIVE_GRAM] < bits["unigram"]
    assert bits["zstd -19, primed"] < bits["zstd -19"]
    assert 0 < bits[XZ] < 8
    assert evaluation.details["contamination"]["documents"] == evaluation.documents
