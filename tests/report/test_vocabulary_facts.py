"""What the report shows of a vocabulary of one's own."""

import json
from pathlib import Path

import slm
from slm.recipes import load_recipe
from slm.report.vocabulary import bytes_per_token, facts
from slm.source.download import download
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer
from slm.tokens.vocabulary import make_tokenizer


def test_bytes_per_token_are_those_of_each_script(data_root: Path, tmp_path: Path) -> None:
    """Every Cyrillic letter is two tokens of a byte each, every Latin word one of five bytes."""
    tokens = [bytes([i]) for i in range(256)] + [b" w", b"or", b" wor", b"ld", b" world"]
    Tokenizer(tokens).save_hugging_face(tmp_path / "tokenizer.json")
    texts = [f"{' world' * (i + 1)} {'мир' * (i + 1)}" for i in range(30)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    config = load_recipe(
        "files",
        {"data.path": str(tmp_path / "texts.jsonl"), "data.tokenizer.path": str(tmp_path)},
    )
    source = download(config)
    made = make_tokenizer(config, source)
    shards = slm.encode(config, source, vocabulary=made)
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    by_script = bytes_per_token(shards, tokenizer)
    assert by_script["Cyrillic"] == 1
    assert 4 < by_script["Latin"] <= 6
    assert next(iter(by_script)) == "all"
    shown = dict(facts(shards, tokenizer))
    assert shown["longest tokens"].startswith("' world', ' wor'")
    assert shown["least used tokens"].startswith(r"'\x00', '\x01'")
    assert shown["unused in the first shard"].endswith(f"of {tokenizer.eot:,} tokens")
