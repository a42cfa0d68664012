"""Settings of the training: its length, rows, optimizer, schedule, devices and checkpoints."""

from typing import Literal, Self

from pydantic import Field, model_validator

from slm.config.launch import LaunchConfig
from slm.config.setting import Fraction, PositiveFloat, PositiveInt, Section, Seed, setting

LIMITS = ("max_steps", "max_tokens", "max_seconds", "epochs")


class TrainConfig(Section):
    """How the model is trained. Exactly one of `max_steps` … `epochs` ends it."""

    max_steps: PositiveInt | None = setting(None, "End after this many optimizer steps.")
    max_tokens: PositiveInt | None = setting(None, "End after this many tokens.")
    max_seconds: PositiveFloat | None = setting(
        None,
        "End after about this many seconds: a probe turns them into a number of steps before the "
        "first step; where schedule is wsd, the clock decides during training when the cooldown "
        "begins and how long it is.",
    )
    epochs: PositiveFloat | None = setting(
        None, "End after this many passes over the training tokens."
    )

    max_passes: PositiveFloat | None = setting(
        None,
        "At most this many passes over the training tokens, where max_steps or max_tokens would be "
        "more; null: any number.",
    )

    init_from: str | None = setting(
        None,
        "Model that the weights start from, with its vocabulary: a run, models:/NAME@ALIAS, "
        "models:/NAME/VERSION, hf:FOLDER or hf:ORG/NAME[@REVISION] of Hugging Face; its shape may "
        "be left out of model. null: from the seed.",
        min_length=1,
    )

    document_mask: bool = setting(
        False,
        "Whether attention ends at end-of-text, so that a token sees its own document alone; "
        "positions count on through the row.",
    )
    rows: Literal["windows", "documents"] = setting(
        "windows",
        "Where the rows of training begin: windows, at any token, next to each other; documents, "
        "where the first document begins in a window, if any does.",
    )

    tokens_per_step: PositiveInt = setting(
        16_384, "Tokens per optimizer step: the global batch, over all devices."
    )
    micro_batch_size: PositiveInt | Literal["auto"] = setting(
        "auto",
        "Rows per device per forward pass, the last one padded; auto: chosen before step 1.",
    )
    micro_batches: PositiveInt | Literal["auto"] = setting(
        "auto",
        "Parts of a step's rows whose gradients are summed in a fixed tree where parallel is "
        "elastic: as many processes can work, and any number gives the same bits; auto: 1 on a "
        "CPU, up to 8 on GPUs.",
    )

    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "adamw, or muon for the matrices with AdamW for the rest."
    )
    learning_rate: PositiveFloat = setting(
        6e-4,
        "Peak learning rate of AdamW; where optimizer is muon, of AdamW's part alone: embeddings "
        "and norms.",
    )
    muon_learning_rate: PositiveFloat = setting(
        0.02,
        "Peak learning rate of the matrices where optimizer is muon; learning_rate is that of the "
        "rest.",
    )
    beta1: float = setting(0.9, "AdamW's decay rate of the first moment.", ge=0, lt=1)
    beta2: float = setting(0.95, "AdamW's decay rate of the second moment.", ge=0, lt=1)
    weight_decay: float = setting(0.1, "Decoupled weight decay of the matrices.", ge=0)
    grad_clip: PositiveFloat | None = setting(
        1.0, "Maximum norm of the gradient; null: not clipped."
    )

    schedule: Literal["cosine", "wsd", "linear"] = setting(
        "cosine",
        "Learning rate after the warmup: cosine or linear decay, or wsd (constant, then linear "
        "decay).",
    )
    warmup: Fraction = setting(0.05, "Warmup, as a fraction of the steps.")
    cooldown: Fraction = setting(0.2, "Decay of wsd, as a fraction of the steps.")
    final_lr: Fraction = setting(0.1, "Learning rate at the end, as a fraction of the peak.")

    seed: Seed = setting(1337, "Random seed of weights, order and dropout.")
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto",
        "Device to train on; auto: CUDA where there is one, else the GPU of an Apple computer "
        "(mps), else the CPU.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto", "Precision of the forward pass; auto: chosen for the device."
    )
    compile: bool | Literal["auto"] = setting(
        "auto", "Whether torch.compile is used; auto: on CUDA, for long trainings."
    )
    threads: PositiveInt | Literal["auto"] = setting(
        "auto",
        "CPU threads per process, fixed before step 1; auto: the cores, divided by micro_batches "
        "where that is a number, or else by the processes.",
    )
    processes: PositiveInt | Literal["auto"] = setting(
        "auto",
        "Training processes on each machine, one per GPU, under torchrun; where parallel is "
        "elastic another number resumes the same run, else it is another run.",
    )
    parallel: Literal["elastic", "ddp", "fsdp"] = setting(
        "elastic",
        "How several processes train: elastic, the same bits for any number of them; ddp, torch's "
        "DistributedDataParallel; fsdp, its fully_shard, for models that do not fit one GPU.",
    )
    launch: LaunchConfig = Field(LaunchConfig(), description=LaunchConfig.__doc__)
    deterministic: bool = setting(True, "Deterministic CUDA kernels, at a small cost in speed.")

    evaluate_every: PositiveInt = setting(100, "Steps between evaluations.")
    evaluate_documents: PositiveInt = setting(
        64, "Held-out documents that such an evaluation scores, always the same."
    )
    checkpoint_every: PositiveInt = setting(100, "Steps between checkpoints.")
    keep_checkpoints: PositiveInt = setting(
        2,
        "Newest checkpoints to keep, besides the best, the last and, where schedule is wsd, the "
        "one before the cooldown.",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"training needs exactly one limit of {', '.join('train.' + n for n in LIMITS)}; "
                f"given: {', '.join(given) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _tree_of_elastic(self) -> Self:
        if self.parallel != "elastic" and self.micro_batches != "auto":
            raise ValueError(
                f"train.micro_batches={self.micro_batches} is for train.parallel=elastic: leave it "
                f"at auto for {self.parallel}"
            )
        return self
