"""The prompts of a report: the first words of held-out documents, cut where a word ends."""

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import copy_run

from slm.config import PipelineConfig
from slm.records import Shards
from slm.report.prompts import (
    COUNT,
    MAX_BYTES,
    MAX_WORDS,
    beginning,
    example_prompt,
    held_out_prompts,
    report_prompts,
    sample_command,
)
from slm.report.write import write_report
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

Config = Callable[..., PipelineConfig]

FORTUNES = [
    f"{animal} who {verb} the moon will sleep by noon."
    for animal in ("A fox", "An owl", "Old men", "Whales", "Some bees", "The cat", "No dog")
    for verb in ("saw", "ate", "sold", "drew")
]
CODE = [
    f"#!/usr/bin/env python\nimport {module}\n\ndef {name}(x):\n    return x\n"
    if name == "run"
    else f"def {name}(self, {module}=None):\n\treturn {module}\n"
    for module in ("os", "re", "json", "math")
    for name in ("run", "load", "save", "area", "_hidden")
]
JAPANESE = [
    f"{who}は{place}で本を読んでいる。そして{what}を飲んだ。"
    for who in ("猫", "先生", "わたし", "ともだち", "子ども")
    for place in ("図書館", "東京", "海", "学校")
    for what in ("お茶", "水")
]


# ---- where a text is cut ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole", "limit", "expected"),
    [
        ("Once upon a time there was a fox. It slept.", True, 40, "Once upon a time there"),
        ("It's a long way to the sea.", True, 40, "It's a long way to"),
        ("\n\n  Chapter one\n\nIt rained.", True, 40, "Chapter one"),
        ("def area(radius):\n    return 3", True, 40, "def area(radius):"),
        ("def area(radius):", True, 12, "def area("),
        ("import os\nimport re", True, 40, "import os"),
        ("key\tvalue", True, 40, "key"),
        ("吾輩は猫である。名前はまだ無い。", True, 12, "吾輩は猫"),
        ("ภาษาไทยไม่มีช่องว่าง", True, 20, "ภาษาไท"),
        ("हिन्दी में लिखा हुआ पाठ", True, 30, "हिन्दी में"),
        ("Zoë naïvely said", True, 40, "Zoë naïvely"),
        ("Zoe\u0308 said", True, 40, "Zoe\u0308"),
        ("Hello", True, 40, None),  # nothing follows it
        ("Hello", False, 40, "Hello"),
        ("Hello\n", True, 40, None),
        ("internationalization of all", True, 10, None),
        ("", True, 40, None),
        (" \n\t", True, 40, None),
        ("\ufffd broken", True, 40, None),
        ("\x1b[31mred", True, 40, None),
        ("anything", True, 0, None),
    ],
)
def test_a_beginning_ends_where_a_word_does(
    text: str, whole: bool, limit: int, expected: str | None
) -> None:
    assert beginning(text, whole, limit) == expected


@given(st.text(), st.booleans(), st.integers(0, 60))
def test_a_beginning_is_short_printable_and_continued(text: str, whole: bool, limit: int) -> None:
    prompt = beginning(text, whole, limit)
    if prompt is None:
        return
    assert prompt
    assert text.lstrip().startswith(prompt)
    assert prompt.isprintable()
    assert prompt == prompt.strip()
    assert len(prompt.encode()) <= limit
    assert len(prompt.split()) <= MAX_WORDS
    assert not whole or text.strip() != prompt


# ---- the choice ---------------------------------------------------------------------------------


def shards_of(
    tiny_config: Config, folder: Path, texts: Sequence[str], vocab_size: int = 512
) -> Shards:
    """Shards of which these texts are val."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "val"):
        lines = (json.dumps({"text": f"{text}{' more' * (split == 'train')}"}) for text in texts)
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    data = {"data.source": "files", "data.path": str(folder), "data.documents": None}
    config = tiny_config(**data, **{"data.vocab_size": vocab_size})
    return encode(config, download(config))


@pytest.mark.parametrize("texts", [FORTUNES, CODE, JAPANESE])
def test_prompts_are_beginnings_of_held_out_documents(
    texts: list[str], tiny_config: Config, tmp_path: Path, data_root: Path
) -> None:
    shards = shards_of(tiny_config, tmp_path / "texts", texts)
    prompts = held_out_prompts(shards, 1, 256)
    assert len(set(prompts)) == COUNT
    for prompt in prompts:
        assert any(text.startswith(prompt) and text != prompt for text in texts)
        assert len(prompt.encode()) <= MAX_BYTES
    assert held_out_prompts(shards, 1, 256) == prompts
    assert held_out_prompts(shards, 2, 256) != prompts
    # Of the text alone, not of how it was cut into tokens.
    other = shards_of(tiny_config, tmp_path / "texts", texts, vocab_size=400)
    assert other.tokenizer_sha256 != shards.tokenizer_sha256
    assert held_out_prompts(other, 1, 256) == prompts


def test_most_prompts_stay_when_documents_are_added(
    tiny_config: Config, tmp_path: Path, data_root: Path
) -> None:
    before = held_out_prompts(shards_of(tiny_config, tmp_path / "a", FORTUNES[:-1]), 1, 256)
    after = held_out_prompts(shards_of(tiny_config, tmp_path / "b", FORTUNES), 1, 256)
    assert len(set(before) & set(after)) >= COUNT - 1


def test_prompts_fit_every_context(tiny_config: Config, tmp_path: Path, data_root: Path) -> None:
    for texts in (FORTUNES, JAPANESE):
        shards = shards_of(tiny_config, tmp_path / texts[0][:2], texts)
        tokenizer = Tokenizer.load(shards.path / TOKENIZER)
        for seq_len in (1, 2, 4, 8, 16, 32):
            for prompt in held_out_prompts(shards, 1, seq_len):
                assert 1 + len(tokenizer.encode(prompt)) <= seq_len


def test_documents_of_one_word_have_no_beginning(
    tiny_config: Config, tmp_path: Path, data_root: Path
) -> None:
    shards = shards_of(tiny_config, tmp_path / "names", ["Emma", "Olivia", "Ava", "Mia"] * 5)
    assert held_out_prompts(shards, 1, 256) == ()
    config = tiny_config(**{"report.prompts": None})
    assert report_prompts(config, shards) == ("",)
    assert sample_command("a-1", ("",)) == sample_command("a-1", ()) == "slm sample a-1"


# ---- where they are used ------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose recipe gives no prompts."""
    folder = RunFolder(copy_run(tmp_path))
    settings = folder.settings
    report = settings.config.report.model_copy(
        update={"temperatures": (0.8,), "top_ks": (10,), "max_new_tokens": 4}
    )
    config = settings.config.model_copy(update={"report": report})
    folder.write_settings(replace(settings, config=config))
    assert config.report.prompts is None
    return folder


def written(run: RunFolder, config: PipelineConfig) -> tuple[str, list[str], str]:
    """The key of its report, the prompts of its samples, and its page."""
    record, evaluation = run.record, run.evaluation
    assert record is not None
    assert evaluation is not None
    report = write_report(config, record, evaluation, run.shards)
    samples = json.loads((report.path / "samples.json").read_bytes())
    prompts = [sample["prompt"] for sample in samples]
    return report.key, prompts, (report.path / report.card).read_text()


def test_a_report_and_its_commands_begin_as_held_out_documents_do(run: RunFolder) -> None:
    key, prompts, card = written(run, run.config)
    assert tuple(prompts) == report_prompts(run.config, run.shards)
    assert len(prompts) == COUNT
    assert f"slm sample {run.name} --prompt {shlex.quote(prompts[0])}" in card
    assert f"tokenizer({json.dumps(prompts[0])}, return_tensors" in card
    assert run.best is not None
    assert example_prompt(run.best.path) == prompts[0]
    # Prompts that a recipe gives make another report, with another key.
    report = run.config.report.model_copy(update={"prompts": ("One day",)})
    given = run.config.model_copy(update={"report": report})
    other, its_prompts, _ = written(run, given)
    assert (other != key, its_prompts) == (True, ["One day"])
    assert written(run, run.config)[0] == key


def test_without_shards_a_model_begins_by_itself(run: RunFolder) -> None:
    shutil.rmtree(run.path.parents[1] / "shards")
    assert run.shards is None
    assert written(run, run.config)[1] == [""]
    assert run.best is not None
    assert example_prompt(run.best.path) == ""
    shutil.copytree(run.best.path, run.path.parents[1] / "elsewhere")
    assert example_prompt(run.path.parents[1] / "elsewhere") == ""


def test_shards_that_are_damaged_cost_an_example_nothing(run: RunFolder) -> None:
    assert run.best is not None
    assert run.shards is not None
    assert example_prompt(run.best.path)
    for file in run.shards.path.glob("val_*.bin"):
        file.write_bytes(b"damage")
    assert example_prompt(run.best.path) == ""
