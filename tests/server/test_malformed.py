"""Whatever is sent, the answer is a status below 500 with OpenAI's error object."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from malformed import Sent, flipped, requests
from served import GOOD, in_process, tiny_app, wait_for

MAX_MESSAGE = 2000


def ask_all(app: FastAPI, sent: Sequence[Sent]) -> tuple[list[httpx.Response], list[Any]]:
    """The answers, and that to a good request before and after them."""

    async def run() -> tuple[list[httpx.Response], list[Any]]:
        async with in_process(app) as client:
            good = [(await client.post("/v1/completions", json=GOOD)).json()["choices"]]
            answers = [
                await client.request(
                    each.method, each.path, content=each.content, headers=each.raw_headers
                )
                for each in sent
            ]
            good.append((await client.post("/v1/completions", json=GOOD)).json()["choices"])
            return answers, good

    return asyncio.run(run())


def check_error(response: httpx.Response, sent: Sent) -> None:
    assert 400 <= response.status_code < 500, (response.status_code, sent)
    body = response.json()
    assert set(body) == {"error"}, sent
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, sent
    assert 0 < len(error["message"]) < MAX_MESSAGE, (error, sent)
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]
    assert "\\n" not in error["message"]


def check_refused(seed: int, count: int) -> None:
    with tiny_app() as app:
        sent = requests(seed, count)
        answers, good = ask_all(app, sent)
        for response, each in zip(answers, sent, strict=True):
            check_error(response, each)
        assert good[0] == good[1]
        assert good[0][0]["text"]
        engine = app.state.models.get(None).engine
        assert (engine.running, engine.waiting) == (0, 0)


def test_malformed_requests_are_refused_in_words() -> None:
    check_refused(seed=1, count=600)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_malformed_requests_are_refused_in_words() -> None:
    check_refused(seed=2, count=10_000)


def test_changed_bytes_never_make_a_fault_of_the_server() -> None:
    with tiny_app(max_tokens=64) as app:
        sent = flipped(seed=3, count=300)
        answers, good = ask_all(app, sent)
        for response, each in zip(answers, sent, strict=True):
            if response.status_code != 200:
                check_error(response, each)
        assert {response.status_code for response in answers} >= {200, 400}
        assert good[0] == good[1]
        engine = app.state.models.get(None).engine
        wait_for(lambda: engine.running == engine.waiting == 0)


def test_a_host_that_is_not_this_machine_is_refused_without_a_key() -> None:
    hosts = ["evil.example", "127.0.0.1.evil.example:80", "[::2]", "localhost.:1", "", "\xff"]
    sent = [
        Sent(b"{}", headers={"Content-Type": "application/json", "Host": host}) for host in hosts
    ]
    with tiny_app() as app:
        answers, _ = ask_all(app, sent)
    for response, each in zip(answers, sent, strict=True):
        assert response.status_code == 403
        check_error(response, each)
