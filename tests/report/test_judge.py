"""The judge against servers on this machine: good ones, hostile ones, slow ones, none."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from slm.config import ReportConfig
from slm.report.judge import KEY, ask_judge
from slm.report.samples import ReportSample

SAMPLES = [ReportSample("Once", f" upon {i}", 0.8, 10, i, 3, True) for i in range(4)]
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server's address, and the requests that it gets."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def saying(content: str, status: int = 200) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return answer


def settings(address: str, seconds: float = 5) -> ReportConfig:
    return ReportConfig(judge_url=address, judge_model="teacher", judge_seconds=seconds)


GOOD = 'Here: {"grammar": 8, "creativity": 5, "consistency": 7.5, "comment": "fine, sk-secret"}'


def test_samples_are_graded_and_the_key_appears_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    with serving(saying(GOOD)) as (address, asked):
        grades = ask_judge(SAMPLES, settings(address))
    assert grades is not None
    assert grades.means == {"grammar": "8.0", "creativity": "5.0", "consistency": "7.5"}
    assert [a["path"] for a in asked] == ["/v1/chat/completions"] * 4
    assert {a["key"] for a in asked} == {"Bearer sk-secret"}
    assert "Once*** upon 2" in asked[2]["messages"][0]["content"]
    assert "sk-secret" not in repr(grades)
    assert grades.samples[0].comment == "fine, …"


def test_white_space_around_the_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, " sk-secret\n")
    with serving(saying(GOOD)) as (address, asked):
        grades = ask_judge(SAMPLES[:1], settings(address))
    assert asked[0]["key"] == "Bearer sk-secret"
    assert "sk-secret" not in repr(grades)


@pytest.mark.parametrize("key", ["sk-secret\nX-Other: 1", "sk-secret sk", "sk-secret\u00e9"])
def test_a_key_that_no_header_may_hold_is_not_sent_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(KEY, key)
    with serving(saying(GOOD)) as (address, asked):
        grades = ask_judge(SAMPLES, settings(address))
    assert asked == []
    assert grades is not None
    assert grades.means == {}
    assert "no sample was sent" in grades.samples[0].comment
    assert "secret" not in repr(grades)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("no JSON", "gave no JSON object"),
        ("{", "no grade"),
        ('{"grammar": 99, "creativity": 5, "consistency": 5}', "not between 1 and 10"),
        ('{"grammar": NaN, "creativity": 5, "consistency": 5}', "not between 1 and 10"),
        ('{"grammar": [], "creativity": 5, "consistency": 5}', "no grade"),
        ('{"grammar": 5}', "no grade"),
        ("[" * 60_000, "no grade"),
        ('{"a":' + "[" * 30_000 + "}", "no grade: RecursionError"),
        ('{"grammar": 1' + "0" * 400 + "}", "no grade: OverflowError"),
    ],
)
def test_an_answer_without_grades_is_reported_and_three_end_it(content: str, why: str) -> None:
    with serving(saying(content)) as (address, asked):
        grades = ask_judge(SAMPLES, settings(address))
    assert grades is not None
    assert grades.means == {}
    assert len(asked) == 3
    assert all(why in grade.comment and len(grade.comment) <= 300 for grade in grades.samples)


def test_a_failing_or_redirecting_server_is_reported() -> None:
    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", "http://127.0.0.1:9/stolen")
        request.end_headers()

    for answer, status in ((saying(GOOD, 500), "500"), (elsewhere, "302")):
        with serving(answer) as (address, _):
            grades = ask_judge(SAMPLES[:1], settings(address))
        assert grades is not None
        assert f"status {status}" in grades.samples[0].comment


def test_a_server_that_never_ends_its_answer_and_none_at_all_give_no_grade() -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with suppress(OSError):  # until the client hangs up
            while True:
                request.wfile.write(b" ")
                request.wfile.flush()
                time.sleep(0.05)

    with serving(drip) as (address, _):
        slow = ask_judge(SAMPLES[:1], settings(address, seconds=0.3))
    nobody = ask_judge(SAMPLES[:1], settings(address, seconds=0.3))
    assert slow is not None
    assert nobody is not None
    assert "TimeoutError" in slow.samples[0].comment
    assert "no grade" in nobody.samples[0].comment


def test_there_is_no_judge_unless_one_is_named() -> None:
    assert ask_judge(SAMPLES, ReportConfig()) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"judge_url": "http://127.0.0.1/v1"},
        {"judge_url": "http://user:password@host/v1", "judge_model": "m"},
        {"judge_url": "http://host/v1?key=sk", "judge_model": "m"},
        {"judge_url": "file:///etc/passwd", "judge_model": "m"},
    ],
)
def test_addresses_with_keys_or_without_a_model_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"report\.judge_"):
        ReportConfig(**fields)  # type: ignore[arg-type]
