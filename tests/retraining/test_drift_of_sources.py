"""Retraining on a mixture: each source is compared with itself, and one is enough to decide."""

import re
from pathlib import Path
from typing import Any

import pytest
from run_folders import add_evaluation, empty_store
from tiny_run import shards_of
from two_sources import CODE, DOCUMENTS, MIXTURE, PROSE, code, finish_mixed_run, prose, write_source

from slm.config import DataConfig, Phase, PipelineConfig, RegistryConfig, RetrainConfig
from slm.records import Source
from slm.registry import gate, register
from slm.retraining import decide as deciding
from slm.retraining import shown
from slm.retraining.decide import Decision
from slm.retraining.drift import Changes, Drift, SourceDrift, of_mixture
from slm.retraining.evidence import Evidence
from slm.run_folder import RunFolder

LIMITS = RetrainConfig(
    min_new_fraction=0.05, max_gone_fraction=0.2, drift_threshold=0.1, bpb_rise=0.5
)
LENIENT = RegistryConfig(
    model="slm", gate_documents=30, max_bpb=100, beat_baselines=False, max_degenerate=1,
    max_memorised=1,
)  # fmt: skip


def source_drift(**changes: Any) -> SourceDrift:
    counts = {"before": 100, "now": 110, "new": 10, "gone": 0, "changed": 0}
    measured = {
        "documents": 10, "tokens": 1000, "divergence": 0.12, "usual": 0.1, "new_bpb": 1.1,
        "held_out_bpb": 1.0,
    }  # fmt: skip
    return SourceDrift(
        changes=Changes(**{k: changes.get(k, v) for k, v in counts.items()}),
        drift=Drift(**{k: changes.get(k, v) for k, v in measured.items()}),
    )


def evidence(**sources: SourceDrift) -> Evidence:
    changes, measured = of_mixture(sources)
    return Evidence(champion="models:/slm/1", changes=changes, drift=measured, sources=sources)


@pytest.mark.parametrize(
    ("of_code", "action", "reason"),
    [
        ({}, "continue", r"^9\.1% of the documents are new or changed"),
        ({"divergence": 0.25}, "retrain", "new documents of the source code are of another lang"),
        ({"new_bpb": 1.6}, "retrain", r"0\.600 bits .* more on the new documents of the source co"),
        ({"gone": 30}, "retrain", "30.0% of the champion's documents of the source code are gone"),
    ],
)
def test_one_source_that_crosses_a_threshold_decides(
    of_code: dict[str, Any], action: str, reason: str
) -> None:
    big = source_drift(before=1000, now=1100, new=100)  # the whole is below every threshold
    seen = evidence(prose=big, code=source_drift(**of_code))
    decided, why = deciding.choose(seen, LIMITS)
    assert decided == action
    assert re.search(reason, why)


def test_a_source_that_grows_alone_is_enough() -> None:
    big = source_drift(before=10_000, now=10_000, new=0)
    grown = evidence(prose=big, code=source_drift())
    action, reason = deciding.choose(grown, LIMITS)
    assert action == "continue"
    assert reason.startswith("9.1% of the documents of the source code are new or changed")
    still = evidence(prose=big, code=source_drift(new=1))
    action, reason = deciding.choose(still, LIMITS)
    assert (action, reason) == (
        "skip", "0.01% of the documents are new or changed, fewer than 5.00%, in all and of each "
        "source",
    )  # fmt: skip


def test_the_whole_is_the_sum_and_the_mean_by_new_documents() -> None:
    changes, measured = of_mixture({
        "a": source_drift(new=30, divergence=0.2, gone=3),
        "b": source_drift(new=10, divergence=0.4),
        "c": SourceDrift(changes=Changes(before=5, now=5, new=0, gone=0, changed=0)),
    })  # fmt: skip
    assert changes == Changes(before=205, now=225, new=40, gone=3, changed=0)
    assert measured is not None
    assert measured.divergence == pytest.approx(0.25)
    assert (measured.documents, measured.tokens) == (20, 2000)
    unchanged = SourceDrift(changes=Changes(before=5, now=5, new=0, gone=0, changed=0))
    assert of_mixture({"a": unchanged})[1] is None


# ---- a champion of a mixture ------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder whose champion knows both sources."""
    root = empty_store(tmp_path)
    run = finish_mixed_run(root, prose=20, code=20)
    add_evaluation(run)
    evaluation = RunFolder.of(run).evaluation
    assert evaluation is not None
    register.register(MIXTURE, run, evaluation, None, shards_of(run), root=root)
    assert gate.promote("models:/slm/1", root=root, thresholds=LENIENT).decision == "promoted"
    return root


def changed_source(root: Path, **added: list[str]) -> Source:
    texts = {name: [*DOCUMENTS[name], *added.get(name, [])] for name in DOCUMENTS}
    return write_source(root / "sources" / "tiny-777777777777", "7" * 64, texts)


def decide(root: Path, source: Source, config: PipelineConfig = MIXTURE) -> Decision:
    config = config.model_copy(update={"retrain": LIMITS})
    return deciding.decide(config, source, root=root)


def test_more_documents_of_one_source_are_no_drift(root: Path) -> None:
    """Compared with all held-out documents, the new code would look like another language."""
    decision = decide(root, changed_source(root, code=code(100, 130)))
    seen = decision.evidence.sources
    assert decision.action == "continue"
    assert (seen[CODE].changes.new, seen[PROSE].changes.new) == (30, 0)
    assert seen[PROSE].drift is None
    measured = seen[CODE].drift
    assert measured is not None
    assert measured.excess < 0.1
    assert measured == decision.evidence.drift  # the only one that has new documents
    rows = dict(shown.figures(decision))
    assert rows["source code: drift"] == f"{measured.excess:.4f}"
    assert rows["source prose: new or changed"] == "0.00%"
    assert "source prose: drift" not in rows
    assert shown.tags(decision)["drift_bits.code"] == f"{measured.excess:.4f}"
    assert "| source code: rise |" in shown.describe(decision)


def test_the_source_that_drifted_is_named(root: Path) -> None:
    other = [text.upper()[::-1] for text in prose(200, 230)]
    decision = decide(root, changed_source(root, prose=other, code=code(100, 110)))
    assert decision.action == "retrain"
    assert decision.drifted
    assert "new documents of the source prose are of another language" in decision.reason
    assert decision.evidence.sources[CODE].drift is not None
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


def test_settings_of_a_source_that_changed_are_named(root: Path) -> None:
    source = changed_source(root)
    texts = dict(MIXTURE.data.sources)
    heavier = texts[CODE].model_copy(update={"weight": 0.5})
    cleaned = texts[CODE].model_copy(
        update={"clean": texts[CODE].clean.model_copy(update={"min_chars": 9})}
    )
    more = {**texts, "more": texts[CODE]}
    phases = (Phase(until=1.0, weights={CODE: 1.0}),)
    for data, name in (
        ({"sources": {**texts, CODE: heavier}}, "data.sources.code.weight"),
        ({"sources": {**texts, CODE: cleaned}}, "data.sources.code.clean.min_chars"),
        ({"sources": more}, "data.sources"),
        ({"phases": phases}, "data.phases"),
    ):
        changed = MIXTURE.data.model_copy(update=data)
        decision = decide(root, source, MIXTURE.model_copy(update={"data": changed}))
        assert (decision.action, decision.reason) == ("retrain", f"the recipe has changed: {name}")
    alone = MIXTURE.model_copy(update={"data": DataConfig(source="stories")})
    assert "data.sources" in decide(root, source, alone).reason
