"""A GPU's figures in one command, in less than nine minutes on one card, without the network.

Each measurement runs in a process of its own, so that one that fails costs only its own rows:

- Training, bf16, at about 30 M, 124 M and 350 M parameters: tokens/s, share of the card's peak
  (MFU), memory and host synchronisations per step; with and without torch.compile and
  deterministic kernels; next to Hugging Face's GPT-2, compiled, with fused AdamW.
- Kill and resume: a training that is killed at random steps ends with the same sha256.
- Sampling, next to Hugging Face's `generate`.

`--device cpu` runs the same with tiny shapes and without compiling: that shows that the script
works, and no figure.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import limits
import psutil
import torch
from limits import row
from torch import Tensor

from slm.config import GPT2_VOCAB_SIZE, ModelConfig, PipelineConfig, TrainConfig
from slm.model.decode import Decoder
from slm.model.gpt import GPT
from slm.model.sample import generate
from slm.records import Plan
from slm.run_folder import JOURNAL, RunFolder
from slm.training.child import child_environment
from slm.training.plan import peak_flops
from slm.training.process import set_up_kernels
from slm.training.session import synthetic_session
from slm.training.step import train_step

SHAPES = {  # name → (shape, rows of a pass)
    "30 M": (ModelConfig(n_layer=6, n_head=6, n_embd=384, seq_len=512), 128),
    "124 M": (ModelConfig(n_layer=12, n_head=12, n_embd=768, seq_len=1024), 64),
    "350 M": (ModelConfig(n_layer=24, n_head=16, n_embd=1024, seq_len=1024), 16),
}
TINY = (ModelConfig(n_layer=2, n_head=2, n_embd=32, seq_len=32), 4)
KILLS, AT_ONCE = 10, 5
TRAINED_STEPS = {"cuda": 200, "cpu": 12}  # of the trainings that are killed
STEPS, WARM_UP = 10, 4
TIMEOUT = 150  # seconds of one measurement
BUDGET = 520  # of all: what has not begun by then is left out, and named


def run(device: str, only: list[str]) -> dict[str, Any]:
    """`{"machine": …, "rows": [{name, metric, value, unit, ratio}], "failed": {name: reason}}`.

    `only`: parts of the names of the measurements to make; none: all.
    """
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    chosen = [p for p in parts(device) if not only or any(each in p for each in only)]
    for part in chosen:
        if time.monotonic() - began > BUDGET:
            failed[part] = f"left out after {BUDGET} s"
            continue
        print(part, file=sys.stderr)
        try:
            own = limits.in_child(
                __file__, ["--part", part, "--device", device], environment(), TIMEOUT
            )
        except (subprocess.SubprocessError, json.JSONDecodeError) as error:
            failed[part] = str(error)
            continue
        rows += own
        for each in own:
            print(f"  {each['metric']}: {each['value']:,.1f} {each['unit']}", file=sys.stderr)
    return {"machine": machine(device), "rows": with_ratios(rows), "failed": failed}


def environment() -> dict[str, str]:
    """What our launcher sets for a training, for peers too."""
    return child_environment(config_of(TINY, True))


def machine(device: str) -> dict[str, Any]:
    card = torch.cuda.get_device_name() if device == "cuda" else "none: tiny shapes on the CPU"
    return {**limits.machine(), "gpu": card}


def parts(device: str) -> list[str]:
    """The measurements, the most important first."""
    names = []
    for shape in ("124 M", "30 M", "350 M") if device == "cuda" else ("tiny",):
        names += [f"train|{shape}|slm", f"train|{shape}|transformers, compiled"]
        if shape in ("124 M", "tiny"):
            names += [f"train|{shape}|slm, not deterministic", f"train|{shape}|slm, not compiled"]
            names += ["kills", "sample"]
    return names


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each speed with our speed at the same shape over it."""
    ours = {r["name"]: r["value"] for r in rows if r["unit"] == "tokens/s"}
    for each in rows:
        shape, _, _ = each["name"].partition(": ")
        if each["unit"] == "tokens/s" and (speed := ours.get(f"{shape}: slm")):
            each["ratio"] = speed / each["value"]
    return rows


# ---- training ---------------------------------------------------------------------------------


def config_of(shape: tuple[ModelConfig, int], deterministic: bool) -> PipelineConfig:
    model, rows = shape
    settings = TrainConfig(
        max_steps=1, tokens_per_step=rows * model.seq_len, deterministic=deterministic
    )
    return PipelineConfig(recipe="bench", model=model, train=settings)


def train_part(name: str, loop: str, device: str) -> list[dict[str, Any]]:
    """Speed, MFU, memory and synchronisations of one loop at one shape."""
    shape = SHAPES.get(name, TINY)
    model, rows = shape
    torch.manual_seed(0)
    ids = torch.randint(0, GPT2_VOCAB_SIZE, (rows, model.seq_len + 1), device=device)
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if loop.startswith("slm"):
        config = config_of(shape, deterministic="not deterministic" not in loop)
        step, flops = our_step(config, device, "not compiled" not in loop)
    else:
        step, flops = hugging_face_step(model, device)
    seconds = [timed(lambda: step(x, y), device) for _ in range(WARM_UP + STEPS)][WARM_UP:]
    speed = x.numel() / statistics.median(seconds)
    peak = peak_flops("cuda", "bf16") if device == "cuda" else None
    label = f"{name}: {loop}"
    result = [row(label, "speed", speed, "tokens/s")]
    if peak:
        result.append(row(label, "MFU", 100 * flops * speed / peak, "%"))
    if device == "cuda":
        result.append(row(label, "memory", torch.cuda.max_memory_allocated() / 1e9, "GB"))
        result.append(row(label, "host syncs", host_syncs(lambda: step(x, y)), "per step"))
    return result


def our_step(
    config: PipelineConfig, device: str, compiled: bool
) -> tuple[Callable[[Tensor, Tensor], object], float]:
    rows = config.train.tokens_per_step // config.model.seq_len
    plan = Plan(
        max_steps=1,
        rows=rows,
        micro_batch_size=rows,
        world_size=1,
        device="cuda" if device == "cuda" else "cpu",
        precision="bf16",
        threads=torch.get_num_threads(),
        compile=compiled and device == "cuda",
    )
    set_up_kernels(config.train, torch.device(device), torch.get_num_threads())
    session = synthetic_session(config, plan, GPT2_VOCAB_SIZE)
    session.model.train()
    flops = session.model.flops_per_token()
    return lambda x, y: train_step(session, x, y), flops


def hugging_face_step(
    shape: ModelConfig, device: str
) -> tuple[Callable[[Tensor, Tensor], object], float]:
    """GPT2LMHeadModel, compiled, bf16 autocast, fused AdamW, clipped: as people tune it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=GPT2_VOCAB_SIZE,
        n_positions=shape.seq_len,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.set_float32_matmul_precision("high")
    model = GPT2LMHeadModel(config).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if device == "cuda" else model

    def step(x: Tensor, y: Tensor) -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = forward(x, labels=x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, GPT(shape, GPT2_VOCAB_SIZE).flops_per_token()


def timed(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def host_syncs(work: Callable[[], object]) -> int:
    """How often the host waits for the GPU within `work`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


# ---- kill and resume ----------------------------------------------------------------------------


def kills_part(device: str) -> list[dict[str, Any]]:
    """How many of `KILLS` trainings that are killed once end with the bits of one that is not."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        whole = train_child(root / "whole", device, kill_at=None)
        order = random.Random(0)
        kills = KILLS if device == "cuda" else 1
        steps = [order.randrange(1, TRAINED_STEPS[device] - 1) for _ in range(kills)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ended = list(
                pool.map(lambda i: train_child(root / str(i), device, steps[i]), range(kills))
            )
        same = sum(
            each["weights_sha256"] == whole["weights_sha256"] and each["killed_at"] > 0
            for each in ended
        )
        return [row("killed and resumed", f"same bits, of {kills}", same, "runs")]


def train_child(root: Path, device: str, kill_at: int | None) -> dict[str, Any]:
    """Train in a process of its own, killed once after some step and started again."""
    command = [sys.executable, __file__, "--train", str(root), "--device", device]
    killed_at = 0
    if kill_at is not None:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
            while child.poll() is None and last_step(root) < kill_at:
                time.sleep(0.01)
            if child.poll() is None:
                for process in psutil.Process(child.pid).children(recursive=True):
                    process.kill()  # the training itself, which its parent's death would only stop
                killed_at = last_step(root)
            child.kill()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "killed_at": killed_at}


def last_step(root: Path) -> int:
    """The last step in the journal of the one run of a data folder; 0 before it has begun."""
    journals = [RunFolder(path.parent).journal for path in root.glob(f"runs/*/{JOURNAL}")]
    return max((e["step"] for journal in journals for e in journal if "step" in e), default=0)


def train_whole(root: Path, device: str) -> dict[str, Any]:
    """A small training on generated stories; the hash of its weights."""
    import slm.source.download
    import slm.tokens.encode
    import slm.training.launch
    from slm.recipes import load_recipe

    steps = TRAINED_STEPS[device]
    overrides = {
        "data.documents": 400,
        "train.max_seconds": None,
        "train.max_steps": steps,
        "train.checkpoint_every": steps // 6,
        "train.evaluate_every": steps,
        "train.device": device,
        "model.dropout": 0.1,
        "model.n_layer": 2,
    }
    config = load_recipe("quickstart", overrides)
    source = slm.source.download.download(config, root=root)
    shards = slm.tokens.encode.encode(config, source, root=root)
    trained = slm.training.launch.train(config, shards, root=root)
    return {"weights_sha256": trained.weights_sha256}


# ---- sampling -----------------------------------------------------------------------------------


def sample_part(device: str) -> list[dict[str, Any]]:
    """New tokens/s from 1 and 16 prompts at 124 M, next to Hugging Face's `generate`."""
    from sample import PROMPT, TEMPERATURE, TOP_K, FixedPrompts
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = SHAPES["124 M"][0] if device == "cuda" else TINY[0]
    new = min(200, shape.seq_len - len(PROMPT) - 1)
    torch.manual_seed(0)
    decoder = Decoder(GPT(shape, GPT2_VOCAB_SIZE).eval().to(device))
    tokenizer = FixedPrompts()
    config = GPT2Config(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        n_positions=shape.seq_len,
        vocab_size=GPT2_VOCAB_SIZE,
    )
    peer = GPT2LMHeadModel(config).eval().to(device)
    peer.generation_config.eos_token_id = None

    def ours(batch: int) -> int:
        samples = generate(
            decoder,
            tokenizer,
            [""] * batch,
            max_new_tokens=new,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            seed=range(batch),
        )
        return sum(each.tokens for each in samples)

    def theirs(batch: int) -> int:
        ids = torch.tensor([PROMPT] * batch, device=device)
        options = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K}
        with torch.inference_mode():
            mask = torch.ones_like(ids)
            peer.generate(ids, attention_mask=mask, max_new_tokens=new, pad_token_id=0, **options)
        return new * batch

    rows = []
    for batch in (1, 16):
        for name, sampler in (("slm", ours), ("transformers", theirs)):
            sampler(batch)
            begin = time.perf_counter()
            tokens = sampler(batch)
            speed = tokens / (time.perf_counter() - begin)
            rows.append(row(f"sampling, {batch} prompts: {name}", "speed", speed, "tokens/s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", default=[], help="parts of measurements' names")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA GPU here; --device cpu shows that the script works")
    if arguments.train:
        print(json.dumps(train_whole(arguments.train, arguments.device)))
        return
    if arguments.part:
        kind, *rest = arguments.part.split("|")
        work: dict[str, Callable[..., list[dict[str, Any]]]]
        work = {"train": train_part, "kills": kills_part, "sample": sample_part}
        print(json.dumps(work[kind](*rest, arguments.device)))
        return
    result = run(arguments.device, arguments.only)
    if arguments.json:
        print(json.dumps(result))
        return
    limits.show(result)
    for name, reason in result["failed"].items():
        print(f"failed: {name}: {reason}")


if __name__ == "__main__":
    main()
