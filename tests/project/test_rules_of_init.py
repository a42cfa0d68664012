"""What of a dataset is taken how, where that is doubtful."""

import json
from pathlib import Path

import pytest
from texts import documents, parquet, rows, write

from slm.errors import UserError
from slm.project.decide import Question, dataset


def settings_of(given: Path | str, results: Path = Path("/nowhere")) -> dict[str, object]:
    """The settings of the data that a rule decides."""
    return dataset(str(given), results).data.model_dump(exclude_unset=True, exclude={"source"})


def decided(given: Path | str) -> dict[str, str]:
    return {question.key: answer for question, answer in dataset(str(given), Path("/no")).decided}


def test_the_column_called_text_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "one two three", "url": "http://x.org"}))
    assert settings_of(path)["text_column"] == "text"
    assert not decided(path)


def test_the_text_may_be_inside_a_column(tmp_path: Path) -> None:
    chat = [{"role": "u", "content": text} for text in documents(4)]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": 1, "messages": chat}))
    assert settings_of(path)["text_column"] == "messages[].content"


def test_no_column_of_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": 1, "n": [2]}))
    with pytest.raises(UserError, match="holds text; its columns: id, n"):
        dataset(str(path), tmp_path / "data")


def test_the_readers_messages_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a;b\n1;2\n")
    with pytest.raises(UserError, match="separated by ';'"):
        dataset(str(path), tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"just words\n", "text"),
        (b'{"text": "words"}\n', "jsonl"),
        (parquet(rows(["a"])), "parquet"),
    ],
)
def test_a_name_without_a_format(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(content)
    assert settings_of(path)["format"] == kind
    assert decided(path)["data.format"] == kind


def test_what_is_no_text_is_refused_by_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match="is a PNG image: leave it out"):
        dataset(str(path), tmp_path / "data")


def test_a_folder_of_text_with_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.md", "deep/b.md"):
        (tmp_path / "in" / name).write_text("# some words")
    (tmp_path / "in" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    chosen = dataset(str(tmp_path / "in"), tmp_path / "data")
    assert chosen.data.format == "text"
    assert len(chosen.splits["train"]) == 2


def test_of_several_formats_the_one_with_the_most_bytes(tmp_path: Path) -> None:
    write(tmp_path / "in", "jsonl", documents(20))
    write(tmp_path / "in", "csv", documents(5))
    chosen = dataset(str(tmp_path / "in"), tmp_path / "data")
    [file] = chosen.splits["train"]
    assert file.path.name == "tales.jsonl"
    [(question, _)] = chosen.decided
    assert set(question.choices) == {".jsonl", ".csv"}


def test_a_small_script_among_data_is_no_question(tmp_path: Path) -> None:
    write(tmp_path / "in", "jsonl", documents(200))
    (tmp_path / "in" / "make.py").write_text("print()")
    assert not decided(tmp_path / "in")
    assert settings_of(tmp_path / "in")["path"] == str(tmp_path / "in")


def test_results_are_never_data(tmp_path: Path) -> None:
    """`--data .`, with the results in `./data`."""
    write(tmp_path, "jsonl", documents(20))
    write(tmp_path / "data", "parquet", documents(20))
    chosen = dataset(str(tmp_path), tmp_path / "data")
    assert chosen.data.path == str(tmp_path / "*.jsonl")
    assert [file.path.name for file in chosen.splits["train"]] == ["tales.jsonl"]
    chosen = dataset(str(tmp_path / "data"), tmp_path / "data")
    assert chosen.data.path == str(tmp_path / "data" / "*.parquet")
    (tmp_path / "tales.jsonl").unlink()
    with pytest.raises(UserError, match="is where results go"):
        dataset(str(tmp_path), tmp_path / "data")


def test_end_of_text_separates(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert settings_of(tmp_path / "x.txt")["separator"] == "<|endoftext|>"


def test_several_words_for_validation(tmp_path: Path) -> None:
    for name in ("train", "dev", "valid"):
        (tmp_path / f"{name}.txt").write_text(f"words of {name}")
    chosen = dataset(str(tmp_path), tmp_path / "data")
    assert len(chosen.splits["val"]) == 2
    [(question, given)] = chosen.decided
    assert (given, set(question.choices)) == ("all", {"all", "dev", "valid"})
    chosen = dataset(str(tmp_path), tmp_path / "data", lambda _: "dev")
    assert [file.path.name for file in chosen.splits["val"]] == ["dev.txt"]
    assert chosen.data.val_split == "dev"


def test_a_word_that_may_be_part_of_a_title(tmp_path: Path) -> None:
    for name in ("first", "dev diary"):
        (tmp_path / f"{name}.txt").write_text(f"words of {name}")
    assert decided(tmp_path) == {"data.val_split": "none"}
    chosen = dataset(str(tmp_path), tmp_path / "data", lambda _: "dev")
    assert [file.path.name for file in chosen.splits["val"]] == ["dev diary.txt"]


def test_a_wrong_answer_names_the_right_ones(tmp_path: Path) -> None:
    def wrong(question: Question) -> str:
        return "titel"

    path = tmp_path / "x.csv"
    path.write_text("title,body\nabcdefgh,abcdefghij\n")
    with pytest.raises(UserError, match="did you mean 'title'"):
        dataset(str(path), tmp_path / "data", wrong)


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hub:org/tales"):
        dataset("org/tales", tmp_path / "data")
    with pytest.raises(UserError, match="matches no file"):
        dataset(str(tmp_path), tmp_path.parent / "data")


def test_one_text_file_is_one_document_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(documents(40)))
    assert decided(tmp_path / "book.txt") == {"data.separator": "files"}
    chosen = dataset(str(tmp_path / "book.txt"), tmp_path / "data", lambda _: "empty lines")
    assert chosen.data.separator == "\n\n"
    [(question, _)] = chosen.decided
    assert "40 documents" in question.choices["empty lines"]


def test_a_file_without_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(UserError, match="has no rows"):
        dataset(str(tmp_path / "x.jsonl"), tmp_path / "data")


def test_fortunes_are_split_at_their_percent_signs(tmp_path: Path) -> None:
    texts = documents(30)
    (tmp_path / "fortunes").write_text("\n%\n".join(texts) + "\n%\n")
    assert settings_of(tmp_path / "fortunes")["separator"] == "\n%\n"
    (tmp_path / "few.txt").write_text("\n%\n".join(texts[:3]))
    assert "separator" not in settings_of(tmp_path / "few.txt")


def test_of_a_list_it_is_asked_whether_each_line_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(documents(30)))
    assert decided(tmp_path / "names.txt") == {"data.separator": "files"}
    asked: list[Question] = []
    chosen = dataset(
        str(tmp_path / "names.txt"), Path("/no"), lambda question: asked.append(question) or "lines"
    )
    assert chosen.data.separator == "\n"
    assert "about 30 documents" in asked[0].choices["lines"]
