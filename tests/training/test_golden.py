"""The weights of a fixed small training, bit for bit, by the instruction set that it runs on.

A hash that changes means that training gives other bits: its version in `slm.training.identity`
goes up, and these hashes are replaced. They hold for the pinned torch on Intel's CPUs, for which
MKL chooses its kernels; other machines are skipped. Those of older instruction sets than the
machine's newest are slow tests.

A plan is made with what suits the machine, or is one of before a choice existed, which keeps its
bits: `PLANS`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from slm.config import PipelineConfig
from slm.machine import cpu_features, has_amx_bf16
from slm.records import Plan
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.loop import train
from slm.training.plan import make_plan

CONFIG = {
    "recipe": "golden",
    "data": {"source": "stories", "documents": 60, "vocab_size": 512, "val_fraction": 0.1},
    "model": {
        "architecture": "qwen3",
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 32,
        "seq_len": 32,
        "dropout": 0.1,
    },
    "train": {
        "max_steps": 20,
        "tokens_per_step": 128,
        "micro_batch_size": 2,
        "optimizer": "muon",  # of the matrices; AdamW of the rest
        "threads": 1,
        "precision": "fp32",
        "device": "cpu",
        "evaluate_every": 20,
        "evaluate_documents": 2,
    },
}
AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}

PLANS = ("chosen", "old")

# torch's capability, oneDNN's newest instruction set, the plan → the sha256 of the weights.
GOLDEN = {
    ("AVX512", "AVX512_CORE_AMX", "chosen"): (
        "840b8a888618934872ee31e63fb27a60d072ef79467e0777402036bf0db28bb5"
    ),
    ("AVX512", "AVX512_CORE_AMX", "old"): (
        "46c47c43cc890e5205482d36dc097fb3ee5de8e194108df04f49e4bb9d261ae9"
    ),
    ("AVX512", "AVX512_CORE", "chosen"): (
        "d8b380fc1fc82dac038555c16180359d7113706572298958234add2245f38e82"
    ),
    ("AVX512", "AVX512_CORE", "old"): (
        "218643b1daf41945796631e84a146e23070d075961ff46e0ef4579b4e6e7f03f"
    ),
    ("AVX2", "AVX2", "chosen"): (
        "2fc43ca97d0497d1ac8986da210b5339bbde88f310ff7f3fa8609c36de7b2dd3"
    ),
    ("AVX2", "AVX2", "old"): "de35972a26527d840bbfe73fbe04b45cfe5740fe02a70029ba18e343c8726c45",
}
LIMITS = {
    "AVX512_CORE_AMX": {},
    "AVX512_CORE": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}


def why_not_here(onednn: str) -> str | None:
    """Why this machine has no hash in the table; None where it has one."""
    cpu, features = Path("/proc/cpuinfo"), cpu_features()
    if not cpu.is_file() or "GenuineIntel" not in cpu.read_text():
        return "golden hashes are known for Intel's CPUs on Linux alone"
    if onednn == "AVX512_CORE_AMX" and not has_amx_bf16():
        return "this CPU has no AMX"
    if onednn == "AVX512_CORE" and not features >= AVX512:
        return "this CPU has no AVX-512"
    return None if "avx2" in features else "this CPU has no AVX2"


NEWEST = next((onednn for _, onednn, _ in GOLDEN if why_not_here(onednn) is None), "AVX2")
SETS = [
    pytest.param(*names, marks=() if names[1] == NEWEST else pytest.mark.slow) for names in GOLDEN
]


@pytest.mark.parametrize(("capability", "onednn", "plan"), SETS)
def test_a_fixed_training_gives_the_golden_weights(capability: str, onednn: str, plan: str) -> None:
    if reason := why_not_here(onednn):
        pytest.skip(reason)
    chosen = ("ATEN_", "DNNL_", "MKL_", "ONEDNN_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(chosen)}
    done = subprocess.run(
        [sys.executable, __file__, plan],
        env={**environment, "OMP_NUM_THREADS": "1", **LIMITS[onednn]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [capability, GOLDEN[capability, onednn, plan]]


def main(which: str) -> None:
    """Trains by a plan, and prints torch's CPU capability and the hash of the weights."""
    torch.set_num_threads(1)
    config = PipelineConfig.model_validate(CONFIG)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        shards = encode(config, download(config, root=root), root=root)
        folder_of_run = launch.prepare(config, shards, root=root)
        if which == "old":
            folder_of_run.write_plan(as_of_old(make_plan(config, shards.splits["train"], 1)))
        run = train(folder_of_run)
    assert run is not None
    print(json.dumps([torch.backends.cpu.get_cpu_capability(), run.weights_sha256]))


def as_of_old(plan: Plan) -> Plan:
    """A plan as it was before there were choices: without the fields that hold them."""
    return Plan.model_validate(plan.model_dump(exclude={"muon_precision", "parts"}))


if __name__ == "__main__":
    main(sys.argv[1])
