"""What changes of the training recipe do to held-out bits per byte, at equal steps, over seeds.

`tinystories-sample` as it ships is the baseline; every variant changes one thing. All see the same
rows in the same order for the same number of steps, and are scored on all held-out documents. The
loop is a small one of its own, so that what the project does not have can be tried: on a GPU it
replays each step as a CUDA graph, which makes a thousand steps in seconds. Its results are ratios
to its own baseline, and no figures of the project's training.

A row gives the mean over the seeds, and the mean difference to the baseline of the same seeds with
its 95 % interval (Student's t on the paired differences).
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import limits
import torch
import torch.nn.functional as F
from torch import Tensor

import slm.source.download
from slm.config import PipelineConfig
from slm.evaluation.scoring import score
from slm.model.gpt import GPT
from slm.recipes import load_recipe
from slm.tokens.encode import encode
from slm.tokens.loader import Loader
from slm.tokens.permutation import derive_seed
from slm.tokens.shards.reading import documents, read_tokens
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.training.optim import MUON_MOMENTUM, NEWTON_SCHULZ, learning_rate_factor

RECIPE = "tinystories-sample"
WARM_UP = 3  # steps before a CUDA graph is captured, whose effect is undone
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}  # two-sided

# Amsel et al. 2025 (arXiv:2505.16932), for singular values from 0.001 on; each polynomial but the
# last of a training's is cushioned by 1.01 as they do.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)

Polynomial = tuple[float, float, float]


@dataclass(frozen=True)
class Variant:
    """One change of the baseline."""

    overrides: dict[str, Any] = field(default_factory=dict)
    polynomials: tuple[Polynomial, ...] = (NEWTON_SCHULZ,) * 5
    zero_init: bool = False  # of the projections that write to the residual
    cautious: bool = False  # weight decay only where it agrees with the update
    neuron_wise: bool = False  # NorMuon: updates scaled by a second moment of each row
    average: float = 0.0  # the last weights' exponential mean, by this factor per step
    lengths: tuple[int, ...] = ()  # of rows, in equal parts of the steps; () is seq_len throughout


def cushioned(count: int) -> tuple[Polynomial, ...]:
    """The first polynomials of Polar Express."""
    kept = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in POLAR_EXPRESS[: count - 1]]
    return (*kept, POLAR_EXPRESS[count - 1])


def wsd(cooldown: float) -> Variant:
    return Variant({"train.schedule": "wsd", "train.cooldown": cooldown})


def together(*variants: Variant) -> Variant:
    """All changes of several variants; of those that change the same thing, the last one's."""
    changes: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for variant in variants:
        overrides |= variant.overrides
        changes |= {k: v for k, v in vars(variant).items() if v != getattr(Variant, k, None)}
    return Variant(**{**changes, "overrides": overrides})


def adamw(rate: float) -> Variant:
    return Variant({"train.learning_rate": rate})


NORMUON = Variant(neuron_wise=True)
SHORT_FIRST = Variant(lengths=(128, 256))
TUNED = together(adamw(12e-3), NORMUON, wsd(0.6), SHORT_FIRST)

VARIANTS = {
    "baseline": Variant(),
    "wsd, cooldown 0.2": wsd(0.2),
    "wsd, cooldown 0.4": wsd(0.4),
    "wsd, cooldown 0.6": wsd(0.6),
    "wsd, cooldown 0.8": wsd(0.8),
    "cosine": Variant({"train.schedule": "cosine"}),
    "zero-initialised projections": Variant(zero_init=True),
    "cautious weight decay": Variant(cautious=True),
    "weight decay 0": Variant({"train.weight_decay": 0.0}),
    "weight decay 0.2": Variant({"train.weight_decay": 0.2}),
    "NorMuon": Variant(neuron_wise=True),
    "averaged weights, 0.99": Variant(average=0.99),
    "averaged weights, 0.95, wsd 0.2": Variant(
        {"train.schedule": "wsd", "train.cooldown": 0.2}, average=0.95
    ),
    "4 iterations": Variant(polynomials=(NEWTON_SCHULZ,) * 4),
    "3 iterations": Variant(polynomials=(NEWTON_SCHULZ,) * 3),
    "Polar Express, 5 iterations": Variant(polynomials=cushioned(5)),
    "Polar Express, 4 iterations": Variant(polynomials=cushioned(4)),
    "Polar Express, 3 iterations": Variant(polynomials=cushioned(3)),
    "rows of 64, then 128, then 256": Variant(lengths=(64, 128, 256)),
    "rows of 128, then 256": Variant(lengths=(128, 256)),
    "Muon's rate × 1.5": Variant({"train.muon_learning_rate": 0.03}),
    "Muon's rate × 2": Variant({"train.muon_learning_rate": 0.04}),
    "Muon's rate ÷ 1.5": Variant({"train.muon_learning_rate": 0.0133}),
    "AdamW's rate × 2": Variant({"train.learning_rate": 6e-3}),
    "AdamW's rate × 4": Variant({"train.learning_rate": 12e-3}),
    "warmup 0": Variant({"train.warmup": 0.0}),
    "warmup 0.1": Variant({"train.warmup": 0.1}),
    "half the batch, twice the steps": Variant({"train.tokens_per_step": 1024}),
    "dropout 0.1": Variant({"model.dropout": 0.1}),
    "3 layers": Variant({"model.n_layer": 3}),
    "2 layers": Variant({"model.n_layer": 2}),
    "6 layers": Variant({"model.n_layer": 6}),
    "width 192": Variant({"model.n_embd": 192, "model.n_head": 3}),
    "width 320": Variant({"model.n_embd": 320, "model.n_head": 5}),
    "width 384": Variant({"model.n_embd": 384, "model.n_head": 6}),
    "8 heads": Variant({"model.n_head": 8}),
    "2 heads": Variant({"model.n_head": 2}),
    "n_inner 512": Variant({"model.n_inner": 512}),
    "n_inner 1024": Variant({"model.n_inner": 1024}),
    "vocabulary 2048": Variant({"data.vocab_size": 2048}),
    "vocabulary 8192": Variant({"data.vocab_size": 8192}),
    "AdamW's rate × 8": adamw(24e-3),
    "× 4, β₁ 0.8": together(adamw(12e-3), Variant({"train.beta1": 0.8})),
    "× 4, NorMuon": together(adamw(12e-3), NORMUON),
    "× 4, wsd 0.6": together(adamw(12e-3), wsd(0.6)),
    "× 4, short rows first": together(adamw(12e-3), SHORT_FIRST),
    "× 4, 64, 128, 256": together(adamw(12e-3), Variant(lengths=(64, 128, 256))),
    "× 4, NorMuon, wsd 0.6": together(adamw(12e-3), NORMUON, wsd(0.6)),
    "× 4, NorMuon, short rows first": together(adamw(12e-3), NORMUON, SHORT_FIRST),
    "tuned": TUNED,
    "tuned, × 8": together(TUNED, adamw(24e-3)),
    "tuned, wsd 0.8": together(TUNED, wsd(0.8)),
    "tuned, Muon × 1.5": together(TUNED, Variant({"train.muon_learning_rate": 0.03})),
    "tuned, Muon ÷ 1.5": together(TUNED, Variant({"train.muon_learning_rate": 0.0133})),
    "tuned, zero-initialised": together(TUNED, Variant(zero_init=True)),
    "tuned, width 320": together(TUNED, Variant({"model.n_embd": 320, "model.n_head": 5})),
    "tuned, width 384": together(TUNED, Variant({"model.n_embd": 384, "model.n_head": 6})),
    "tuned, 3 layers": together(TUNED, Variant({"model.n_layer": 3})),
    "tuned, half the batch": together(TUNED, Variant({"train.tokens_per_step": 1024})),
    "tuned, twice the batch": together(TUNED, Variant({"train.tokens_per_step": 4096})),
    "tuned, β₁ 0.8": together(TUNED, Variant({"train.beta1": 0.8})),
}


def run(
    data: Path, steps: list[int], seeds: list[int], names: list[str], device: str
) -> dict[str, Any]:
    """`{"machine": …, "rows": [{name, steps, bpb, difference, interval, seeds}]}`."""
    rows = []
    with TemporaryDirectory() as root:
        for count in steps:
            baseline: list[float] = []
            for name in names:
                ended = []
                for seed in seeds:
                    ended.append(train(VARIANTS[name], data, Path(root), count, seed, device))
                    print(f"{name}, {count} steps, seed {seed}: {ended[-1]:.4f}", file=sys.stderr)
                baseline = baseline or ended
                rows.append({"name": name, "steps": count, **compared(ended, baseline)})
    return {"machine": {**limits.machine(), "device": device}, "rows": rows}


def compared(values: list[float], baseline: list[float]) -> dict[str, Any]:
    """Mean, mean paired difference, and half of its 95 % interval."""
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    half = math.nan
    if len(values) > 1 and values is not baseline:
        half = T_95[len(values) - 1] * statistics.stdev(differences) / math.sqrt(len(values))
    return {
        "bpb": statistics.fmean(values),
        "difference": statistics.fmean(differences),
        "interval": half,
        "seeds": values,
    }


def train(variant: Variant, data: Path, root: Path, steps: int, seed: int, device: str) -> float:
    """Held-out bits per byte after some steps of 2,048 tokens."""
    base = load_recipe(RECIPE, {"data.path": str(data)})
    overrides = {"data.path": str(data), "train.seed": seed, "train.max_seconds": None}
    config = load_recipe(RECIPE, {**overrides, "train.max_steps": 1, **variant.overrides})
    steps = steps * base.train.tokens_per_step // config.train.tokens_per_step
    shards = encode(config, slm.source.download.download(config, root=root), root=root)
    tokens = [read_tokens(shards.path / name) for name in shards.splits["train"].files]
    rows = config.train.tokens_per_step // config.model.seq_len
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    loader = Loader(tokens, seq_len=config.model.seq_len, rows=rows, seed=seed, device=where)
    torch.manual_seed(derive_seed(seed, "weights"))
    model = GPT(config.model, shards.vocab_size).to(where)
    if variant.zero_init:
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                torch.nn.init.zeros_(parameter)
    trainer = Trainer(model, config, variant)
    lengths = variant.lengths or (config.model.seq_len,)
    batches = loader.batches(0)
    for step in range(steps):
        x, y = next(batches)
        length = lengths[step * len(lengths) // steps]
        factor = learning_rate_factor(step, steps, config.train)
        trainer.step(x.reshape(-1, length), y.reshape(-1, length), factor)
    batches.close()  # type: ignore[attr-defined]
    trainer.use_average()
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    held_out = list(documents(shards, "val"))
    scored = score(model, held_out, tokenizer.eot, tokenizer.token_bytes, autocast=torch.bfloat16)
    return scored.val_bpb


class Trainer:
    """A step of training: on a GPU one graph for each shape of rows."""

    def __init__(self, model: GPT, config: PipelineConfig, variant: Variant) -> None:
        self.model, self.config, self.variant = model, config.train, variant
        model.train()
        self.parameters = list(model.parameters())
        device = self.parameters[0].device
        blocks = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in self.parameters:
            if id(parameter) in blocks:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        self.matrices = list(by_shape.values())
        self.momenta = [torch.zeros(len(m), *m[0].shape, device=device) for m in self.matrices]
        self.row_moments = [
            torch.zeros(len(m), m[0].shape[0], 1, device=device) for m in self.matrices
        ]
        self.rest = [p for p in self.parameters if id(p) not in blocks]
        self.first = [torch.zeros_like(p) for p in self.rest]
        self.second = [torch.zeros_like(p) for p in self.rest]
        self.averages = [p.detach().clone() for p in self.parameters] if variant.average else []
        self.factor = torch.zeros((), device=device)
        self.time = torch.zeros((), device=device)  # steps made
        self.graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes."""
        moments = [*self.momenta, *self.row_moments, *self.first, *self.second]
        return [*self.parameters, *moments, *self.averages, self.time]

    def step(self, x: Tensor, y: Tensor, factor: float) -> None:
        self.factor.fill_(factor)
        if x.device.type != "cuda":
            self.compute(x, y)
            return
        if x.shape not in self.graphs:
            self.graphs[x.shape] = self.captured(x, y)
        graph, into_x, into_y = self.graphs[x.shape]
        into_x.copy_(x)
        into_y.copy_(y)
        graph.replay()

    def captured(self, x: Tensor, y: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """A step as a graph that reads the returned inputs; the state is as before."""
        into_x, into_y = x.clone(), y.clone()
        kept = [tensor.detach().clone() for tensor in self.state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.compute(into_x, into_y)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The loader's thread may copy rows meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.compute(into_x, into_y)
        with torch.no_grad():
            for tensor, value in zip(self.state, kept, strict=True):
                tensor.copy_(value)
        return graph, into_x, into_y

    def compute(self, x: Tensor, y: Tensor) -> None:
        model = self.model
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = model.logits(model(x))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        grads = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            norm = torch.stack([g.norm() for g in grads]).norm()
            clip = ((self.config.grad_clip or math.inf) / (norm + 1e-6)).clamp(max=1.0)
            by_id = {id(p): g * clip for p, g in zip(self.parameters, grads, strict=True)}
            self.time += 1
            for stack, momentum, rows in zip(
                self.matrices, self.momenta, self.row_moments, strict=True
            ):
                self.muon(stack, [by_id[id(p)] for p in stack], momentum, rows)
            self.adamw([by_id[id(p)] for p in self.rest])
            for average, parameter in zip(self.averages, self.parameters, strict=False):
                average.lerp_(parameter, 1 - self.variant.average)

    def muon(
        self, parameters: list[Tensor], grads: list[Tensor], momentum: Tensor, rows: Tensor
    ) -> None:
        grad = torch.stack(grads)
        momentum.lerp_(grad, 1 - MUON_MOMENTUM)
        update = orthogonalise(grad.lerp(momentum, MUON_MOMENTUM), self.variant.polynomials).float()
        if self.variant.neuron_wise:  # Li et al. 2025, arXiv:2510.05491
            rows.lerp_(update.square().mean(dim=2, keepdim=True), 1 - 0.95)
            size = update.norm(dim=(1, 2), keepdim=True)
            update = update / ((rows / (1 - 0.95**self.time)).sqrt() + 1e-8)
            update = update * (size / update.norm(dim=(1, 2), keepdim=True))
        shape = parameters[0].shape
        rate = self.config.muon_learning_rate * self.factor
        for parameter, direction in zip(parameters, update, strict=True):
            self.decay(parameter, direction, rate)
            parameter.sub_(direction * (rate * math.sqrt(max(1, shape[0] / shape[1]))))

    def adamw(self, grads: list[Tensor]) -> None:
        c = self.config
        moments = zip(self.rest, grads, self.first, self.second, strict=True)
        for parameter, grad, first, second in moments:
            rate = c.learning_rate * self.factor
            first.lerp_(grad, 1 - c.beta1)
            second.lerp_(grad.square(), 1 - c.beta2)
            update = (first / (1 - c.beta1**self.time)) / (
                (second / (1 - c.beta2**self.time)).sqrt() + 1e-8
            )
            if parameter.dim() == 2:
                self.decay(parameter, update, rate)
            parameter.sub_(update * rate)

    def decay(self, parameter: Tensor, update: Tensor, rate: Tensor) -> None:
        amount = rate * self.config.weight_decay
        if self.variant.cautious:  # Chen et al. 2025, arXiv:2510.12402
            parameter.sub_(parameter * amount * (parameter * update > 0))
        else:
            parameter.mul_(1 - amount)

    def use_average(self) -> None:
        """Score the averaged weights, where there are any."""
        with torch.no_grad():
            for average, parameter in zip(self.averages, self.parameters, strict=False):
                parameter.copy_(average)


def orthogonalise(matrices: Tensor, polynomials: Iterable[Polynomial]) -> Tensor:
    """Newton–Schulz by the polynomials aX + bX³ + cX⁵, in bf16; (n, rows, columns)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01).clamp(min=1e-7)
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def show(result: dict[str, Any], write: Callable[[str], object] = print) -> None:
    write(json.dumps(result["machine"]))
    for each in result["rows"]:
        apart = f"{each['difference']:+.4f} ± {each['interval']:.4f}"
        write(f"{each['steps']:>6} {each['name']:<34} {each['bpb']:.4f} {apart}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with parquet files")
    parser.add_argument("--steps", type=int, nargs="+", default=[700, 2000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = ["baseline", *(name for name in arguments.only if name != "baseline")]
    result = run(arguments.data, arguments.steps, arguments.seeds, names, arguments.device)
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
