"""The `openai` client, as its users call it."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from served import ENDLESS, GOOD, listening, served_model, tiny_app, wait_for

from slm.model.sample import generate, row_seeds

openai = pytest.importorskip("openai")

KEY = "a-key"
NAMES = ("tiny", "models:/slm@champion")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tiny_app(*NAMES, api_key=KEY) as app, listening(app) as address:
        yield f"{address}/v1"


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def ours(prompt: str, seed: int = 3, **settings: Any) -> str:
    """The text that `slm sample` writes."""
    model = served_model("tiny")
    settings = {"max_new_tokens": 12, "temperature": 0.9, **settings}
    [sample] = generate(model.engine.decoder, model.tokenizer, [prompt], seed=seed, **settings)
    model.engine.close()
    return sample.completion


def test_a_completion_is_the_text_of_slm_sample(client: Any) -> None:
    answer = client.completions.create(model="tiny", **GOOD)
    [choice] = answer.choices
    assert choice.text == ours("Once")
    assert choice.finish_reason == "length"
    assert (answer.object, answer.model) == ("text_completion", "tiny")
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    extra = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2}
    answer = client.completions.create(model="tiny", **GOOD, extra_body=extra)
    assert answer.choices[0].text == ours("Once", **extra)


def test_a_stream_is_the_same_text_in_pieces(client: Any) -> None:
    chunks = list(
        client.completions.create(
            model="tiny", **GOOD, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == ours("Once")
    ends = [c.finish_reason for chunk in chunks for c in chunk.choices]
    assert ends[-1] == "length"
    assert set(ends[:-1]) <= {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12


def test_logprobs_of_a_stream_are_those_of_a_whole_answer(client: Any) -> None:
    request = {**GOOD, "prompt": "é😀", "max_tokens": 30, "logprobs": 5}
    [whole] = client.completions.create(model="tiny", **request).choices
    pieces = [
        chunk.choices[0].logprobs
        for chunk in client.completions.create(model="tiny", **request, stream=True)
        if chunk.choices
    ]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for piece in pieces if piece for value in getattr(piece, name)]
        assert joined == getattr(whole.logprobs, name), name
    assert len(whole.logprobs.tokens) == 30
    for token, logprob, top in zip(
        whole.logprobs.tokens,
        whole.logprobs.token_logprobs,
        whole.logprobs.top_logprobs,
        strict=True,
    ):
        assert top[token] == logprob <= 0
        assert 5 <= len(top) <= 6
        assert logprob <= max(top.values())


def test_stop_seed_and_n(client: Any) -> None:
    long = ours("Once", max_new_tokens=40)
    stop = long[5:7]
    [choice] = client.completions.create(
        model="tiny", **{**GOOD, "max_tokens": 40}, stop=[stop, "never in it"]
    ).choices
    assert choice.text == long[: long.index(stop)]
    assert choice.finish_reason == "stop"
    texts = [c.text for c in client.completions.create(model="tiny", **GOOD, n=3).choices]
    assert texts == [ours("Once", seed) for seed in row_seeds(3, 3)]
    prompts = {**GOOD, "prompt": ["Once", "Tom"]}
    answer = client.completions.create(model="tiny", **prompts, n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    echoed = client.completions.create(model="tiny", **GOOD, echo=True).choices[0].text
    assert echoed == "Once" + ours("Once")


def test_models_are_listed_and_retrieved(client: Any) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)
    assert [client.models.retrieve(name).id for name in NAMES] == list(NAMES)
    other = client.completions.create(model=NAMES[1], **GOOD)
    assert other.model == NAMES[1]
    assert other.choices[0].text != ours("Once")


def test_errors_are_the_clients_own_classes(client: Any, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature=-1") as refused:
        client.completions.create(model="tiny", **{**GOOD, "temperature": -1})
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="tiny", prompt="x" * 500)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="tinny", **GOOD)
    assert missing.value.code == "model_not_found"
    assert "did you mean 'tiny'" in missing.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model="tiny", prompt="x" * (1 << 20))
    assert large.value.status_code == 413


def test_a_full_queue_is_a_rate_limit_and_a_late_answer_an_error() -> None:
    with (
        tiny_app(max_batch=1, queue=1, max_tokens=100_000, timeout=3.0) as app,
        listening(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        errors: list[Exception] = []

        def ask() -> None:
            try:
                client.completions.create(model="tiny", **ENDLESS)
            except openai.OpenAIError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        engine = app.state.models.get(None).engine
        wait_for(lambda: engine.running + engine.waiting == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="tiny", **ENDLESS)
        assert refused.value.response.headers["retry-after"] == "1"
        for thread in threads:
            thread.join()
        assert [type(error) for error in errors] == [openai.InternalServerError] * 2
        assert {getattr(error, "status_code", 0) for error in errors} == {504}
        assert client.completions.create(model="tiny", **GOOD).choices[0].text == ours("Once")
