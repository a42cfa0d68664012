"""The sources of a mixture in a report: asked, realised, excluded, and how each is predicted."""

from pathlib import Path

import pytest
from tiny_run import copy_run, shards_of
from two_sources import CODE, PROSE, TRAINED, copy_trained

from slm.config import DataConfig, Phase, SourceConfig
from slm.evaluation.evaluate import evaluate
from slm.report.cards import settings
from slm.report.plots import Curves
from slm.report.sources import Row, asked, cells, plot, rows
from slm.report.write import write_report
from slm.run_folder import RunFolder
from slm.tokens.mixture.order import realised


def test_the_report_has_a_table_of_the_sources_and_a_plot(tmp_path: Path) -> None:
    home = copy_trained(tmp_path)
    run, shards = home.verified_record, home.shards
    assert run is not None
    assert shards is not None
    evaluation = evaluate(TRAINED, run, shards)
    report = write_report(TRAINED, run, evaluation, shards)
    page = (report.path / report.html).read_text("utf-8")
    markdown = (report.path / report.markdown).read_text("utf-8")
    assert '<h2 id="sources">Sources of the mixture</h2>' in page
    assert page.count("held-out bits per byte of each source") == 1
    source = home.root.source(shards.source_key)
    table = rows(TRAINED, home, shards, source, evaluation)
    assert [row.name for row in table] == [CODE, PROSE]
    assert [row.asked for row in table] == ["30.0 %", "70.0 %"]
    trained = realised(home)
    steps = run.step * (TRAINED.train.tokens_per_step // TRAINED.model.seq_len)
    for row in table:
        part, text = shards.parts[row.name], cells(row)
        assert row.realised == trained[row.name].rows / steps
        assert row.epochs == trained[row.name].epochs
        assert (row.documents, row.tokens) == (part.train.documents, part.train.tokens)
        figures = evaluation.details["sources"][row.name]
        assert (row.val_bpb, row.held_out) == (figures["val_bpb"], figures["documents"])
        for shown in text.values():
            assert shown in page
    assert sum(row.realised or 0 for row in table) == pytest.approx(1)
    assert cells(table[0])["excluded"] == "2 in the held-out text of prose"
    (line,) = [line for line in markdown.splitlines() if line.startswith("| code | 30.0 %")]
    assert f"{evaluation.details['sources'][CODE]['val_bpb']:.3f}" in line
    assert "license: mit" not in (report.path / report.card).read_text("utf-8")
    assert "/tmp" not in page.replace(str(TRAINED.report), "")


def test_one_source_has_no_such_section(tmp_path: Path) -> None:
    home = RunFolder(copy_run(tmp_path))
    run, evaluation = home.record, home.evaluation
    assert run is not None
    assert evaluation is not None
    assert rows(home.config, home, shards_of(run), None, evaluation) == []
    assert plot(Curves(evaluations=[{"tokens": 1.0, "val_loss": 2.0}]), []) == []


def test_the_share_of_every_phase_is_named() -> None:
    sources = {"a": SourceConfig(weight=3), "b": SourceConfig(weight=1)}
    phases = (Phase(until=0.8), Phase(until=1.0, weights={"b": 9}))
    config = TRAINED.model_copy(update={"data": DataConfig(sources=sources, phases=phases)})
    assert asked(config, "a") == "75.0 %, from 80 % of the steps 25.0 %"
    assert asked(config, "b") == "25.0 %, from 80 % of the steps 75.0 %"
    assert asked(config, "gone") == "unknown"


def test_without_shards_what_is_known_is_shown() -> None:
    row = Row("a", None, None, "50.0 %", None, None, None, None, {}, 12, 1.25, None, None)
    text = cells(row)
    assert (text["realised"], text["epochs"], text["interval"]) == ("–", "–", "")
    assert text["bits per byte"] == "1.250"


def test_the_settings_of_each_source_are_rows_of_their_own() -> None:
    data = dict(dict(settings(TRAINED))["data"])
    assert data["sources.prose.weight"] == "0.7"
    assert data["sources.code.path"] == "code"
    assert "sources.code.template" not in data
