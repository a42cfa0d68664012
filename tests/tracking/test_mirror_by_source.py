"""The sources of a mixture in MLflow: their metrics."""

from pathlib import Path

import pytest
from run_folders import empty_store, write_journal
from tiny_run import shards_of
from two_sources import CODE, MIXTURE, PROSE, finish_mixed_run

from slm.evaluation.evaluate import evaluate
from slm.records import source_bpb
from slm.run_folder import RunFolder
from slm.tracking import mirror
from slm.tracking.server import connect, tracking_uri


def test_a_mixture_is_mirrored_source_by_source(tmp_path: Path) -> None:
    root = empty_store(tmp_path)
    run = finish_mixed_run(root, prose=0, code=0)
    scores = {10: (0.5, 0.25), 50: (0.4, 0.2)}
    write_journal(run.path, [
        {"event": "evaluate", "time": float(step), "step": step, "val_loss": 1.0, "val_bpb": 0.3,
         source_bpb(PROSE): prose, source_bpb(CODE): code}
        for step, (prose, code) in scores.items()
    ])  # fmt: skip
    evaluation = evaluate(MIXTURE, run, shards_of(run))
    run_id = mirror.sync(RunFolder.of(run))
    client = connect(tracking_uri(MIXTURE, root))

    for i, name in enumerate((PROSE, CODE)):
        history = client.get_metric_history(run_id, f"source.{name}.val_bpb")
        assert [(m.step, m.value) for m in history] == [(s, v[i]) for s, v in scores.items()]
        (full,) = client.get_metric_history(run_id, f"source.{name}.full_val_bpb")
        assert full.value == pytest.approx(evaluation.details["sources"][name]["val_bpb"])
    (model,) = [
        model
        for model in client.search_logged_models([client.get_run(run_id).info.experiment_id])
        if model.name == "step_000050"
    ]
    measured = {metric.key: metric.value for metric in model.metrics or ()}
    assert measured[source_bpb(CODE)] == 0.2

    assert mirror.sync(RunFolder.of(run)) == run_id
    assert len(client.get_metric_history(run_id, source_bpb(CODE))) == 2
