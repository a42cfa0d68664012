"""A training that diverges ends with one message, and never leaves a checkpoint that has."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from slm.config import PipelineConfig
from slm.errors import Interrupted, SlmError, TrainingError, UserError
from slm.evaluation.evaluate import evaluate
from slm.evaluation.scoring import Score
from slm.model.saved import MODEL, first_not_finite, load_model
from slm.records import Checkpoint, Run, Shards
from slm.registry.exporting import export
from slm.run_folder import CHECKPOINTS, JOURNAL, RunFolder
from slm.source.download import download
from slm.storage import RECORD, describe_files, read_record, write_record
from slm.tokens.encode import encode
from slm.training import gradients, launch, loop
from slm.training.checkpoint import OPTIMIZER
from slm.training.loop import train
from slm.training.optim import optimizer_tensors
from slm.training.plan import make_plan
from slm.training.step import MAX_SKIPPED_STEPS

Config = Callable[..., PipelineConfig]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("divergence")


@pytest.fixture
def config(tiny_config: Config) -> PipelineConfig:
    return tiny_config(
        **{
            "train.max_steps": 12,
            "train.evaluate_every": 4,
            "train.checkpoint_every": 3,
            "train.threads": 1,
            "train.precision": "fp32",
            "train.device": "cpu",
        }
    )


@pytest.fixture
def prepare(config: PipelineConfig, root: Path) -> Callable[..., RunFolder]:
    """Makes the folder of a run by other settings than the fixture's."""
    shards = encode(config, download(config, root=root), root=root)

    def prepared(**settings: object) -> RunFolder:
        changed = config.model_copy(update={"train": config.train.model_copy(update=settings)})
        return launch.prepare(changed, shards, root=root)

    return prepared


def in_fp16(run: RunFolder) -> RunFolder:
    """The run, planned in a precision that a config allows on GPUs only."""
    shards = run.shards
    assert shards is not None
    plan = make_plan(run.config, shards.splits["train"], 1)
    run.write_plan(plan.model_copy(update={"precision": "fp16"}))
    return run


def strict_journal(run: RunFolder) -> list[dict[str, Any]]:
    """The journal as a reader takes it that knows no number but those of JSON."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    lines = (run.path / JOURNAL).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def checkpoints(run: RunFolder) -> list[int]:
    return [step for step, _ in run.checkpoints]


@pytest.fixture
def spoil_gradients(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, range], None]:
    """Multiplies the gradients of some calls of the loss, whose value stays as it is."""

    def spoil(factor: float, calls: range) -> None:
        honest, counted = gradients.cross_entropy, iter(range(10**6))

        def spoiled(hidden: Tensor, *rest: Tensor, **options: Any) -> Tensor:
            if next(counted) in calls:
                hidden.register_hook(lambda gradient: gradient * factor)
            return honest(hidden, *rest, **options)

        monkeypatch.setattr(gradients, "cross_entropy", spoiled)

    return spoil


# ---- fp16 -------------------------------------------------------------------------------------


NEVER_FITS = r"step \d+: .*in a row in fp16: \d+; loss scale .*to bf16 or fp32.*learning_rate"


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_fp16_gradients_that_never_fit_end_the_training(
    prepare: Callable[..., RunFolder], spoil_gradients: Callable[..., None], factor: float
) -> None:
    spoil_gradients(factor, range(10**6))
    run = in_fp16(prepare(seed=1, max_steps=300, checkpoint_every=5))
    with pytest.raises(TrainingError, match=NEVER_FITS):
        train(run)
    assert not run.is_finished
    steps = [entry for entry in strict_journal(run) if entry["event"] == "step"]
    assert 0 < len(steps) < MAX_SKIPPED_STEPS
    assert {entry["grad_norm"] for entry in steps} == {None}


def test_fp16_gradients_whose_norm_alone_overflows_end_the_training(
    prepare: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is finite: the scaler sees no overflow, and its factor stays."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(
        TrainingError, match=rf"in a row in fp16: {MAX_SKIPPED_STEPS}; loss scale 6"
    ):
        train(in_fp16(prepare(seed=6, max_steps=300)))


def test_the_bound_holds_over_stops_and_starts(
    prepare: Callable[..., RunFolder], spoil_gradients: Callable[..., None]
) -> None:
    spoil_gradients(math.nan, range(10**6))
    run = in_fp16(prepare(seed=2, max_steps=300))
    asked = iter(range(10**6))
    interrupted = 0
    ended = None
    while ended is None and interrupted < 100:
        try:
            train(run, should_stop=lambda: next(asked) % 4 == 3)
        except Interrupted:
            interrupted += 1
        except TrainingError as error:
            ended = str(error)
    assert "in a row in fp16" in str(ended)
    assert 3 < interrupted < MAX_SKIPPED_STEPS / 4


def test_fp16_that_skips_every_other_step_ends_too(
    prepare: Callable[..., RunFolder], spoil_gradients: Callable[..., None]
) -> None:
    """Its scale falls all the same: without an end to nothing, where no gradient is finite."""
    spoil_gradients(math.nan, range(0, 10**6, 2))
    with pytest.raises(TrainingError, match=r"in a row in fp16: 1; loss scale 3\.1e-05"):
        train(in_fp16(prepare(seed=3, max_steps=300, micro_batch_size=4)))


def test_a_training_that_is_too_short_for_the_bound_is_not_done_either(
    prepare: Callable[..., RunFolder], spoil_gradients: Callable[..., None]
) -> None:
    spoil_gradients(math.nan, range(10**6))
    run = in_fp16(prepare(seed=4))
    for _ in range(2):
        with pytest.raises(TrainingError, match="none of the 12 steps was made"):
            train(run)
    assert not run.is_finished


def test_fp16_gradients_that_fit_after_a_while_are_no_error(
    prepare: Callable[..., RunFolder], spoil_gradients: Callable[..., None]
) -> None:
    spoil_gradients(math.inf, range(6))
    run = in_fp16(prepare(seed=5, micro_batch_size=4))
    assert train(run)
    norms = [e["grad_norm"] for e in strict_journal(run) if e["event"] == "step"]
    assert [norm is None for norm in norms] == [True] * 6 + [False] * 6


# ---- what is saved ----------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["weights", "moments"])
@pytest.mark.parametrize(("at", "kept"), [(6, [3, 4]), (12, [4, 6, 9])])
def test_no_checkpoint_has_a_tensor_that_is_not_finite(
    prepare: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    at: int,
    kept: list[int],
) -> None:
    """The loss does not show it yet: it is the last value of a tensor that no later step reads."""
    run = prepare(seed=10 + at, weight_decay=0.2 if part == "weights" else 0.3)
    honest = loop.train_step

    def train_step(session: Any, *arguments: Any) -> tuple[float, float]:
        figures = honest(session, *arguments)
        if session.step + 1 == at:
            moments = optimizer_tensors(session.model, session.optimizers)
            tensors = session.model.state_dict() if part == "weights" else moments
            list(tensors.values())[-1].view(-1)[-1] = math.inf
        return figures

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(loop, "evaluate_slice", lambda *_: scored)
    scored = Score(nats=100.0, tokens=50, bytes=200, documents=1)
    for _ in range(2):
        with pytest.raises(TrainingError, match=rf"step {at}: .* is not finite .*learning_rate"):
            train(run)
    assert checkpoints(run) == kept
    assert not run.is_finished
    assert not list(run.path.rglob("*.tmp"))


def spoil(folder: Path, file: str) -> None:
    """Give a checkpoint a NaN, as a version that did not look left it: its record agrees."""
    tensors = safetensors.torch.load_file(folder / file)
    next(iter(tensors.values())).view(-1)[0] = math.nan
    safetensors.torch.save_file(tensors, folder / file)
    record = read_record(folder, Checkpoint, verify=False)
    assert record is not None
    files = describe_files(folder, [path for path in folder.iterdir() if path.name != RECORD])
    write_record(folder, record.model_copy(update={"files": files}))


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER])
def test_an_older_checkpoint_that_is_not_finite_is_not_resumed_from(
    prepare: Callable[..., RunFolder], file: str
) -> None:
    run = prepare(seed=20 if file == MODEL else 21)
    asked = iter(range(10**6))
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(asked) == 5)
    spoil(run.path / CHECKPOINTS / "step_000006", file)
    with pytest.raises(UserError, match=r"step_000006: .* is not finite.*learning_rate"):
        train(run)
    assert checkpoints(run)[-1] == 6


@pytest.fixture
def finished(prepare: Callable[..., RunFolder]) -> tuple[Run, Shards]:
    run = prepare(seed=22)
    record = run.record or train(run)
    assert record is not None
    assert run.shards is not None
    return record, run.shards


def test_weights_that_are_not_finite_are_one_message_wherever_they_are_used(
    finished: tuple[Run, Shards], config: PipelineConfig, tmp_path: Path
) -> None:
    run, shards = finished
    folder = run.checkpoint("best")
    spoil(folder, MODEL)
    for use in (
        lambda: load_model(folder),
        lambda: export(folder, tmp_path / "exported"),
        lambda: evaluate(config, run, shards),
    ):
        with pytest.raises(UserError, match=r"is not finite, since its training diverged"):
            use()
    assert not (tmp_path / "exported").exists()
    assert not list(run.path.glob("evaluation*"))


@pytest.mark.parametrize("scale", [1e15, 1e4])
def test_weights_that_are_finite_and_useless_have_no_evaluation(
    prepare: Callable[..., RunFolder], config: PipelineConfig, scale: float
) -> None:
    """Once: a traceback from the middle of the calibration, whose probabilities overflow."""
    run = prepare(seed=23)
    record = run.record or train(run)
    assert record is not None
    assert run.shards is not None
    folder = record.checkpoint("best")
    tensors = safetensors.torch.load_file(folder / MODEL)
    safetensors.torch.save_file(
        {name: tensor * scale for name, tensor in tensors.items()}, folder / MODEL
    )
    files = describe_files(folder, [path for path in folder.iterdir() if path.name != RECORD])
    saved = read_record(folder, Checkpoint, verify=False)
    assert saved is not None
    write_record(folder, saved.model_copy(update={"files": files}))
    with pytest.raises(SlmError, match=r"its training diverged: .*lower train\.learning_rate"):
        evaluate(config, record, run.shards)
    assert not list(run.path.glob("evaluation*"))


def test_a_rate_that_is_far_too_high_ends_the_training(prepare: Callable[..., RunFolder]) -> None:
    """Though its losses, of 1e6 nats per token and more, are finite to the end."""
    run = prepare(learning_rate=1e3, warmup=0.0)
    with pytest.raises(
        TrainingError, match=r"step \d+: train_loss is .*lower train\.learning_rate"
    ):
        train(run)
    assert not run.is_finished
    assert strict_journal(run)


# ---- finding it -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite_is_found_in_any_place(value: float, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for shape in ((), (1,), (7, 3), (2, 3, 5)):
        tensor = torch.full(shape, largest, dtype=dtype)
        empty, other = torch.zeros(0), torch.full((4,), -largest, dtype=dtype)
        tensors = {"empty": empty, "other": other, "one": tensor}
        assert first_not_finite(tensors) is None
        for place in range(tensor.numel()):
            spoiled = tensor.clone()
            spoiled.view(-1)[place] = value
            assert first_not_finite({**tensors, "one": spoiled}) == "one"
