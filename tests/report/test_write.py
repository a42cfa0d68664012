"""The report: whole, harmless, reproducible, and one per settings."""

import html
import json
import random
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_run import copy_run, flip_byte

import slm.source.download
import slm.tokens.encode
from slm import storage
from slm.config import DataConfig, PipelineConfig, TrainConfig
from slm.errors import InUse
from slm.model.export.hugging_face import usage
from slm.model.gpt import GPT
from slm.model.sample import Sample
from slm.model.saved import describe_model
from slm.recipes import load_recipe, parse_overrides
from slm.records import Checkpoint, Evaluation, Report, Run, Shards, Source
from slm.report.cards import commands
from slm.report.judge import RUBRIC, Grade, Grades
from slm.report.other_runs import previous_run
from slm.report.plots import data_plots, read_curves
from slm.report.write import escape_markdown, fenced, write_report
from slm.run_folder import RunFolder, Settings
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import Tokenizer

HOSTILE = (
    "</p></style><script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "```\n# heading\n<iframe src=//evil.example></iframe> [a](javascript:alert(1)) | cell \ud800",
)
CONFIG = PipelineConfig.model_validate(
    {
        "recipe": "tiny",
        "data": {"source": "stories", "documents": 60, "vocab_size": 512, "val_fraction": 0.2},
        "model": {"architecture": "qwen3", "n_layer": 1, "n_head": 2, "n_embd": 32, "seq_len": 128},
        "train": {"max_steps": 6, "tokens_per_step": 128},
        "report": {
            "prompts": ["Once upon a time"],
            "temperatures": [0.5, 1.0],
            "top_ks": [10],
            "max_new_tokens": 8,
        },
    }
)


@dataclass(frozen=True)
class Made:
    """A run and what its report is written from."""

    config: PipelineConfig
    run: Run
    evaluation: Evaluation
    shards: Shards | None

    def write(self, champion: RunFolder | None = None) -> Report:
        """Its report."""
        return write_report(
            self.config, self.run, self.evaluation, self.shards, champion=lambda: champion
        )

    def with_report(self, **settings: object) -> "Made":
        """The same with other settings of the report, in the config alone."""
        report = self.config.report.model_copy(update=settings)
        return replace(self, config=self.config.model_copy(update={"report": report}))


def made_of(path: Path) -> Made:
    """What belongs to a run folder."""
    run = RunFolder(path)
    record, evaluation, shards = run.verified_record, run.evaluation, run.shards
    assert record
    assert evaluation
    assert shards
    return Made(run.config, record, evaluation, shards)


def make_run(root: Path, config: PipelineConfig) -> Made:
    """A run folder as training and evaluation leave it, around a model of random weights."""
    source = slm.source.download.download(config, root=root)
    shards = slm.tokens.encode.encode(config, source, root=root)
    torch.manual_seed(0)
    model = GPT(config.model, shards.vocab_size)
    run = root / "runs" / f"{config.recipe}-{'a' * 12}"
    (run / "checkpoints").mkdir(parents=True)
    RunFolder(run).write_settings(Settings("ab" * 32, config, shards.key, None))
    journal = [{"event": "start", "time": 0.0}]
    for step in range(1, 7):
        loss = 6 / step
        fields = {"train_loss": loss, "lr": 0.1, "tok_per_sec": 50.0, "tokens": 128 * step}
        journal.append({"event": "step", "step": step, "time": float(step), **fields})
        if step % 2 == 0:
            scores = {"val_loss": loss, "val_bpb": loss}
            journal.append({"event": "evaluate", "step": step, "time": 0.0, **scores})
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in journal))
    checkpoint = save_checkpoint(run, model, shards)
    record = Run(
        key="ab" * 32, shards_key=shards.key, best="step_000006", last="step_000006", step=6,
        tokens=768, train_loss=1.0, val_loss=1.1, val_bpb=0.9, tok_per_sec=50, seconds=15,
        parameters=model.parameter_count(), weights_sha256=checkpoint.weights_sha256, level="C",
    )  # fmt: skip
    evaluation = Evaluation(
        key="e" * 64, run=run.name, checkpoint="step_000006", documents=8, tokens=900, bytes=4000,
        weights_sha256=checkpoint.weights_sha256, val_loss=1.1, val_bpb=0.9,
        details={
            "val_bpb_interval": [0.85, 0.95],
            "by_position": [[1, 1, 3.0], [2, 9, 1.5]],
            "by_length": [[10, 60, 3, 1.2], [70, 120, 5, 0.8]],
            "calibration": {"error": 0.02, "accuracy": 0.6, "bins": [[9, 0.3, 0.4], [7, 0.9, 0.8]]},
            "least_likely": [[2, 1.4]],
            "most_likely": [[0, 0.7]],
            "beside": {
                "documents": 8,
                "bytes": 4000,
                "val_bpb": 0.9,
                "references": [
                    {"name": "xz -9", "bpb": 2.0, "knows": "nothing"},
                    {"name": "5-gram", "bpb": 1.1, "knows": HOSTILE[0]},
                ],
            },
            "contamination": {
                "documents": 8, "train_tokens": 5000, "exact": 1, "near": 0, "phrases": 0.25,
                "examples": [{"document": 3, "shared": 1.0, "held_out": HOSTILE[1], "train": "b"}],
            },
        },
    )  # fmt: skip
    storage.write_record(run, record)
    storage.write_record(storage.make_folder(run / "evaluation"), evaluation)
    return made_of(run)


def save_checkpoint(run: Path, model: GPT, shards: Shards) -> Checkpoint:
    folder = run / "checkpoints" / "step_000006"
    staging = run / "checkpoints" / "step_000006.tmp"
    staging.mkdir()
    safetensors.torch.save_file(model.state_dict(), staging / "model.safetensors")
    (staging / "config.json").write_text(json.dumps(describe_model(model)))
    shutil.copy(shards.path / "tokenizer.tiktoken", staging)
    record = Checkpoint(
        key="c" * 64, step=6, tokens=768, config_sha256="8" * 64, shards_key=shards.key,
        tokenizer_sha256=shards.tokenizer_sha256, parent_sha256=None, train_loss=1.0,
    )  # fmt: skip
    return storage.commit(staging, folder, record)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_run(tmp_path_factory.mktemp("first"), CONFIG)


@pytest.fixture
def made(first: Made, tmp_path: Path) -> Made:
    root = first.run.path.parents[1]
    shutil.copytree(root, tmp_path / "data", ignore=shutil.ignore_patterns("report*"))
    return made_of(tmp_path / "data" / "runs" / first.run.name)


@pytest.fixture(scope="module")
def written(first: Made) -> Made:
    """The same, with its report written."""
    first.write()
    return first


class Page(HTMLParser):
    """A page as a browser parses it: its tags and its text."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text("utf-8") if text is None else text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def dangers(page: Page) -> list[str]:
    """Scripts, handlers, and addresses that lead out of the page."""
    dangerous = [
        tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed", "link")
    ]
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            local = (value or "").startswith(("#", "data:"))
            leads = name in ("src", "href", "action", "xlink:href", "srcset", "poster", "data")
            if name.startswith("on") or (leads and not local):
                dangerous.append(f"{tag} {name}={value}")
    return dangerous


# ---- the page ---------------------------------------------------------------------------------


def test_the_page_shows_what_the_run_is(written: Made) -> None:
    run, evaluation = written.run, written.evaluation
    report = run.path / "report"
    page = Page(report / "index.html")
    text = (report / "index.html").read_text("utf-8")
    for words in ("0.900 bits per byte", "0.850 to 0.950", f"{run.parameters:,}", run.key,
                  evaluation.weights_sha256, "slm run tiny", "temperature 0.5", "xz",
                  "5-gram", "calibration", "grammar mistakes",
                  "Cleaning dropped and changed nothing"):  # fmt: skip
        assert words in page.text
    samples = json.loads((report / "samples.json").read_text("utf-8"))
    assert [s["temperature"] for s in samples] == [0.5, 1.0]
    for sample in samples:
        assert sample["prompt"] + sample["completion"] in page.text
    assert len(text) < 3_000_000
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert dangers(page) == []


def test_a_report_without_harper_says_so_and_is_made_again_with_it(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "Harper is not installed (pip install 'slm-pipeline[grammar]')"
    index = made.run.path / "report" / "index.html"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "harper", None)
        lacking = made.write()
        assert not lacking.reused
        assert words in Page(index).text
        markdown = index.with_name("report.md").read_text("utf-8")
        assert words in html.unescape(markdown.replace("\\", ""))
        assert "grammar mistakes" not in Page(index).text
        assert made.write().reused
        english, other = made.write(), made.with_report(language="de").write()
    assert made.with_report(language="de").write().key == other.key != english.key
    whole = made.write()
    assert (whole.reused, whole.key == lacking.key) == (False, False)
    assert "grammar mistakes" in Page(index).text
    assert words not in Page(index).text
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "harper", None)
        again = made.write()  # what is complete is better than what could be made here
        assert (again.reused, again.key) == (True, whole.key)
        flip_byte(index)
        assert made.write().key == lacking.key


def test_every_class_of_the_page_is_styled(written: Made) -> None:
    index = written.run.path / "report" / "index.html"
    used = {name for _, a in Page(index).tags for name in (a.get("class") or "").split()}
    styles = index.read_text("utf-8").partition("</style>")[0]
    assert {name for name in used if f".{name}" not in styles} <= {"note"}  # a level like others


def test_the_first_screen_has_the_verdict_three_figures_one_plot_and_samples(made: Made) -> None:
    """In this order, before the first heading of a section; the rest is behind the contents."""
    index = made.with_report(prompts=("Once", "A dog")).write().path / "index.html"
    text = index.read_text("utf-8")
    head = Page(index, text[: text.index("<h2")])  # without what is below
    tags = [tag for tag, _ in head.tags]
    counts = {tag: tags.count(tag) for tag in ("h1", "dt", "svg", "blockquote")}
    assert counts == {"h1": 1, "dt": 3, "svg": 1, "blockquote": 2}
    assert tags.index("h1") < tags.index("dt") < tags.index("svg") < tags.index("blockquote")
    headings = [a["id"] for a in Page(index).all("h2")]
    contents = [a["href"] for tag, a in head.tags[: tags.index("h1")] if tag == "a"]
    assert contents == [f"#{name}" for name in headings]
    assert {"findings", "samples", "training", "evaluation", "data", "settings"} <= set(headings)


def test_every_plot_has_words_and_no_colour_of_its_own(written: Made) -> None:
    index = written.run.path / "report" / "index.html"
    page = Page(index)
    plots = page.all("svg")
    assert len(plots) >= 5
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    identities = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identities) == len(set(identities))
    body = index.read_text("utf-8").partition("<body>")[2]
    assert "#0" not in body.replace('href="#', "")
    assert "DejaVu" not in body


def test_lengths_are_drawn_from_the_shortest_to_the_longest(made: Made) -> None:
    as_stored = made.shards.model_copy(update={"length_histogram": {"1024": 1, "128": 2, "64": 3}})
    (plot,) = data_plots(as_stored)
    assert plot.index(">64<") < plot.index(">128<") < plot.index(">1,024<")


def test_the_same_inputs_give_the_same_bytes(written: Made, made: Made) -> None:
    first = written.write()
    assert first.reused
    again = made.write()
    assert not again.reused
    assert again.files == first.files


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_shards_are_locked_while_a_report_is_written_on_them(made: Made) -> None:
    shards = made.shards
    assert shards is not None
    locked = []

    def champion() -> None:
        with pytest.raises(InUse), storage.lock(storage.lock_of(shards.path), wait=False):
            pass
        locked.append(1)

    write_report(made.config, made.run, made.evaluation, shards, champion=champion)
    assert locked


def test_a_report_is_written_on_the_cpu(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its samples do not depend on the machine's GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # where none is: it would fail
    assert not made.write().reused


def test_other_settings_make_a_report_next_to_the_runs_own(made: Made) -> None:
    own = made.write()
    assert own.path == made.run.path / "report"
    before = files(own.path)
    other = made.with_report(prompts=("Another",)).write()
    assert not other.reused
    assert other.path == made.run.path / f"report-{other.key[:12]}"
    assert "Another" in Page(other.path / "index.html").text
    both = before | files(other.path)
    for _ in range(2):  # in turn, neither is written again
        assert made.write().reused
        assert made.with_report(prompts=("Another",)).write().reused
    assert files(own.path) | files(other.path) == both
    assert RunFolder(made.run.path).report == own


def test_a_report_on_another_evaluation_is_not_the_runs_own(made: Made) -> None:
    own = made.write()
    folder = made.run.path / "evaluation-123456789abc"
    other = made.evaluation.model_copy(update={"key": "123456789abc" + "0" * 52, "val_bpb": 0.8})
    folder.mkdir()
    storage.write_record(folder, other)
    report = replace(made, evaluation=other.model_copy(update={"path": folder})).write()
    assert report.path == made.run.path / f"report-{report.key[:12]}"
    assert "0.8000 bits per byte" in Page(report.path / "index.html").text  # in the lineage too
    assert "0.9000 bits per byte" not in Page(report.path / "index.html").text
    assert made.write().reused
    assert RunFolder(made.run.path).report == own


def test_the_source_is_found_under_another_recipes_name(made: Made) -> None:
    """Recipes share a source of the same settings, in the folder of whoever downloaded it."""
    (folder,) = (made.run.path.parents[1] / "sources").glob("[!.]*")
    folder.rename(folder.with_name(folder.name.replace("tiny", "another-recipe")))
    text = (made.write().path / "report.md").read_text("utf-8")
    assert "| revision | version " in text


def test_figures_that_are_not_finite_are_left_out_of_the_plots(made: Made) -> None:
    """A training in fp16 journals a norm that overflowed as null."""
    journal = made.run.path / "metrics.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        if entry.get("step") == 2:
            entry |= dict.fromkeys(entry.keys() - {"event", "step", "time"}, None)
        entry["grad_norm"] = None
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    text = (made.write().path / "index.html").read_text("utf-8")
    assert "Loss over tokens: train from 6.00 to 1.00 nats" in text
    curves = read_curves(RunFolder(made.run.path))
    assert curves.steps[-1]["seconds"] == pytest.approx(768 / 50, rel=0.2)


def test_hostile_text_is_shown_as_text(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"prompts": HOSTILE, "max_new_tokens": 5, "language": HOSTILE[0]}
    graded = Grade(HOSTILE[1], dict.fromkeys(RUBRIC, 3.0), HOSTILE[0])
    grades = Grades(HOSTILE[0], [graded, Grade("", {}, HOSTILE[2])])
    monkeypatch.setattr("slm.report.facts.ask_judge", lambda *_: grades)
    cleaning = {
        "dropped": {HOSTILE[0]: {"documents": 1, "examples": [HOSTILE[1]]}},
        "changed": {"text fixed": {"documents": 2, "examples": [[HOSTILE[0], HOSTILE[1]]]}},
    }
    shards = made.shards.model_copy(update={"cleaning": cleaning})
    hostile = made.with_report(**settings)
    data = hostile.config.data.model_copy(update={"text_column": HOSTILE[0]})
    config = hostile.config.model_copy(update={"data": data})
    monkeypatch.setattr(Tokenizer, "decode_bytes", lambda *_: HOSTILE[1].encode())
    report = replace(made, config=config, shards=shards).write()
    page = Page(report.path / "index.html")
    assert dangers(page) == []
    assert not page.all("img")
    for text in HOSTILE:
        assert text.replace("\ud800", "?") in page.text
    markdown = (report.path / "report.md").read_text("utf-8")
    outside = [part for i, part in enumerate(markdown.split("````")) if i % 2 == 0]
    assert all("<" not in part.replace("\\<", "") for part in "".join(outside).split("```")[::2])


def test_the_commands_reproduce_the_run(first: Made) -> None:
    """Every setting is read back as it was, whatever YAML would make of it unquoted."""
    run = first.run
    data = {
        "separator": "\n\n",
        "template": "{title}: {body}",
        "revision": "20240101",
        "config_name": "null",
        "text_column": "na\u00efve \U0001f600",
        "documents": 50,
    }
    settings = {f"data.{key}": value for key, value in data.items()}
    config = load_recipe("quickstart", {**settings, "train.max_seconds": 90})
    assert config.train.max_seconds is not None
    reproduce, rerun, *_ = commands(config, run)
    assert reproduce == f"slm reproduce {run.name}"
    _, _, recipe, *rest = shlex.split(rerun)
    made = load_recipe(recipe, parse_overrides(rest[1::2]))
    assert made.data == config.data
    assert (made.train.max_steps, made.train.max_seconds) == (run.step, None)


def test_rows_that_were_not_read_are_listed_with_what_cleaning_dropped(made: Made) -> None:
    (folder,) = (made.run.path.parents[1] / "sources").glob("[!.]*")
    source = storage.read_record(folder, Source)
    assert source is not None
    storage.write_record(folder, source.model_copy(update={"dropped": {"null": 1234}}))
    report = made.write().path
    page = Page(report / "index.html")
    assert "not read: null" in page.text
    assert "1,234" in page.text
    assert "not read, null: 1234" in (report / "report.md").read_text("utf-8")


# ---- the summary ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("held-out", "A sound model: every check passed"),
        ("recited", "Not a sound model: it copies its training documents"),
        ("looping", "Not a sound model: it loops"),
        ("noise", "Not a sound model: it makes up words"),
    ],
)
def test_samples_are_assessed(
    made: Made, monkeypatch: pytest.MonkeyPatch, kind: str, sentence: str
) -> None:
    """The report of a model that writes held-out text, training text, or what nobody writes."""
    shards = made.shards
    tokenizer = Tokenizer.load(shards.path / "tokenizer.tiktoken")
    split = "train" if kind == "recited" else "val"
    texts = [tokenizer.decode(ids[:150]) for ids in documents(shards, split)]
    noise = random.Random(0)
    texts = {
        "looping": ["there was a cat and " * 12] * len(texts),
        "noise": ["".join(noise.choices("abcdefghij .", k=400)) for _ in texts],
    }.get(kind, texts)
    source = iter(texts[:8])

    def generate(model: GPT, tokenizer: Tokenizer, prompts: list[str], **_: object) -> list[Sample]:
        return [Sample(prompt, next(source), 150, 0.0, ended=False, seed=1) for prompt in prompts]

    monkeypatch.setattr("slm.report.samples.generate", generate)
    settings = {"prompts": ("",), "temperatures": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)}
    settings |= {"max_new_tokens": 150}
    page = Page(made.with_report(**settings).write().path / "index.html")
    assert sentence in page.text
    marked = len(page.all("mark"))  # hardly one held-out text in twenty is
    assert marked > 8 if kind == "recited" else marked <= 2


def test_an_earlier_checkpoint_is_shown_with_its_own_figures(made: Made) -> None:
    """The best step was evaluated; training continued after it, and got worse."""
    run = made.run
    later = {"event": "evaluate", "step": 8, "time": 0.0, "val_loss": 2.0}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(later) + "\n")
    ended = run.model_copy(update={"step": 8, "tokens": 1024, "train_loss": 0.1, "last": "x"})
    page = Page(replace(made, run=ended).write().path / "index.html")
    for words in ("rose by 100 % from step 6 to step 8", "768", "tokens, in 6 of 8 steps"):
        assert words in page.text
    assert "overfits" not in page.text
    assert "1,024 tokens, with" not in page.text


# ---- what is missing --------------------------------------------------------------------------


def test_a_report_without_the_shards_says_so(made: Made) -> None:
    root = made.run.path.parents[1]
    shutil.rmtree(root / "shards")
    shutil.rmtree(root / "sources")
    report = replace(made, shards=None).write()
    page = Page(report.path / "index.html")
    assert "no longer on this machine" in page.text
    assert "Quality of the samples" not in page.text


def test_a_report_without_prompts_has_no_samples(made: Made) -> None:
    report = made.with_report(prompts=()).write()
    assert json.loads((report.path / "samples.json").read_text("utf-8")) == []


# ---- other runs -----------------------------------------------------------------------------


def test_it_is_compared_with_the_champion_and_the_previous_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = copy_run(tmp_path), copy_run(tmp_path, learning_rate=3e-3)
    times = {RunFolder(first): 1.0, RunFolder(second): 2.0}
    monkeypatch.setattr("slm.report.other_runs.started", lambda run: times[run])
    pages = []
    for path, champion in ((first, first), (second, None), (second, first)):
        short = made_of(path).with_report(prompts=("Once",), max_new_tokens=5)
        report = short.write(RunFolder(champion) if champion else None)
        pages.append(Page(report.path / "index.html").text)
        shutil.rmtree(report.path)
    assert "Compared with other runs" not in pages[0]
    assert f"The previous run: {first.name}" in pages[1]
    assert f"The champion: {first.name}" in pages[2]
    for page in pages[1:]:
        for words in ("This run is better", "train.learning_rate", "0.003", "0.0006"):
            assert words in page


def test_the_previous_run_is_of_the_same_recipe_and_readable(tmp_path: Path) -> None:
    def add(name: str, journal: str) -> Path:
        return add_run(tmp_path, name, journal)

    older = add(f"tinystories-{'a' * 12}", START % 10)
    add(f"tinystories-sample-{'b' * 12}", START % 20)
    add(f"tinystories-{'c' * 12}", "damaged\n")
    (add(f"tinystories-{'e' * 12}", START % 20) / "config.json").write_text("damaged")
    run = Run.model_construct(path=add(f"tinystories-{'d' * 12}", START % 30))
    assert previous_run(run, "tinystories") == RunFolder(older)


START = '{"event": "start", "time": %d}\n'


def add_run(root: Path, name: str, journal: str, **data: object) -> Path:
    """A finished run's folder, as far as it is looked at to find the previous run."""
    folder = storage.make_folder(root / "runs" / name)
    (folder / "record.json").write_text("{}")
    (folder / "metrics.jsonl").write_text(journal)
    settings = DataConfig(**({"source": "hub", "path": "a/b", "revision": "main"} | data))  # type: ignore[arg-type]
    config = PipelineConfig(recipe="tinystories", data=settings, train=TrainConfig(max_steps=1))
    RunFolder(folder).write_settings(Settings("k", config, "s", None))
    return folder


@pytest.mark.parametrize(
    ("data", "is_same"),
    [
        ({}, True),
        ({"revision": "v2", "vocab_size": 999}, True),  # the dataset has grown
        ({"path": "a/c"}, False),
        ({"source": "files", "path": "notes.txt"}, False),
        ({"text_column": "title"}, False),
    ],
)
def test_the_previous_run_is_on_the_same_dataset(
    tmp_path: Path, data: dict[str, object], is_same: bool
) -> None:
    first = add_run(tmp_path, f"tinystories-{'a' * 12}", START % 10, **data)
    run = Run.model_construct(path=add_run(tmp_path, f"tinystories-{'d' * 12}", START % 30))
    assert previous_run(run, "tinystories") == (RunFolder(first) if is_same else None)


# ---- the model card ---------------------------------------------------------------------------


def test_the_model_card_is_one_that_the_hub_reads(written: Made) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(written.run.path / "report" / "README.md")
    assert (card.data.license, card.data.language) == ("mit", "en")
    assert card.data.library_name == "transformers"
    (bits, _) = card.data.eval_results
    assert (bits.metric_type, bits.metric_value) == ("bits_per_byte", 0.9)
    assert "0.900 bits per byte" in card.text
    assert f"\n\n{usage('Once upon a time')}\n## Limits\n" in card.text


def test_no_page_names_the_folders_of_the_data(tmp_path: Path) -> None:
    path = copy_run(tmp_path)
    made = made_of(path).with_report(prompts=("Once",), max_new_tokens=5)
    data = Path(made.config.data.path)
    folder, name = str(data.parent), data.name
    registry = made.config.registry.model_copy(update={"tracking_uri": "http://tracking.internal"})
    config = made.config.model_copy(update={"registry": registry})
    shown = replace(made, config=config).write().path
    for page in ("README.md", "report.md", "index.html"):
        text = (shown / page).read_text("utf-8").replace("\\", "")
        assert name in text
        assert folder not in text
    card = (shown / "README.md").read_text("utf-8")
    assert f'data.path="{name}"' in card
    assert "tracking.internal" not in card


# ---- the twin ---------------------------------------------------------------------------------


def test_the_markdown_twin_has_the_same_figures(written: Made) -> None:
    run = written.run
    markdown = (run.path / "report" / "report.md").read_text("utf-8")
    assert markdown.startswith(f"# {run.name}, step 6\n")
    for words in ("0.900 bits per byte", "slm run tiny", "| layers | 1 |", run.key):
        assert words in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_markdown_is_escaped() -> None:
    assert escape_markdown("a*b_c\n<d> [e](f) | `g`") == r"a\*b\_c \<d\> \[e\](f) \| \`g\`"
    assert escape_markdown("www.evil.com WWW.x $a$") == r"www\.evil.com WWW\.x \$a\$"
    assert escape_markdown(" \n") == " "
    assert fenced("a ``` b ```` c") == "`````text\na ``` b ```` c\n`````"
