"""Sampling speed: ours, in float32 and int8, Hugging Face's `generate`, llama.cpp, the notebook.

One shape for all: GPT-2, 6 layers, 6 heads, width 384, 50,257 tokens, context 128, random weights
in float32; temperature 0.8, top-k 50; 200 new tokens per prompt. All take turns in one run, and the
medians are reported. Hugging Face's model gets a context of 256, as it cannot go beyond it. The
notebook has no cache, reads the whole context anew for each token, and leaves dropout on; its
prompts of 71 tokens and 40 new ones have the mean context of the others' 200.

llama.cpp takes part where llama-cpp-python is installed, with weights of the same shape as a GGUF
file in float32 and in q8_0, Hugging Face's context, its own sampler and its own float16 cache;
prompts are the sequences of one batch. `ONEDNN_MAX_CPU_ISA` does not hold its products, and it
never uses AMX here (see `_llama.Llama`).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import limits
import torch
import torch.nn.functional as F
from limits import row
from train import NotebookModel

from slm.config import ModelConfig, Weights
from slm.machine import available_cores
from slm.model.decode import Decoder
from slm.model.export.gguf import Dtype, write_gguf
from slm.model.gpt import GPT
from slm.model.sample import generate
from slm.tokens.tokenizer.bpe import Tokenizer, gpt2
from slm.training.plan import memory_bytes

SHAPE = ModelConfig(n_layer=6, n_head=6, n_embd=384, seq_len=128)
VOCAB_SIZE = 50_257
TEMPERATURE, TOP_K = 0.8, 50
BATCHES = (1, 16)
PROMPT = [40 + i for i in range(7)]
NOTEBOOK_PROMPT, NOTEBOOK_TOKENS = 71, 40
PEERS_CONTEXT = 256  # Hugging Face's and llama.cpp's caches do not move on with the text

INT8 = "slm, int8 weights"
LLAMA, LLAMA_Q8 = "llama.cpp float32", "llama.cpp q8_0"
WEIGHT_BYTES = {"slm": 4.0, INT8: 1.0, LLAMA: 4.0, LLAMA_Q8: 34 / 32}  # a scale per 32 weights

Sampler = Callable[[int, int], int]  # (prompts, new tokens per prompt) → tokens generated


def run(
    rounds: int = 5,
    new_tokens: int = 200,
    both: bool = False,
    names: Sequence[str] | None = None,
    memory: bool = True,
) -> dict[str, Any]:
    """`{"machine": …, "limit": {isa: …}, "rows": [{name, metric, value, unit, ratio}]}`.

    Args:
        rounds: of each measurement, of which the median is reported.
        new_tokens: per prompt.
        both: whether to measure each kind of CPU that this one can show.
        names: the samplers; None: all.
        memory: whether to measure the peak memory of each as well.

    `ratio` is our speed in float32 over the row's; of the int8 rows it is the other way round: how
    many times as fast they are. Of a bound it is the share of it that was reached.
    """
    rows, limit = [], {}
    for isa in limits.isas(both):
        arguments = ["--part", "--rounds", str(rounds), "--new-tokens", str(new_tokens)]
        arguments += ["--only", *names] if names else []
        arguments += [] if memory else ["--no-memory"]
        measured = limits.in_child(__file__, arguments, limits.with_isa(isa))
        limit[isa] = measured["limit"]
        suffix = f" [{isa}]" if both else ""
        rows += [{**each, "name": each["name"] + suffix} for each in measured["rows"]]
    return {"machine": limits.machine(), "limit": limit, "rows": rows}


def measure(rounds: int, new_tokens: int, names: Sequence[str], memory: bool) -> dict[str, Any]:
    """The rows and limits of this process's instruction set."""
    samplers = {name: MAKERS[name]() for name in names}
    seconds: dict[tuple[str, int], list[float]] = {}
    bandwidths = []
    for round_ in range(rounds + 1):  # the first is for warming up
        bandwidths.append(limits.bandwidth())
        for batch in BATCHES:
            for name, sampler in samplers.items():
                started = time.perf_counter()
                tokens = sampler(batch, new_tokens)
                if round_:
                    per_token = (time.perf_counter() - started) / tokens
                    seconds.setdefault((name, batch), []).append(per_token)
    speeds = {sampler: 1 / statistics.median(times) for sampler, times in seconds.items()}
    rows = []
    for (name, batch), speed in speeds.items():
        ratio = speeds["slm", batch] / speed if "slm" in names else None
        ratio = 1 / ratio if ratio and name == INT8 else ratio
        rows.append(row(f"{name}, {_prompts(batch)}", "speed", speed, "tokens/s", ratio))
    limit = limits.measure()._replace(bandwidth=statistics.median(bandwidths))
    for name in [name for name in names if name in WEIGHT_BYTES]:
        bound = limit.bandwidth / (_model().parameter_count() * WEIGHT_BYTES[name])
        title = f"{name}, all weights read once per token"
        rows.append(row(title, "bound", bound, "tokens/s", speeds[name, 1] / bound))
    rows += limit.as_rows()
    # A process of llama.cpp would hold our model too, of which its file is made.
    for name in [n for n in names if memory and n not in (LLAMA, LLAMA_Q8)]:
        with get_context("spawn").Pool(1) as pool:
            peak = pool.apply(_peak_memory, (name, max(BATCHES), new_tokens))
        rows.append(row(f"{name}, {_prompts(max(BATCHES))}", "peak memory", peak, "MB"))
    return {"limit": limit._asdict(), "rows": rows}


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


# ---- the samplers ------------------------------------------------------------------------


class FixedPrompts(Tokenizer):
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


def _ours(weights: Weights = "float32") -> Sampler:
    decoder, tokenizer = Decoder(_model(), weights), FixedPrompts()

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
        n_positions=PEERS_CONTEXT,
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


def _llama_cpp(dtype: Dtype) -> Sampler:
    from _llama import Llama

    torch.manual_seed(0)
    model = GPT(SHAPE.model_copy(update={"seq_len": PEERS_CONTEXT}), VOCAB_SIZE).eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, model, gpt2(), dtype, {})
        llama = Llama(path, PEERS_CONTEXT, max(BATCHES), available_cores(), exact=False)

    def sample(batch: int, new_tokens: int) -> int:
        texts = llama.generate([PROMPT] * batch, new_tokens, TEMPERATURE, TOP_K, ends=False)
        return sum(map(len, texts))

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
    INT8: partial(_ours, "int8"),
    "Hugging Face generate": _hugging_face,
    "notebook": _notebook,
}
if find_spec("llama_cpp"):
    MAKERS |= {LLAMA: partial(_llama_cpp, "f32"), LLAMA_Q8: partial(_llama_cpp, "q8_0")}


# ---- the machine ------------------------------------------------------------------------------


def _peak_memory(name: str, batch: int, new_tokens: int) -> float:
    """Peak MB of a new process for one sampler, libraries included."""
    MAKERS[name]()(batch, new_tokens)
    path = Path("/proc/self/status")
    if not path.exists():  # macOS
        return memory_bytes("cpu") / 1e6
    status = path.read_text()  # getrusage includes the parent's peak
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=MAKERS, help="these samplers alone")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--isa", action="store_true", help="each kind of CPU this one can show")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.part:
        names = options.only or list(MAKERS)
        print(json.dumps(measure(options.rounds, options.new_tokens, names, not options.no_memory)))
        return
    result = run(
        options.rounds, options.new_tokens, options.isa, options.only, not options.no_memory
    )
    if options.json:
        print(json.dumps(result))
    else:
        limits.show(result)


if __name__ == "__main__":
    main()
