"""Runs on mixtures compared source by source."""

import json
from pathlib import Path

import numpy as np
import pytest
from many_runs import held_out_sizes, make_run
from typer.testing import CliRunner

import slm
from slm.cli.main import app
from slm.config import DataConfig, PipelineConfig, SourceConfig
from slm.evaluation.intervals import paired_interval
from slm.history.compare import config_differences, document_scores
from slm.recipes import load_recipe
from slm.run_folder import RunFolder

PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"
SOURCES = ["code" if n % 4 == 1 else "wiki" for n in range(120)]


def config(weight: float, steps: int = 60) -> PipelineConfig:
    base = load_recipe("quickstart", {"train.max_steps": steps}, path=PIPELINES)
    texts = {"wiki": SourceConfig(), "code": SourceConfig(weight=weight)}
    return base.model_copy(update={"data": DataConfig(sources=texts)})


def run_of(root: Path, weight: float, bpb: float, sources: list[str] = SOURCES) -> RunFolder:
    sizes = held_out_sizes(len(SOURCES))
    return make_run(root, config(weight), bpb, sizes=sizes, sources=sources)


def expected(a: RunFolder, b: RunFolder, source: str) -> tuple[float, float, float]:
    scores = []
    for run in (a, b):
        evaluation = run.evaluation
        assert evaluation is not None
        scores.append(document_scores(evaluation)[np.array(SOURCES) == source])
    return paired_interval(scores[1][:, 0], scores[0][:, 0], scores[0][:, 2].astype(np.int64))


def test_two_runs_have_the_interval_of_each_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = run_of(tmp_path, 1.0, 0.9), run_of(tmp_path, 3.0, 0.8)
    pair = slm.compare(a.name, b.name, root=tmp_path).pair
    assert pair is not None
    assert pair.config == {"data.sources.code.weight": (1.0, 3.0)}
    assert list(pair.sources) == ["code", "wiki"]
    for name, interval in pair.sources.items():
        figures = (interval.difference, interval.low, interval.high)
        assert figures == pytest.approx(expected(a, b, name))
        assert interval.documents == SOURCES.count(name)
    monkeypatch.setenv("SLM_DATA", str(tmp_path))
    shown = CliRunner().invoke(app, ["compare", a.name, b.name]).stdout
    assert "source code: B is better" in " ".join(shown.split())
    fields = json.loads(CliRunner().invoke(app, ["compare", a.name, b.name, "--json"]).stdout)
    assert set(fields["sources"]) == {"code", "wiki"}


def test_other_sources_or_one_alone_have_none(tmp_path: Path) -> None:
    a, b = run_of(tmp_path, 1.0, 0.9), run_of(tmp_path, 2.0, 0.8, SOURCES[::-1])
    c = run_of(tmp_path, 3.0, 0.8, [])
    for other in (b, c):
        pair = slm.compare(a.name, other.name, root=tmp_path).pair
        assert pair is not None
        assert pair.interval is not None  # on the same documents
        assert "sources" not in pair.model_dump(mode="json")
    (ranking,) = slm.compare(a.name, b.name, c.name, root=tmp_path).rankings
    assert ranking.sources == []


def test_a_ranking_has_the_bits_per_byte_of_each_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {bpb: run_of(tmp_path, 10 * bpb, bpb) for bpb in (0.7, 0.8, 0.9)}
    compared = slm.compare(
        *(run.name for run in runs.values()), root=tmp_path, html=tmp_path / "page.html"
    )
    (ranking,) = compared.rankings
    assert ranking.sources == ["code", "wiki"]
    for group in ranking.groups:
        evaluation = RunFolder(tmp_path / "runs" / group.runs[0]).evaluation
        assert evaluation is not None
        nats, _, sizes = document_scores(evaluation).T
        for name, value in group.sources.items():
            own = np.array(SOURCES) == name
            assert value == pytest.approx(nats[own].sum() / np.log(2) / sizes[own].sum())
    assert list(compared.settings) == ["data.sources.code.weight"]
    page = (tmp_path / "page.html").read_text()
    assert "code <small>bits per byte</small>" in page
    assert f"{ranking.groups[0].sources['wiki']:.4f}" in page
    monkeypatch.setenv("SLM_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    names = [run.name for run in runs.values()]
    assert "bpb wiki" in CliRunner().invoke(app, ["compare", *names]).stdout


def test_a_source_that_one_alone_has_is_a_difference() -> None:
    one, two = config(1.0), config(1.0)
    del two.data.sources["code"]
    differences = config_differences(one, two)
    assert differences["data.sources"] == (["code", "wiki"], ["wiki"])
    assert differences["data.sources.code.weight"] == (1.0, None)
