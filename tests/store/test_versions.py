"""Model versions in a store, and the commands `slm push` and `slm pull`."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import empty_store
from stores import facts, only_run
from tiny_run import CLEAN, code, copy_run, shards_of

import slm
from slm.cli import main
from slm.errors import UserError
from slm.registry.chain import version_lineage
from slm.registry.register import register
from slm.registry.versions import list_versions
from slm.store.remote import open_store
from slm.tracking.server import connect, default_uri

Invoke = Callable[..., tuple[int, Any, str]]


@pytest.fixture(autouse=True)
def _clean_code() -> Iterator[None]:
    with code(CLEAN):
        yield


@pytest.fixture
def root(data_root: Path) -> Path:
    """The data folder of a machine that has registered a version, and made it champion."""
    copy_run(data_root)
    empty_store(data_root)
    run = only_run(data_root)
    record, evaluation = run.verified_record, run.evaluation
    assert record
    assert evaluation
    version = register(run.config, record, evaluation, None, shards_of(record), root=data_root)
    client = connect(default_uri(data_root))
    client.set_registered_model_alias(version.model, "champion", version.version)
    return data_root


@pytest.fixture
def invoke(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Invoke:
    """Runs `slm … --json`; returns the exit code, what is on stdout, and stderr."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments: str) -> tuple[int, Any, str]:
        monkeypatch.setattr(sys, "argv", ["slm", *arguments, "--json"])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(captured.out.splitlines()[-1]), captured.err

    return run


def test_a_version_comes_over_and_is_registered_with_its_chain(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other_root = f"file://{tmp_path / 'store'}", empty_store(tmp_path / "b")
    pushed = slm.push("slm@champion", store)
    assert pushed.results[-1] == "version/slm"
    monkeypatch.setenv("SLM_DATA", str(other_root))
    pulled = slm.pull("slm@champion", store)
    assert pulled.version == "models:/slm/1"
    [here], [origin] = list_versions(other_root), list_versions(root)
    assert here.aliases == ("challenger",), "only the gate here makes a champion here"
    own = {"run_id"}
    assert {k: v for k, v in here.tags.items() if k not in own} == {
        k: v for k, v in origin.tags.items() if k not in own
    }
    chain = version_lineage("models:/slm/1", other_root)
    assert not [link.name for link in chain.broken if link.name != "dataset"]
    assert slm.pull("models:/slm/1", store).pulled == ()
    assert [version.version for version in list_versions(other_root)] == ["1"]
    assert facts(only_run(other_root).verified_record) == facts(only_run(root).verified_record)
    with pytest.raises(UserError, match=r"no version slm@nobody; it has models:/slm/1"):
        slm.pull("slm@nobody", store)
    with pytest.raises(UserError, match="no version of 'other'; its models: slm"):
        slm.pull("models:/other", store)


def test_an_alias_follows_the_last_push(root: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path / 'store'}")
    slm.push("models:/slm/1", store)
    [entry] = store.versions("slm")
    assert store.alias("slm", "champion") == entry.key
    connect(default_uri(root)).set_registered_model_alias("slm", "best", "1")
    slm.push("models:/slm/1", store)
    assert store.alias("slm", "best") == entry.key
    assert len(store.versions("slm")) == 1


def test_the_commands(
    invoke: Invoke, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name = f"file://{tmp_path / 'store'}", only_run(root).name
    code, out, _ = invoke("push", "latest", "--to", store)
    assert (code, out["store"]) == (0, store)
    assert [result.partition("/")[0] for result in out["results"]] == [
        "source", "shards", "run", "evaluation",
    ]  # fmt: skip
    monkeypatch.setenv("SLM_DATA", str(tmp_path / "b"))
    monkeypatch.setenv("SLM_STORE", store)
    code, out, _ = invoke("pull", name)
    assert code == 0
    assert out["path"] == str(tmp_path / "b" / "runs" / name)
    assert len(out["pulled"]) == 4
    code, out, _ = invoke("verify", name)
    assert (code, out["verdict"]) == (0, "identical")
    monkeypatch.delenv("SLM_STORE")
    code, out, _ = invoke("pull", name)
    assert code == 2
    assert "give --from URL, set SLM_STORE" in out["error"]
    code, out, err = invoke("push", name, "--to", "s3://me:hunter2@bucket")
    assert code == 2
    assert "hunter2" not in json.dumps(out) + err
