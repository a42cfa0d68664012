"""Lineage: the whole chain, every link checked against what is there now."""

import dataclasses
import json
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from run_folders import CONFIG, empty_store
from tiny_run import CLEAN, DIRTY, code, copy_run, flip_byte, shards_of

import slm
from slm import storage
from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.evaluation.evaluate import evaluate
from slm.history.lineage import Lineage, Link, code_status, lineage
from slm.records import Evaluation, Source
from slm.registry import chain as chains
from slm.registry import register as registering
from slm.registry import versions
from slm.report.lineage_picture import lineage_svg
from slm.run_folder import RunFolder
from slm.tracking.server import connect, default_uri
from slm.training import provenance

CHAIN = [
    "dataset", "source", "cleaning", "tokenizer", "shards", "config", "code", "environment", "run",
    "checkpoint", "evaluation",
]  # fmt: skip


@pytest.fixture(autouse=True)
def clean_code() -> Iterator[None]:
    with code(CLEAN):
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of its own, with an empty registry next to it."""
    run = copy_run(tmp_path / "data")
    empty_store(tmp_path / "data")
    return run


def register(run: Path) -> PipelineConfig:
    config, record = RunFolder(run).config, RunFolder(run).verified_record
    assert record is not None
    evaluation = evaluate(config, record, shards_of(record))
    registering.register(config, record, evaluation, None, shards_of(record), root=run.parents[1])
    return config


def states(chain: Lineage) -> dict[str, str]:
    return {link.name: link.state for link in chain.links}


def test_the_lineage_from_python_takes_a_run_or_a_version(run: Path) -> None:
    root = run.parents[1]
    chain = lineage(RunFolder(run))
    given = (run, run.name, RunFolder(run), RunFolder(run).verified_record)
    assert all(slm.lineage(each, root=root) == chain for each in given if each is not None)
    register(run)
    version = slm.lineage("models:/slm/1", root=root)
    assert [link.name for link in version.links] == [*CHAIN, "version"]
    assert version.broken == []
    with pytest.raises(UserError, match="unknown run 'other'"):
        slm.lineage("other", root=root)


def test_the_chain_of_a_run_that_is_untouched(run: Path) -> None:
    chain = lineage(RunFolder(run))
    assert [link.name for link in chain.links] == CHAIN
    assert set(states(chain).values()) == {"unchanged"}
    assert chain.broken == []
    record = RunFolder(run).verified_record
    assert record is not None
    assert chain["dataset"].files.keys() == {"documents.jsonl"}
    assert re.fullmatch("[0-9a-f]{64}", chain["dataset"].digest or "")
    assert chain["shards"].digest == record.shards_key
    assert chain["run"].digest == record.key
    assert chain["code"].digest == "c" * 40
    assert chain["evaluation"].made_from == ("checkpoint",)
    assert Lineage.model_validate_json(chain.model_dump_json()) == chain
    assert set(states(lineage(RunFolder(run), check=False)).values()) <= {
        "unchanged",
        "not checked",
    }


@pytest.mark.parametrize(
    ("file", "broken"),
    [
        ("sources/*/train_00000.parquet", {"source"}),
        ("shards/*/train_00000.bin", {"shards"}),
        ("shards/*/tokenizer.tiktoken", {"shards", "tokenizer"}),
        ("runs/*/config.json", {"config", "cleaning"}),
        ("runs/*/metrics.jsonl", {"run"}),
        ("runs/*/checkpoints/step_000004/model.safetensors", {"checkpoint"}),
        ("runs/*/evaluation/evaluation.json", {"evaluation"}),
    ],
)
def test_each_link_is_checked(run: Path, file: str, broken: set[str]) -> None:
    path = next(run.parents[1].glob(file))
    flip_byte(path, place=path.read_bytes().find(b"1") if path.suffix == ".json" else -2)
    chain = lineage(RunFolder(run))
    assert {link.name for link in chain.broken} == broken
    assert {link.state for link in chain.broken} == {"changed"}
    assert any(path.name in note for link in chain.broken for note in link.notes)


def test_what_is_gone_is_reported(run: Path) -> None:
    root = run.parents[1]
    shutil.rmtree(root / "sources")
    chain = lineage(RunFolder(run))
    assert [link.name for link in chain.broken] == ["source"]
    assert chain["source"].state == "gone"
    assert chain["source"].digest  # the shards remember it
    shutil.rmtree(root / "shards")
    chain = lineage(RunFolder(run))
    assert {link.name for link in chain.broken} == {"source", "shards"}
    assert chain["tokenizer"].state == "unchanged"  # the checkpoint has its own
    shutil.rmtree(run / "checkpoints")
    assert lineage(RunFolder(run))["tokenizer"].state == "gone"


def test_input_files_that_changed_moved_or_joined(run: Path) -> None:
    path = Path(RunFolder(run).config.data.path)
    before = path.read_bytes()
    try:
        flip_byte(path, place=20)
        assert "sha256" in lineage(RunFolder(run))["dataset"].notes[0]
        path.unlink()
        assert lineage(RunFolder(run))["dataset"].state == "gone"
    finally:
        path.write_bytes(before)


def test_input_files_that_another_rule_would_leave_out_are_compared_all_the_same(
    run: Path, tmp_path: Path
) -> None:
    folder, settings = RunFolder(run), RunFolder(run).settings
    path = tmp_path / "in" / "documents.jsonl"
    path.parent.mkdir()
    shutil.copy(settings.config.data.path, path)
    shutil.copy(path, path.with_name("test.jsonl"))
    data = settings.config.data.model_copy(update={"path": str(path.parent)})
    config = settings.config.model_copy(update={"data": data})
    folder.write_settings(dataclasses.replace(settings, config=config))
    source = next(run.parents[1].glob("sources/*/record.json")).parent
    record = storage.read_record(source, Source)
    assert record is not None
    digest = record.origin["documents.jsonl"]
    origin = {"documents.jsonl": digest, "test.jsonl": digest}
    storage.write_record(source, record.model_copy(update={"origin": origin}))
    assert lineage(folder)["dataset"].state == "unchanged"
    path.with_name("test.jsonl").unlink()
    assert "test.jsonl: missing" in lineage(folder)["dataset"].notes[0]


def test_code_and_machine_are_compared_with_those_of_now(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: {**CLEAN, "commit": "e" * 40})
    link = lineage(RunFolder(run))["code"]
    assert link.state == "changed"
    assert "git checkout " + "c" * 40 in link.notes[0]
    monkeypatch.setattr(provenance, "code_state", lambda: DIRTY)
    assert "in no commit" in lineage(RunFolder(run))["code"].notes[0]
    monkeypatch.setattr(provenance, "code_state", lambda: CLEAN)
    now = provenance.environment()
    monkeypatch.setattr(provenance, "environment", lambda: {**now, "torch": "9.9"})
    assert lineage(RunFolder(run))["environment"].notes == (f"torch is 9.9, was {now['torch']}",)


ONE, OTHER = {"modules_sha256": "1" * 64}, {"modules_sha256": "2" * 64}
NO_COMMIT = {"commit": None, "dirty": False, "diff_sha256": None}


@pytest.mark.parametrize(
    ("then", "now", "state", "note"),
    [
        ({**CLEAN, **ONE}, {**CLEAN, **ONE, "commit": "e" * 40}, "unchanged", None),
        ({**DIRTY, **ONE}, {**DIRTY, **ONE}, "unchanged", None),
        ({**NO_COMMIT, **ONE}, {**NO_COMMIT, **ONE}, "unchanged", None),
        ({**DIRTY, **ONE}, {**CLEAN, **OTHER}, "gone", "on top of ccc"),
        ({**CLEAN, **ONE}, {**CLEAN, **OTHER, "commit": "e" * 40}, "changed", "checkout ccc"),
        ({**CLEAN, **ONE}, {**CLEAN, **OTHER, "dirty": True}, "changed", "in no commit"),
        ({**CLEAN, **ONE}, {**NO_COMMIT, **OTHER}, "changed", "which was commit ccc"),
        ({**NO_COMMIT, **ONE}, {**CLEAN, **OTHER}, "changed", "whose commit is not known"),
        (NO_COMMIT, {**CLEAN, **OTHER}, "not checked", "no commit was recorded"),
    ],
)
def test_code_is_compared_by_its_modules_and_then_by_its_commit(
    then: dict[str, Any],
    now: dict[str, Any],
    state: str,
    note: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: now)
    result, notes = code_status(then)
    assert result == state
    assert (note in notes[0]) if note else not notes


def test_a_run_in_training_has_a_chain(run: Path) -> None:
    (run / "record.json").unlink()
    shutil.rmtree(run / "evaluation")
    chain = lineage(RunFolder(run))
    assert chain["run"].state == chain["evaluation"].state == "not checked"
    assert chain.broken == []


def evaluate_first_documents(run: Path) -> Evaluation:
    """An evaluation by other settings than the run's own, next to its own."""
    config, record = RunFolder(run).config, RunFolder(run).verified_record
    assert record is not None
    fewer = config.evaluate.model_copy(update={"documents": 3})
    other = evaluate(config.model_copy(update={"evaluate": fewer}), record, shards_of(record))
    assert other.path == run / f"evaluation-{other.key[:12]}"
    return other


def test_a_run_before_its_first_checkpoint_lacks_nothing(run: Path) -> None:
    """What its first checkpoint will record is not known yet; none of it is gone."""
    (run / "record.json").unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    shutil.rmtree(run / "evaluation")
    chain = lineage(RunFolder(run))
    assert chain.broken == []
    values = {
        "checkpoint": "none yet",
        "code": "not recorded yet",
        "environment": "not recorded yet",
    }
    for name, value in values.items():
        assert (chain[name].value, chain[name].state) == (value, "not checked")
        assert chain[name].notes == ("its training has saved no checkpoint yet",)


def test_the_chain_ends_in_the_evaluation_that_is_asked_for(run: Path) -> None:
    own = RunFolder(run).evaluation
    assert own is not None
    other = evaluate_first_documents(run)
    digests = {key: storage.content_hash(e) for key, e in ((None, own), (other.key, other))}
    assert digests[None] != digests[other.key]
    for key, digest in digests.items():
        link = lineage(RunFolder(run), evaluation_key=key)["evaluation"]
        assert (link.digest, link.state) == (digest, "unchanged")
    by_tag = lineage(RunFolder(run), tags={"evaluation_key": other.key})
    assert by_tag["evaluation"].digest == digests[other.key]
    shutil.rmtree(other.path)
    tags = {"evaluation_key": other.key, "val_bpb": "1.5", "evaluation_sha256": "f" * 64}
    by_tag = lineage(RunFolder(run), tags=tags)
    assert (by_tag["evaluation"].digest, by_tag["evaluation"].state) == ("f" * 64, "gone")


# ---- versions ---------------------------------------------------------------------------------


def test_a_version_ends_the_chain(run: Path) -> None:
    register(run)
    root = run.parents[1]
    chain = chains.version_lineage("models:/slm@challenger", root)
    assert [link.name for link in chain.links] == [*CHAIN, "version"]
    assert chain["version"].value == "models:/slm/1 (challenger)"
    assert set(states(chain).values()) == {"unchanged"}
    assert versions.open_version("models:/slm/1", root).run(root).path == run
    facts = versions.list_versions(root)
    assert [(v.uri, v.aliases, v.tags["run"]) for v in facts] == [
        ("models:/slm/1", ("challenger",), run.name)
    ]
    with pytest.raises(UserError, match="valid: 1"):
        chains.version_lineage("models:/slm/2", root)

    before = {link.name: link.digest for link in chain.links}
    shutil.rmtree(root / "runs")
    chain = chains.version_lineage("models:/slm/1", root)
    assert {link.name for link in chain.broken} >= {"config", "run", "checkpoint", "evaluation"}
    kept = {tag.link: before[tag.link] for tag in chains.CHAIN if tag.link in before}
    assert {name: chain[name].digest for name in kept} == kept


def test_tags_that_differ_from_the_run_are_reported(run: Path) -> None:
    register(run)
    root = run.parents[1]
    client = connect(default_uri(root))
    client.set_model_version_tag("slm", "1", "slm.shards_key", "0" * 64)
    link = chains.version_lineage("models:/slm/1", root)["version"]
    assert link.state == "changed"
    assert "slm.shards_key" in link.notes[0]
    client.set_model_version_tag(
        "slm", "1", "slm.shards_key", str(lineage(RunFolder(run))["shards"].digest)
    )
    flip_byte(next((root / "mlflow" / "artifacts").rglob("model.safetensors")))
    link = chains.version_lineage("models:/slm/1", root)["version"]
    assert link.state == "changed"
    assert "model.safetensors" in link.notes[0]


DOWN = "http://me:secret@127.0.0.1:9"


@pytest.mark.parametrize(
    "ask",
    [
        versions.list_versions,
        partial(versions.open_version, "models:/slm/1"),
        partial(chains.version_lineage, "models:/slm/1"),
        partial(versions.champion_and_challenger, CONFIG, Path()),
        partial(versions.as_parent, "models:/slm/1", CONFIG, Path()),
    ],
)
def test_a_registry_that_cannot_be_asked_is_an_error_without_passwords(
    ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DOWN)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SlmError, match=r"^MLflow: .*127\.0\.0\.1") as caught:
        ask()
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_tag_that_leads_out_of_the_data_folder_is_refused(run: Path) -> None:
    register(run)
    root = run.parents[1]
    client = connect(default_uri(root))
    client.set_model_version_tag("slm", "1", "slm.run", "../../elsewhere")
    with pytest.raises(UserError, match="not the name of anything"):
        versions.open_version("models:/slm/1", root).run(root)


def test_no_store_has_no_versions(tmp_path: Path) -> None:
    assert versions.list_versions(tmp_path) == []
    assert not (tmp_path / "mlflow").exists()


# ---- the picture ------------------------------------------------------------------------------


def test_the_picture_shows_every_link_and_escapes_its_text(run: Path) -> None:
    chain = lineage(RunFolder(run))
    svg = lineage_svg(chain)
    assert svg == lineage_svg(chain)
    drawn = "".join(ElementTree.fromstring(svg).itertext())
    assert all(link.name in drawn and str(link.digest)[:12] in drawn for link in chain.links)
    hostile = Link(name="dataset", value="<script>&\"'", state="gone", notes=("</svg>",))
    svg = lineage_svg(Lineage(name="<b>", links=(hostile,)))
    assert "<script>" not in svg
    assert svg.count("</svg>") == 1
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert json.dumps(svg)
