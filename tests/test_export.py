"""The exported folder: `transformers` loads it, and it is the same model."""

import json
from pathlib import Path

import pytest
import torch
from test_sample import BYTES, tiny_model

from slm.checkpoint import CONFIG, MODEL, TOKENIZER, describe_model
from slm.errors import UserError
from slm.export import export
from slm.records import Record
from slm.storage import mismatches, read_record


def save(model: torch.nn.Module, folder: Path) -> Path:
    import safetensors.torch

    folder.mkdir(parents=True)
    safetensors.torch.save_file(model.state_dict(), folder / MODEL)
    (folder / CONFIG).write_text(json.dumps(describe_model(model)))  # type: ignore[arg-type]
    BYTES.save(folder / TOKENIZER)
    return folder


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_transformers_loads_the_same_model(architecture: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = tiny_model(architecture, scale=2.0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint = save(ours, tmp_path / "run" / "checkpoints" / "step_000001")
    export(checkpoint, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.eos_token_id == BYTES.eot
    ids = torch.randint(0, BYTES.n_vocab, (3, 24))
    with torch.no_grad():
        wanted = ours.logits(ours(ids))
        torch.testing.assert_close(theirs(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("<|endoftext|>né ✓")["input_ids"] == [BYTES.eot, *BYTES.encode("né ✓")]
    assert tokenizer.decode(BYTES.encode("né ✓")) == "né ✓"


def test_the_folder_is_whole_and_nothing_is_written_over(tmp_path: Path) -> None:
    checkpoint = save(tiny_model("gpt2"), tmp_path / "run" / "checkpoints" / "step_000001")
    files = export(checkpoint, tmp_path / "out")
    record = read_record(tmp_path / "out", Record)
    assert record is not None
    assert sorted(record.files) == files
    assert mismatches(tmp_path / "out", record.files) == []
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(UserError, match="is there already"):
        export(checkpoint, tmp_path / "out")
