"""Forecasts come from real steps; advice names each setting that is unlikely to work."""

import io
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_run
import torch

from slm.config import PipelineConfig
from slm.errors import SlmError, UserError
from slm.model.gpt import GPT
from slm.orchestration import stages
from slm.orchestration.display import Display, showing
from slm.records import Shards, ShardSplit, Version
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.tracking import mirror
from slm.training import forecast as module
from slm.training import launch
from slm.training import plan as plan_module
from slm.training.forecast import Forecast, advice, forecast, probe, scored_tokens
from slm.training.needs import measure
from slm.training.preflight import known_shards
from slm.training.session import Session

Config = Callable[..., PipelineConfig]

GOOD = Forecast(
    parameters=1000,
    max_steps=100,
    tokens=20_000,
    flops=1e9,
    tok_per_sec=1e3,
    seconds=20,
    memory_bytes=10**8,
)


def shards(tokens: int, documents: int) -> Shards:
    split = ShardSplit(files=[], documents=documents, tokens=tokens, bytes=4 * tokens)
    return Shards(
        key="", source_key="", tokenizer_sha256="", vocab_size=512, eot=511, splits={"train": split}
    )


def test_a_probe_multiplies_real_steps(tiny_config: Config) -> None:
    config = tiny_config(**{"train.max_steps": 50})
    cost = probe(config, {})
    assert cost.parameters == GPT(config.model, 512).parameter_count()
    assert cost.tokens == 50 * 128
    assert cost.seconds > cost.tokens / cost.tok_per_sec  # the held-out loss takes its time too
    assert cost.compile_seconds == 0


def test_what_is_compiled_is_probed_compiled_and_the_compiling_is_counted(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    def compile_slowly(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        compiled.append(model)
        begin = time.monotonic()

        def forward(x: torch.Tensor) -> torch.Tensor:
            if time.monotonic() < begin + 0.5:
                time.sleep(0.5)
            return model(x)  # type: ignore[no-any-return]

        return forward

    monkeypatch.setattr(torch, "compile", compile_slowly)
    cost = probe(tiny_config(**{"train.compile": True, "train.max_steps": 1}), {})
    assert len(compiled) == 1
    assert cost.compile_seconds > 0.3
    assert cost.seconds > cost.compile_seconds


def test_of_several_processes_the_share_of_one_is_probed(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    train_step = module.train_step

    def step(session: Session, x: torch.Tensor, y: torch.Tensor) -> object:
        rows.append(len(x))
        return train_step(session, x, y)

    monkeypatch.setattr(module, "train_step", step)
    settings = {"train.tokens_per_step": 128, "train.micro_batches": 2}
    cost = probe(tiny_config(**settings), {}, processes=2)
    assert set(rows) == {2}  # of 4 rows of 32 tokens
    assert cost.processes == 2
    assert cost.tokens == 4 * 128


def test_a_forecast_has_the_processes_of_the_training(tiny_config: Config) -> None:
    settings = {"train.processes": 2, "train.micro_batches": 2}
    assert forecast(tiny_config(**settings), None).processes == 2


def test_the_probe_has_the_share_of_the_cores_that_a_process_of_the_training_has(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments: list[dict[str, str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        environments.append(options["env"])
        return subprocess.CompletedProcess(command, 0, GOOD.model_dump_json(), "")

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(plan_module, "available_cores", lambda: 8)
    monkeypatch.setattr(subprocess, "run", run)
    forecast(tiny_config(**{"train.processes": 2, "train.micro_batches": 2}), None)
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == ["4"]


def test_documents_that_do_not_fill_the_random_tokens_are_scored(tiny_config: Config) -> None:
    assert probe(tiny_config(**{"model.seq_len": 37, "train.tokens_per_step": 37}), {}).seconds > 0


def test_the_probe_has_the_threads_and_kernels_of_a_training(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[tuple[int, str]] = []

    def probe(*_: object) -> Forecast:
        settings.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))
        return GOOD

    config = tiny_config(**{"train.threads": 3}).model_dump(mode="json")
    request = {"config": config, "splits": {}, "processes": 1}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    monkeypatch.setattr(module, "probe", probe)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        module.main()
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
    assert settings == [(3, "high")]


def test_a_large_step_is_timed_by_few_passes(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second for a row and two for the optimizer: 4,096 rows take 4,098 s."""
    monkeypatch.setattr(plan_module, "CPU_MICRO_TOKENS", 4 * 32)
    clock = [0.0]

    def step(session: Session, x: torch.Tensor, y: torch.Tensor) -> None:
        assert len(x) <= 8
        clock[0] += 2 + len(x)

    monkeypatch.setattr(module, "train_step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cost = probe(tiny_config(**{"train.tokens_per_step": 32 * 4096, "train.device": "cpu"}), {})
    assert cost.tok_per_sec == pytest.approx(32 * 4096 / 4098)
    assert cost.tokens == 4 * 32 * 4096


def test_a_large_model_is_timed_by_short_passes_and_its_memory_counted_in_whole_ones(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**{"train.tokens_per_step": 32 * 64, "train.device": "cpu"})
    rows: list[int] = []

    def step(session: Session, x: torch.Tensor, y: torch.Tensor) -> None:
        rows.append(len(x))

    monkeypatch.setattr(module, "train_step", step)
    monkeypatch.setattr(module, "memory_with_a_save", lambda *_: 0)
    assert probe(config, {}).memory_bytes == 0
    assert set(rows) == {64}
    rows.clear()
    monkeypatch.setattr(module, "PROBE_FLOPS", 2 * 32 * measure(config).flops_per_token)
    precision = plan_module.pick_precision("auto", "cpu")
    of_a_token = plan_module.activation_bytes(config, "cpu", precision)
    assert probe(config, {}).memory_bytes == (64 - 2) * 32 * of_a_token
    assert set(rows) == {2, 4}


def test_a_probe_that_was_killed_is_reported_as_such(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9, "", "")
    )
    with pytest.raises(SlmError, match="killed, as the system does when memory runs out"):
        forecast(tiny_config(), None)


def test_nothing_is_timed_in_memory_that_others_use(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    with pytest.raises(SlmError, match=r"tiny is not timed.*1\.0 kB are free"):
        forecast(tiny_config(), None)


def test_epochs_become_steps(tiny_config: Config) -> None:
    cost = probe(tiny_config(**{"train.epochs": 2}), shards(6400, 64).splits)
    assert cost.max_steps == 100


def test_epochs_of_an_unknown_dataset_cannot_be_forecast(tiny_config: Config) -> None:
    with pytest.raises(UserError, match="slm encode tiny"):
        forecast(tiny_config(**{"train.epochs": 2}), None)


def test_a_sound_recipe_gets_no_advice(tiny_config: Config) -> None:
    assert advice(tiny_config(), GOOD, shards(20_000, 200)) == []


@pytest.mark.parametrize(
    ("overrides", "cost", "words"),
    [
        ({"train.warmup": 0.5}, {}, "train.warmup=0.5"),
        ({"train.learning_rate": 1.0}, {}, "train.learning_rate=1.0"),
        ({"train.optimizer": "muon", "train.muon_learning_rate": 3.0}, {}, "muon_learning_rate"),
        ({}, {"tokens": 999}, "999 tokens for 1,000 parameters"),
        ({}, {"max_steps": 3}, "3 steps"),
        ({"model.seq_len": 128}, {}, "20 tokens on average"),
        ({}, {"tokens": 200_000}, "50.0 epochs over 4,000 tokens"),
    ],
)
def test_each_setting_that_will_not_work_is_named(
    overrides: dict[str, object], cost: dict[str, int], words: str, tiny_config: Config
) -> None:
    lines = advice(tiny_config(**overrides), GOOD.model_copy(update=cost), shards(4000, 200))
    assert any(words in line for line in lines)


def test_the_slice_is_scored_at_every_evaluation_and_all_of_val_once(
    tiny_config: Config,
) -> None:
    config = tiny_config(**{"train.evaluate_every": 10, "train.evaluate_documents": 4})
    val = ShardSplit(files=[], documents=100, tokens=5000, bytes=20_000)
    assert scored_tokens(config, 25, val) == 5000 + 3 * 4 * 50


def test_the_shards_of_a_recipe_are_those_of_its_settings_whatever_their_name(
    tiny_config: Config, tmp_path: Path
) -> None:
    root, config = tmp_path / "data", tiny_config()
    assert known_shards(config, root) is None
    made = encode(config, download(config, root=root), root=root)
    for name in ("sources", "shards"):
        folder = next((root / name).glob("tiny-*"))
        shutil.copytree(folder, folder.with_name(folder.name.replace("tiny-", "tiny-sample-")))
    assert known_shards(config, root) == made.model_copy(update={"reused": False})
    for change in ({"data.seed": 8}, {"data.vocab_size": 400}, {"data.documents": 79}):
        assert known_shards(tiny_config(**change), root) is None
    for name in ("tin", "tiny-sample"):
        other = config.model_copy(update={"recipe": name})
        assert known_shards(other, root) is not None


def test_the_shards_of_local_files_are_known_by_the_files_names(
    tiny_config: Config, tmp_path: Path
) -> None:
    root, folder = tmp_path / "data", tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f'{{"text": "tale {i}"}}\n' for i in range(60)))
    config = tiny_config(**{"data.source": "files", "data.path": str(folder)})
    made = encode(config, download(config, root=root), root=root)
    known = known_shards(config, root)
    assert known is not None
    assert known.key == made.key
    (folder / "b.jsonl").write_text('{"text": "one more"}\n')
    assert known_shards(config, root) is None


# ---- before a training starts -------------------------------------------------------------------


@pytest.fixture
def starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunFolder]:
    """Prepares a run that trains for so many steps, and more; a probe gives GOOD."""
    monkeypatch.setattr(module, "forecast", lambda *_: GOOD)
    documents = tiny_run.write_documents(tmp_path / "documents.jsonl")

    def prepare(**training: Any) -> RunFolder:
        config = tiny_run.tiny_config(documents, **training)
        data = encode(config, download(config, root=tmp_path), root=tmp_path)
        return launch.prepare(config, data, root=tmp_path)

    return prepare


def test_a_long_training_of_fixed_steps_is_forecast_before_its_first_step(
    starting: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.forecast_start(starting(max_steps=10**6)) == GOOD
    assert module.forecast_start(starting(max_steps=None, epochs=10**4)) == GOOD
    assert module.forecast_start(starting(max_steps=4)) is None  # it is over sooner
    assert module.forecast_start(starting(max_steps=None, max_seconds=300)) is None
    started = starting(max_steps=10**6)
    split = started.shards.splits["train"] if started.shards else None
    assert split is not None
    started.write_plan(plan_module.make_plan(started.config, split, 1))
    assert module.forecast_start(started) is None  # it resumes

    def fail(*_: object) -> Forecast:
        raise SlmError("no memory")

    monkeypatch.setattr(module, "forecast", fail)
    assert module.forecast_start(starting(max_steps=10**6 + 1)) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "forecast", lambda *_: pytest.fail("the GPU is as fast itself"))
    assert module.forecast_start(starting(max_steps=10**6 + 1)) is None


def test_the_forecast_is_a_line_before_the_training(
    starting: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = starting(max_steps=10**6)
    lines: list[str] = []
    trained: list[RunFolder] = []

    def resume(folder: RunFolder, *, around: Any, **_: object) -> Version:
        with around(folder):
            trained.append(folder)
        return Version(
            key="", model="m", version="1", aliases=[], run_id="", tracking_uri=""
        )  # any record has a line

    monkeypatch.setattr(launch, "resume", resume)
    monkeypatch.setattr(mirror, "mirror", lambda _: nullcontext())
    with showing(Display(lines.append)):
        stages.resume(run)
    assert trained == [run]
    assert lines[0] == "train     about 20 s: 100 steps, 1,000 tokens/s in a probe"


def test_where_no_forecast_is_asked_for_nothing_is_probed(
    starting: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sweep, whose trials would each be probed for seconds."""
    run = starting(max_steps=10**6)
    trained: list[RunFolder] = []

    def train(*_: object, around: Any, **__: object) -> Version:
        with around(run):
            trained.append(run)
        return Version(key="", model="m", version="1", aliases=[], run_id="", tracking_uri="")

    monkeypatch.setattr(launch, "train", train)
    monkeypatch.setattr(mirror, "mirror", lambda _: nullcontext())
    monkeypatch.setattr(module, "forecast_start", lambda _: pytest.fail("it is probed"))
    shards = run.shards
    assert shards is not None
    stages.train(run.config, shards, forecasts=False)
    assert trained == [run]
