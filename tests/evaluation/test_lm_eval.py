"""Our scores are lm-eval's, item by item: of its `hf` model on our export, and of ours in it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.config import ModelConfig
from slm.evaluation.benchmark.benchmark import do_task
from slm.evaluation.benchmark.items import Task
from slm.evaluation.benchmark.tasks import read_tasks
from slm.model.gpt import GPT
from slm.model.saved import CONFIG, MODEL, describe_model, load_model
from slm.registry.exporting import export
from slm.storage import write_json
from slm.tokens.tokenizer.bpe import TOKENIZER, gpt2

pytestmark = pytest.mark.slow
lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")  # lm-eval's `hf` model needs it

SHARED = Path("/work/shared/data/blimp/blimp.parquet")
PARADIGMS = (
    "adjunct_island", "anaphor_number_agreement", "causative", "npi_present_1",
    "regular_plural_subject_verb_agreement_1",
)  # fmt: skip
ITEMS = 40  # of each paradigm and question task
WORDS = [
    "the", "cat", "sat", "on", "a", "red", "mat", "and", "saw", "two", "small", "dogs", "run",
    "home", "in", "rain",
]  # fmt: skip


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with GPT-2's vocabulary."""
    import safetensors.torch

    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 64, "seq_len": 64}
    words = gpt2()
    model = GPT(ModelConfig(architecture=request.param, **shape), words.n_vocab)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    safetensors.torch.save_file(model.state_dict(), path / MODEL)
    write_json(path / CONFIG, describe_model(model))
    words.save(path / TOKENIZER)
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    """Five paradigms of BLiMP, and two tasks of questions, one of which has long contexts."""
    if not SHARED.is_file():
        pytest.skip(f"{SHARED} is not here")
    path = tmp_path_factory.mktemp("tasks")
    [blimp] = read_tasks([f"blimp={SHARED}"])
    for name in PARADIGMS:
        rows = [i.choices for i in blimp.items if i.group == name][:ITEMS]
        write(path / f"{name}.json", [{"good": good, "bad": bad} for good, bad in rows])
    draw = random.Random(0)
    for name, length in (("short", 6), ("long", 80)):
        rows = [
            {
                "context": " ".join(draw.choices(WORDS, k=draw.randint(1, length))),
                "choices": [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(4)],
                "answer": draw.randrange(4),
            }
            for _ in range(ITEMS)
        ]
        write(path / f"{name}.json", rows)
    return read_tasks(str(path / f"{name}.json") for name in (*PARADIGMS, "short", "long"))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows))


def in_lm_eval(task: Task) -> dict[str, Any]:
    """A task as lm-eval's config of it: sentences begin a document, so nothing comes before."""
    pairs = task.kind == "minimal_pairs"
    return {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": task.source}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "" if pairs else "{{context}}",
        "doc_to_choice": "{{[good, bad]}}" if pairs else "{{choices}}",
        "doc_to_target": 0 if pairs else "{{answer}}",
        "target_delimiter": "" if pairs else " ",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_bytes"}],
    }


def evaluated(name: str, arguments: dict[str, Any], tasks: list[Task]) -> dict[str, Any]:
    result: dict[str, Any] = lm_eval.simple_evaluate(
        name, arguments, tasks=[in_lm_eval(task) for task in tasks], batch_size=16, device="cpu",
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    return result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("adapter", [False, True])
def test_every_item_has_lm_evals_log_likelihoods(
    folder: Path, tasks: list[Task], adapter: bool, tmp_path: Path
) -> None:
    model, words = load_model(folder)
    if adapter:
        import slm.lm_eval  # noqa: F401

        theirs = evaluated("slm", {"run": str(folder)}, tasks)
    else:
        export(folder, tmp_path / "hf")
        arguments = {"pretrained": str(tmp_path / "hf"), "dtype": "float32", "max_length": 64}
        theirs = evaluated("hf", arguments, tasks)
    for task in tasks:
        samples = sorted(theirs["samples"][task.name], key=lambda sample: sample["doc_id"])
        outcomes = do_task(model, words, task)
        assert len(samples) == len(outcomes) == ITEMS
        for sample, outcome in zip(samples, outcomes, strict=True):
            nats = [float(response[0]) for response in sample["filtered_resps"]]
            assert outcome.log_likelihoods == pytest.approx(nats, abs=2e-3)
            assert outcome.correct == bool(sample["acc"])
            assert outcome.correct_per_byte == bool(sample["acc_bytes"])
    assert any(outcome.truncated for outcome in do_task(model, words, tasks[-1]))


@pytest.mark.filterwarnings("ignore")
def test_the_adapter_samples_and_scores_whole_texts(folder: Path) -> None:
    from lm_eval.api.instance import Instance

    from slm.lm_eval import SlmLM

    lm = SlmLM(str(folder))
    texts = ["the cat", " ".join(WORDS * 20)]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    whole = lm.loglikelihood_rolling(requests)
    [(first, _)] = lm.loglikelihood([Instance("loglikelihood", {}, ("", texts[0]), 0)])
    assert whole[0] == pytest.approx(first, abs=1e-3)
    assert whole[1] < whole[0]
    given = {"until": [" the"], "max_gen_toks": 8}
    [made] = lm.generate_until([Instance("generate_until", {}, (texts[1], given), 0)])
    assert " the" not in made
