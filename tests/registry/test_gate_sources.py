"""Sources in the gate: no challenger that is worse on one with a margin becomes champion."""

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import CONFIG, add_evaluation, empty_store, finish_run, start_run
from tiny_run import shards_of
from two_sources import CODE, MIXTURE, ORDER, PROSE, finish_mixed_run, held_out
from typer.testing import CliRunner

from slm.cli.main import app
from slm.config import PipelineConfig, RegistryConfig
from slm.errors import UserError
from slm.evaluation.intervals import paired_interval
from slm.evaluation.scoring import score_each
from slm.model.saved import load_model
from slm.records import Run
from slm.registry import gate, register
from slm.registry.assessment import gate_settings
from slm.registry.sources import compare_sources, worse_sources
from slm.registry.version import GateDecision
from slm.run_folder import RunFolder
from slm.tracking.server import connect, default_uri
from slm.training.preflight import check_before_download

GATE = RegistryConfig(
    gate_documents=63, max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1
)


def add_version(root: Path, run: Run, config: PipelineConfig = MIXTURE) -> None:
    add_evaluation(run)
    evaluation = RunFolder.of(run).evaluation
    assert evaluation is not None
    register.register(config, run, evaluation, None, shards_of(run), root=root)


def promote(root: Path, version: str, **margins: float) -> GateDecision:
    limits = GATE.model_copy(update={"margins": margins})
    return gate.promote(f"models:/slm/{version}", root=root, thresholds=limits)


def nats_of(run: Run) -> dict[str, np.ndarray]:
    model, tokenizer = load_model(run.checkpoint("best"))
    texts = [np.array(tokenizer.encode(text)) for text in held_out()]
    rows = score_each(model, texts, tokenizer.eot, tokenizer.token_bytes)
    return {
        name: np.array([row.nats for row, own in zip(rows, ORDER, strict=True) if own == name])
        for name in (PROSE, CODE)
    }


def test_better_in_all_and_worse_on_one_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = empty_store(tmp_path)
    champion = finish_mixed_run(root, prose=2, code=20, key="aa")
    add_version(root, champion)
    first = promote(root, "1", code=0.01)
    assert first.decision == "promoted"  # nothing to be worse than
    assert [(s.source, s.champion_bpb, s.margin) for s in first.sources] == [
        (CODE, None, 0.01), (PROSE, None, None),
    ]  # fmt: skip

    challenger = finish_mixed_run(root, prose=30, code=8, key="bb")
    add_version(root, challenger)
    decision = promote(root, "2", code=0.01)
    assert decision.decision == "refused"
    assert decision.high is not None
    assert decision.high < 0  # better in all
    code, prose = decision.sources
    assert (code.source, code.documents, code.margin) == (CODE, 21, 0.01)
    assert (prose.source, prose.documents, prose.margin) == (PROSE, 42, None)
    ours, theirs = nats_of(challenger), nats_of(champion)
    sizes = np.array([len(t.encode()) for t, s in zip(held_out(), ORDER, strict=True) if s == CODE])
    expected = paired_interval(ours[CODE], theirs[CODE], sizes)
    assert (code.difference, code.low, code.high) == pytest.approx(expected, abs=1e-4)
    assert code.low is not None
    assert code.low > 0.01
    assert prose.high is not None
    assert prose.high < 0
    assert decision.vetoes == [
        "on the source code it may be worse than the champion by more than the margin 0.01: "
        f"{code.difference:+.4f} bits per byte (95 %: {code.low:+.4f} to {code.high:+.4f}) on the "
        "same 21 documents"
    ]
    assert decision.vetoes[0] in decision.reason
    assert decision.limits["margins.code"] == 0.01
    for text in (gate.describe(decision), connect(default_uri(root)).get_model_version(
        "slm", "2").description):  # fmt: skip
        assert "| source | documents | this version | champion, version 1 |" in text
        assert f"| code | 21 | {code.val_bpb:.4f} | {code.champion_bpb:.4f} |" in text
    entry = connect(default_uri(root)).get_model_version("slm", "2")
    assert GateDecision.model_validate_json(entry.tags["slm.verdict"]) == decision

    wide = promote(root, "2", code=5.0, prose=0.0)  # others of the gate's settings: assessed anew
    assert wide.decision == "promoted"
    assert [each.margin for each in wide.sources] == [5.0, 0.0]
    audit = [
        json.loads(line) for line in (root / "mlflow" / "audit.jsonl").read_text().splitlines()
    ]
    assert [len(line["sources"]) for line in audit] == [2, 2, 2]
    monkeypatch.setenv("SLM_DATA", str(root))
    shown = CliRunner().invoke(app, ["promote", "models:/slm/2", "--json"])
    assert [each["source"] for each in json.loads(shown.stdout)["sources"]] == [CODE, PROSE]


def test_a_source_without_held_out_documents_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    root = empty_store(tmp_path)
    add_version(root, finish_mixed_run(root, prose=0, code=0))
    with pytest.raises(UserError, match=r"registry\.margins has wiki.* code: 21, prose: 42\)"):
        promote(root, "1", wiki=0.01)
    limits = GATE.model_copy(update={"margins": {CODE: 0.01}, "gate_documents": 1})
    with pytest.raises(UserError, match=r"registry\.margins has code.* prose: 1\).*gate_documents"):
        gate.promote("models:/slm/1", root=root, thresholds=limits)


def test_it_is_refused_before_anything_is_downloaded(tmp_path: Path) -> None:
    registry = RegistryConfig(margins={"wiki": 0.01})
    mixture = MIXTURE.model_copy(update={"registry": registry})
    with pytest.raises(UserError, match=r"registry\.margins has wiki.*\(code, prose\)"):
        check_before_download(mixture, tmp_path)
    alone = CONFIG.model_copy(update={"registry": registry})
    with pytest.raises(UserError, match=r"registry\.margins has wiki.*is empty"):
        check_before_download(alone, tmp_path)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        RegistryConfig(margins={"wiki": -0.01})


def test_few_documents_show_nothing_and_fail_the_margin() -> None:
    sources = [CODE] * 10 + [PROSE] * 30
    nats, sizes = np.linspace(1, 2, 40), np.full(40, 3)
    compared = compare_sources(sources, nats, nats + 1, sizes, {CODE: 0.1})
    assert [(each.low is None, each.high is None) for each in compared] == [
        (True, True),
        (False,) * 2,
    ]
    (veto,) = worse_sources(compared)
    assert "source code" in veto
    assert "too few documents for an interval" in veto


def test_a_decision_on_one_source_is_stored_as_ever(tmp_path: Path) -> None:
    root = empty_store(tmp_path)
    run = finish_run(start_run(root))
    add_version(root, run, CONFIG.model_copy(update={"registry": RegistryConfig(model="slm")}))
    decision = promote(root, "1")
    fields = {
        "model", "version", "champion", "decision", "forced", "val_bpb", "champion_bpb",
        "difference", "low", "high", "baselines", "benchmarks", "margin", "limits", "documents",
        "documents_sha256", "vetoes", "warnings", "approval", "reason",
    }  # fmt: skip
    entry = connect(default_uri(root)).get_model_version("slm", "1")
    assert set(json.loads(entry.tags["slm.verdict"])) == fields
    (line,) = (root / "mlflow" / "audit.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {*fields, "time"}
    assert not [name for name in gate_settings(GATE) if name.startswith("margins")]
    assert "source" not in gate.describe(decision)
