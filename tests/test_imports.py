"""What an import loads: a person who asks for help, or a GPU node, pays for nothing else."""

import json
import subprocess
import sys

HEAVY = {"prefect", "mlflow", "torch", "datasets", "transformers", "pyarrow", "matplotlib"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return set(json.loads(done.stdout))


def test_import_slm_loads_nothing_heavy() -> None:
    assert not HEAVY & modules_after("import slm")


def test_the_command_line_loads_nothing_heavy() -> None:
    assert not (HEAVY | {"numpy"}) & modules_after("import slm.cli.main")


def test_the_stages_load_what_they_need_when_they_are_called() -> None:
    assert not (HEAVY | {"numpy"}) & modules_after("import slm.orchestration.stages")


def test_config_records_and_storage_need_no_tensors() -> None:
    loaded = modules_after("import slm.config, slm.errors, slm.records, slm.storage")
    assert not HEAVY & loaded


TRAINED = """
import slm.source.download, slm.tokens.encode, slm.training.process
import slm.evaluation.evaluate, slm.model.sample
from slm.config import ModelConfig, TrainConfig
from slm.model.gpt import GPT
from slm.training.optim import build_optimizers

model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, seq_len=8), 31)
for optimizer in build_optimizers(model, TrainConfig(max_steps=1, optimizer="muon")):
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
"""


def test_training_needs_no_orchestrator_no_tracking_server_and_no_compiler() -> None:
    loaded = modules_after(TRAINED)
    assert "slm.training.process" in loaded
    assert not {"prefect", "mlflow", "torch._dynamo"} & loaded


def test_help_needs_no_data_folder() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slm.cli.main", "--help"], capture_output=True, check=True, text=True
    )
    assert "Take a dataset to a registered model" in done.stdout
