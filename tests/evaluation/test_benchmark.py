"""Benchmarks: what a task's files hold, how items are scored, and the stage's results."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub import serve_this_process

import slm
from slm.config import ModelConfig, PipelineConfig
from slm.errors import UserError
from slm.evaluation.benchmark.benchmark import do_task
from slm.evaluation.benchmark.items import Item, Task, minimal_pair
from slm.evaluation.benchmark.results import Outcome, read_items, task_score
from slm.evaluation.benchmark.score import Request, fitted, log_likelihoods, pack, requests_of
from slm.evaluation.benchmark.tasks import parse_task, read_task, read_tasks
from slm.evaluation.scoring import token_losses
from slm.model.gpt import GPT
from slm.records import Run, Shards
from slm.run_folder import RunFolder
from slm.tokens.tokenizer.bpe import Tokenizer

PAIRS = [{"good": f"The cat {i} sat.", "bad": f"The cat {i} sit."} for i in range(4)]
QUESTION = {"context": "The cat is", "choices": ["black", "blue"], "answer": 1}


def tokenizer() -> Tokenizer:
    return Tokenizer([bytes([i]) for i in range(256)] + [b"th", b"ca", b"the"])


def model(architecture: str = "qwen3", seq_len: int = 32, **sizes: int) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, **sizes}
    config = ModelConfig(architecture=architecture, seq_len=seq_len, **shape)
    made = GPT(config, tokenizer().n_vocab)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- log-likelihoods ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "sizes"), [("gpt2", {}), ("qwen3", {}), ("qwen3", {"n_kv_head": 2})]
)
def test_a_tree_of_texts_scores_each_as_alone(architecture: str, sizes: dict[str, int]) -> None:
    gpt, words = model(architecture, **sizes), tokenizer()
    texts = ["the cat sat", "the cat ran off", "the cat", "a dog", "a dog", "thecat " * 4]
    requests = [r for text in texts for r in requests_of(words, "", text, 32)]
    scored = log_likelihoods(gpt, requests)
    losses = token_losses(gpt, [np.array(words.encode(text)) for text in texts], words.eot)
    alone = [-loss[:-1].sum(dtype=np.float64) for loss in losses]
    assert scored.nats == pytest.approx(alone, abs=1e-4)
    assert scored.nats[3] == scored.nats[4]  # the same text has the same bits


def test_the_order_of_the_requests_changes_no_bit() -> None:
    gpt, words = model(), tokenizer()
    texts = [f"the {a} {b}" for a in "abc" for b in "xyz"]
    requests = [r for text in texts for r in requests_of(words, "", text, 32)]
    there, back = (log_likelihoods(gpt, r).nats for r in (requests, requests[::-1]))
    assert there.tolist() == back[::-1].tolist()


def test_a_beginning_is_computed_once() -> None:
    words = tokenizer()
    requests = [r for end in "xyz" for r in requests_of(words, "", f"the cat {end}z", 32)]
    [row] = pack(requests, 256)
    shared = len(requests[0].ids) - 2
    assert len(row.ids) == shared + 3
    assert len(row.targets) == sum(len(request.ids) - 1 for request in requests)


def test_greedy_is_whether_every_token_is_the_most_likely() -> None:
    gpt, words = model(), tokenizer()
    ids = [words.eot]
    for _ in range(5):
        ids.append(int(gpt.logits(gpt(torch.tensor([ids]))[0, -1]).argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 256]
    scored = log_likelihoods(gpt, [Request(tuple(ids), 1), Request(tuple(other), 1)])
    assert scored.greedy.tolist() == [True, False]


def test_a_context_keeps_its_end_and_a_long_answer_is_scored_whole() -> None:
    short = fitted(list(range(20)), 15, 8)
    assert [(r.ids, r.first, r.truncated) for r in short] == [(tuple(range(11, 20)), 4, True)]
    long = fitted(list(range(20)), 5, 8)
    predicted = [i for r in long for i in r.ids[r.first :]]
    assert predicted == list(range(5, 20))
    assert all(len(r.ids) <= 9 for r in long)


def test_an_answer_is_scored_after_its_context_alone() -> None:
    words = tokenizer()
    [request] = requests_of(words, "the cat ", "sat", 32)
    assert words.decode(request.ids[1 : request.first]) == "the cat"
    assert words.decode(request.ids[request.first :]) == " sat"


# ---- figures -----------------------------------------------------------------------------------


def outcome(right: float, wrong: float) -> Outcome:
    return Outcome((right, wrong), (4, 4), 0)


def task_of(groups: list[str | None], fields: dict[str, str] | None = None) -> Task:
    fields = fields or {}
    items = tuple(minimal_pair("good", "evil", g, fields.get(g or "")) for g in groups)
    return Task("t", "minimal_pairs", "here", items)


def test_paradigms_count_alike_and_a_tie_is_wrong() -> None:
    outcomes = [outcome(-1, -2), outcome(-1, -2), outcome(-2, -1), outcome(-1, -1)]
    score = task_score(task_of(["a", "a", "a", "b"], {"a": "f", "b": "f"}), outcomes)
    assert score.accuracy == pytest.approx((2 / 3 + 0) / 2)
    assert score.ties == 1
    assert score.groups["a"].stderr == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))
    assert score.by_field["f"].accuracy == score.accuracy
    assert score.bits_per_byte == pytest.approx(5 / math.log(2) / 16)


@pytest.mark.parametrize(("right", "distinguishable"), [(50, False), (55, False), (65, True)])
def test_what_chance_may_give_is_not_distinguishable(right: int, distinguishable: bool) -> None:
    outcomes = [outcome(-1, -2)] * right + [outcome(-2, -1)] * (100 - right)
    assert task_score(task_of([None] * 100), outcomes).distinguishable == distinguishable


def test_accuracy_per_byte_divides_by_the_length_of_the_answer() -> None:
    task = Task("t", "multiple_choice", "", (Item("x", ("ab", "abcdef"), 1),))
    score = task_score(task, [Outcome((-2.0, -3.0), (2, 6), 1)])
    assert (score.accuracy, score.accuracy_per_byte) == (0.0, 1.0)
    assert score.chance == 0.5


# ---- tasks -------------------------------------------------------------------------------------


def test_the_same_items_from_every_format_are_the_same_task(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", PAIRS)
    (tmp_path / "b.json").write_text(json.dumps(PAIRS))
    lines = ["good,bad", *(f"{p['good']},{p['bad']}" for p in PAIRS)]
    (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
    columns = {"sentence_good": "good", "sentence_bad": "bad"}
    table = pa.table({new: [p[old] for p in PAIRS] for new, old in columns.items()})
    pq.write_table(table, tmp_path / "d.parquet")
    tasks = read_tasks(str(path) for path in sorted(tmp_path.iterdir()))
    assert [task.name for task in tasks] == list("abcd")
    assert len({task.sha256 for task in tasks}) == 1
    assert tasks[0].kind == "minimal_pairs"
    assert tasks[0].items[0].choices == ("The cat 0 sat.", "The cat 0 sit.")


def test_the_files_of_a_folder_are_paradigms(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_jsonl(tmp_path / "both" / f"{name}.jsonl", PAIRS)
    [task] = read_tasks([f"mine={tmp_path / 'both'}"])
    assert {item.group for item in task.items} == {"one", "two"}
    assert task.name == "mine"


def test_answers_are_given_by_index_text_or_label(tmp_path: Path) -> None:
    labelled = {"text": ["black", "blue"], "label": ["A", "B"]}
    rows = [
        QUESTION,
        {**QUESTION, "answer": "blue"},
        {**QUESTION, "answer": "1"},
        {"question": "The cat is", "choices": labelled, "answerKey": "B"},
        {"ctx": "The cat is", "endings": ["black", "blue"], "label": 1},
    ]
    [task] = read_tasks([str(write_jsonl(tmp_path / "q.jsonl", rows))])
    assert set(task.items) == {Item("The cat is", ("black", "blue"), 1)}
    assert task.kind == "multiple_choice"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"good": "a"}], "line 1: neither a minimal pair"),
        ([{"good": "a", "bad": ""}], "an empty choice"),
        ([{"good": "a", "bad": 3}], "bad=3 is not a text"),
        ([{**QUESTION, "answer": 2}], "answer=2 is none of its 2 choices"),
        ([{**QUESTION, "answer": True}], "answer=True is none"),
        ([{**QUESTION, "choices": ["one"]}], "one choice alone"),
        ([{**QUESTION, "choices": "black"}], "is not a JSON list"),
        ([PAIRS[0], QUESTION], "make two tasks of it"),
        ([{**PAIRS[0], "paradigm": "a"}, PAIRS[1]], "1 of its 2 items name no paradigm"),
        ([], "holds no items"),
    ],
)
def test_a_row_that_is_no_item_is_refused(
    rows: list[dict[str, object]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        read_tasks([str(write_jsonl(tmp_path / "t.jsonl", rows))])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("blimb", "did you mean 'blimp'"),
        ("x=/nowhere.jsonl", "does not exist"),
        ("hf:a/b@main", "give it a name"),
        ("x=hf:a/b@main", "is not a commit"),
        ("x=hf:a/b", "is not hf:OWNER/DATASET@COMMIT"),
    ],
)
def test_a_task_that_is_not_there_is_one_message(given: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_tasks([given])


def test_a_task_of_the_hub_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(json.dumps(pair) + "\n" for pair in PAIRS).encode()
    files = {"README.md": b"x", "one/train.jsonl": lines, "two/train.jsonl": lines}
    with serve_this_process(tmp_path / "home", monkeypatch) as server:
        commit = server.add("org/pairs", files)
        source = parse_task(f"pairs=hf:org/pairs@{commit}")
        task = read_task(source)
        assert {item.group for item in task.items} == {"one", "two"}
        asked = len(server.requests)
        assert read_task(source).sha256 == task.sha256
        assert len(server.requests) == asked
        [part] = read_tasks([f"one=hf:org/pairs@{commit}/one"])
        assert len(part.items) == len(PAIRS)


# ---- the stage -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PipelineConfig, Run, Shards]:
    """A tiny run in a data folder of this module."""
    from tiny_pipelines import PIPELINES

    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny.yaml").write_text(PIPELINES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_DATA", str(folder / "data"))
        config = slm.load_recipe("tiny", path=folder / "tiny.yaml")
        shards = slm.encode(config, slm.download(config))
        return config, slm.train(config, shards), shards


def test_results_of_other_tasks_are_next_to_each_other(
    trained: tuple[PipelineConfig, Run, Shards], tmp_path: Path
) -> None:
    config, run, _ = trained
    pairs = str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS))
    first = slm.benchmark(config, run, tasks=[pairs])
    other = slm.benchmark(config, run, tasks=[str(write_jsonl(tmp_path / "q.jsonl", [QUESTION]))])
    again = slm.benchmark(config, run, tasks=[pairs])
    assert first.path != other.path
    assert (first.reused, again.reused) == (False, True)
    assert {result.path for result in RunFolder.of(run).all_benchmarks} >= {first.path, other.path}
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS[:3])
    assert not slm.benchmark(config, run, tasks=[pairs]).reused


def test_the_items_give_the_figures(
    trained: tuple[PipelineConfig, Run, Shards], tmp_path: Path
) -> None:
    config, run, shards = trained
    section = config.benchmark.model_copy(update={"baselines": True})
    config = config.model_copy(update={"benchmark": section})
    tasks = [str(write_jsonl(tmp_path / "pairs.jsonl", PAIRS)), "stories"]
    scored = slm.benchmark(config, run, shards, tasks=tasks)
    rows = read_items(scored, "pairs").to_pylist()
    assert scored["pairs"].accuracy == np.mean([row["correct"] for row in rows])
    assert all(row["correct"] == (row["log_likelihoods"][0] > row["log_likelihoods"][1])
               for row in rows)  # fmt: skip
    assert set(scored["stories"].baselines) == {"5-gram", "untrained"}
    model, words = slm.load_model(run)
    [task] = read_tasks(tasks[:1])
    assert [o.log_likelihoods for o in do_task(model, words, task)] == [
        tuple(row["log_likelihoods"]) for row in rows
    ]


def test_no_task_and_no_shards_are_one_message(trained: tuple[PipelineConfig, Run, Shards]) -> None:
    config, run, _ = trained
    with pytest.raises(UserError, match="no task is given"):
        slm.benchmark(config, run)
    section = config.benchmark.model_copy(update={"baselines": True})
    with pytest.raises(UserError, match="5-gram baseline"):
        slm.benchmark(config.model_copy(update={"benchmark": section}), run, tasks=["stories"])


def test_a_path_in_a_recipe_is_relative_to_its_file(
    tiny_config: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    from tiny_pipelines import PIPELINES

    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    tasks = "    benchmark: {tasks: [stories, pairs.jsonl, mine=sub/x.csv]}\n    report:"
    (tmp_path / "own.yaml").write_text(PIPELINES.replace("    report:", tasks))
    config = slm.load_recipe("tiny", path=tmp_path / "own.yaml")
    expected = ("stories", f"{tmp_path}/pairs.jsonl", f"mine={tmp_path}/sub/x.csv")
    assert config.benchmark.tasks == expected
