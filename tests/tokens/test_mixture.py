"""Mixtures: sources joined, duplicates across them left out, and read source by source."""

from pathlib import Path

import numpy as np
import pytest
from mixtures import mixture, text, write, write_sources

import slm
from slm import storage
from slm.errors import UserError
from slm.records import Shards, Source, Vocabulary
from slm.source.mixture import part_of_source
from slm.source.reading import kept_columns
from slm.tokens.mixture.exclusions import TRAIN_AGAIN, TRAIN_IN_VAL, VAL_AGAIN
from slm.tokens.mixture.joining import in_turn
from slm.tokens.mixture.reading import part_of_val, train_streams
from slm.tokens.shards.inspecting import verify
from slm.tokens.shards.reading import documents, read_tokens, split_tokens
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Shards]:
    folder = tmp_path_factory.mktemp("mixed")
    config = mixture(write_sources(folder / "texts"))
    source = slm.download(config, root=folder)
    return source, slm.encode(config, source, root=folder)


def texts(shards: Shards, split: str) -> list[str]:
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    return [tokenizer.decode(ids.tolist()) for ids in documents(shards, split)]


def test_a_document_is_trained_on_once_or_held_out(mixed: tuple[Source, Shards]) -> None:
    _, shards = mixed
    train, val = texts(shards, "train"), texts(shards, "val")
    assert sorted(train) == sorted(text(kind, i) for kind in "ab" for i in range(60))
    held_out = [text("a val", i) for i in range(8)] + [text("b val", i) for i in range(5)]
    assert sorted(val) == sorted(held_out)
    assert shards.parts["a"].excluded == {}
    assert shards.parts["b"].excluded == {TRAIN_IN_VAL: 3, TRAIN_AGAIN: 2, VAL_AGAIN: 1}
    assert shards.dropped == {"also in val": 1, TRAIN_IN_VAL: 3, TRAIN_AGAIN: 2, VAL_AGAIN: 1}
    assert sum(shards.length_histogram.values()) == len(train) + len(val)


def test_the_counts_are_those_of_what_is_left(mixed: tuple[Source, Shards]) -> None:
    _, shards = mixed
    streams, parts = train_streams(shards), part_of_val(shards)
    for i, (part, stream) in enumerate(zip(shards.parts.values(), streams, strict=True)):
        tokens = np.concatenate(stream)
        assert part.train.tokens == len(tokens) == sum(n.tokens for n in part.train.counts.values())
        assert part.train.documents == np.count_nonzero(tokens == shards.eot)
        assert part.val.documents == np.count_nonzero(parts == i)
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    sizes = [sum(map(tokenizer.count_bytes, stream)) for stream in streams]
    assert [part.train.bytes for part in shards.parts.values()] == sizes
    assert sum(part.val.bytes for part in shards.parts.values()) == shards.splits["val"].bytes
    verify(shards.path)


def test_the_part_of_each_held_out_document(mixed: tuple[Source, Shards]) -> None:
    _, shards = mixed
    names = [list(shards.parts)[part] for part in part_of_val(shards)]
    assert [name[0] for name in texts(shards, "val")] == names


def test_any_beginning_of_val_has_all_sources_in_proportion() -> None:
    order = in_turn([900, 90, 10])
    for count in (100, 333, 1000):
        shares = np.bincount(order[:count], minlength=3)
        np.testing.assert_allclose(shares, count * np.array([0.9, 0.09, 0.01]), atol=1)


def test_a_source_is_linked_and_not_copied(mixed: tuple[Source, Shards]) -> None:
    for record in mixed:
        own = [path for path in record.path.iterdir() if path.name.startswith("a-train")]
        assert own
        assert all(path.stat().st_nlink > 1 for path in own)


def test_files_are_copied_where_no_link_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed: tuple[Source, Shards]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    config = mixture(write_sources(tmp_path / "texts"))
    shards = slm.encode(config, slm.download(config, root=tmp_path), root=tmp_path)
    assert shards.files == mixed[1].files


def test_shards_of_one_source_are_one_stream_of_all_files(mixed: tuple[Source, Shards]) -> None:
    root = mixed[1].path.parents[1]
    shards = slm.DataRoot(root).shards(mixed[1].parts["a"].key)
    assert shards is not None
    assert not shards.parts
    [stream] = train_streams(shards)
    files = shards.splits["train"].files
    assert len(stream) == len(files)
    assert all(
        np.array_equal(tokens, read_tokens(shards.path / name))
        for tokens, name in zip(stream, files, strict=True)
    )
    assert not part_of_val(shards).any()
    assert len(part_of_val(shards)) == shards.splits["val"].documents


def test_the_bytes_do_not_depend_on_workers_or_the_sizes_of_blocks(
    tmp_path: Path, mixed: tuple[Source, Shards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm.tokens.shards.reading.BLOCK_TOKENS", 7)
    monkeypatch.setattr("slm.tokens.mixture.joining.BATCH_TOKENS", 7)
    config = mixture(write_sources(tmp_path / "texts"), {"data.workers": 2})
    shards = slm.encode(config, slm.download(config, root=tmp_path), root=tmp_path)
    assert shards.files == mixed[1].files
    assert shards.key == mixed[1].key


def test_a_source_that_is_all_in_another_one_is_refused(tmp_path: Path) -> None:
    paths = write_sources(tmp_path / "texts")
    write(tmp_path / "again" / "train.jsonl", [text("a", i) for i in range(20)])
    write(tmp_path / "again" / "validation.jsonl", [text("other", 1)])
    config = mixture({**paths, "c": tmp_path / "again"})
    source = slm.download(config, root=tmp_path)
    with pytest.raises(UserError, match=r"data.sources.c: none of its 20 train documents is left"):
        slm.encode(config, source, root=tmp_path)


def test_an_error_of_a_source_names_it(tmp_path: Path) -> None:
    config = mixture({**write_sources(tmp_path / "texts"), "wiki": tmp_path / "missing"})
    with pytest.raises(UserError, match=r"source wiki: data.path=.* does not exist"):
        slm.download(config, root=tmp_path)


# ---- what is made again -----------------------------------------------------------------------


def test_weights_and_phases_encode_nothing_again(mixed: tuple[Source, Shards]) -> None:
    root = mixed[0].path.parents[1]
    paths = {name: Path(part.dataset) for name, part in mixed[0].parts.items()}
    changes = {
        "data.sources.a.weight": 0.3,
        "data.sources.b.max_epochs": 2,
        "data.phases": [{"until": 0.5, "weights": {"a": 1}}, {"until": 1}],
    }
    config = mixture(paths, changes)
    source = slm.download(config, root=root)
    shards = slm.encode(config, source, root=root)
    assert source.reused
    assert shards.reused
    assert (source.key, shards.key) == (mixed[0].key, mixed[1].key)


@pytest.mark.parametrize("vocabulary", ["whole", "trimmed"])
def test_another_source_encodes_the_others_again_only_for_another_vocabulary(
    tmp_path: Path, vocabulary: str
) -> None:
    paths = write_sources(tmp_path / "texts")
    changes = {"data.vocab_size": 300} if vocabulary == "trimmed" else {}

    def keys(config: slm.PipelineConfig) -> dict[str, str]:
        source = slm.download(config, root=tmp_path)
        own = None
        if config.data.makes_vocabulary:
            own = slm.make_tokenizer(config, source, root=tmp_path)
            assert own.kind == "trimmed"
        shards = slm.encode(config, source, vocabulary=own, root=tmp_path)
        assert shards.vocab_size == config.data.vocab_size
        return {name: part.key for name, part in shards.parts.items()}

    two = keys(mixture(paths, changes))
    write(tmp_path / "c.jsonl", [f"quite other words of number {i}" for i in range(200)])
    three = keys(mixture({**paths, "c": tmp_path / "c.jsonl"}, changes))
    assert ({name: three[name] for name in two} == two) == (vocabulary == "whole")


def test_a_vocabulary_is_trained_on_the_train_documents_of_all_sources(tmp_path: Path) -> None:
    """Unweighted, whatever the sources are called, and without what is held out or dropped."""
    pytest.importorskip("rustbpe")
    paths = write_sources(tmp_path / "in")
    write(tmp_path / "in" / "c.jsonl", [f"zymurgy {i}" for i in range(400)])
    three = {**paths, "c": tmp_path / "in" / "c.jsonl"}
    trained = {"data.tokenizer.train": "bpe", "data.tokenizer.vocab_size": 300}

    def make(paths: dict[str, Path], **changes: object) -> tuple[Vocabulary, Shards]:
        config = mixture(paths, {**trained, **changes})
        source = slm.download(config, root=tmp_path)
        made = slm.make_tokenizer(config, source, root=tmp_path)
        return made, slm.encode(config, source, vocabulary=made, root=tmp_path)

    made, shards = make(three)
    assert (made.kind, made.vocab_size, shards.vocab_size) == ("trained", 300, 300)
    parts = [slm.DataRoot(tmp_path).shards(part.key) for part in shards.parts.values()]
    assert made.documents == sum(part.splits["train"].documents for part in parts if part)
    tokens = Tokenizer.load(made.path / TOKENIZER).tokens
    assert any(b"zymurgy" in token for token in tokens)
    assert sorted(texts(shards, "train"))[-1].startswith("zymurgy")

    heavier, again = make(three, **{"data.sources.c.weight": 9})
    assert heavier.reused
    assert again.reused
    renamed, mixed = make({"x": paths["a"], "y": paths["b"], "z": three["c"]})
    assert renamed.reused
    assert {part.key for part in mixed.parts.values()} == {
        part.key for part in shards.parts.values()
    }
    two, without = make(paths)
    assert two.key != made.key
    assert not any(b"zym" in token for token in Tokenizer.load(two.path / TOKENIZER).tokens)
    assert without.parts["a"].key != shards.parts["a"].key  # encoded again, by other tokens
    cleaned, _ = make(three, **{"data.sources.c.clean.max_chars": 9})
    assert cleaned.documents < made.documents


def test_each_source_keeps_columns_of_its_own(tmp_path: Path) -> None:
    paths = write_sources(tmp_path / "in")
    config = mixture(paths, {"data.sources.b.columns": ["text", "nothing"]})
    with pytest.raises(UserError, match=r"source b: .*data\.columns: unknown column 'nothing'"):
        slm.download(config, root=tmp_path)
    config = mixture(paths, {"data.sources.b.columns": ["text"]})
    source = slm.download(config, root=tmp_path)
    assert [kept_columns(part_of_source(source, name)) for name in "ab"] == [[], ["text"]]
    plain = slm.download(mixture(paths), root=tmp_path)
    assert plain.parts["a"].key == source.parts["a"].key
    assert plain.parts["b"].key != source.parts["b"].key


def test_a_source_keeps_its_key_next_to_others(tmp_path: Path) -> None:
    paths = write_sources(tmp_path / "texts")
    config = mixture(paths)
    shards = slm.encode(config, slm.download(config, root=tmp_path), root=tmp_path)
    alone = config.of_source("b")
    source = slm.download(alone, root=tmp_path)
    assert source.reused
    assert slm.encode(alone, source, root=tmp_path).key == shards.parts["b"].key


def test_parts_that_are_gone_are_not_needed_to_encode(tmp_path: Path) -> None:
    config = mixture(write_sources(tmp_path / "texts"))
    source = slm.download(config, root=tmp_path)
    for part in source.parts.values():
        gone = slm.DataRoot(tmp_path).source(part.key)
        assert gone is not None
        storage.discard(gone.path)
    shards = slm.encode(config, source, root=tmp_path)
    assert [part.source_key for part in shards.parts.values()] == [
        part.key for part in source.parts.values()
    ]


def test_the_order_in_which_sources_are_written_changes_nothing(
    tmp_path: Path, mixed: tuple[Source, Shards]
) -> None:
    paths = write_sources(tmp_path / "texts")
    config = mixture(dict(reversed(paths.items())))
    assert list(config.data.sources) == ["a", "b"]
    assert slm.download(config, root=tmp_path).key == mixed[0].key


def test_records_without_parts_are_written_as_before(mixed: tuple[Source, Shards]) -> None:
    root = slm.DataRoot(mixed[0].path.parents[1])
    part = root.source(mixed[0].parts["a"].key)
    assert part is not None
    number, fields = storage.read_versioned(part.path / "record.json", sealed=True)
    assert number == 7
    assert "parts" not in fields
    number, fields = storage.read_versioned(mixed[0].path / "record.json", sealed=True)
    assert number == storage.FORMAT > 7
    assert list(fields["parts"]) == ["a", "b"]


def test_no_token_of_the_split_is_lost(mixed: tuple[Source, Shards]) -> None:
    _, shards = mixed
    kept = sum(map(len, split_tokens(shards, "train")))
    assert kept == sum(part.train.tokens for part in shards.parts.values())
    assert kept < shards.splits["train"].tokens
