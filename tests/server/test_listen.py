"""`slm.serve` and `slm serve`: what they refuse, and a server from its start to its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from registered import Registry
from run_folders import CONFIG, add_evaluation, empty_store, finish_run, start_run
from served import ENDLESS, GOOD, wait_for
from tiny_run import copy_run, shards_of

import slm
from slm.errors import Interrupted, UserError


@contextmanager
def server_process(name: str, root: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`slm serve NAME` on a free port: its address, once it answers, and the process."""
    command = [sys.executable, "-m", "slm.cli.main", "serve", name, "--port", "0", "--json"]
    environment = {**os.environ, "SLM_DATA": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            assert ready["models"] == [name]
            yield ready["url"], process
        finally:
            process.kill()


def test_another_host_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLM_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"give --api-key or SLM_API_KEY"):
        slm.serve("latest", host="0.0.0.0")


def test_limits_that_mean_nothing_and_no_model_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'max_batch'"):
        slm.serve("latest", max_batches=3)
    with pytest.raises(UserError, match="timeout=0: give more than 0"):
        slm.serve("latest", timeout=0)
    with pytest.raises(UserError, match="name a run"):
        slm.serve()
    with pytest.raises(UserError, match="not empty"):
        slm.serve("latest", api_key=" ")


def test_a_port_in_use_is_refused_before_a_model_is_loaded() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(UserError, match="choose another port"):
        slm.serve("no such run", port=taken.getsockname()[1])


def version_of_answer(url: str) -> str:
    response = httpx.post(f"{url}/v1/completions", json=GOOD, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["system_fingerprint"])


def test_a_server_follows_its_alias_until_it_is_asked_to_end(data_root: Path) -> None:
    registry = Registry(data_root)
    first, second = registry.add(1, "champion"), registry.add(2)
    answered: list[str] = []

    def use(url: str) -> None:
        try:
            answered.append(version_of_answer(url))
            registry.move("champion", second)
            wait_for(lambda: version_of_answer(url) == second)
            answered.append(second)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def begin(url: str, names: list[str]) -> None:
        assert names == ["slm@champion"]
        threading.Thread(target=use, args=(url,)).start()

    slm.serve("slm@champion", port=0, on_ready=begin)
    assert answered == [first, second]


def test_a_second_signal_cuts_off_what_is_not_done(data_root: Path) -> None:
    Registry(data_root).add(0, "champion")

    def use(url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")

        def is_closed() -> bool:
            try:
                socket.create_connection((host, int(port))).close()
            except ConnectionRefusedError:
                return True
            return False

        body = {**ENDLESS, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(is_closed)
            os.kill(os.getpid(), signal.SIGTERM)
            with suppress(httpx.HTTPError):
                for _ in lines:
                    pass

    def begin(url: str, _: list[str]) -> None:
        threading.Thread(target=use, args=(url,)).start()

    with pytest.raises(Interrupted, match="1 requests were cut off"):
        slm.serve("slm@champion", port=0, max_tokens=ENDLESS["max_tokens"], on_ready=begin)


def register(root: Path, key: str, trained: int) -> str:
    """A version of a model after so many steps; its address."""
    path = start_run(root, key=key * 32)
    run = finish_run(path, key=key * 32, trained=trained)
    shards = shards_of(run)
    return slm.register(CONFIG, run, add_evaluation(run), None, shards, root=root).uri


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_promoted_version_answers_soon_and_sigterm_ends_the_server(tmp_path: Path) -> None:
    root = empty_store(tmp_path)
    first, second = register(root, "aa", 0), register(root, "bb", 5)
    slm.promote(first, root=root, force="the first one")
    texts: dict[str, str] = {}

    with server_process("slm@champion", root) as (url, process):

        def answered_by() -> str:
            response = httpx.post(f"{url}/v1/completions", json=GOOD, timeout=60)
            assert response.status_code == 200, response.text
            answer: dict[str, Any] = response.json()
            texts[answer["system_fingerprint"]] = answer["choices"][0]["text"]
            return str(answer["system_fingerprint"])

        assert answered_by() == first
        slm.promote(second, root=root, force="to see it served")
        wait_for(lambda: answered_by() == second)
        health = httpx.get(f"{url}/health").json()
        assert health["versions"] == {"slm@champion": second}
        assert health["stale"] == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    settings: dict[str, Any] = {
        "max_new_tokens": GOOD["max_tokens"],
        "temperature": GOOD["temperature"],
        "seed": GOOD["seed"],
    }
    for version, text in texts.items():
        [sample] = slm.sample(slm.load_model(version, root=root), GOOD["prompt"], **settings)
        assert text == sample.completion
    assert len(set(texts.values())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_and_ends_after_its_requests(tmp_path: Path, number: int) -> None:
    run = copy_run(tmp_path).name
    with server_process(run, tmp_path) as (url, server):
        body = {"prompt": "Tom", "max_tokens": 30, "seed": 1, "temperature": 0.8, "top_k": 50}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
        [text] = slm.sample(
            slm.open_run(run, root=tmp_path), "Tom", max_new_tokens=30, seed=1, temperature=0.8,
            top_k=50,
        )  # fmt: skip
        assert answer["choices"][0]["text"] == text.completion
        long = {**body, "max_tokens": 400, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=long, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.send_signal(number)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait(60) == 0
