"""Three trainings of one small GPT-2, each as its own users run it: what `compare_peers.py` kills.

Each is started by `train(name, …)`, resumes from whatever its folder has by its own means, and
notes every step in `steps.jsonl` of the folder. Two ways to be killed (SIGKILL): after a step, and
in the middle of a save.

- `slm`: `slm.train`, whose process is killed by a fault point.
- `transformers`: `Trainer` with `full_determinism`, and `resume_from_checkpoint` where there is a
  checkpoint. In the middle of a save its weights are written, its optimizer is not.
- `notebook`: a plain loop that saves model, optimizer and step by `torch.save` in one file, and
  after a restart runs its cells from the top and loads that file. In the middle of a save half of
  the file is written.

All have float32, AdamW, one schedule (5 % warmup, cosine to a tenth), clipping at 1.0, dropout 0.1.
"""

import hashlib
import io
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from quality import Scored
from torch import Tensor
from train import NotebookModel, transformers_model

import slm
from slm.config import ModelConfig, PipelineConfig
from slm.evaluation.scoring import score
from slm.model.gpt import GPT
from slm.records import Shards
from slm.run_folder import RunFolder
from slm.tokens.shards.reading import documents, read_shards, read_tokens
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

SHAPE = ModelConfig(architecture="gpt2", n_layer=2, n_head=2, n_embd=128, seq_len=128, dropout=0.1)
ROWS = 16
LEARNING_RATE, FINAL, WARMUP, CLIP, DECAY, BETAS = 1e-3, 0.1, 0.05, 1.0, 0.1, (0.9, 0.95)
SEED = 1
STEPS_FILE, CHECKPOINT_FILE = "steps.jsonl", "checkpoint.pt"
PROMPT, NEW_TOKENS, TEMPERATURE, TOP_K = "A little girl went to the woods", 40, 0.8, 50
SCORED = 40  # held-out documents


@dataclass(frozen=True)
class Job:
    """One start of a training."""

    folder: Path  # of this training, empty at its first start
    shards: Path
    steps: int
    every: int  # steps between two checkpoints
    kill_at: int | None = None  # the step after which the process is killed
    kill_in_save: int | None = None  # … or the step whose checkpoint it is killed in

    @property
    def warmup(self) -> int:
        return max(1, round(WARMUP * self.steps))

    def note(self, step: int, loss: float, rows: Tensor) -> None:
        """Write a line, which a kill leaves, and be killed where that is asked for."""
        digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
        line = {"step": step, "loss": loss, "rows": digest, "time": time.time()}
        with (self.folder / STEPS_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")
        if step == self.kill_at:
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def config_of(steps: int, every: int, threads: int, documents: int) -> PipelineConfig:
    """Our settings, from which the tokens of all three come too."""
    shape = {f"model.{k}": v for k, v in SHAPE.model_dump(exclude_unset=True).items()}
    return slm.load_recipe(
        "quickstart",
        {
            **shape,
            "data.documents": documents,
            "data.vocab_size": 1024,
            "data.val_fraction": 0.02,
            "train.max_steps": steps,
            "train.tokens_per_step": ROWS * SHAPE.seq_len,
            "train.optimizer": "adamw",
            "train.learning_rate": LEARNING_RATE,
            "train.beta1": BETAS[0],
            "train.beta2": BETAS[1],
            "train.weight_decay": DECAY,
            "train.grad_clip": CLIP,
            "train.schedule": "cosine",
            "train.warmup": WARMUP,
            "train.final_lr": FINAL,
            "train.seed": SEED,
            "train.precision": "fp32",
            "train.device": "cpu",
            "train.threads": threads,
            "train.evaluate_every": steps,
            "train.evaluate_documents": SCORED,
            "train.checkpoint_every": every,
        },
    )


def train(name: str, job: Job, config: PipelineConfig) -> dict[str, Any]:
    """Train to the end: `{"weights": sha256, "val_bpb": …, "sample": …}`; may be killed."""
    job.folder.mkdir(parents=True, exist_ok=True)
    return PEERS[name].train(job, config)


def weights_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ---- slm ----------------------------------------------------------------------------------------


def train_slm(job: Job, config: PipelineConfig) -> dict[str, Any]:
    if job.kill_at:
        os.environ["SLM_FAULT"] = f"train.step:{job.kill_at}:kill"
    if job.kill_in_save:
        os.environ["SLM_FAULT"] = f"checkpoint.optimizer:{job.kill_in_save // job.every}:kill"
    shards = slm.encode(config, slm.download(config, root=job.folder), root=job.folder)
    try:
        run = slm.train(config, shards, root=job.folder)
    except slm.SlmError:
        if "SLM_FAULT" in os.environ:
            die()  # as the training process has
        raise
    [text] = slm.sample(
        run, PROMPT, temperature=TEMPERATURE, top_k=TOP_K, max_new_tokens=NEW_TOKENS, seed=SEED
    )
    return {"weights": run.weights_sha256, "val_bpb": run.val_bpb, "sample": text.completion}


def slm_steps(folder: Path) -> list[dict[str, Any]]:
    """The steps in the run's journal, and the starts of its process, in order."""
    runs = sorted((folder / "runs").glob("*/"))
    entries = RunFolder(runs[0]).journal if runs else iter(())
    kept = ("start", "resume", "step")
    return [
        {"event": e["event"], "step": e["step"], "loss": e.get("train_loss"), "time": e["time"]}
        for e in entries
        if e["event"] in kept
    ]


# ---- what the peers share -----------------------------------------------------------------------


def tokens_of(shards: Shards) -> Any:
    return np.concatenate([read_tokens(shards.path / n) for n in shards.splits["train"].files])


def finish(model: Any, job: Job, next_ids: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """What `train` returns, of a peer's trained model."""
    weights = weights_sha256(model)
    model.eval()
    shards = read_shards(job.shards)
    tokenizer = Tokenizer.load(job.shards / TOKENIZER)
    held_out = list(islice(documents(shards, "val"), SCORED))
    scored = score(cast(GPT, Scored(model)), held_out, tokenizer.eot, tokenizer.token_bytes)
    prompt = [tokenizer.eot, *tokenizer.encode(PROMPT)]
    torch.manual_seed(SEED)
    written = next_ids(torch.tensor([prompt]))[0, len(prompt) :].tolist()
    text = tokenizer.decode_bytes([i for i in written if i != tokenizer.eot])
    return {
        "weights": weights,
        "val_bpb": scored.val_bpb,
        "sample": text.decode("utf-8", "replace"),
    }


# ---- Hugging Face's Trainer ---------------------------------------------------------------------


def train_transformers(job: Job, config: PipelineConfig) -> dict[str, Any]:
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments

    transformers.utils.logging.set_verbosity_error()
    seen = SimpleNamespace(loss=0.0, rows=torch.empty(0))

    class Noting(Trainer):  # type: ignore[misc]
        """The Trainer, its losses noted, and killed in the middle of a save."""

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Tensor:
            loss: Tensor = super().training_step(model, inputs, *rest, **named)
            seen.loss, seen.rows = float(loss), inputs["input_ids"]
            return loss

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            if self.state.global_step == job.kill_in_save:
                die()
            super()._save_optimizer_and_scheduler(output_dir)

    class AtSteps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            job.note(state.global_step, seen.loss, seen.rows)

    ids = tokens_of(read_shards(job.shards)).astype(np.int64)
    blocks = ids[: len(ids) // SHAPE.seq_len * SHAPE.seq_len].reshape(-1, SHAPE.seq_len)
    arguments = TrainingArguments(
        output_dir=str(job.folder),
        seed=SEED,
        full_determinism=True,
        max_steps=job.steps,
        per_device_train_batch_size=ROWS,
        learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": FINAL},
        warmup_steps=job.warmup,
        save_steps=job.every,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    torch.manual_seed(SEED)
    trainer = Noting(
        model=transformers_model(SHAPE, config.data.vocab_size),
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in torch.from_numpy(blocks)],
        callbacks=[AtSteps()],
    )
    saved = any(job.folder.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if saved else None)
    model = trainer.model

    def next_ids(ids: Tensor) -> Tensor:
        out: Tensor = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TEMPERATURE,
            top_k=TOP_K, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        return out

    return finish(model, job, next_ids)


def repair_transformers(folder: Path) -> None:
    """What a person does by hand: delete the newest checkpoint."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(newest)


# ---- the notebook's loop ------------------------------------------------------------------------


def train_notebook(job: Job, config: PipelineConfig) -> dict[str, Any]:
    torch.manual_seed(SEED)
    ids = torch.from_numpy(tokens_of(read_shards(job.shards)).astype(np.int64))
    model = NotebookModel(SHAPE, config.data.vocab_size).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, job))
    path, first = job.folder / CHECKPOINT_FILE, 1
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"] + 1
    for step in range(first, job.steps + 1):
        starts = torch.randint(len(ids) - SHAPE.seq_len, (ROWS,))
        x = torch.stack([ids[s : s + SHAPE.seq_len] for s in starts])
        y = torch.stack([ids[s + 1 : s + 1 + SHAPE.seq_len] for s in starts])
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        job.note(step, float(loss), x)
        if step % job.every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save_notebook(state, path, killed=step == job.kill_in_save)

    def next_ids(ids: Tensor) -> Tensor:
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                logits = model(ids[:, -SHAPE.seq_len :])[:, -1] / TEMPERATURE
            lowest = logits.topk(TOP_K).values[:, -1:]
            probabilities = logits.masked_fill(logits < lowest, -torch.inf).softmax(dim=-1)
            ids = torch.cat((ids, torch.multinomial(probabilities, 1)), dim=1)
        return ids

    return finish(model, job, next_ids)


def factor(step: int, job: Job) -> float:
    """The learning rate after some steps, as a share of its peak."""
    if step < job.warmup:
        return step / job.warmup
    progress = (step - job.warmup) / max(1, job.steps - job.warmup)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * progress))


def save_notebook(state: dict[str, Any], path: Path, *, killed: bool) -> None:
    if not killed:
        torch.save(state, path)
        return
    whole = io.BytesIO()
    torch.save(state, whole)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    die()


def repair_notebook(folder: Path) -> None:
    """What a person does by hand: delete the file, and begin anew."""
    (folder / CHECKPOINT_FILE).unlink()


# ---- all ----------------------------------------------------------------------------------------


def peer_steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of `Job.note`, in order."""
    path = folder / STEPS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [{"event": "step", **json.loads(line)} for line in lines]


@dataclass(frozen=True)
class Peer:
    title: str
    train: Callable[[Job, PipelineConfig], dict[str, Any]]
    steps: Callable[[Path], list[dict[str, Any]]]
    repair: Callable[[Path], None] | None = None


PEERS = {
    "slm": Peer("slm", train_slm, slm_steps),
    "transformers": Peer(
        "Hugging Face Trainer", train_transformers, peer_steps, repair_transformers
    ),
    "notebook": Peer("notebook's loop", train_notebook, peer_steps, repair_notebook),
}
