"""The exported folder: `transformers` loads it, and it is the same model."""

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import BYTES, SEQ_LEN, tiny_model

from slm.config import ModelConfig
from slm.errors import UserError
from slm.model.export.hugging_face import usage, with_usage
from slm.model.gpt import GPT
from slm.model.sample import generate
from slm.model.saved import CONFIG, MODEL, describe_model
from slm.recipes import load_recipe, read_pipelines
from slm.records import Evaluation, Export, Report
from slm.registry import exporting
from slm.registry.opening import model_folder
from slm.storage import commit, mismatches, read_record, sha256_file
from slm.tokens.tokenizer.bpe import TOKENIZER

PIPELINES = Path(__file__).parents[2] / "pipelines.yaml"


def export(checkpoint: Path, target: Path) -> list[str]:
    """Export a checkpoint; return the names of the files."""
    return sorted(exporting.export(checkpoint, target).files)


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
    assert tokenizer("né ✓")["input_ids"] == [BYTES.eot, *BYTES.encode("né ✓")]
    assert tokenizer("")["input_ids"] == [BYTES.eot]
    assert tokenizer("né ✓", add_special_tokens=False)["input_ids"] == BYTES.encode("né ✓")
    assert tokenizer.decode(BYTES.encode("né ✓")) == "né ✓"


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_a_pipeline_writes_in_batches_what_slm_sample_writes(
    architecture: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = tiny_model(architecture)
    checkpoint = save(ours, tmp_path / "run" / "checkpoints" / "step_000001")
    export(checkpoint, tmp_path / "out")
    pipe = transformers.pipeline("text-generation", model=str(tmp_path / "out"), device="cpu")
    prompts = ["A girl", "x", "went to", ""]
    settings = {"batch_size": 2, "max_new_tokens": 12, "do_sample": False}
    written = pipe(prompts, return_full_text=False, **settings)
    expected = generate(ours, BYTES, prompts, max_new_tokens=12, temperature=0)
    assert [text["generated_text"].rstrip("\ufffd") for (text,) in written] == [
        s.completion.rstrip("\ufffd") for s in expected
    ]
    assert pipe("A girl")  # without a limit


def test_other_readers_see_the_same_tokenizer(tmp_path: Path) -> None:
    """`tokenizers` alone, and who reads the JSON."""
    tokenizers = pytest.importorskip("tokenizers")
    export(save(tiny_model("gpt2"), tmp_path / "checkpoint"), tmp_path / "out")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("ab").ids == [BYTES.eot, *BYTES.encode("ab")]
    assert tokenizer.encode("a", "b").ids == [BYTES.eot, ord("a"), BYTES.eot, ord("b")]
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is True
    assert (settings["pad_token"], settings["padding_side"]) == ("<|endoftext|>", "left")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == SEQ_LEN


def test_all_files_have_the_same_permissions(tmp_path: Path) -> None:
    export(save(tiny_model("gpt2"), tmp_path / "checkpoint"), tmp_path / "out")
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)


# ---- the model card -----------------------------------------------------------------------------


OLD_USAGE = """## Use

An older way:

```python
raise AssertionError("the example of an older report")
prompt = tokenizer("<|endoftext|>Once upon a time", return_tensors="pt")
```
"""


def shape(recipe: str) -> dict[str, Any]:
    """The shape of a recipe's model, as narrow and as shallow as its heads allow."""
    fields = load_recipe(recipe, {"data.path": "."}, path=PIPELINES).model.model_dump()
    return {**fields, "n_layer": 1, "n_embd": 4 * fields["n_head"]}


@pytest.mark.parametrize("recipe", read_pipelines(PIPELINES)["recipes"])
def test_the_example_of_the_card_runs(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = GPT(ModelConfig(**shape(recipe)), BYTES.n_vocab)
    checkpoint = save(model, tmp_path / "run" / "checkpoints" / "step_000001")
    add_card(checkpoint, f"# A card\n\n{OLD_USAGE}\n## Limits\n\nIt is small.\n")
    monkeypatch.chdir(tmp_path)
    export(checkpoint, Path("FOLDER"))
    card = Path("FOLDER/README.md").read_text()
    assert card == f"# A card\n\n{usage('Once upon a time')}\n## Limits\n\nIt is small.\n"
    (example,) = re.findall(r"^```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)
    exec(example, {})
    assert "Once upon a time" in capsys.readouterr().out


def test_a_card_of_today_is_exported_as_it_is() -> None:
    for prompt in ("Once upon a time", "", 'say "it\'s"\\\n{', "吾輩は"):
        use = usage(prompt)
        card = f"---\n---\n\nA sample: ```\n## Use\n```\n\n{use}\n## Limits\n\nIt is small.\n"
        assert with_usage(card.encode()) == card.encode()
        (example,) = re.findall(r"tokenizer\((.*), return_tensors", use)
        assert ast.literal_eval(example) == prompt
    assert with_usage(b"# A card") == b"# A card"


def test_the_folder_is_complete_and_nothing_is_overwritten(tmp_path: Path) -> None:
    checkpoint = save(tiny_model("gpt2"), tmp_path / "run" / "checkpoints" / "step_000001")
    files = export(checkpoint, tmp_path / "out")
    record = read_record(tmp_path / "out", Export)
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


def add_card(checkpoint: Path, text: str) -> Path:
    """A report with this card, on an evaluation of the checkpoint. Returns the card."""
    run = checkpoint.parents[1]
    for name in ("evaluation.tmp", "report.tmp"):
        (run / name).mkdir()
    (run / "report.tmp" / "README.md").write_text(text)
    commit(run / "report.tmp", run / "report", Report(key="r", run="run"))
    evaluation = Evaluation(
        key="e", run="run", checkpoint=checkpoint.name,
        weights_sha256=sha256_file(checkpoint / MODEL),
        documents=1, tokens=1, bytes=1, val_loss=1, val_bpb=1,
    )  # fmt: skip
    commit(run / "evaluation.tmp", run / "evaluation", evaluation)
    return run / "report" / "README.md"


def test_the_card_is_whole_and_that_of_the_exported_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    last, best = (
        save(tiny_model("gpt2", scale=scale), run / "checkpoints" / f"step_{step:06}")
        for step, scale in ((2, 1.0), (1, 2.0))
    )
    card = add_card(last, "# A card")
    assert "README.md" in export(last, tmp_path / "last")
    assert "README.md" not in export(best, tmp_path / "best")
    card.write_text("# Another card")
    assert "README.md" not in export(last, tmp_path / "damaged")


def test_a_checkpoint_is_named_from_within_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(tiny_model("gpt2"), tmp_path / "run" / "checkpoints" / "step_000001")
    monkeypatch.chdir(checkpoint.parent)
    assert export(model_folder("step_000001"), Path("../out"))
