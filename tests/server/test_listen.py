"""`slm.serve` and `slm serve`: what they refuse, and a server from its start to its end."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tiny_run import copy_run

import slm
from slm.errors import UserError


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_and_ends_after_its_requests(tmp_path: Path, number: int) -> None:
    run = copy_run(tmp_path).name
    command = [sys.executable, "-m", "slm.cli.main", "serve", run, "--port", "0", "--json"]
    environment = {**os.environ, "SLM_DATA": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        body = {"prompt": "Tom", "max_tokens": 30, "seed": 1, "temperature": 0.8, "top_k": 50}
        answer = httpx.post(f"{ready['url']}/v1/completions", json=body, timeout=60).json()
        [text] = slm.sample(
            slm.open_run(run, root=tmp_path), "Tom", max_new_tokens=30, seed=1, temperature=0.8,
            top_k=50,
        )  # fmt: skip
        assert answer["choices"][0]["text"] == text.completion
        long = {**body, "max_tokens": 400, "stream": True}
        with httpx.stream("POST", f"{ready['url']}/v1/completions", json=long, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.send_signal(number)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait(60) == 0
