"""Exports in the programs that read them: transformers, tokenizers, llama.cpp.

Six small models, {gpt2, qwen3, qwen3 with grouped queries} × {GPT-2's vocabulary, a trimmed one},
are trained for some seconds on generated stories and exported. Of each: the largest difference of
logits to ours, in how many of the greedy texts both programs write the same as we do, whether they
tokenize megabytes of text as we do, and what eight bits (q8_0) change in bits per byte, measured by
llama.cpp itself. llama.cpp runs in float32 with a float32 KV cache.

It needs the packages transformers, gguf and llama-cpp-python.

    python benchmarks/parity.py --data FOLDER_OF_PARQUET
"""

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from slm.config import ModelConfig
from slm.model.export.gguf import write_gguf
from slm.model.export.hugging_face import write_hugging_face
from slm.model.export.parity import ODD_TEXTS
from slm.model.gpt import GPT
from slm.model.sample import generate
from slm.source.stories import stories
from slm.tokens.tokenizer.bpe import END_OF_TEXT, Tokenizer, gpt2
from slm.tokens.tokenizer.trimming import trim_vocabulary

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": "gpt2"},
    "qwen3": {"architecture": "qwen3"},
    "grouped": {"architecture": "qwen3", "n_kv_head": 2},
}
TRIMMED = 2048  # tokens
SEQ_LEN, ROWS, LEARNING_RATE = 64, 4, 3e-3
NEW_TOKENS, PROMPT_WORDS = 32, 4
SCORED = 10  # held-out stories
F32 = 0  # GGML's type, of the KV cache
SEED = 5


def run(
    steps: int = 100, prompts: int = 100, megabytes: float = 10.0, data: Path | None = None
) -> list[dict[str, Any]]:
    """A row of each model; `data`: real stories for the tokenizers, besides generated text."""
    base = gpt2()
    train = list(stories(SEED, 0, 2000))
    ids = base.encode_utf8(text.encode() for text in train)
    counts = np.bincount(ids[ids != base.eot], minlength=base.n_vocab)
    tokenizers = {"trimmed": trim_vocabulary(base, counts, TRIMMED), "full": base}
    text = list(texts(megabytes, data))
    rows = []
    for shape, fields in SHAPES.items():
        for vocabulary, tokenizer in tokenizers.items():
            model = trained(fields, tokenizer, train, steps)
            # The words of a vocabulary are the same in all three shapes.
            row = measure(model, tokenizer, prompts, text if shape == "gpt2" else text[:200])
            rows.append({"model": shape, "vocabulary": vocabulary, **row})
            print(line(rows[-1]), flush=True)
    return rows


def trained(fields: dict[str, Any], tokenizer: Tokenizer, train: list[str], steps: int) -> GPT:
    torch.manual_seed(SEED)
    config = ModelConfig(n_layer=2, n_head=4, n_embd=64, seq_len=SEQ_LEN, **fields)
    model = GPT(config, tokenizer.n_vocab)
    ids = torch.from_numpy(tokenizer.encode_utf8(text.encode() for text in train).astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    for _ in range(steps):
        begin = torch.randint(0, len(ids) - SEQ_LEN - 1, (ROWS,)).tolist()
        x = torch.stack([ids[i : i + SEQ_LEN + 1] for i in begin])
        logits = model.logits(model(x[:, :-1]))
        F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
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
    for piece in pieces:
        piece = piece.replace(END_OF_TEXT, "")  # the library would take it for the token
        yield piece
        left -= len(piece.encode())
    for piece in stories(SEED + 1, 0, 1_000_000):
        if left <= 0:
            return
        yield piece
        left -= len(piece.encode())


def load_llama(path: Path) -> Any:
    """The model of a GGUF file, by llama.cpp's plain products.

    Its AMX products of eight bits configure the tiles from bytes that some compilers leave unset,
    and the process ends without a word.
    """
    import llama_cpp
    from llama_cpp import llama_cpp as library

    defaults = library.llama_model_default_params

    def plain() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    library.llama_model_default_params = plain
    try:
        return llama_cpp.Llama(
            str(path), n_ctx=SEQ_LEN, logits_all=True, verbose=False, n_threads=1,
            n_threads_batch=1, type_k=F32, type_v=F32,
        )  # fmt: skip
    finally:
        library.llama_model_default_params = defaults


def measure(model: GPT, tokenizer: Tokenizer, prompts: int, text: list[str]) -> dict[str, Any]:
    import transformers
    from tokenizers import Tokenizer as TheirTokenizer

    held_out = list(stories(SEED + 2, 0, max(prompts, SCORED)))
    beginnings = [" ".join(story.split(" ")[:PROMPT_WORDS]) for story in held_out[:prompts]]
    ours = generate(model, tokenizer, beginnings, max_new_tokens=NEW_TOKENS, temperature=0)
    documents = [[tokenizer.eot, *tokenizer.encode(s)][:SEQ_LEN] for s in held_out[:SCORED]]
    with TemporaryDirectory() as folder:
        path = Path(folder)
        write_hugging_face(path, model, tokenizer)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        read = transformers.AutoTokenizer.from_pretrained(path)
        fast = TheirTokenizer.from_file(str(path / "tokenizer.json"))
        loaded = {}
        for dtype in ("f32", "q8_0"):
            write_gguf(path / dtype, model, tokenizer, dtype, {})
            loaded[dtype] = load_llama(path / dtype)
        logits = [ours_of(model, ids) for ids in documents]
        with torch.no_grad():
            of_hf = [theirs(torch.tensor([ids])).logits[0].numpy() for ids in documents]
        of_llama = {d: [llama_logits(llm, ids) for ids in documents] for d, llm in loaded.items()}
        same_hf = same_llama = 0
        for prompt, sample in zip(beginnings, ours, strict=True):
            given = read(prompt, return_tensors="pt")
            out = theirs.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
            rest = out[0, given["input_ids"].shape[1] :]
            same_hf += read.decode(rest, skip_special_tokens=True) == sample.completion
            answer = loaded["f32"].create_completion(
                prompt, max_tokens=NEW_TOKENS, temperature=0, repeat_penalty=1.0
            )
            same_llama += answer["choices"][0]["text"] == sample.completion
        wrong = {"hf": 0, "llama": 0}
        for piece in text:
            expected = tokenizer.encode(piece)
            wrong["hf"] += fast.encode(piece, add_special_tokens=False).ids != expected
            tokens = loaded["f32"].tokenize(piece.encode(), add_bos=False, special=False)
            wrong["llama"] += tokens != expected
    bits = bpb(logits, documents, tokenizer)
    return {
        "logits_hf": largest(logits, of_hf),
        "logits_llama": largest(logits, of_llama["f32"]),
        "prompts": prompts,
        "greedy_hf": same_hf,
        "greedy_llama": same_llama,
        "megabytes": sum(len(piece.encode()) for piece in text) / 1e6,
        "pieces": len(text),
        "pieces_hf_differs": wrong["hf"],
        "pieces_llama_differs": wrong["llama"],
        "bpb": bits,
        "bpb_llama_f32": bpb(of_llama["f32"], documents, tokenizer),
        "bpb_llama_q8_0": bpb(of_llama["q8_0"], documents, tokenizer),
    }


def ours_of(model: GPT, ids: list[int]) -> Any:
    with torch.no_grad():
        return model.logits(model(torch.tensor([ids])))[0].numpy()  # (T, V)


def llama_logits(llm: Any, ids: list[int]) -> Any:
    llm.reset()
    llm.eval(ids)
    return np.array(llm.scores[: len(ids)])


def largest(ours: list[Any], theirs: list[Any]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def bpb(logits: list[Any], documents: list[list[int]], tokenizer: Tokenizer) -> float:
    nats = sum(
        float(F.cross_entropy(torch.tensor(each[:-1]), torch.tensor(ids[1:]), reduction="sum"))
        for each, ids in zip(logits, documents, strict=True)
    )
    size = sum(tokenizer.count_bytes(np.array(ids[1:])) for ids in documents)
    return nats / math.log(2) / size


HEAD = (
    "| model | vocabulary | logits, transformers | logits, llama.cpp | greedy texts, transformers "
    "| greedy texts, llama.cpp | text | other tokens, tokenizers | other tokens, llama.cpp "
    "| bpb | q8_0 in llama.cpp |\n" + "|---" * 11 + "|"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/export.md."""
    count, change = row["prompts"], row["bpb_llama_q8_0"] / row["bpb"] - 1
    cells = (
        row["model"], row["vocabulary"], f"{row['logits_hf']:.1e}", f"{row['logits_llama']:.1e}",
        f"{row['greedy_hf']} of {count}", f"{row['greedy_llama']} of {count}",
        f"{row['megabytes']:.1f} MB", f"{row['pieces_hf_differs']} of {row['pieces']:,}",
        f"{row['pieces_llama_differs']} of {row['pieces']:,}", f"{row['bpb']:.4f}",
        f"{100 * change:+.3f} %",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of parquet with a column text")
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--megabytes", type=float, default=10.0, help="of text to tokenize")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    print(HEAD)
    rows = run(given.steps, given.prompts, given.megabytes, given.data)
    if given.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
