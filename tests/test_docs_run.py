"""The commands of the documentation, executed page by page, in order, as a user would type them.

The recipes have the names of the shipped ones and are tiny. What a block needs that is not here, a
comment above it names, and so does NOT_RUN below.
"""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import zstandard
from pages import PAGES, ROOT, Block, blocks_of

from slm.source.stories import stories

RUN = (
    "start.md", "data.md", "vocabulary.md", "training.md", "watching.md", "sampling.md",
    "weights.md", "promoting.md", "registry.md", "store.md",
)  # fmt: skip
NOT_RUN = {  # each block by the reason above it
    "README.md": ["installs an environment"],
    "CONTRIBUTING.md": ["these are the tests"],
    "data.md": ["needs a bucket and the hub"],
    "index.md": ["installs an environment"],
    "prefect.md": ["needs servers that stay"],
    "registry.md": ["a server that stays", "a server that stays"],
    "sampling.md": ["ends by Ctrl-D"],
    "start.md": ["installs an environment", "installs an environment",
                 "they end by Ctrl-C or Ctrl-D", "needs the hub or a GPU"],
    "watching.md": ["they show what trains in another terminal",
                    "needs a training in another terminal"],
    "weights.md": ["needs a model on TinyStories, and the hub"],
}  # fmt: skip
PAGES_NOT_RUN = {
    "mixtures.md": "has tests of its own",
    "inspecting.md": "tests/inspection runs them",
    "comparing.md": "tests/comparison runs them",
    "benchmarks.md": "BLiMP and lm-eval are not here",
    "sweeps.md": "many trials; tests/sweeps runs small ones",
    "sizing.md": "many trainings; tests/sizing runs small ones",
    "serving.md": "servers that stay; tests/server runs them",
    "export.md": "the hub and llama.cpp; tests/model and tests/cli run them",
    "prefect.md": "servers that stay; tests/orchestration runs them",
    "deploy.md": "servers, Docker and Kubernetes",
    "clusters.md": "several machines; tests/cluster and tests/training run what two cores can",
    "python.md": "run by tests/test_snippets.py, or like what is",
}
REPLACED = {  # in order
    "train.max_seconds=120": "train.max_seconds=2",
    "train.max_seconds=30": "train.max_seconds=2",
    "cd articles && slm run": "cd articles && slm run --set train.max_steps=4 --set model.n_layer=1"
    " --set model.n_head=2 --set model.n_embd=32 --set data.vocab_size=512",
    "s3://BUCKET/slm": "file://$PWD/store",
    "quickstart-3693316e0b15": "$(ls data/runs | grep quickstart | head -1)",
    "RUN": "latest",
    "hf:out": "hf:exported",
}
OTHER_EXITS = {  # of commands that find nothing to do here, or that judge
    "slm promote models:/slm@challenger": {0, 2},  # no challenger is left once it was promoted
    "slm rollback slm": {0, 2},  # there was one champion alone
    "slm reproduce models:/slm@champion": {0, 3, 4},  # 4: code that is in no commit
    "slm doctor": {0, 1},  # which names what is missing on this machine
}
TINY = """
recipes:
  quickstart: &tiny
    data: {source: stories, documents: 300, vocab_size: 512, val_fraction: 0.1}
    model: {architecture: qwen3, n_layer: 1, n_head: 2, n_embd: 32, seq_len: 32}
    train: &training
      {max_steps: 14, tokens_per_step: 128, evaluate_every: 5, checkpoint_every: 5, threads: 1,
       keep_checkpoints: 9}
    report: &report {temperatures: [0.8], top_ks: [10], max_new_tokens: 8}
    registry: &lenient {beat_baselines: false, max_bpb: 20}
  files:
    <<: *tiny
    name: "{data}"
    data: {source: files, vocab_size: 512, val_fraction: 0.2}
  finetune:
    name: "{data}"
    data: {source: files, val_fraction: 0.2}
    train: {<<: *training, init_from: "models:/slm@champion"}
    report: *report
    registry: *lenient
"""


def test_what_is_not_run_says_why() -> None:
    marks: dict[str, list[str]] = {}
    for page in PAGES:  # two of them are a README.md
        marks.setdefault(page.name, []).extend(b.not_run for b in blocks_of(page) if b.not_run)
    assert {page: reasons for page, reasons in marks.items() if reasons} == NOT_RUN
    nav = tomllib.loads((ROOT / "docs/site/zensical.toml").read_text())["project"]["nav"]
    guide = [page for group in nav[:2] for page in next(iter(group.values()))]
    names = [next(iter(page.values())) if isinstance(page, dict) else page for page in guide]
    assert {*RUN, *PAGES_NOT_RUN} == set(names) - {"index.md"}


def texts(count: int, seed: int = 7) -> list[str]:
    return list(stories(seed, 0, count))


def csv_of(documents: list[str]) -> str:
    quoted = (text.replace('"', '""') for text in documents)
    return "body\n" + "".join(f'"{text}"\n' for text in quoted)


def write_data(folder: Path) -> None:
    """Write the files that the pages name."""
    rows = [{"text": text, "body": text} for text in texts(120)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "articles.jsonl").write_text(lines)
    (folder / "articles.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (folder / "book.txt").write_text("\n\n".join(texts(120, 8)))
    chats = [{"messages": [{"content": text}]} for text in texts(120, 9)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "FILE.csv").write_text(csv_of(texts(30, 10)))
    (folder / "notes").mkdir()
    for number, text in enumerate(texts(120, 11)):
        (folder / "notes" / f"{number}.txt").write_text(text)
        (folder / "notes" / f"{number}.md").write_text(text + "\n")
    with tarfile.open(folder / "texts.tar.gz", "w:gz") as archive:
        archive.add(folder / "notes", "texts")
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with tiny recipes and the pages' data, in which `quickstart` was run."""
    folder = tmp_path_factory.mktemp("docs") / "project"
    folder.mkdir()
    (folder / "pipelines.yaml").write_text(TINY)
    write_data(folder)
    execute("slm run quickstart", folder)
    execute("slm promote slm --force 'so small a model passes no gate'", folder)
    execute("slm export models:/slm@champion exported", folder)
    return folder


def execute(line: str, folder: Path) -> None:
    """Run a line of a page in a shell."""
    typed = line.partition(" #")[0].strip()
    for shown, there in REPLACED.items():
        line = line.replace(shown, there)
    environment = {k: v for k, v in os.environ.items() if k != "SLM_DATA"}
    environment |= {"HOME": str(folder), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    script = f'slm() {{ {sys.executable} -m slm.cli.main "$@"; }}\n{line}'
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode in OTHER_EXITS.get(typed, {0}), f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_in_order(page: str, home: Path) -> None:
    [path] = [path for path in PAGES if path.name == page]
    lines = [line for block in blocks_of(path) for line in shown_lines(block)]
    assert lines
    for line in lines:
        execute(line, home)


def shown_lines(block: Block) -> list[str]:
    if block.language != "bash" or block.not_run:
        return []
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", "pip "))]
