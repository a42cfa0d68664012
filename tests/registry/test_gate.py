"""The gate: better models win, equal ones do not, and a killed call is completed by the next."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import run_folders
import torch
from run_folders import (
    CONFIG,
    add_evaluation,
    empty_store,
    finish_run,
    killed_after,
    start_run,
    step_events,
    write_journal,
)
from tiny_run import flip_byte, shards_of

from slm import storage
from slm.config import RegistryConfig
from slm.errors import CorruptionError, UserError
from slm.evaluation.baselines import Baseline
from slm.evaluation.intervals import paired_interval
from slm.model import sample as sampling
from slm.model.gpt import GPT
from slm.model.sample import Sample
from slm.orchestration import events, stages, tasks
from slm.records import Evaluation, Run
from slm.registry import assessment, gate, register, vetoes
from slm.registry.version import GateDecision
from slm.run_folder import RunFolder
from slm.tokens.tokenizer.bpe import Tokenizer
from slm.tracking.server import connect, default_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

LENIENT = RegistryConfig(
    gate_documents=25, max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1
)
STRICT = LENIENT.model_copy(update={"max_degenerate": 0.1})


# ---- the evidence -----------------------------------------------------------------------------


def simulated(
    seed: int, gain: float = 0.0, count: int = 150
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Nats of two models on documents of unlike length and difficulty, and the bytes of each.

    The models agree on which documents are hard; the first spends `gain` less, as a fraction.
    """
    draws = np.random.default_rng(seed)
    sizes = draws.lognormal(6.5, 0.5, count).astype(np.int64) + 1
    hard = 0.7 * draws.lognormal(0, 0.2, count) * sizes
    first, second = (hard * draws.normal(1, 0.02, count) for _ in range(2))
    return first * (1 - gain), second, sizes


def test_equal_models_are_hardly_ever_promoted() -> None:
    highs = [paired_interval(*simulated(seed), resamples=2000)[2] for seed in range(200)]
    assert sum(high < 0 for high in highs) <= 10  # 5 %


def test_a_better_model_is_nearly_always_promoted() -> None:
    highs = [paired_interval(*simulated(s, gain=0.015), resamples=2000)[2] for s in range(100)]
    assert sum(high < 0 for high in highs) >= 95


def test_the_interval_holds_the_difference_in_bits_per_byte() -> None:
    challenger, champion, sizes = simulated(1, gain=0.05)
    difference, low, high = paired_interval(challenger, champion, sizes)
    assert difference == pytest.approx((challenger - champion).sum() / np.log(2) / sizes.sum())
    assert low < difference < high
    assert paired_interval(challenger, champion, sizes) == (difference, low, high)
    assert paired_interval(champion, champion, sizes) == (0, 0, 0)


# ---- promotion --------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with an empty store, at a path with a space."""
    return empty_store(tmp_path / "my data")


def trained_run(root: Path, key: str, trained: int) -> Run:
    path = start_run(root, key=key * 32)
    write_journal(path, step_events(1, 60))
    return finish_run(path, key=key * 32, trained=trained)


def add_version(root: Path, key: str, trained: int) -> Run:
    run = trained_run(root, key, trained)
    register.register(CONFIG, run, add_evaluation(run), None, shards_of(run), root=root)
    return run


def server(root: Path) -> "MlflowClient":
    return connect(default_uri(root))


def aliases(root: Path) -> dict[str, str]:
    held = server(root).get_registered_model("slm").aliases
    return {alias: str(version) for alias, version in held.items()}


def audit(root: Path) -> list[dict[str, object]]:
    path = root / "mlflow" / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def promote(root: Path, version: str = "@challenger", **options: object) -> GateDecision:
    return gate.promote(f"models:/slm{version}", root=root, thresholds=LENIENT, **options)


def as_reused(decision: GateDecision) -> GateDecision:
    assert not decision.reused
    return decision.model_copy(update={"reused": True})


def test_a_better_challenger_becomes_champion_and_can_be_rolled_back(root: Path) -> None:
    add_version(root, "aa", trained=0)
    assert promote(root, "/1").champion is None
    add_version(root, "bb", trained=30)
    decision = promote(root)
    assert decision.decision == "promoted"
    assert decision.high < 0
    assert decision.difference == pytest.approx(decision.val_bpb - decision.champion_bpb)
    assert decision.documents == 25
    assert aliases(root) == {"champion": "2"}
    entry = server(root).get_model_version("slm", "2")
    assert entry.tags["slm.decision"] == "promoted"
    assert "bits per byte" in entry.description
    assert promote(root, "/2") == as_reused(decision)
    assert [line["decision"] for line in audit(root)] == ["promoted", "promoted"]

    assert gate.rollback("slm", root=root) == ("slm", "1", "2")
    assert aliases(root) == {"champion": "1"}
    assert [line["decision"] for line in audit(root)][2:] == ["rolled back"]
    assert promote(root, "/2").reason.startswith("it was rolled back")
    assert aliases(root) == {"champion": "1"}
    server(root).delete_registered_model_alias("slm", "champion")
    gate.carry_out(
        gate.assess("models:/slm/2", root=root), root=root
    )  # refuses whoever is champion
    assert [line["decision"] for line in audit(root)][2:] == ["rolled back"]
    server(root).set_registered_model_alias("slm", "champion", "1")
    with pytest.raises(UserError, match="has no predecessor"):
        gate.rollback("slm", root=root)


def test_what_is_not_better_is_refused_unless_forced(root: Path) -> None:
    add_version(root, "aa", trained=30)
    promote(root)
    add_version(root, "bb", trained=30)  # the same weights
    decision = promote(root)
    assert (decision.decision, decision.difference) == ("refused", 0)
    assert aliases(root) == {"champion": "1", "challenger": "2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vetoes, "generate", lambda *_, **__: pytest.fail("it was assessed again"))
        assert promote(root) == as_reused(decision)

    forced = promote(root, force="fresher data")
    assert forced.decision == "promoted"
    assert aliases(root) == {"champion": "2"}
    assert server(root).get_model_version("slm", "2").tags["slm.decision"] == "promoted (forced)"
    assert [line["forced"] for line in audit(root)] == [None, None, "fresher data"]


def test_other_settings_of_the_gate_assess_a_version_again(root: Path) -> None:
    add_version(root, "aa", trained=0)
    assert gate.promote("models:/slm/1", root=root, thresholds=STRICT).decision == "refused"
    decision = promote(root, "/1")
    assert decision.decision == "promoted"
    assert decision.limits["max_degenerate"] == 1
    assert aliases(root) == {"champion": "1"}


def test_a_flow_gates_by_the_settings_that_it_was_given(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_DATA", str(root))
    run = trained_run(root, "aa", 0)
    version = register.register(CONFIG, run, add_evaluation(run), None, shards_of(run), root=root)
    for registry_config, expected in ((STRICT, "refused"), (LENIENT, "promoted")):
        config = CONFIG.model_copy(update={"registry": registry_config})
        for decision in (
            stages.assess(config, version),
            stages.promote(config, version),
        ):
            assert decision is not None
            assert decision.decision == expected


def test_a_first_champion_predicts_better_than_counts_and_a_compressor(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained weights need 8 bits per byte, which no threshold of 100 refuses."""
    add_version(root, "aa", trained=0)
    strict = LENIENT.model_copy(update={"beat_baselines": True})
    decision = gate.promote("models:/slm/1", root=root, thresholds=strict)
    assert decision.decision == "refused"
    assert decision.baselines.keys() == {"unigram", "xz -9"}
    assert "; not below unigram and xz -9" in decision.reason
    assert 4 < decision.baselines["unigram"] < 5  # of the bytes of English
    assert 2 < decision.baselines["xz -9"] < 3
    for name, value in decision.baselines.items():
        assert f"{name} {value:.4f}" in decision.reason
        assert f"| {name} | {value:.4f} |" in gate.describe(decision)
    assert aliases(root) == {"challenger": "1"}
    weak = [Baseline(name, 9.0, "") for name in decision.baselines]
    monkeypatch.setattr(assessment, "naive_baselines", lambda _, __, texts: (len(texts), weak))
    weak[1] = Baseline("xz -9", 8.0, "")  # it has to beat both
    refused = gate.assess("models:/slm/1", root=root, thresholds=lenient(0.1))
    assert refused.decision == "refused"
    assert "; not below xz -9" in refused.reason
    weak[1] = Baseline("xz -9", 9.0, "")
    assert gate.assess("models:/slm/1", root=root, thresholds=lenient(0.1)).decision == "promoted"


def lenient(margin: float) -> RegistryConfig:
    """Other settings than those of an earlier decision, so that the version is assessed anew."""
    return LENIENT.model_copy(update={"beat_baselines": True, "margin": margin})


def test_a_decision_is_reported_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_DATA", str(root))
    reported: list[str] = []
    monkeypatch.setattr(events, "decided", lambda decision: reported.append(decision.decision))
    run = trained_run(root, "aa", 0)
    version = register.register(CONFIG, run, add_evaluation(run), None, shards_of(run), root=root)
    for gate_config in (STRICT, STRICT, LENIENT, LENIENT):
        tasks.promote.fn(CONFIG.model_copy(update={"registry": gate_config}), version)
    assert reported == ["refused", "promoted"]


def test_a_person_may_reject_what_the_gate_would_promote(root: Path) -> None:
    add_version(root, "aa", trained=0)
    decision = gate.assess("models:/slm/1", root=root, thresholds=LENIENT)
    assert decision.decision == "promoted"
    assert (aliases(root), audit(root)) == ({"challenger": "1"}, [])

    no = gate.with_answer(decision, approved=False, who="Ann", comment="too plain")
    assert [gate.carry_out(no, root=root).reused for _ in range(2)] == [False, True]
    assert aliases(root) == {"challenger": "1"}
    entry = server(root).get_model_version("slm", "1")
    assert entry.tags["slm.reason"].startswith("rejected by Ann: too plain")
    assert "Approval: rejected by Ann" in entry.description
    assert promote(root).decision == "refused"  # the answer holds
    gate.carry_out(gate.with_answer(decision, approved=True, who="Bob"), root=root)
    assert aliases(root) == {"champion": "1"}
    assert [line["approval"] for line in audit(root)] == [no.approval, "approved by Bob"]

    add_version(root, "bb", trained=30)
    late = gate.assess("models:/slm/2", root=root, thresholds=LENIENT)
    server(root).delete_registered_model_alias("slm", "champion")
    with pytest.raises(UserError, match="the champion is now version None"):
        gate.carry_out(late, root=root)


def test_a_promotion_that_was_killed_before_the_alias_moved_is_reported_again(root: Path) -> None:
    from mlflow import MlflowClient

    add_version(root, "aa", trained=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            promote(root)
    assert [promote(root, "/1").reused for _ in range(2)] == [False, True]


def test_a_decision_on_a_loss_that_is_no_number_can_be_read_back() -> None:
    decision = GateDecision(
        model="slm", version="1", champion=None, decision="refused", val_bpb=np.nan, margin=0,
        documents=25, documents_sha256="ab", vetoes=[], reason="its loss is not a number",
    )  # fmt: skip
    assert np.isnan(GateDecision.model_validate_json(decision.model_dump_json()).val_bpb)


def test_a_champion_of_another_dataset_is_dethroned_by_force_alone(root: Path) -> None:
    """It would lose on the challenger's text, which it was not trained on."""
    add_version(root, "aa", trained=0)
    promote(root)
    server(root).set_model_version_tag("slm", "1", "slm.dataset", "roneneldan/TinyStories")
    add_version(root, "bb", trained=30)
    decision = promote(root)
    assert (decision.decision, decision.high < 0) == ("refused", True)
    for words in ("stories", "roneneldan/TinyStories", "registry.model", "--force REASON"):
        assert words in decision.reason
    assert aliases(root) == {"champion": "1", "challenger": "2"}

    assert promote(root, force="it is what we write now").decision == "promoted"
    assert aliases(root) == {"champion": "2"}
    assert audit(root)[-1]["forced"] == "it is what we write now"


def test_decisions_of_an_older_slm_are_read_and_others_are_made_anew(root: Path) -> None:
    add_version(root, "aa", trained=0)
    old = {
        "model": "slm", "version": "1", "champion": None, "decision": "refused", "val_bpb": 5.0,
        "margin": 0.0, "documents": 25, "documents_sha256": "ab", "vetoes": [], "reason": "5.0",
    }  # fmt: skip
    server(root).set_model_version_tag("slm", "1", "slm.verdict", json.dumps(old))
    decision = gate.assess("models:/slm/1", root=root)
    assert (decision.reason, decision.uri) == ("5.0", "models:/slm/1")
    newer = json.dumps({**old, "a field of a newer slm": 1})
    server(root).set_model_version_tag("slm", "1", "slm.verdict", newer)
    assert gate.assess("models:/slm/1", root=root, thresholds=LENIENT).decision == "promoted"


def test_files_that_the_registry_lost_are_named(root: Path) -> None:
    add_version(root, "aa", trained=0)
    (root / "mlflow" / "artifacts" / "models").rename(root / "gone")
    with pytest.raises(UserError, match="files of models:/slm/1 are gone from the registry"):
        promote(root, "/1")


def test_broken_samples_and_missing_lineage_veto(root: Path) -> None:
    add_version(root, "aa", trained=0)
    decision = gate.promote("models:/slm/1", root=root, thresholds=STRICT)
    assert decision.decision == "refused"
    assert any("samples are" in veto for veto in decision.vetoes)

    server(root).delete_model_version_tag("slm", "1", "slm.verdict")
    server(root).delete_model_version_tag("slm", "1", "slm.dataset_revision")
    assert promote(root, "/1").vetoes == ["lineage lacks dataset_revision"]


def test_a_version_trained_on_a_cpu_is_assessed_on_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = RunFolder.of(add_version(root, "aa", trained=0))
    settings = home.settings
    train = settings.config.train.model_copy(update={"device": "cpu"})
    config = settings.config.model_copy(update={"train": train})
    home.write_settings(replace(settings, config=config))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # where none is: it would fail
    assert promote(root, "/1").decision == "promoted"


@pytest.mark.parametrize("where", ["run", "registry"])
def test_exchanged_weights_are_refused_even_when_forced(root: Path, where: str) -> None:
    run = add_version(root, "aa", trained=0)
    folder = run.checkpoint("best") if where == "run" else root / "mlflow" / "artifacts" / "models"
    weights = next(folder.rglob("model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CorruptionError, match="exchanged"):
        promote(root, "/1", force="please")
    assert audit(root) == []


def test_weights_that_were_exchanged_within_a_command_are_refused(root: Path) -> None:
    """It hashes what it promotes, whatever was hashed before; size and time are as they were."""
    run = add_version(root, "aa", trained=0)
    weights = run.checkpoint("best") / "model.safetensors"
    with storage.hashing_once():
        storage.sha256_file(weights)
        before = weights.stat()
        flip_byte(weights)
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        for decide in (
            promote,
            lambda root, version: gate.assess(f"models:/slm{version}", root=root),
        ):
            with pytest.raises(CorruptionError, match="exchanged"):
                decide(root, "/1")


@pytest.mark.parametrize("tag", ["slm.run", "slm.checkpoint"])
def test_a_tag_of_the_server_leads_to_no_other_folder(root: Path, tag: str) -> None:
    add_version(root, "aa", trained=0)
    server(root).set_model_version_tag("slm", "1", tag, "../../elsewhere")
    with pytest.raises(UserError, match=r"'../../elsewhere' is not the name of anything"):
        promote(root, "/1")
    server(root).delete_model_version_tag("slm", "1", tag)
    with pytest.raises(UserError, match=rf"not registered by slm: it has no tag {tag}"):
        promote(root, "/1")


CALLS = [  # to the registry, in the order of their first
    "create_logged_model",
    "log_model_artifacts",
    "log_outputs",
    "finalize_logged_model",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "set_model_version_tag",
    "update_model_version",
    "delete_registered_model_alias",
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("trained", [(0, 30), (30, 0)], ids=["better", "worse"])
def test_two_versions_killed_between_any_two_calls_end_alike(
    tmp_path: Path, trained: tuple[int, int]
) -> None:
    """Each is registered and gated as the flow does it; a killed flow is run again."""
    ends = set()
    for calls in range(1, 40):
        root = empty_store(tmp_path / str(calls))
        killed = []
        for key, steps in zip(("aa", "bb"), trained, strict=True):
            run = trained_run(root, key, steps)
            flow = partial(register_and_promote, root, run, add_evaluation(run))
            killed.append(killed_after(calls, CALLS, flow))
            flow()
        ends.add(end_state(root))
        if not any(killed):
            break
    assert calls > 12
    assert len(ends) == 1
    assert json.loads(ends.pop())["aliases"] == (
        {"champion": "2"} if trained == (0, 30) else {"champion": "1", "challenger": "2"}
    )


def register_and_promote(root: Path, run: Run, evaluation: Evaluation) -> None:
    version = register.register(CONFIG, run, evaluation, None, shards_of(run), root=root)
    promote(root, f"/{version.version}")


def end_state(root: Path) -> str:
    """All that the registry and the audit log hold, without what names a time or an MLflow run."""
    versions = server(root).search_model_versions("name = 'slm'")
    models = server(root).search_logged_models(
        [server(root).get_experiment_by_name("slm").experiment_id]
    )
    return json.dumps(
        {
            "aliases": aliases(root),
            "versions": {
                str(v.version): [v.description, {**v.tags, "slm.run_id": ""}] for v in versions
            },
            "models": sorted((m.name, str(m.status)) for m in models),
            "audit": [{k: v for k, v in line.items() if k != "time"} for line in audit(root)],
        },
        sort_keys=True,
    )


# ---- what is compared -------------------------------------------------------------------------


SAME_DATASET = {
    ("texts", "/home/me/texts"): True,
    ("/home/me/project/texts", "./project/texts"): True,
    ("../texts", "/home/me/texts"): True,
    ("texts", "./texts"): True,
    ("texts", "/home/me/notes"): False,
    ("a/texts", "/home/me/b/texts"): False,
    ("/home/you/texts", "/home/me/texts"): False,
    ("OWNER/texts", "OTHER/texts"): False,
}


def test_a_dataset_is_the_same_by_a_relative_and_a_whole_path(root: Path) -> None:
    for key in ("aa", "bb"):
        add_version(root, key, trained=0)
    server(root).set_registered_model_alias("slm", "champion", "1")
    for datasets, is_same in SAME_DATASET.items():
        for version, dataset in zip("12", datasets, strict=True):
            server(root).set_model_version_tag("slm", version, "slm.dataset", dataset)
        decision = gate.assess("models:/slm/2", root=root, thresholds=LENIENT)
        vetoes = [veto for veto in decision.vetoes if veto.startswith("it was trained on")]
        assert bool(vetoes) != is_same, datasets


def test_the_prompts_of_the_gate_end_with_whole_characters(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of bytes as tokens, eight are two characters of three bytes and a part of the next."""
    text = "猫は海で本を読んでいる。" * 3
    monkeypatch.setattr(run_folders, "TEXTS", {"train": [text] * 30, "val": [text] * 25})
    prompts: list[str] = []

    def generate(model: GPT, tokenizer: Tokenizer, texts: list[str], **given: Any) -> list[Sample]:
        prompts.extend(texts)
        return sampling.generate(model, tokenizer, texts, **given)

    monkeypatch.setattr(vetoes, "generate", generate)
    add_version(root, "aa", trained=0)
    gate.assess("models:/slm/1", root=root, thresholds=LENIENT)
    assert set(prompts) == {"猫は"}
