"""Requests that no server can answer, made from a seed."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from served import GOOD

JSON = "application/json"
HUGE, DEEP = 10**30, 20_000
SURROGATE = "\ud800"
LONG = "Once upon a time " * 40  # beyond the context of the tiny model

WRONG: dict[str, list[Any]] = {  # what each field of a request may not be
    "prompt": [
        None, 5, 1.5, True, {}, [], [[]], [1.5], [None], ["a", 1], [[["a"]]], [-1], [HUGE], [300],
        [[1], "a"], [[True]], SURROGATE, ["a", "\udfff"], {"text": "a"}, [True], LONG, ["a", LONG],
        [1] * 500,
    ],
    "model": [5, [], {}, "", "nobody", SURROGATE, "models:/", "../..", "x" * 50_000, "a\x00b"],
    "max_tokens": [-1, HUGE, -HUGE, "5", 1.5, [], {}, True, 0, 1e300, 100_000],
    "temperature": [-1, -1e-9, "hot", [], {}, True, HUGE**12],
    "top_p": [0, -0.5, 1.1, HUGE, "1", [], False],
    "top_k": [-1, 1.5, "all", [], -HUGE, True],
    "min_p": [-0.1, 2, "0", [], HUGE],
    "repetition_penalty": [0, -1, "1", []],
    "n": [0, -1, 1.5, "2", HUGE, [], True, 1000],
    "best_of": [5, "x", -1, 1.5, []],
    "stop": ["", [""], [1], {}, 5, ["a"] * 5, SURROGATE, [SURROGATE], [[]], [None], True],
    "seed": [-1, 2**63, HUGE, 1.5, "1", [], True],
    "logprobs": [-1, 6, HUGE, "5", True, 1.5, []],
    "echo": ["yes", 1, [], 0.0],
    "stream": ["true", 1, {}, []],
    "stream_options": [{"include_usage": True}, {"include_usage": "yes"}, "x", [], 5],
    "suffix": ["the end", 5, []],
    "presence_penalty": [1, "x", []],
    "frequency_penalty": [0.5, "x", []],
    "logit_bias": [{"5": 1}, {"5": "x"}, [], "x"],
    "user": [5, [], {}],
}  # fmt: skip


@dataclass
class Sent:
    """A request as it is sent."""

    content: bytes
    method: str = "POST"
    path: str = "/v1/completions"
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})

    @property
    def raw_headers(self) -> dict[bytes, bytes]:
        return {k.encode(): value.encode("latin-1") for k, value in self.headers.items()}


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def wrong_field(rng: random.Random) -> Sent:
    name = rng.choice(list(WRONG))
    body = {**GOOD, name: rng.choice(WRONG[name])}
    if rng.random() < 0.3 and name not in ("stream", "stream_options"):
        body["stream"] = True
    return Sent(dumped(body))


def unknown_field(rng: random.Random) -> Sent:
    names = ["promt", "messages", "", SURROGATE, "x" * 50_000, "__class__", "Prompt", "max-tokens"]
    return Sent(dumped({**GOOD, rng.choice(names): rng.choice([None, 1, "x", [], {}])}))


def no_prompt(rng: random.Random) -> Sent:
    names = [name for name in GOOD if name != "prompt"]
    return Sent(dumped({name: GOOD[name] for name in names[: rng.randrange(len(names) + 1)]}))


def not_an_object(rng: random.Random) -> Sent:
    values = [None, [], "prompt", 5, True, 1.5, [GOOD], "", [None] * 100]
    return Sent(dumped(rng.choice(values)))


def not_json(rng: random.Random) -> Sent:
    texts = [
        b"", b" ", b"{", b"}", b"{'prompt': 'a'}", b"prompt=a", b'{"prompt": "a",}', b"\x00",
        b'{"prompt": a}', b'{"prompt": "a"} {}', b'{"prompt": "a", "seed": 01}', b"<html>",
        b'{"prompt": "a", "seed": +1}', b'{"prompt": "a", "temperature": .5}', b'{"prompt": "a\n"}',
        b'{"prompt": "a", "seed": 0x1}', b'{"prompt": "\\x41"}', b'{"prompt": "\\u12"}',
        b"\xef\xbb\xbf" + dumped(GOOD), dumped(GOOD).decode().encode("utf-16"),
    ]  # fmt: skip
    return Sent(rng.choice(texts))


def odd_number(rng: random.Random) -> Sent:
    number = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
    name = rng.choice(["temperature", "top_p", "min_p", "repetition_penalty", "prompt", "seed"])
    fields = {key: value for key, value in GOOD.items() if key != name}
    return Sent(dumped(fields)[:-1] + f', "{name}": {number}}}'.encode())


def deep(rng: random.Random) -> Sent:
    before, after = rng.choice([("[", "]"), ('{"prompt":', "}"), ('{"a":[', "]}")])
    depth = rng.choice([50, 900, DEEP])
    nested = before * depth + "1" + rng.choice([after * depth, ""])
    name = rng.choice(["prompt", "stop", "logit_bias", "extra"])
    return Sent(rng.choice([nested, f'{{"{name}": {nested}}}']).encode())


def cut(rng: random.Random) -> Sent:
    whole = dumped({**GOOD, "stop": ["a", "b"]})
    return Sent(whole[: rng.randrange(len(whole))])


def stray_bytes(rng: random.Random) -> Sent:
    if rng.random() < 0.5:
        return Sent(b"\xff" + rng.randbytes(rng.randrange(200)))
    whole = dumped(GOOD)
    place = whole.index(b"Once") + rng.randrange(5)
    strays = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf", b"\x80"]
    return Sent(whole[:place] + rng.choice(strays) + whole[place:])


def other_type(rng: random.Random) -> Sent:
    kinds = ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded",
             "application/jsonp", "application/xml", "", "json", "\xff"]  # fmt: skip
    kind = rng.choice([*kinds, None])
    return Sent(dumped(GOOD), headers={} if kind is None else {"Content-Type": kind})


def other_place(rng: random.Random) -> Sent:
    places = [
        ("GET", "/v1/completions"), ("PUT", "/v1/completions"), ("DELETE", "/v1/models"),
        ("POST", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/"),
        ("GET", "/v1/models/nobody"), ("GET", "/v1/models/%ff"), ("GET", "/nowhere"),
        ("POST", "/v1/embeddings"), ("GET", "/page/../api.py"), ("GET", "/page/%2e%2e/api.py"),
        ("POST", "/v1/completions/"), ("GET", "/page/"), ("PATCH", "/health"),
    ]  # fmt: skip
    method, path = rng.choice(places)
    return Sent(dumped(GOOD), method, path)


def too_large(rng: random.Random) -> Sent:
    return Sent(dumped({**GOOD, "user": "x" * (1 << 20)}))


MAKERS: list[tuple[Callable[[random.Random], Sent], int]] = [  # and how often, of 200
    (wrong_field, 90), (unknown_field, 12), (no_prompt, 4), (not_an_object, 8), (not_json, 16),
    (odd_number, 16), (deep, 12), (cut, 12), (stray_bytes, 12), (other_type, 8), (other_place, 9),
    (too_large, 1),
]  # fmt: skip


def requests(seed: int, count: int) -> list[Sent]:
    """So many requests, each of which must be refused."""
    rng = random.Random(seed)
    makers, weights = zip(*MAKERS, strict=True)
    return [make(rng) for make in rng.choices(makers, weights, k=count)]


def flipped(seed: int, count: int) -> list[Sent]:
    """Good requests with some of their bytes changed: most are refused, some are still good."""
    rng = random.Random(seed)
    sent = []
    for _ in range(count):
        body = bytearray(dumped(GOOD))
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        sent.append(Sent(bytes(body)))
    return sent
