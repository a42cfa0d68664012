"""The server under load: tokens/s and latency of 1 and of 32 clients on loopback, and its memory.

A server process answers clients of this one, each of which sends its next request when its last is
answered. The model has the shape of `tinystories-sample` and random weights, unless a run is given.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import limits
import psutil
import safetensors.torch
from limits import row

from slm.config import ModelConfig
from slm.model.gpt import GPT
from slm.model.saved import CONFIG, MODEL, describe_model
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

SHAPE = ModelConfig(architecture="qwen3", n_layer=4, n_head=4, n_embd=256, seq_len=256)
CLIENTS = (1, 32)
TOKENS = 100


def run(seconds: float = 20, model: str | None = None, soak: float = 0) -> dict[str, Any]:
    """`{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        seconds: of each measurement.
        model: a run or version; None: random weights.
        soak: seconds in which 8 clients ask one after the other while memory is watched.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, serving(model or _random(Path(folder))) as server:
        url, process = server
        asyncio.run(load(url, 4, 3, False))  # the first requests warm it up
        for stream in (False, True):
            single = 0.0
            for clients in CLIENTS:
                figures = asyncio.run(load(url, clients, seconds, stream))
                single = single or figures["tok_per_sec"]
                name = f"{clients} clients{', streaming' * stream}"
                ratio = figures["tok_per_sec"] / single
                rows.append(row(name, "speed", figures["tok_per_sec"], "tokens/s", ratio))
                for metric in ("p50", "p99"):
                    rows.append(row(name, metric, figures[metric], "s", None))
        if soak:
            rows += asyncio.run(watch(url, process, soak))
    return {"machine": limits.machine(), "rows": rows}


@contextmanager
def serving(model: str) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "slm.cli.main", "serve", model, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["url"], psutil.Process(server.pid)
        finally:
            server.terminate()


async def load(url: str, clients: int, seconds: float, stream: bool) -> dict[str, float]:
    """Tokens/s, and the latency of a request of 100 tokens, with so many clients."""
    latencies: list[float] = []
    tokens = 0
    end = time.perf_counter() + seconds

    async def ask(number: int, http: httpx.AsyncClient) -> None:
        nonlocal tokens
        seed = number * 10_000
        while (start := time.perf_counter()) < end:
            seed += 1
            body: dict[str, Any] = {
                "prompt": "Once upon a time", "max_tokens": TOKENS, "temperature": 0.8,
                "top_k": 50, "seed": seed, "stream": stream,
            }  # fmt: skip
            if stream:
                body["stream_options"] = {"include_usage": True}
            answer = await http.post("/v1/completions", json=body)
            answer.raise_for_status()
            last = answer.text.split("\n\n")[-3].removeprefix("data: ") if stream else answer.text
            latencies.append(time.perf_counter() - start)
            tokens += json.loads(last)["usage"]["completion_tokens"]

    limits_ = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits_) as http:
        start = time.perf_counter()
        await asyncio.gather(*(ask(number, http) for number in range(clients)))
        took = time.perf_counter() - start
    ordered = sorted(latencies)
    return {
        "tok_per_sec": tokens / took,
        "p50": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


async def watch(url: str, process: psutil.Process, seconds: float) -> list[dict[str, Any]]:
    """The server's memory at the end of the first tenth, and at the end."""
    memory = []
    for _ in range(10):
        await load(url, 8, seconds / 10, True)
        memory.append(process.memory_info().rss / 2**20)
    growth = memory[-1] / memory[0]
    return [
        row("memory", "after a tenth", memory[0], "MiB", None),
        row("memory", f"after {seconds:g} s", memory[-1], "MiB", growth),
    ]


def _random(folder: Path) -> str:
    """The folder of a model of random weights that seldom ends a text."""
    tokens = [bytes([i]) for i in range(256)]
    tokens += [bytes([97 + i // 160, 97 + i // 26 % 26, 97 + i % 26]) for i in range(3839)]
    tokenizer = Tokenizer(list(dict.fromkeys(tokens)))
    model = GPT(SHAPE, tokenizer.n_vocab)
    safetensors.torch.save_file(model.state_dict(), folder / MODEL)
    (folder / CONFIG).write_text(json.dumps(describe_model(model)))
    tokenizer.save(folder / TOKENIZER)
    return str(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--model", help="a run or version; without it random weights")
    parser.add_argument("--soak", type=float, default=0, help="seconds of watching its memory")
    given = parser.parse_args()
    print(json.dumps(run(given.seconds, given.model, given.soak), indent=1))
