"""Sampling speed: ours, Hugging Face's `generate` and the notebook's loop, compared in one run.

One shape for all: GPT-2, 6 layers, 6 heads, width 384, 50,257 tokens, context 128, random weights
in float32; temperature 0.8, top-k 50; 200 new tokens per prompt. The three take turns, and the
medians are reported. Hugging Face's model gets a context of 256, as it cannot go beyond it. The
notebook has no cache, reads the whole context anew for each token, and leaves dropout on; its
prompts of 71 tokens and 40 new ones have the mean context of the others' 200.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from train import NotebookModel

from slm.config import ModelConfig
from slm.machine import available_cores
from slm.model.decode import Decoder
from slm.model.gpt import GPT
from slm.model.sample import generate
from slm.tokens.tokenizer.bpe import Tokenizer

SHAPE = ModelConfig(n_layer=6, n_head=6, n_embd=384, seq_len=128)
VOCAB_SIZE = 50_257
TEMPERATURE, TOP_K = 0.8, 50
BATCHES = (1, 16)
PROMPT = [40 + i for i in range(7)]
NOTEBOOK_PROMPT, NOTEBOOK_TOKENS = 71, 40

Sampler = Callable[[int, int], int]  # (prompts, new tokens per prompt) → tokens generated


def run(rounds: int = 5, new_tokens: int = 200, peers: bool = True) -> dict[str, Any]:
    """Measure and return `{"machine": …, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        rounds: of each measurement, of which the median is reported.
        new_tokens: per prompt.
        peers: whether to run the other two as well.

    `ratio` is our speed over the row's, which may be the bound.
    """
    makers = {name: MAKERS[name] for name in (MAKERS if peers else ["slm"])}
    samplers = {name: make() for name, make in makers.items()}
    seconds: dict[tuple[str, int], list[float]] = {}
    bandwidths = []
    for round_ in range(rounds + 1):  # the first is for warming up
        bandwidths.append(_bandwidth())
        for batch in BATCHES:
            for name, sampler in samplers.items():
                started = time.perf_counter()
                tokens = sampler(batch, new_tokens)
                if round_:
                    per_token = (time.perf_counter() - started) / tokens
                    seconds.setdefault((name, batch), []).append(per_token)
    speeds = {sampler: 1 / statistics.median(times) for sampler, times in seconds.items()}
    rows = [
        _row(f"{name}, {_prompts(batch)}", "speed", speed, "tokens/s", speeds["slm", batch] / speed)
        for (name, batch), speed in speeds.items()
    ]
    bandwidth = statistics.median(bandwidths)
    bound = bandwidth / _weight_bytes()
    rows.append(_row("reading memory", "bandwidth", bandwidth / 1e9, "GB/s", None))
    rows.append(
        _row(
            "all weights read once per token", "bound", bound, "tokens/s", speeds["slm", 1] / bound
        )
    )
    for name in makers:
        with get_context("spawn").Pool(1) as pool:
            peak = pool.apply(_peak_memory, (name, max(BATCHES), new_tokens))
        rows.append(_row(f"{name}, {_prompts(max(BATCHES))}", "peak memory", peak, "MB", None))
    return {"machine": _machine(), "rows": rows}


def _row(name: str, metric: str, value: float, unit: str, ratio: float | None) -> dict[str, Any]:
    rounded = round(value, 1)
    return {
        "name": name,
        "metric": metric,
        "value": rounded,
        "unit": unit,
        "ratio": None if ratio is None else round(ratio, 2),
    }


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


# ---- the three samplers ------------------------------------------------------------------------


class _FixedPrompts(Tokenizer):
    """Every prompt is PROMPT; no text is read, so the tokens' bytes need not be GPT-2's."""

    def __init__(self) -> None:
        super().__init__([i.to_bytes(2, "big") for i in range(VOCAB_SIZE - 1)])

    def encode(self, text: str) -> list[int]:
        return PROMPT

    def decode_bytes(self, ids: Any) -> bytes:
        return b"."


def _model() -> GPT:
    torch.manual_seed(0)
    return GPT(SHAPE, VOCAB_SIZE).eval()


def _ours() -> Sampler:
    decoder, tokenizer = Decoder(_model()), _FixedPrompts()

    def sample(batch: int, new_tokens: int) -> int:
        samples = generate(
            decoder,
            tokenizer,
            [""] * batch,
            max_new_tokens=new_tokens,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            seed=range(batch),
        )
        return sum(s.tokens for s in samples)

    return sample


def _hugging_face() -> Sampler:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=SHAPE.n_layer,
        n_head=SHAPE.n_head,
        n_embd=SHAPE.n_embd,
        n_positions=256,
        vocab_size=VOCAB_SIZE,
    )
    model = GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = None  # never ends before new_tokens

    def sample(batch: int, new_tokens: int) -> int:
        ids = torch.tensor([PROMPT] * batch)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                pad_token_id=0,
                use_cache=True,
            )
        return int(out.shape[1] - ids.shape[1]) * batch

    return sample


def _notebook() -> Sampler:
    model = NotebookModel().train()

    def sample(batch: int, new_tokens: int) -> int:
        count = min(new_tokens, NOTEBOOK_TOKENS)
        ids = torch.randint(VOCAB_SIZE, (batch, NOTEBOOK_PROMPT))
        with torch.no_grad():
            for _ in range(count):
                hidden = model.hidden(ids[:, -SHAPE.seq_len :])
                logits = F.linear(hidden[:, -1], model.tokens.weight) / TEMPERATURE
                lowest = logits.topk(TOP_K).values[:, -1:]
                probabilities = logits.masked_fill(logits < lowest, -torch.inf).softmax(dim=-1)
                ids = torch.cat((ids, torch.multinomial(probabilities, 1)), dim=1)
        return count * batch

    return sample


MAKERS: dict[str, Callable[[], Sampler]] = {
    "slm": _ours,
    "Hugging Face generate": _hugging_face,
    "notebook": _notebook,
}


# ---- the machine ------------------------------------------------------------------------------


def _weight_bytes() -> int:
    return sum(p.numel() * p.element_size() for p in _model().parameters())


def _bandwidth() -> float:
    """Bytes/s at which all threads read memory that no cache holds: the best of three."""
    data = torch.ones(1 << 26)  # 256 MB
    times = []
    for _ in range(3):
        started = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - started)
    return data.numel() * data.element_size() / min(times)


def _peak_memory(name: str, batch: int, new_tokens: int) -> float:
    """Peak MB of a new process for one sampler, libraries included."""
    MAKERS[name]()(batch, new_tokens)
    status = Path("/proc/self/status").read_text()  # getrusage includes the parent's peak
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def _machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = run(options.rounds)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    sys.stdout.write(f"{result['machine']}\n")
    for row in result["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:7.2f}"
        sys.stdout.write(
            f"{row['name']:36}{row['metric']:13}{row['value']:9} {row['unit']:9}{ratio}\n"
        )


if __name__ == "__main__":
    main()
