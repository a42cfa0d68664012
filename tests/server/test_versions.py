"""An alias that moves: what is served then, and what becomes of the version before it."""

import gc
import logging
import threading
import time
import weakref
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from registered import Registry

from slm.errors import UserError
from slm.model.saved import MODEL_FILES
from slm.registry.following import FollowedVersion
from slm.server.versions import Served


class FakeEngine:
    """Counts what is open; answers with its version."""

    def __init__(self, version: str, folder: Path) -> None:
        if not (folder / MODEL_FILES[0]).is_file():
            raise UserError(f"{folder} holds no model")
        self.version, self.closed = version, False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@pytest.fixture
def registry(data_root: Path) -> Registry:
    registry = Registry(data_root)
    registry.add(1, "champion")
    registry.add(2, "challenger")
    return registry


def serve(reference: str) -> Served[FakeEngine]:
    return Served(reference, FakeEngine)


# ---- the reference ----------------------------------------------------------------------------


def test_an_alias_is_asked_only_when_the_registry_has_changed(registry: Registry) -> None:
    followed = FollowedVersion("slm@champion")
    assert followed.may_move
    assert followed.version().uri == "models:/slm/1"
    followed.client = None  # type: ignore[assignment]  # whoever asks it now, fails
    with pytest.raises(AttributeError):
        FollowedVersion.version(followed)
    followed.client = registry.client
    first = followed.version()
    assert followed.version() is first
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


def test_a_request_keeps_its_version_and_the_old_one_is_freed_after_it(registry: Registry) -> None:
    served = serve("models:/slm@champion")
    with served.use() as first, served.use() as other:
        assert first is other
        registry.move("champion", "2")
        assert served.check()
        assert served.version == "models:/slm/2"
        assert (first.version, first.engine.closed) == ("models:/slm/1", False)
        with served.use() as second:
            assert second.engine.version == "models:/slm/2"
    assert first.engine.closed
    assert not second.engine.closed
    engine = weakref.ref(first.engine)
    del first, other
    gc.collect()
    assert engine() is None
    assert not served.check()  # nothing has moved since
    assert served.state["swaps"] == 1


def test_an_idle_version_is_freed_when_the_alias_moves(registry: Registry) -> None:
    served = serve("slm@champion")
    with served.use() as first:
        pass
    registry.move("champion", "2")
    assert served.check()
    assert first.engine.closed


def test_a_version_that_cannot_be_opened_leaves_the_old_one_and_a_reason(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve("slm@champion")
    broken = registry.add(3)
    weights = registry.folder(3) / MODEL_FILES[0]
    weights.rename(weights.with_name("aside"))
    registry.move("champion", broken)
    with caplog.at_level(logging.ERROR):
        assert [served.check() for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1  # once, not at every look
    assert "slm@champion still answers as models:/slm/1" in caplog.text
    assert served.version == "models:/slm/1"
    assert served.state["error"]
    registry.move("champion", "2")  # away from the broken one
    assert served.check()
    assert served.state["error"] is None


def test_an_alias_that_is_deleted_and_set_again(registry: Registry) -> None:
    served = serve("slm@champion")
    registry.client.delete_registered_model_alias("slm", "champion")
    assert not served.check()
    assert "unknown alias 'champion'" in served.state["error"]
    registry.move("champion", "1")
    assert not served.check()
    assert served.state["error"] is None


def test_a_registry_that_does_not_answer_for_a_while(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve("slm@champion")
    registry.move("champion", "2")

    def refuse(*_: object) -> None:
        raise MlflowException("API request to http://127.0.0.1:9/api failed: timed out")

    with monkeypatch.context() as patch:
        patch.setattr(type(registry.client), "get_registered_model", refuse)
        assert not served.check()
    assert "does not answer in time" in served.state["error"]
    assert served.version == "models:/slm/1"
    assert served.check()


def test_what_does_not_exist_is_refused_at_the_start(registry: Registry) -> None:
    for reference in ("slm@nobody", "models:/slm/9", "nowhere"):
        with pytest.raises(UserError):
            serve(reference)


def test_a_thread_follows_the_alias_while_requests_go_on(registry: Registry) -> None:
    served = serve("slm@champion")
    served.follow(0.01)
    assert served.state["follows"]
    ended = threading.Event()
    wrong: list[str] = []

    def ask() -> None:
        while not ended.is_set():
            with served.use() as opened:
                if opened.engine.closed or opened.engine.version != opened.version:
                    wrong.append(opened.version)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in ("2", "1", "2"):
        registry.move("champion", version)
        limit = time.monotonic() + 60
        while served.version != f"models:/slm/{version}" and time.monotonic() < limit:
            time.sleep(0.01)
        assert served.version == f"models:/slm/{version}"
    ended.set()
    for thread in threads:
        thread.join()
    served.close()
    assert not wrong
    assert served.state["swaps"] == 3
