"""What was deleted or renamed in MLflow is seen as such, and registering again repairs it."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

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
from servers import free_port, running
from tiny_run import shards_of

from slm import retention
from slm.config import PipelineConfig, RegistryConfig
from slm.errors import UserError
from slm.records import Evaluation, Run, Version
from slm.registry import gate, register
from slm.registry.versions import champion_and_challenger, find_version, list_versions, resolve
from slm.tracking.server import connect, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

LENIENT = RegistryConfig(
    gate_documents=20, max_bpb=100, beat_baselines=False, max_degenerate=1, max_memorised=1
)


class Registry:
    """A data folder with one run, whose version is champion."""

    def __init__(self, root: Path, config: PipelineConfig) -> None:
        self.root, self.config = root, config
        self.uri = tracking_uri(config, root)
        path = start_run(root, config)
        write_journal(path, step_events(1, 20))
        self.run: Run = finish_run(path)
        self.evaluation: Evaluation = add_evaluation(self.run)
        self.first = self.register()
        self.promote()

    @property
    def client(self) -> "MlflowClient":
        return connect(self.uri)

    def register(self) -> Version:
        return register.register(
            self.config, self.run, self.evaluation, None, shards_of(self.run), root=self.root
        )

    def promote(self, version: str = "@challenger") -> gate.GateDecision:
        return gate.promote(
            f"models:/slm{version}", root=self.root, uri=self.uri, thresholds=LENIENT
        )

    def champion(self) -> str | None:
        champion, _ = champion_and_challenger(self.config, self.root)
        return champion.uri if champion else None


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(empty_store(tmp_path / "my data"), CONFIG)


def delete_version(registry: Registry) -> None:
    registry.client.delete_model_version("slm", "1")


def delete_model(registry: Registry) -> None:
    registry.client.delete_registered_model("slm")


def delete_run(registry: Registry) -> None:
    registry.client.delete_run(registry.first.run_id)


def delete_files(registry: Registry) -> None:
    """As `mlflow gc` does with a deleted logged model."""
    client = registry.client
    model_id = client.get_model_version("slm", "1").source.rpartition("/")[2]
    location = client.get_logged_model(model_id).artifact_location
    client.delete_logged_model(model_id)
    shutil.rmtree(location.removeprefix("file://").replace("%20", " "))


def rename_model(registry: Registry) -> None:
    registry.client.rename_registered_model("slm", "other")


DELETED = {
    delete_version: ("models:/slm/2", None, []),
    delete_model: ("models:/slm/1", None, []),
    rename_model: ("models:/slm/1", None, ["models:/other/1"]),
    delete_run: ("models:/slm/2", "models:/slm/1", ["models:/slm/1"]),
    delete_files: ("models:/slm/2", "models:/slm/1", ["models:/slm/1"]),
}


def check(registry: Registry, delete: Callable[[Registry], None]) -> None:
    """Everything that reads the registry sees what is left, and a new version is made."""
    uri, champion, listed = DELETED[delete]
    delete(registry)
    assert registry.champion() == champion
    assert [v.uri for v in list_versions(registry.root, uri=registry.uri)] == listed
    if champion is None:
        with pytest.raises(UserError, match=r"unknown|was deleted"):
            find_version(registry.client, "models:/slm@champion")
        with pytest.raises(UserError, match="unknown"):
            resolve("models:/slm/1", registry.root, uri=registry.uri)
    again = registry.register()
    assert (again.uri, again.reused, again.aliases) == (uri, False, ["challenger"])
    active = registry.client.get_run(again.run_id)
    assert active.info.lifecycle_stage == "active"
    assert registry.register().reused
    register.annotate(again, registry.config, {"retrain": "retrain"}, root=registry.root)
    register.annotate(registry.register(), registry.config, {"a": "b"}, root=registry.root)
    decision = registry.promote()
    assert decision.decision == ("refused" if champion else "promoted")  # against its own weights
    assert registry.champion() == (champion or uri)


@pytest.mark.parametrize("delete", DELETED, ids=lambda delete: delete.__name__)
def test_what_was_deleted_is_registered_anew(
    registry: Registry, delete: Callable[[Registry], None]
) -> None:
    check(registry, delete)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
        f"--backend-store-uri=sqlite:///{folder}/server.db", "--no-serve-artifacts",
        f"--default-artifact-root={(folder / 'artifacts').as_uri()}",
    ]  # fmt: skip
    with running(command, f"{address}/health", folder):
        yield address


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("delete", DELETED, ids=lambda delete: delete.__name__)
def test_the_same_over_http(
    tmp_path: Path, server: str, delete: Callable[[Registry], None]
) -> None:
    for model in connect(server).search_registered_models():
        connect(server).delete_registered_model(model.name)
    section = RegistryConfig(tracking_uri=server)
    check(Registry(tmp_path, CONFIG.model_copy(update={"registry": section})), delete)


def test_a_version_whose_run_was_deleted_can_be_annotated(registry: Registry) -> None:
    delete_run(registry)
    register.annotate(registry.first, CONFIG, {"retrain": "skip"}, root=registry.root)
    assert registry.client.get_model_version("slm", "1").tags["slm.retrain"] == "skip"


def test_an_alias_of_a_version_that_is_gone_is_none(registry: Registry) -> None:
    with closing(sqlite3.connect(registry.root / "mlflow" / "mlflow.db")) as store:
        store.execute("UPDATE registered_model_aliases SET version = 7")
        store.commit()
    assert registry.champion() is None
    with pytest.raises(UserError, match="'champion' is of version 7, which was deleted"):
        find_version(registry.client, "models:/slm@champion")
    assert registry.register().uri == "models:/slm/1"
    assert registry.promote("/1").decision == "promoted"
    assert registry.champion() == "models:/slm/1"


def test_a_decision_belongs_to_the_model_whatever_its_name_is_now(registry: Registry) -> None:
    rename_model(registry)
    decision = gate.promote("models:/other/1", root=registry.root)
    assert decision.uri == "models:/other/1"
    assert decision.reused
    assert registry.client.get_registered_model("other").aliases == {"champion": 1}


def test_rollback_names_a_predecessor_that_was_deleted(registry: Registry) -> None:
    registry.client.set_model_version_tag("slm", "1", "slm.previous_champion", "5")
    with pytest.raises(UserError, match="was version 5, which was deleted"):
        gate.rollback("slm", root=registry.root)


# ---- what is kept for versions ------------------------------------------------------------------


def is_kept(registry: Registry) -> bool:
    deleted = register.deleted_notes(registry.root)
    registered = {v.tags.get("run", "") for v in list_versions(registry.root)}
    survey = retention.survey(registry.root, registered, keep_runs=0, grace=-60, deleted=deleted)
    return registry.run.path in {item.path for item in survey.staying}


def test_a_run_is_kept_as_long_as_its_version_exists(registry: Registry) -> None:
    assert is_kept(registry)
    rename_model(registry)
    assert is_kept(registry)
    registry.client.delete_model_version("other", "1")
    assert not is_kept(registry)


def test_a_run_is_kept_where_its_registry_cannot_be_asked(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (note,) = register.registered_notes(registry.run.path)
    elsewhere = registry.first.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    note.write_text(elsewhere.model_dump_json())
    registry.client.delete_registered_model("slm")
    assert is_kept(registry)
