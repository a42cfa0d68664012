"""An alias that moves: what is served then, and what becomes of the version before it."""

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from mlflow.exceptions import MlflowException
from registered import Registry
from served import GOOD, listening, streamed, wait_for

from slm.model.saved import MODEL_FILES
from slm.registry.following import FollowedVersion
from slm.server.api import create_app
from slm.server.following import AliasFollower, follow_aliases
from slm.server.versions import ServedModel, ServedModels, open_model, open_models

ALIAS = "slm@champion"
HOW = {"weights": "float32", "device": "cpu", "max_batch": 4, "queue": 64}


@pytest.fixture
def registry(data_root: Path) -> Registry:
    registry = Registry(data_root)
    registry.add(1, "champion")
    registry.add(2, "challenger")
    return registry


@pytest.fixture
def models(registry: Registry) -> Iterator[ServedModels]:
    models = open_models([ALIAS], **HOW)  # type: ignore[arg-type]
    yield models
    models.close(timeout=0)


@pytest.fixture
def follower(models: ServedModels) -> AliasFollower:
    def open_version(version: str, folder: Path) -> ServedModel:
        return open_model(ALIAS, version, folder, root=None, **HOW)  # type: ignore[arg-type]

    return AliasFollower(models, ALIAS, FollowedVersion(ALIAS), open_version)


# ---- the reference ----------------------------------------------------------------------------


def test_an_alias_is_asked_only_when_the_registry_has_changed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = FollowedVersion(ALIAS)
    assert followed.may_move
    assert followed.version().uri == "models:/slm/1"
    with monkeypatch.context() as patch:
        patch.setattr(followed, "client", registry.client)
        patch.setattr(type(registry.client), "get_registered_model", None)  # fails when called
        assert followed.version().uri == "models:/slm/1"
    registry.move("champion", "2")
    assert followed.version().uri == "models:/slm/2"


def test_a_number_never_moves_and_a_name_follows_its_champion(registry: Registry) -> None:
    number = FollowedVersion("models:/slm/1")
    assert not number.may_move
    registry.client.delete_registered_model_alias("slm", "champion")
    name = FollowedVersion("models:/slm")
    assert name.may_move
    assert name.version().uri == "models:/slm/2"  # the newest
    registry.move("champion", "1")
    assert name.version().uri == number.version().uri == "models:/slm/1"


# ---- the swap ---------------------------------------------------------------------------------


def test_the_version_of_the_alias_is_served_and_the_old_one_is_freed(
    registry: Registry, models: ServedModels, follower: AliasFollower
) -> None:
    assert not follower.check()
    old = weakref.ref(models.get(ALIAS).engine.decoder)
    registry.move("champion", "2")
    assert follower.check()
    assert models.get(ALIAS).version == "models:/slm/2"
    assert models.swaps == {ALIAS: 1}
    assert not follower.check()  # nothing has moved since

    def is_freed() -> bool:
        gc.collect()
        return old() is None

    wait_for(is_freed)


def test_a_version_that_cannot_be_opened_leaves_the_old_one_and_a_reason(
    registry: Registry,
    models: ServedModels,
    follower: AliasFollower,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = registry.add(3)
    weights = registry.folder(3) / MODEL_FILES[0]
    weights.rename(weights.with_name("aside"))
    registry.move("champion", broken)
    with caplog.at_level(logging.ERROR, "slm.server"):
        assert [follower.check() for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1  # once, not at every look
    assert f"{ALIAS} is still answered by models:/slm/1" in caplog.text
    assert models.get(ALIAS).version == "models:/slm/1"
    assert "files of models:/slm/3 are gone" in models.stale[ALIAS]
    registry.move("champion", "2")  # away from the broken one
    assert follower.check()
    assert not models.stale


def test_an_alias_that_is_deleted_and_set_again(
    registry: Registry, models: ServedModels, follower: AliasFollower
) -> None:
    follower.check()
    registry.client.delete_registered_model_alias("slm", "champion")
    assert not follower.check()
    assert "unknown alias 'champion'" in models.stale[ALIAS]
    registry.move("champion", "1")
    assert not follower.check()
    assert not models.stale


def test_a_registry_that_does_not_answer_for_a_while(
    registry: Registry,
    models: ServedModels,
    follower: AliasFollower,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.move("champion", "2")

    def refuse(*_: object) -> None:
        raise MlflowException("API request to http://127.0.0.1:9/api failed: timed out")

    with monkeypatch.context() as patch:
        patch.setattr(type(registry.client), "get_registered_model", refuse)
        assert not follower.check()
    assert "does not answer in time" in models.stale[ALIAS]
    assert models.get(ALIAS).version == "models:/slm/1"
    assert follower.check()


# ---- under load -------------------------------------------------------------------------------


def test_no_request_fails_while_the_alias_moves_and_each_is_of_one_version(
    registry: Registry, models: ServedModels
) -> None:
    """Long and short texts, whole and streamed, of three clients."""
    app = create_app(models)
    ended, wrong = threading.Event(), []
    answers: set[tuple[str, int, str]] = set()  # version, tokens, text

    def ask(url: str, tokens: int, stream: bool) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not ended.is_set():
                body = {**GOOD, "model": ALIAS, "max_tokens": tokens, "stream": stream}
                response = client.post("/v1/completions", json=body)
                if response.status_code != 200:
                    wrong.append(response.text)
                    continue
                chunks = streamed(response.text) if stream else [response.json()]
                [version] = {chunk["system_fingerprint"] for chunk in chunks}
                text = "".join(c["text"] for chunk in chunks for c in chunk["choices"])
                answers.add((version, tokens, text))

    with listening(app) as url, closing(follow_aliases(models, seconds=0.02, **HOW)):
        clients = [
            threading.Thread(target=ask, args=(url, tokens, stream))
            for tokens, stream in ((4, False), (40, True), (150, False))
        ]
        for client in clients:
            client.start()
        for number in ("2", "1", "2"):
            registry.move("champion", number)
            version = f"models:/slm/{number}"
            wait_for(lambda version=version: models.get(ALIAS).version == version)
        wait_for(lambda: {a[:2] for a in answers} >= {("models:/slm/2", n) for n in (4, 40, 150)})
        ended.set()
        for client in clients:
            client.join()
        health = httpx.get(f"{url}/health").json()
        metrics = httpx.get(f"{url}/metrics").text
    assert not wrong
    assert len({a[:2] for a in answers}) == len(answers)  # one text per version and length
    assert health["versions"] == {ALIAS: "models:/slm/2"}
    assert health["stale"] == []
    assert 'slm_version_swaps_total{model="slm@champion",version="models:/slm/2"} 3.0' in metrics
    assert 'slm_alias_stale{model="slm@champion",version="models:/slm/2"} 0.0' in metrics
