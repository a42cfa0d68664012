"""The server under load: tokens/s and latency of 1 and of 32 clients on loopback, and its memory.

A server process answers clients of this one, on the same cores, each of which sends its next
request when its last is answered. The model has the shape of `tinystories-sample` and random
weights, unless a run is given.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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


def run(seconds: float = 20, model: str | None = None) -> dict[str, Any]:
    """`{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        seconds: of each measurement.
        model: a run or version; None: random weights.

    `ratio` is the speed over that of one client.
    """
    rows = []
    with serving(model) as (url, _):
        asyncio.run(load(url, 4, 3, False))  # the first requests warm it up
        for stream in (False, True):
            single = 0.0
            for clients in CLIENTS:
                figures = asyncio.run(load(url, clients, seconds, stream))
                single = single or figures["tok_per_sec"]
                name = f"{clients} {'client' if clients == 1 else 'clients'}{', streams' * stream}"
                ratio = figures["tok_per_sec"] / single
                rows.append(row(name, "speed", figures["tok_per_sec"], "tokens/s", ratio))
                for metric in ("p50", "p99"):
                    rows.append(row(name, metric, figures[metric], "s"))
    return {"machine": limits.machine(), "rows": rows}


def soak(seconds: float, rate: float, model: str | None = None) -> dict[str, Any]:
    """As `run`, of the server's memory while so many requests a second of all kinds arrive.

    `"memory"` has its MiB at every sixtieth of the time. `ratio` is over the first of them after a
    tenth of it.
    """
    with serving(model) as (url, process):
        asyncio.run(load(url, 4, 3, False))
        before = sum(process.cpu_times()[:2])
        memory, sent = asyncio.run(watch(url, process, seconds, rate))
        busy = sum(process.cpu_times()[:2]) - before
    first = memory[len(memory) // 10]
    rows = [
        row("memory", "after a tenth", first, "MiB"),
        row("memory", f"after {seconds:g} s", memory[-1], "MiB", memory[-1] / first),
        row("memory", "most", max(memory), "MiB", max(memory) / first),
        row("requests", "sent", sent, ""),
        row("server", "cores used", busy / seconds, ""),
    ]
    return {"machine": limits.machine(), "rows": rows, "memory": memory}


@contextmanager
def serving(model: str | None) -> Iterator[tuple[str, psutil.Process]]:
    """A server process: its address, once it answers, and the process."""
    with tempfile.TemporaryDirectory() as folder:
        name = model or _random(Path(folder))
        command = [sys.executable, "-m", "slm.cli.main", "serve", name, "--port", "0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
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


async def watch(
    url: str, process: psutil.Process, seconds: float, rate: float
) -> tuple[list[float], int]:
    """The server's MiB at every sixtieth of the time, and how many requests were sent."""
    rng = random.Random(0)
    memory: list[float] = []
    asking: set[asyncio.Task[None]] = set()
    start, sent = time.perf_counter(), 0
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while (now := time.perf_counter() - start) < seconds:
            if now >= len(memory) * seconds / 60:
                memory.append(process.memory_info().rss / 2**20)
            task = asyncio.create_task(_ask(http, rng))
            asking.add(task)
            task.add_done_callback(asking.discard)
            sent += 1
            await asyncio.sleep(max(0.0, sent / rate - (time.perf_counter() - start)))
        await asyncio.gather(*asking)
    return [*memory, process.memory_info().rss / 2**20], sent


async def _ask(http: httpx.AsyncClient, rng: random.Random) -> None:
    """A request of any kind: whole or a stream, some with scores, some refused, some left."""
    tokens = rng.choice([1, 10, 40])
    body = {
        "prompt": "Once upon a time"[: rng.randrange(1, 17)], "max_tokens": tokens, "top_k": 50,
        "n": rng.choice([1, 1, 2]), "stream": rng.random() < 0.5,
        "logprobs": rng.choice([None, 5]), "temperature": rng.choice([0.8, 0.8, 0.8, -1]),
    }  # fmt: skip
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        async for _ in answer.aiter_bytes():
            if rng.random() < 0.05:
                return


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--model", help="a run or version; without it random weights")
    parser.add_argument(
        "--soak", type=float, default=0, help="watch its memory for so many seconds, instead"
    )
    parser.add_argument("--rate", type=float, default=20, help="requests a second meanwhile")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.soak:
        result = soak(options.soak, options.rate, options.model)
    else:
        result = run(options.seconds, options.model)
    if options.json:
        print(json.dumps(result))
    else:
        limits.show(result)


if __name__ == "__main__":
    main()
