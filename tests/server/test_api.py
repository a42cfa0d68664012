"""The HTTP API: what it answers, and that a text is that of `slm sample` whatever else runs."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import torch
from tiny_model import BYTES, SEQ_LEN, tiny_model

from slm.model.batch import Batch, Completion
from slm.model.decode import Decoder
from slm.model.next_token import SamplingSettings
from slm.model.sample import generate
from slm.model.saved import LoadedModel
from slm.server.api import create_app
from slm.server.settings import ServerSettings
from slm.server.versions import ServedModel, ServedModels, engine_of

MODEL = tiny_model("qwen3")
DECODER = Decoder(MODEL)


@pytest.fixture(scope="module")
def models() -> Iterator[ServedModels]:
    served = serve_tiny(max_batch=8)
    yield served
    served.close()


def serve_tiny(max_batch: int, queue: int = 256) -> ServedModels:
    engine = engine_of(
        LoadedModel(MODEL, BYTES), weights="float32", max_batch=max_batch, queue=queue
    )
    return ServedModels([ServedModel("tiny", "models:/tiny/1", engine, BYTES)])


@asynccontextmanager
async def client(models: ServedModels, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(models, ServerSettings(**settings))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as opened:
        yield opened


def post(models: ServedModels, body: dict[str, Any], **settings: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with client(models, **settings) as c:
            return await c.post("/v1/completions", json=body)

    return asyncio.run(run())


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# ---- the same text ----------------------------------------------------------------------------


def random_request(rng: random.Random) -> dict[str, Any]:
    """A request whose rows vary in every setting that a text depends on."""
    body: dict[str, Any] = {
        "prompt": rng.choice(["", "x", "A girl", "went to the woods"]),
        "max_tokens": rng.randrange(1, 40),
        "seed": rng.randrange(1000),
        "temperature": rng.choice([0, 0.7, 1.0, 1.3]),
        "stream": rng.random() < 0.5,
    }
    for name, values in (
        ("top_k", [1, 20]), ("top_p", [0.8]), ("min_p", [0.05]), ("repetition_penalty", [1.3]),
        ("stop", ["e", ["ab", "q"]]), ("n", [3]), ("logprobs", [2]),
    ):  # fmt: skip
        if rng.random() < 0.3:
            body[name] = rng.choice(values)
    return body


def sampled(body: dict[str, Any]) -> list[str]:
    """The texts of `slm sample`, of each row alone."""
    names = ("seed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    stop = body.get("stop", ())
    samples = generate(
        DECODER,
        BYTES,
        [body["prompt"]] * body.get("n", 1),
        max_new_tokens=body["max_tokens"],
        stop=[stop] if isinstance(stop, str) else stop,
        **{name: body[name] for name in names if name in body},
    )
    return [sample.completion for sample in samples]


@pytest.mark.parametrize(
    "mix", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 12))]
)
def test_a_text_is_that_of_slm_sample_in_any_mix_of_requests(
    mix: int, models: ServedModels
) -> None:
    rng = random.Random(mix)
    bodies = [random_request(rng) for _ in range(10)]

    async def ask(c: httpx.AsyncClient, body: dict[str, Any]) -> list[str]:
        await asyncio.sleep(rng.random() * 0.3)  # they join while others are under way
        response = await c.post("/v1/completions", json=body)
        if not body["stream"]:
            return texts(response)
        joined = [""] * body.get("n", 1)
        for event in events(response):
            for choice in event["choices"]:
                joined[choice["index"]] += choice["text"]
        return joined

    async def run() -> list[list[str]]:
        async with client(models) as c:
            return await asyncio.gather(*(ask(c, body) for body in bodies))

    for body, answered in zip(bodies, asyncio.run(run()), strict=True):
        assert answered == sampled(body), body


def test_hidden_states_have_the_same_bits_alone_and_in_a_batch() -> None:
    def rows() -> list[Completion]:
        settings = SamplingSettings()
        return [
            Completion(i, "", [BYTES.eot, *range(n)], i, settings, 40)
            for i, n in enumerate((1, 3, 3, 17, 20))
        ]

    together = Batch(DECODER, BYTES, 5)
    together.add(rows())
    singles = [Batch(DECODER, BYTES, 1) for _ in range(5)]
    for batch, row in zip(singles, rows(), strict=True):
        batch.add([row])
    for _ in range(SEQ_LEN):
        for i, batch in enumerate(singles):
            if batch.rows:
                place = [row.number for row in together.rows].index(i)
                assert torch.equal(batch.hidden[0], together.hidden[place])
        for batch in (together, *singles):
            batch.choose()
            batch.read()


# ---- the parts of an answer -------------------------------------------------------------------


def test_usage_finish_reason_and_several_prompts(models: ServedModels) -> None:
    answer = post(
        models, {"prompt": [[1, 2], [3, 4, 5]], "max_tokens": 4, "n": 2, "seed": 5}
    ).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] <= 16
    assert {choice["finish_reason"] for choice in answer["choices"]} <= {"stop", "length"}
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"


def test_a_stream_is_the_answer_in_pieces_with_usage_last(models: ServedModels) -> None:
    body = {"prompt": "A girl", "max_tokens": 40, "seed": 3, "logprobs": 2, "echo": True}
    whole = post(models, body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    pieces = events(post(models, {**body, **options}))
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole["usage"]
    choices = [piece["choices"][0] for piece in pieces[:-1]]
    expected = whole["choices"][0]
    assert "".join(choice["text"] for choice in choices) == expected["text"]
    for name, values in expected["logprobs"].items():
        joined = [value for choice in choices for value in choice["logprobs"][name]]
        assert joined == values, name
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons == [None] * (len(choices) - 1) + [expected["finish_reason"]]


def test_the_logprobs_of_an_echoed_prompt_are_the_models(models: ServedModels) -> None:
    prompt = "A little girl"
    body = {"prompt": prompt, "echo": True, "max_tokens": 0, "logprobs": 3}
    choice = post(models, body).json()["choices"][0]
    logprobs = choice["logprobs"]
    ids = [BYTES.eot, *BYTES.encode(prompt)]
    with torch.inference_mode():
        table = MODEL.logits(MODEL(torch.tensor([ids]))[0]).log_softmax(-1)
    expected = [float(table[i, token]) for i, token in enumerate(ids[1:])]
    assert choice["text"] == prompt
    assert logprobs["tokens"] == list(prompt)
    assert logprobs["text_offset"] == list(range(len(prompt)))
    assert logprobs["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    for token, top in zip(prompt, logprobs["top_logprobs"], strict=True):
        assert token in top
        assert 3 <= len(top) <= 4
    given = post(models, {**body, "prompt": ids}).json()["choices"][0]["logprobs"]
    assert given["token_logprobs"][0] is None
    assert sum(given["token_logprobs"][1:]) == pytest.approx(sum(expected), abs=1e-3)


def test_generated_logprobs_are_those_that_a_score_of_the_text_gives(models: ServedModels) -> None:
    body = {"prompt": "ab", "max_tokens": 12, "logprobs": 0, "seed": 1, "temperature": 0.5}
    generated = post(models, body).json()["choices"][0]["logprobs"]
    spelled = [token for token in generated["tokens"] if token != "<|endoftext|>"]
    ids = [int(t[8:], 16) if t.startswith("bytes:") else ord(t) for t in spelled]
    prompt = [BYTES.eot, *b"ab", *ids]
    again = {"prompt": prompt, "echo": True, "max_tokens": 0, "logprobs": 0}
    scored = post(models, again).json()["choices"][0]["logprobs"]["token_logprobs"]
    assert len(ids) > 3
    assert scored[3:] == pytest.approx(generated["token_logprobs"][: len(ids)], abs=1e-4)


def test_a_stop_string_is_in_no_piece_and_cuts_the_logprobs(models: ServedModels) -> None:
    body = {"prompt": "went", "max_tokens": 60, "seed": 2}
    (free,) = texts(post(models, body))
    stop = free[7:10]
    kept = free[: free.index(stop)]
    body |= {"stop": stop, "logprobs": 0}
    choice = post(models, body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (kept, "stop")
    assert all(offset < len(kept) for offset in choice["logprobs"]["text_offset"])
    pieces = [event["choices"][0] for event in events(post(models, {**body, "stream": True}))]
    assert "".join(piece["text"] for piece in pieces) == kept


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "prompt: it is missing"),
        ({"prompt": "x" * SEQ_LEN}, 400, f"has {SEQ_LEN} tokens"),
        ({"prompt": [1] * (SEQ_LEN + 1)}, 400, f"has {SEQ_LEN + 1} tokens"),
        ({"prompt": [999]}, 400, "from 0 to 256"),
        ({"prompt": []}, 400, "give a text"),
        ({"prompt": ["a", 1]}, 400, "give a text"),
        ({"prompt": "x", "max_tokens": 5000}, 400, "up to 2048"),
        ({"prompt": "x", "max_tokens": 0}, 400, "echo=true"),
        ({"prompt": "x", "max_tokens": True}, 400, "max_tokens: give a whole number"),
        ({"prompt": "x", "n": 200}, 400, "more than 128"),
        ({"prompt": "x", "n": 2, "best_of": 3}, 400, "equal to n"),
        ({"prompt": "x", "temperature": -1}, 400, "temperature=-1"),
        ({"prompt": "x", "top_p": 0}, 400, "top_p=0"),
        ({"prompt": "x", "logprobs": 6}, 400, "logprobs: give 5 or less"),
        ({"prompt": "x", "stop": [""]}, 400, "none of them empty"),
        ({"prompt": "x", "stop": list("abcde")}, 400, "up to 4"),
        ({"prompt": "x", "suffix": "y"}, 400, "suffix is not supported"),
        ({"prompt": "x", "logit_bias": {"5": 1}}, 400, "logit_bias is not supported"),
        ({"prompt": "x", "presence_penalty": 1}, 400, "use repetition_penalty"),
        ({"prompt": "x", "temprature": 1}, 400, "did you mean 'temperature'"),
        ({"prompt": "x", "stream_options": {}}, 400, "stream=true"),
        ({"prompt": "\ud800"}, 400, "surrogate"),
        ({"prompt": "x", "model": "tinny"}, 404, "did you mean 'tiny'"),
        ({"prompt": "x", "user": "y" * 2000}, 413, "larger than 1,000 bytes"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    body: dict[str, Any], status: int, words: str, models: ServedModels
) -> None:
    async def run() -> httpx.Response:
        async with client(models, max_body=1000) as c:
            headers = {"Content-Type": "application/json"}
            return await c.post("/v1/completions", content=json.dumps(body), headers=headers)

    response = asyncio.run(run())
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_other_paths_keys_hosts_and_types(models: ServedModels) -> None:
    async def run() -> None:
        async with client(models) as c:
            listed = (await c.get("/v1/models")).json()
            assert [model["id"] for model in listed["data"]] == ["tiny"]
            assert (await c.get("/v1/models/tiny")).json()["context"] == SEQ_LEN
            assert (await c.get("/v1/models/none")).status_code == 404
            assert (await c.get("/none")).json()["error"]["code"] == "not_found"
            assert (await c.get("/v1/completions")).status_code == 405
            assert (await c.get("/health")).json()["status"] == "ok"
            chat = await c.post("/v1/chat/completions", json={"messages": []})
            assert (chat.status_code, chat.json()["error"]["code"]) == (400, "no_chat_template")
            typed = await c.post("/v1/completions", content="{}")
            assert typed.status_code == 415
            other = await c.get("/v1/models", headers={"Host": "evil.example"})
            assert other.status_code == 403
            page = (await c.get("/metrics")).text
            assert 'slm_requests_total{route="other",status="404"}' in page
            assert "slm_generated_tokens_total" in page
        async with client(models, api_key="secret") as c:
            for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "secret"}):
                assert (await c.get("/v1/models", headers=headers)).status_code == 401
            right = {"Authorization": "Bearer secret", "Host": "example.org"}
            assert (await c.get("/v1/models", headers=right)).status_code == 200

    asyncio.run(run())


def test_a_full_queue_and_a_late_text_have_their_status() -> None:
    models = serve_tiny(max_batch=1, queue=1)

    async def run() -> list[int]:
        async with client(models, max_tokens=10**9, timeout=1.0) as c:
            body = {"prompt": "x", "max_tokens": 10**8, "temperature": 2.0, "n": 1}
            requests = [c.post("/v1/completions", json=body) for _ in range(4)]
            return sorted(r.status_code for r in await asyncio.gather(*requests))

    try:
        statuses = asyncio.run(run())
    finally:
        models.close(0)
    assert statuses.count(429) == 2
    assert set(statuses) <= {200, 429, 504}


def test_a_client_that_leaves_gives_its_place_back() -> None:
    models = serve_tiny(max_batch=1)

    async def run() -> None:
        async with client(models, max_tokens=10**9) as c:
            body = {"prompt": "x", "max_tokens": 10**8, "temperature": 3.0, "seed": 1}
            for stream in (False, True):
                asking = asyncio.create_task(
                    c.post("/v1/completions", json={**body, "stream": stream, "n": 8})
                )
                await asyncio.sleep(0.1)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                answer = await c.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
                assert answer.status_code == 200

    try:
        asyncio.run(run())
    finally:
        models.close(0)
