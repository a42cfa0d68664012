"""How a version is named: by model, alias, number, or the run that it was made from."""

import logging
from pathlib import Path

import pytest
from run_folders import (
    CONFIG,
    add_evaluation,
    empty_store,
    finish_run,
    start_run,
    step_events,
    write_journal,
)
from tiny_run import shards_of

from slm.config import RegistryConfig
from slm.errors import UserError
from slm.records import Run, names_version, parse_version
from slm.registry import gate, register
from slm.registry.opening import load_model, model_folder, open_run
from slm.registry.versions import find_version, open_version
from slm.tracking.server import connect, default_uri

LENIENT = RegistryConfig(
    gate_documents=25, max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1
)


@pytest.fixture
def root(data_root: Path) -> Path:
    """A data folder with an empty store."""
    return empty_store(data_root)


def add_version(root: Path, key: str, model: str = "slm") -> Run:
    path = start_run(root, key=key * 32)
    write_journal(path, step_events(1, 60))
    run = finish_run(path, key=key * 32)
    config = CONFIG.model_copy(update={"registry": RegistryConfig(model=model)})
    register.register(config, run, add_evaluation(run), None, shards_of(run), root=root)
    return run


@pytest.mark.parametrize(
    ("reference", "name", "chosen"),
    [
        ("models:/a", "a", None),
        ("models:/a@champion", "a", "champion"),
        ("models:/a/3", "a", "3"),
        ("models:/a/latest", "a", "latest"),
        ("a@champion", "a", "champion"),
        ("my.model-2@my-alias", "my.model-2", "my-alias"),
    ],
)
def test_the_forms_of_a_reference(reference: str, name: str, chosen: str | None) -> None:
    assert names_version(reference)
    assert parse_version(reference) == (name, chosen)


@pytest.mark.parametrize("reference", ["models:", "models:/", "models:/a/b", "models:/a@", "a@"])
def test_what_is_no_reference_names_the_forms(reference: str, root: Path) -> None:
    with pytest.raises(UserError, match="is not models:/NAME, models:/NAME@ALIAS, NAME@ALIAS"):
        parse_version(reference)


def test_a_folder_with_an_at_sign_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a@b").mkdir()
    assert names_version("a@b")
    monkeypatch.chdir(tmp_path)
    assert not names_version("a@b")
    assert not names_version("data/runs/a@b")


def test_a_model_alone_is_its_champion_or_its_newest_version(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [add_version(root, key) for key in ("aa", "bb")]
    client = connect(default_uri(root))
    caplog.set_level(logging.WARNING, "slm")
    for reference in ("models:/slm", "slm@latest", "models:/slm/latest", "models:/slm/2"):
        assert find_version(client, reference).uri == "models:/slm/2"
    assert caplog.messages == [
        "models:/slm is taken as models:/slm/2, its newest version: none is champion"
    ]
    gate.promote("models:/slm/1", root=root, thresholds=LENIENT)
    caplog.clear()
    for reference in ("models:/slm", "slm@champion", "models:/slm@champion"):
        assert open_version(reference, root).uri == "models:/slm/1"
        assert open_run(reference, root).name == runs[0].name
        assert model_folder(reference, root) == runs[0].checkpoint("best")
    assert set(caplog.messages) == {"models:/slm is taken as models:/slm/1, its champion"}
    assert load_model("slm@champion", root=root).model.vocab_size == 257
    assert open_run(open_version("slm@champion", root), root).name == runs[0].name
    with pytest.raises(UserError, match="unknown alias 'champoin': did you mean 'champion'"):
        find_version(client, "slm@champoin")


def test_promotion_without_a_name_is_of_the_only_model(root: Path) -> None:
    with pytest.raises(UserError, match="no model is registered yet: `slm register RUN`"):
        gate.promote(root=root)
    add_version(root, "aa")
    assert gate.promote(root=root, thresholds=LENIENT).uri == "models:/slm/1"
    add_version(root, "bb", "other")
    with pytest.raises(UserError, match="there are 2 models: name one of other, slm"):
        gate.promote(root=root)
    with pytest.raises(UserError, match="there are 2 models"):
        gate.rollback(root=root)


def test_what_is_promoted_may_be_named_by_model_alias_or_run(root: Path) -> None:
    run = add_version(root, "aa")
    for reference in ("slm", "models:/slm", "slm@challenger", run.name, "aaaa", "latest"):
        decision = gate.promote(reference, root=root, thresholds=LENIENT)
        assert (decision.uri, decision.decision) == ("models:/slm/1", "promoted")
        client = connect(default_uri(root))
        client.set_registered_model_alias("slm", "challenger", "1")
    unregistered = start_run(root, key="cc" * 32)
    with pytest.raises(UserError, match="no version was made from the run"):
        gate.promote(unregistered.name, root=root)
    with pytest.raises(UserError, match="unknown run 'nobody'"):
        gate.promote("nobody", root=root)


def test_rollback_takes_a_models_name_and_its_reference(root: Path) -> None:
    add_version(root, "aa")
    for model in ("slm", "models:/slm", None):
        with pytest.raises(UserError, match=r"slm@champion|unknown alias 'champion'"):
            gate.rollback(model, root=root)
