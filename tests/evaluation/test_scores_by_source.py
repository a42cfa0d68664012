"""How well each source of a mixture is predicted: the parts of an evaluation and their sum."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_run import copy_run, shards_of
from two_sources import CODE, MIXTURE, ORDER, PROSE, SOURCES, finish_mixed_run, held_out
from typer.testing import CliRunner

from slm.cli.main import app
from slm.config import EvaluateConfig
from slm.errors import CorruptionError
from slm.evaluation.evaluate import (
    check_figures,
    data_context,
    evaluate,
    score_details,
    score_documents,
)
from slm.evaluation.identity import DETAILS
from slm.evaluation.intervals import RESAMPLES, paired_interval
from slm.evaluation.scoring import DocumentScore
from slm.evaluation.sources import held_out_sources, source_figures
from slm.model.saved import load_model
from slm.records import Evaluation, Run
from slm.run_folder import RunFolder
from slm.storage import write_json, write_record
from slm.tokens.shards.reading import documents


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finish_mixed_run(tmp_path_factory.mktemp("data"), prose=20, code=2)


@pytest.fixture(scope="module")
def evaluation(run: Run) -> Evaluation:
    return evaluate(MIXTURE, run, shards_of(run))


def test_the_sources_add_up_to_the_whole(evaluation: Evaluation) -> None:
    """Their mean, weighted by bytes, is the bits per byte of all documents."""
    sources = evaluation.details["sources"]
    assert list(sources) == list(SOURCES)
    for count in ("documents", "tokens", "bytes"):
        assert sum(each[count] for each in sources.values()) == getattr(evaluation, count)
    by_bytes = sum(each["val_bpb"] * each["bytes"] for each in sources.values())
    assert by_bytes / evaluation.bytes == pytest.approx(evaluation.val_bpb, rel=1e-12)
    by_tokens = sum(each["val_loss"] * each["tokens"] for each in sources.values())
    assert by_tokens / evaluation.tokens == pytest.approx(evaluation.val_loss, rel=1e-12)
    assert sources[PROSE]["val_bpb"] < sources[CODE]["val_bpb"]  # which it was hardly trained on
    sizes = dict.fromkeys(SOURCES, 0)
    for name, text in zip(ORDER, held_out(), strict=True):
        sizes[name] += len(text.encode())
    assert {name: each["bytes"] for name, each in sources.items()} == sizes


def test_each_has_the_interval_of_its_own_documents(evaluation: Evaluation) -> None:
    rows = json.loads((evaluation.path / DETAILS).read_bytes())["documents"]
    for name, figures in evaluation.details["sources"].items():
        own = np.array([row for row, source in zip(rows, ORDER, strict=True) if source == name])
        interval = paired_interval(
            own[:, 0], np.zeros(len(own)), own[:, 2].astype(np.int64), resamples=RESAMPLES
        )
        assert (figures["val_bpb"], figures["low"], figures["high"]) == pytest.approx(interval)
        assert figures["low"] < figures["val_bpb"] < figures["high"]


def test_too_few_documents_have_no_interval() -> None:
    rows = [DocumentScore(math.log(2) * n, 1, 2) for n in range(30)]
    figures = source_figures(rows, ["many"] * 20 + ["few"] * 10)
    assert figures["many"]["low"] < figures["many"]["high"]
    assert (figures["few"]["low"], figures["few"]["high"]) == (None, None)
    assert figures["few"]["val_bpb"] == pytest.approx(24.5 / 2)


def test_of_the_first_documents_only_their_sources_are_counted(run: Run) -> None:
    config = MIXTURE.model_copy(update={"evaluate": EvaluateConfig(documents=4)})
    sources = evaluate(config, run, shards_of(run)).details["sources"]
    assert {name: each["documents"] for name, each in sources.items()} == {PROSE: 3, CODE: 1}
    one = MIXTURE.model_copy(update={"evaluate": EvaluateConfig(documents=1)})
    assert list(evaluate(one, run, shards_of(run)).details["sources"]) == [PROSE]


def test_every_document_is_kept_with_its_source(run: Run, evaluation: Evaluation) -> None:
    kept = json.loads((evaluation.path / DETAILS).read_bytes())
    assert kept["document_sources"] == ORDER == held_out_sources(shards_of(run))
    assert held_out_sources(shards_of(run), 2) == [PROSE, CODE]
    assert len(kept["documents"]) == len(ORDER)


def test_figures_of_a_source_that_were_changed_are_noticed(run: Run) -> None:
    config = MIXTURE.model_copy(update={"evaluate": EvaluateConfig(documents=30)})
    made = evaluate(config, run, shards_of(run))
    check_figures(made)
    details = json.loads(json.dumps(made.details))
    details["sources"][CODE]["val_bpb"] -= 0.5
    write_record(made.path, made.model_copy(update={"details": details}))
    text = json.loads((made.path / DETAILS).read_bytes())
    text["sources"][CODE]["val_bpb"] -= 0.5
    (made.path / DETAILS).write_text(json.dumps(text))
    with pytest.raises(CorruptionError, match=r"code: val_bpb is .* its 10 documents give"):
        check_figures(made.model_copy(update={"details": details}))


def test_one_source_leaves_what_it_always_left(tmp_path: Path) -> None:
    """The bytes of the file are those of before there were mixtures."""
    run = RunFolder(copy_run(tmp_path))
    evaluation, shards = run.evaluation, run.shards
    assert evaluation is not None
    assert shards is not None
    details = {
        "val_bpb_interval", "by_position", "by_length", "calibration", "most_likely",
        "least_likely", "beside", "contamination",
    }  # fmt: skip
    assert set(evaluation.details) == details
    model, tokenizer = load_model(run.path / "checkpoints" / evaluation.checkpoint)
    scored = score_documents(model, tokenizer, documents(shards, "val"), None)
    context = data_context(shards, tokenizer, scored.rows)
    fields = {"documents": scored.rows, **score_details(scored), **context}
    write_json(tmp_path / "alone.json", fields)
    assert (evaluation.path / DETAILS).read_bytes() == (tmp_path / "alone.json").read_bytes()
    assert held_out_sources(shards) == []


def test_what_the_data_show_is_computed_once_for_all_models(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(run)
    model, tokenizer = load_model(run.checkpoint("best"))
    held_out = list(documents(shards, "val"))
    rows = score_documents(model, tokenizer, held_out, None).rows
    worse = [row._replace(nats=2 * row.nats) for row in rows]
    first = data_context(shards, tokenizer, rows)
    for name in ("compare_baselines", "contamination"):
        monkeypatch.setattr(
            f"slm.evaluation.evaluate.{name}", lambda *_: pytest.fail("computed again")
        )
    again = data_context(shards, tokenizer, worse)
    assert again["contamination"] == first["contamination"]
    assert again["beside"]["references"] == first["beside"]["references"]
    assert again["beside"]["val_bpb"] == pytest.approx(2 * first["beside"]["val_bpb"])
    monkeypatch.undo()
    fewer = data_context(shards, tokenizer, rows[:5])
    assert fewer["beside"]["documents"] == 5


def test_the_command_shows_a_table(
    run: Run, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_DATA", str(run.path.parents[1]))
    fields = json.loads(CliRunner().invoke(app, ["evaluate", run.name, "--json"]).stdout)
    assert fields["sources"] == json.loads(json.dumps(evaluation.details["sources"]))
    lines = CliRunner().invoke(app, ["evaluate", run.name]).stdout.splitlines()
    (row,) = [line for line in lines if line.startswith(CODE)]
    code = evaluation.details["sources"][CODE]
    for figure in (code["val_bpb"], code["low"], code["high"]):
        assert f"{figure:.4f}" in row
