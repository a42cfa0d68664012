"""Clients that read slowly, or leave: nobody else notices, and their places are freed."""

import json
import socket
import struct
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from served import ENDLESS, GOOD, listening, tiny_app, wait_for

LONG = {**ENDLESS, "logprobs": 5}
LIMITS = {"max_batch": 2, "max_tokens": 100_000}


def send(url: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has asked, with as little room for the answer as the system allows."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    connection.connect((host, int(port)))
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def vanish(connection: socket.socket) -> None:
    """Leave without a word, as a process does that is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def engine(app: FastAPI) -> Any:
    return app.state.models.get(None).engine


def gone(url: str) -> float:
    """How many texts nobody waited for any more."""
    line = 'slm_texts_total{end="gone",model="tiny"} '
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next((text.removeprefix(line) for text in lines if text.startswith(line)), 0))


def ask(url: str, **changes: Any) -> str:
    response = httpx.post(f"{url}/v1/completions", json={**GOOD, **changes}, timeout=60)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def test_a_client_that_reads_nothing_holds_up_nobody() -> None:
    with tiny_app(**LIMITS) as app, listening(app) as url:
        alone = [ask(url, seed=seed) for seed in range(4)]
        slow = send(url, {**LONG, "max_tokens": 300, "stream": True})
        wait_for(lambda: engine(app).running == 1)
        assert [ask(url, seed=seed) for seed in range(4)] == alone
        wait_for(lambda: engine(app).running == 0)  # it is done, although nobody has read it
        assert [ask(url, seed=seed) for seed in range(4)] == alone
        vanish(slow)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_place(stream: bool) -> None:
    with tiny_app(**LIMITS) as app, listening(app) as url:
        alone = ask(url)
        clients = [send(url, {**LONG, "stream": stream}) for _ in range(5)]
        wait_for(lambda: (engine(app).running, engine(app).waiting) == (2, 3))
        if stream:
            assert clients[0].recv(15) == b"HTTP/1.1 200 OK"
        for client in clients:
            vanish(client)
        wait_for(lambda: (engine(app).running, engine(app).waiting) == (0, 0))
        assert engine(app).counts.tokens < LONG["max_tokens"]
        wait_for(lambda: gone(url) == 5)
        assert ask(url) == alone


def test_a_client_that_sends_half_a_request_is_not_waited_for_by_others() -> None:
    with tiny_app(body_timeout=0.5) as app, listening(app) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            assert ask(url)
            half.settimeout(60)
            assert half.recv(12) == b"HTTP/1.1 408"
