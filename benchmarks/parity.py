"""Exports in the programs that read them: transformers, tokenizers, llama.cpp.

Six small models, {gpt2, qwen3, qwen3 with grouped queries} × {GPT-2's vocabulary, a trimmed one},
are trained for some seconds on generated stories and exported. Of each: the largest difference of
logits to ours, how many of the greedy texts each program writes as we do, and what eight bits
(q8_0) change in bits per byte, by llama.cpp's own logits. llama.cpp runs in float32 with a float32
KV cache, and without flash attention, which rounds keys and values to float16. Of both
vocabularies: whether all three tokenize megabytes of text in the same way, which does not depend on
the model.

It needs the packages transformers, gguf and llama-cpp-python.

    python benchmarks/parity.py --data FOLDER_OF_PARQUET
    python benchmarks/parity.py --only gpt2/trimmed tokens/trimmed
"""

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import category

import numpy as np
import torch
import torch.nn.functional as F

from slm.config import ModelConfig
from slm.model.export.gguf import write_gguf
from slm.model.export.hugging_face import write_hugging_face
from slm.model.export.parity import ODD_TEXTS
from slm.model.export.reading import Exported, read_gguf
from slm.model.gpt import GPT
from slm.model.loss import cross_entropy
from slm.model.sample import generate
from slm.source.stories import stories
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer, gpt2
from slm.tokens.tokenizer.trimming import trim_vocabulary

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": "gpt2"},
    "qwen3": {"architecture": "qwen3"},
    "grouped": {"architecture": "qwen3", "n_kv_head": 2},
}
VOCABULARIES = ("full", "trimmed")
TOKENS = "tokens"  # the part that is about a vocabulary alone
PARTS = [f"{name}/{vocabulary}" for name in (*SHAPES, TOKENS) for vocabulary in VOCABULARIES]
TRIMMED = 2048  # tokens
SEQ_LEN, ROWS, LEARNING_RATE = 64, 4, 3e-3
NEW_TOKENS, PROMPT_WORDS = 32, 4
SCORED = 40  # held-out stories, up to SEQ_LEN tokens of each
THREADS = 1  # llama.cpp waits for its others by spinning
SEED = 5


def run(
    steps: int = 300,
    prompts: int = 100,
    megabytes: float = 10.0,
    data: Path | None = None,
    only: Sequence[str] = PARTS,
) -> dict[str, list[dict[str, Any]]]:
    """`{"models": [a row of each model], "vocabularies": [a row of each]}`, printed as they come.

    Args:
        data: real stories for the tokenizers, besides generated text.
        only: of PARTS.
    """
    base = gpt2()
    train = list(stories(SEED, 0, 2000))
    ids = base.encode_utf8(text.encode() for text in train)
    counts = np.bincount(ids[ids != base.eot], minlength=base.n_vocab)
    result: dict[str, list[dict[str, Any]]] = {"models": [], "vocabularies": []}
    for part in only:
        name, _, vocabulary = part.partition("/")
        tokenizer = base if vocabulary == "full" else trim_vocabulary(base, counts, TRIMMED)
        if name == TOKENS:
            row = compare_tokens(tokenizer, list(texts(megabytes, data)))
            result["vocabularies"].append({"vocabulary": vocabulary, **row})
        else:
            row = compare(trained(SHAPES[name], tokenizer, train, steps), tokenizer, prompts)
            result["models"].append({"model": name, "vocabulary": vocabulary, **row})
        print(f"{part}: {row}", flush=True)
    return result


def trained(fields: dict[str, Any], tokenizer: Tokenizer, train: list[str], steps: int) -> GPT:
    torch.manual_seed(SEED)
    config = ModelConfig(n_layer=2, n_head=4, n_embd=64, seq_len=SEQ_LEN, **fields)
    model = GPT(config, tokenizer.n_vocab)
    ids = torch.from_numpy(tokenizer.encode_utf8(text.encode() for text in train).astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    for _ in range(steps):
        begin = torch.randint(0, len(ids) - SEQ_LEN - 1, (ROWS,)).tolist()
        x = torch.stack([ids[i : i + SEQ_LEN + 1] for i in begin])
        hidden = model(x[:, :-1]).flatten(0, 1).bfloat16()
        loss = cross_entropy(hidden, model.embed.weight, x[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def texts(megabytes: float, data: Path | None) -> Iterator[str]:
    """Pieces of text: odd ones, random Unicode, real stories, and generated ones up to the end."""
    left = megabytes * 1e6
    pieces = list(ODD_TEXTS)
    chance = random.Random(SEED)
    usual = " \n\t'’\"abcdeSTMLVREd0159.,!?-éñßжλ中文字한글あア🙂\u0301\u200d"
    planes = [
        (0x20, 0x250),
        (0x250, 0x3000),
        (0x3000, 0xD800),
        (0xE000, 0x10000),
        (0x10000, 0x32000),
    ]
    for _ in range(2000):
        letters = [
            usual if chance.random() < 0.6 else chr(chance.randrange(*chance.choice(planes)))
            for _ in range(200)
        ]
        pieces.append("".join(map(chance.choice, letters)))
    if data is not None:
        import pyarrow.parquet as pq

        for path in sorted(data.rglob("*.parquet")):
            pieces += [str(text) for text in pq.read_table(path).column("text").to_pylist()]
    for piece in chain(pieces, stories(SEED + 1, 0, 1_000_000)):
        if left <= 0:
            return
        piece = piece.replace(END_OF_TEXT, "")  # tokenizers would take it for the token
        yield piece
        left -= len(piece.encode())


def compare_tokens(tokenizer: Tokenizer, text: Sequence[str]) -> dict[str, Any]:
    """In how many pieces of text the other programs' tokens are not ours."""
    from _llama import Llama
    from tokenizers import Tokenizer as TheirTokenizer

    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=32, seq_len=SEQ_LEN), tokenizer.n_vocab)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        write_hugging_face(path, model, tokenizer)
        write_gguf(path / "model.gguf", model, tokenizer, "f16", {})
        fast = TheirTokenizer.from_file(str(path / "tokenizer.json"))
        llama = Llama(path / "model.gguf")
    differing = {"hf": 0, "llama": 0, "newer": 0}
    for piece in text:
        expected = tokenizer.encode(piece)
        differing["hf"] += fast.encode(piece, add_special_tokens=False).ids != expected
        if llama.tokenize(piece) != expected:
            differing["llama"] += 1
            differing["newer"] += any(category(c) == "Cn" for c in piece)
    llama.close()
    return {
        "tokens": tokenizer.n_vocab,
        "megabytes": sum(len(piece.encode()) for piece in text) / 1e6,
        "pieces": len(text),
        "hf_differs": differing["hf"],
        "llama_differs": differing["llama"],
        "llama_differs_newer": differing["newer"],  # with characters newer than Python's Unicode
    }


def compare(model: GPT, tokenizer: Tokenizer, prompts: int) -> dict[str, Any]:
    """A model's logits, greedy texts and bits per byte in the other programs."""
    import transformers
    from _llama import Llama

    held_out = list(stories(SEED + 2, 0, max(prompts, SCORED)))
    beginnings = [" ".join(story.split(" ")[:PROMPT_WORDS]) for story in held_out[:prompts]]
    documents = [[tokenizer.eot, *tokenizer.encode(s)][:SEQ_LEN] for s in held_out[:SCORED]]
    samples = generate(model, tokenizer, beginnings, max_new_tokens=NEW_TOKENS, temperature=0)
    ours = [sample.completion for sample in samples]
    with TemporaryDirectory() as folder:
        path = Path(folder)
        write_hugging_face(path, model, tokenizer)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        read = transformers.AutoTokenizer.from_pretrained(path)
        write_gguf(path / "f32", model, tokenizer, "f32", {})
        write_gguf(path / "q8_0", model, tokenizer, "q8_0", {})
        llama = Llama(path / "f32", SEQ_LEN, prompts, THREADS)
        quantized = Llama(path / "q8_0", SEQ_LEN, 1, THREADS)
        share = q8_0_share(read_gguf(path / "q8_0"))
    same_hf = count_same(ours, greedy_of_hf(theirs, read, beginnings))
    same_llama = count_same(ours, greedy_of_llama(llama, beginnings))
    largest = dict.fromkeys(("ours", "hf", "llama", "q8_0"), 0.0)
    nats = dict.fromkeys(("ours", "llama", "q8_0"), 0.0)
    for ids in documents:
        with torch.no_grad():
            x = torch.tensor([ids])
            expected = model.logits(model(x))[0]  # (T, V)
            of_hf = theirs(x).logits[0]
        of_llama, of_q8 = (torch.from_numpy(each.logits(ids)) for each in (llama, quantized))
        largest["ours"] = max(largest["ours"], float(expected.abs().max()))
        for name, logits in (("hf", of_hf), ("llama", of_llama), ("q8_0", of_q8)):
            largest[name] = max(largest[name], float((logits - expected).abs().max()))
        for name, logits in (("ours", expected), ("llama", of_llama), ("q8_0", of_q8)):
            nats[name] += float(
                F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
            )
    llama.close()
    quantized.close()
    size = sum(tokenizer.count_bytes(np.array(ids[1:])) for ids in documents)
    return {
        "largest_logit": largest["ours"],
        "logits_hf": largest["hf"],
        "logits_llama": largest["llama"],
        "prompts": prompts,
        "greedy_hf": same_hf,
        "greedy_llama": same_llama,
        "scored": sum(len(ids) - 1 for ids in documents),
        "bpb": nats["ours"] / math.log(2) / size,
        "llama_change": nats["llama"] / nats["ours"] - 1,
        "q8_0_share": share,  # of the weights
        "q8_0_logits": largest["q8_0"],
        "q8_0_change": nats["q8_0"] / nats["ours"] - 1,
    }


def greedy_of_hf(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The texts that transformers writes; prompts of one length in one batch, without padding."""
    model.generation_config.max_length = None  # else it warns that there are two limits
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    texts = {}
    for length, group in groupby(order, key=lambda i: len(encoded[i])):
        numbers = list(group)
        x = torch.tensor([encoded[i] for i in numbers])
        out = model.generate(
            x, attention_mask=torch.ones_like(x), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        for i, row in zip(numbers, out, strict=True):
            texts[i] = tokenizer.decode(row[length:], skip_special_tokens=True)
    return [texts[i] for i in range(len(prompts))]


def greedy_of_llama(llama: Any, prompts: Sequence[str]) -> list[str]:
    """The texts that llama.cpp writes, in one batch."""
    encoded = [llama.tokenize(prompt, begin=True) for prompt in prompts]
    return [llama.text(ids) for ids in llama.generate(encoded, NEW_TOKENS)]


def q8_0_share(exported: Exported) -> float:
    """How much of the weights a file holds in eight bits; norms, biases and positions stay."""
    sizes = {name: tensor.numel() for name, tensor in exported.weights.items()}
    eight = sum(size for name, size in sizes.items() if exported.stored[name] == "q8_0")
    return eight / sum(sizes.values())


def count_same(ours: Sequence[str], theirs: Sequence[str]) -> int:
    return sum(a == b for a, b in zip(ours, theirs, strict=True))


MODELS_HEAD = (
    "| model | vocabulary | logits, transformers | logits, llama.cpp | greedy texts, transformers "
    "| greedy texts, llama.cpp | bpb | q8_0: logits | q8_0: bpb |\n" + "|---" * 9 + "|"
)
VOCABULARIES_HEAD = (
    "| vocabulary | tokens | text | pieces that differ, tokenizers | pieces that differ, llama.cpp "
    "|\n" + "|---" * 5 + "|"
)


def model_line(row: dict[str, Any]) -> str:
    """A row of the first table in docs/export.md."""
    count = row["prompts"]
    cells = (
        row["model"], row["vocabulary"], f"{row['logits_hf']:.1e}", f"{row['logits_llama']:.1e}",
        f"{row['greedy_hf']} of {count}", f"{row['greedy_llama']} of {count}",
        f"{row['bpb']:.4f}", f"{row['q8_0_logits']:.1e}", f"{100 * row['q8_0_change']:+.4f} %",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def vocabulary_line(row: dict[str, Any]) -> str:
    """A row of the second table."""
    count = f"{row['pieces']:,}"
    cells = (
        row["vocabulary"], f"{row['tokens']:,}", f"{row['megabytes']:.1f} MB",
        f"{row['hf_differs']} of {count}", f"{row['llama_differs']} of {count}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
        help=f"of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--data", type=Path, help="a folder of parquet with a column text")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--megabytes", type=float, default=10.0, help="of text to tokenize")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    result = run(given.steps, given.prompts, given.megabytes, given.data, given.only)
    if result["models"]:
        print(MODELS_HEAD, *map(model_line, result["models"]), sep="\n")
    if result["vocabularies"]:
        print(VOCABULARIES_HEAD, *map(vocabulary_line, result["vocabularies"]), sep="\n")
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
