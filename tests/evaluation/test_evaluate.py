"""What the evaluation tells beside the loss: each figure by hand, and in a real run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import copy_run

from slm.config import DataConfig
from slm.errors import CorruptionError
from slm.evaluation.baselines import FIVE_GRAM, XZ
from slm.evaluation.calibration import Calibration, predictions
from slm.evaluation.evaluate import (
    Scores,
    by_length,
    details,
    evaluate_file,
    score_documents,
)
from slm.evaluation.scoring import token_losses
from slm.model.saved import load_model
from slm.records import Evaluation
from slm.run_folder import RunFolder
from slm.storage import read_record
from slm.tokens.shards.reading import documents


def test_a_model_that_means_what_it_says_is_calibrated() -> None:
    draws = np.random.default_rng(0)
    confidence = draws.uniform(0.05, 1, 200_000).astype(np.float32)
    right = (draws.uniform(size=len(confidence)) < confidence).astype(np.float32)
    honest, proud = Calibration(), Calibration()
    honest.add(confidence, right)
    proud.add(np.minimum(1, confidence + 0.2), right)
    assert honest.summary()["error"] < 0.01
    assert proud.summary()["error"] == pytest.approx(0.18, abs=0.03)
    assert honest.summary()["accuracy"] == pytest.approx(right.mean())
    assert sum(row[0] for row in honest.summary()["bins"]) == len(confidence)


def test_the_measure_is_softmax_and_its_likeliest_token() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 9), torch.randint(0, 9, (50,))
    chances = logits.softmax(-1)
    found = predictions(logits, targets)
    torch.testing.assert_close(found[:, 0], -chances[range(50), targets].log())
    torch.testing.assert_close(found[:, 1], chances.max(-1).values)
    assert found[:, 2].tolist() == (chances.argmax(-1) == targets).float().tolist()


def test_every_prediction_is_counted_once(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    shards = RunFolder(run).shards
    assert shards is not None
    model, tokenizer = load_model(run / "checkpoints" / "step_000004")
    held_out = [ids for ids, _ in zip(documents(shards, "val"), range(5), strict=False)]
    scores = score_documents(model, tokenizer, held_out, None)
    losses = token_losses(model, held_out, shards.eot)
    for row, nats in zip(scores.rows(), losses, strict=True):
        assert row[:2] == (pytest.approx(float(nats.sum())), len(nats))
    found = details(scores)
    assert found["by_position"][0] == (1, 1, pytest.approx(np.mean([nats[0] for nats in losses])))
    fourth = [nats[place] for nats in losses for place in range(3, 7)]
    assert found["by_position"][2] == (4, 7, pytest.approx(np.mean(fourth)))
    counted = sum(len(ids) + 1 for ids in held_out)
    assert sum(row[0] for row in found["calibration"]["bins"]) == counted
    assert sum(row[2] for row in found["by_length"]) == 5


def test_lengths_are_put_together_by_powers_of_two() -> None:
    bit = math.log(2)
    rows = [(3 * bit, 3, 3), (8 * bit, 3, 2), (10 * bit, 5, 10), (0.0, 1, 0)]
    assert by_length(rows) == [(3, 3, 2, pytest.approx(11 / 5)), (5, 5, 1, pytest.approx(1))]
    assert by_length([]) == []


def test_no_documents_give_no_totals() -> None:
    assert math.isnan(Scores().totals()["val_bpb"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = copy_run(tmp_path) / "checkpoints" / "step_000004"
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(CorruptionError, match=r"bad\.parquet cannot be read as parquet"):
        evaluate_file(folder, tmp_path / "bad.parquet", DataConfig())


def test_a_run_stands_beside_its_references(tmp_path: Path) -> None:
    evaluation = read_record(copy_run(tmp_path) / "evaluation", Evaluation)
    assert evaluation is not None
    beside = evaluation.details["beside"]
    assert (beside["documents"], beside["bytes"]) == (evaluation.documents, evaluation.bytes)
    assert beside["val_bpb"] == pytest.approx(evaluation.val_bpb)
    bits = {row["name"]: row["bpb"] for row in beside["references"]}
    assert list(bits.values()) == sorted(bits.values(), reverse=True)
    assert bits[FIVE_GRAM] < bits["unigram"]
    assert bits["zstd -19, primed"] < bits["zstd -19"]
    assert 0 < bits[XZ] < 8
    assert evaluation.details["contamination"]["documents"] == evaluation.documents
