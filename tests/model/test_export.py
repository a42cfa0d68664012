"""The exported folder: `transformers` loads it, and it is the same model."""

import json
from pathlib import Path

import pytest
import torch
from tiny_model import BYTES, tiny_model

from slm.errors import UserError
from slm.model.export.hugging_face import export
from slm.model.saved import CONFIG, MODEL, describe_model
from slm.records import Evaluation, Record, Report
from slm.registry.opening import model_folder
from slm.storage import commit, mismatches, read_record, sha256_file
from slm.tokens.tokenizer.bpe import TOKENIZER


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
        expected = ours.logits(ours(ids))
        torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-4, rtol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("<|endoftext|>né ✓")["input_ids"] == [BYTES.eot, *BYTES.encode("né ✓")]
    assert tokenizer.decode(BYTES.encode("né ✓")) == "né ✓"


def test_the_folder_is_complete_and_nothing_is_overwritten(tmp_path: Path) -> None:
    checkpoint = save(tiny_model("gpt2"), tmp_path / "run" / "checkpoints" / "step_000001")
    files = export(checkpoint, tmp_path / "out")
    record = read_record(tmp_path / "out", Record)
    assert record is not None
    assert sorted(record.files) == files
    assert mismatches(tmp_path / "out", record.files) == []
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(UserError, match="exists already"):
        export(checkpoint, tmp_path / "out")
    (tmp_path / "file.txt").touch()
    with pytest.raises(UserError, match="name another folder"):
        export(checkpoint, tmp_path / "file.txt" / "out")


def test_a_folder_of_the_users_next_to_it_is_left_alone(tmp_path: Path) -> None:
    checkpoint = save(tiny_model("gpt2"), tmp_path / "run" / "checkpoints" / "step_000001")
    theirs = tmp_path / "out.tmp" / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    assert "notes.txt" not in export(checkpoint, tmp_path / "out")
    assert theirs.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out", "out.tmp"}
    assert (tmp_path / "out").stat().st_mode & 0o777 == theirs.parent.stat().st_mode & 0o777


def test_the_card_is_whole_and_that_of_the_exported_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    last, best = (
        save(tiny_model("gpt2", scale=scale), run / "checkpoints" / f"step_{step:06}")
        for step, scale in ((2, 1.0), (1, 2.0))
    )
    for name in ("evaluation.tmp", "report.tmp"):
        (run / name).mkdir()
    (run / "report.tmp" / "README.md").write_text("# A card")
    commit(run / "report.tmp", run / "report", Report(key="r", run="run"))
    evaluation = Evaluation(
        key="e", run="run", checkpoint=last.name, weights_sha256=sha256_file(last / MODEL),
        documents=1, tokens=1, bytes=1, val_loss=1, val_bpb=1,
    )  # fmt: skip
    commit(run / "evaluation.tmp", run / "evaluation", evaluation)
    assert "README.md" in export(last, tmp_path / "last")
    assert "README.md" not in export(best, tmp_path / "best")
    (run / "report" / "README.md").write_text("# Another card")
    assert "README.md" not in export(last, tmp_path / "damaged")


def test_a_checkpoint_is_named_from_within_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(tiny_model("gpt2"), tmp_path / "run" / "checkpoints" / "step_000001")
    monkeypatch.chdir(checkpoint.parent)
    assert export(model_folder("step_000001"), Path("../out"))
