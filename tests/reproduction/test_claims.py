"""Claims: every single value that a record, the journal, a version or a report claims is compared.

Values are changed one at a time, as a forger would who renews all hashes: by the last bit where
the rebuilt run has the figure too, by more where it is of the clock.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_run import CLEAN, code, copy_run

from slm import storage
from slm.errors import Interrupted
from slm.evaluation.evaluate import evaluate
from slm.records import Evaluation, JournalEntry, Record, Run
from slm.registry.tags import Ingredients, chain_tags
from slm.report.write import write_report
from slm.reproduction.claims import (
    TAGS_NOT_REPEATED,
    Claims,
    compare_data,
    compare_results,
    compare_training,
)
from slm.reproduction.comparing import CLOCK, NOT_REPEATED, Comparisons
from slm.reproduction.pages import page_figures
from slm.reproduction.reproduce import Reproduction, reproduce
from slm.run_folder import RunFolder
from slm.source.download import download
from slm.tokens.encode import encode
from slm.training import launch
from slm.training.loop import train

UNREPEATED = {name for fields in NOT_REPEATED.values() for name in fields}
OF_THE_CLOCK = {"tok_per_sec", "seconds", "gflops"}
NOT_COMPARED = {"time", "memory_bytes", "processes"}  # of a journal: nothing else holds them


@pytest.fixture(autouse=True)
def clean_code() -> Iterator[None]:
    with code(CLEAN):
        yield


@dataclass(frozen=True)
class Pair:
    """What a run claims, and the same of the run rebuilt."""

    recorded: Claims
    rebuilt: Claims

    def differing(self, **changes: Any) -> list[str]:
        """The names of what differs once these claims are others."""
        recorded, compared = replace(self.recorded, **changes), Comparisons()
        compare_data(compared, recorded, self.rebuilt)
        compare_training(compared, recorded, self.rebuilt)
        compare_results(compared, recorded, self.rebuilt)
        return [row.name for row in compared.differing]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("claims")
    with code(CLEAN):
        run = RunFolder(copy_run(root))
        record, shards, own, config = run.record, run.shards, run.evaluation, run.config
        assert record is not None
        assert shards is not None
        assert own is not None
        short = config.report.model_copy(update={"prompts": ("Once",), "max_new_tokens": 5})
        fewer = config.evaluate.model_copy(update={"documents": 3})
        evaluate(config.model_copy(update={"evaluate": fewer}), record, shards)
        report = write_report(config.model_copy(update={"report": short}), record, own, shards)
        report.path.rename(run.path / "report")
        folder = Path(str(reproduce(run, keep=True).folder))
    again = RunFolder(next(folder.glob("runs/*")))
    checkpoint = run.best
    assert checkpoint is not None
    tags = chain_tags(Ingredients(config, run.source, shards, None, record, checkpoint, own, None))
    recorded, rebuilt = Claims.of(run, tags), Claims.of(again)
    assert set(recorded.evaluations) == set(rebuilt.evaluations)
    assert set(recorded.pages) == {"index.html", "report.md", "README.md"}
    assert recorded.source
    assert recorded.checkpoints
    return Pair(replace(recorded, journal=interrupted(recorded.journal)), rebuilt)


def interrupted(journal: tuple[JournalEntry, ...]) -> tuple[JournalEntry, ...]:
    """The journal as it would be had training been stopped after step 3 and resumed."""
    start, place = journal[0], next(i for i, e in enumerate(journal) if e.get("step") == 3) + 1
    stopped: list[JournalEntry] = [
        {"event": "checkpoint", "time": 0.0, "step": 3, "name": "step_000003"},
        {**start, "event": "resume", "step": 3},
    ]
    return (*journal[:place], *stopped, *journal[place:])


# ---- one value at a time ----------------------------------------------------------------------


def values(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in a tree of JSON, with its path."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, part in parts:
        if isinstance(part, dict | list):
            yield from values(part, (*path, key))
        else:
            yield (*path, key), part


def other(value: Any, *, by_much: bool = False) -> Any:
    """The nearest other value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value * 1.5 + 1 if by_much else math.nextafter(value, math.inf)
    return value + 1 if isinstance(value, int) else f"{value}x"


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The same tree with another value in one place."""
    copied = json.loads(json.dumps(tree))
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copied


def assert_all_are_named(
    record: Record, name: str, differing: Callable[[Record], list[str]]
) -> None:
    tree = record.model_dump(mode="json")
    count = 0
    for path, value in values(tree):
        if path[0] in UNREPEATED - OF_THE_CLOCK or value is None:
            continue
        forged = changed(tree, path, other(value, by_much=path[-1] in OF_THE_CLOCK))
        names = differing(type(record).model_validate({**forged, "path": record.path}))
        assert any(n.startswith(f"{name}.{'.'.join(map(str, path))}") for n in names), (path, names)
        count += 1
    assert count > 5


def test_without_a_change_all_is_the_same(pair: Pair) -> None:
    assert pair.differing() == []


@pytest.mark.parametrize("name", ["source", "shards", "run"])
def test_every_value_of_a_record_is_compared(pair: Pair, name: str) -> None:
    record = getattr(pair.recorded, name)
    assert_all_are_named(record, name, lambda forged: pair.differing(**{name: forged}))


def test_every_value_of_a_checkpoint_is_compared(pair: Pair) -> None:
    for name, record in pair.recorded.checkpoints.items():

        def differing(forged: Record, name: str = name) -> list[str]:
            return pair.differing(checkpoints={**pair.recorded.checkpoints, name: forged})

        assert_all_are_named(record, f"checkpoints/{name}", differing)


def test_every_value_of_an_evaluation_is_compared(pair: Pair) -> None:
    without_pages = Pair(replace(pair.recorded, pages={}), pair.rebuilt)
    for name, record in pair.recorded.evaluations.items():

        def differing(forged: Record, name: str = name) -> list[str]:
            others = pair.recorded.evaluations
            return without_pages.differing(evaluations={**others, name: forged})

        assert_all_are_named(record, name, differing)


@pytest.mark.parametrize("kind", ["source", "shards", "run"])
def test_the_size_of_every_file_is_compared(pair: Pair, kind: str) -> None:
    record = getattr(pair.recorded, kind)
    checked = 0
    for file, entry in record.files.items():
        if kind == "run" and (not file.startswith("checkpoints/") or file.endswith("record.json")):
            continue  # they hold the time; they are compared with the files themselves
        larger = entry.model_copy(update={"bytes": entry.bytes + 1})
        names = pair.differing(
            **{kind: record.model_copy(update={"files": {**record.files, file: larger}})}
        )
        assert f"{file}, bytes" in {name.removeprefix(f"{kind}/") for name in names}
        checked += 1
    assert checked


def test_every_column_of_the_journal_is_compared(pair: Pair) -> None:
    journal = pair.recorded.journal
    checked = set()
    for place, entry in enumerate(journal):
        for column, value in entry.items():
            if column == "event" or column in NOT_COMPARED or value is None:
                continue
            forged: Any = {**entry, column: other(value, by_much=column in CLOCK)}
            names = pair.differing(journal=(*journal[:place], forged, *journal[place + 1 :]))
            by = ("journal.step.gflops", "run.seconds") if column == "tok_per_sec" else ()
            label = f"journal.{entry['event']}.{column}"
            if label == "journal.checkpoint.step":
                by = ("journal.checkpoint.name",)
            assert any(name.startswith((label, *by)) for name in names), (entry, column, names)
            checked.add(label)
    assert {"journal.step.lr", "journal.evaluate.val_bpb", "journal.end.val_bpb"} <= checked
    assert {"journal.resume.step", "journal.start.parameters", "journal.checkpoint.name"} <= checked


def test_a_line_more_or_less_is_named(pair: Pair) -> None:
    journal = pair.recorded.journal
    for place, entry in enumerate(journal):
        without, twice = (*journal[:place], *journal[place + 1 :]), (*journal, entry)
        if entry["event"] not in ("resume", "checkpoint"):
            assert any(
                f"journal.{entry['event']}." in name for name in pair.differing(journal=without)
            )
        if entry["event"] != "resume":
            assert any(
                f"journal.{entry['event']}." in name for name in pair.differing(journal=twice)
            )


def test_a_share_of_the_peak_is_in_proportion_to_the_speed_of_its_process(pair: Pair) -> None:
    """The process that resumed may have had another GPU."""
    share, journal = 1e-9, []
    for entry in pair.recorded.journal:
        share *= 2 if entry["event"] == "resume" else 1
        line: Any = {name: value for name, value in entry.items() if name != "gflops"}
        if "tok_per_sec" in entry:
            line["mfu"] = share * entry["tok_per_sec"]
        journal.append(line)
    assert pair.differing(journal=tuple(journal)) == []
    place = next(i for i, entry in enumerate(journal) if entry.get("mfu"))
    journal[place]["mfu"] *= 1.01
    assert pair.differing(journal=tuple(journal)) == ["journal.step.mfu of step 1"]


def test_a_plan_is_held_to_the_config_and_to_the_checkpoints(pair: Pair) -> None:
    plan = pair.recorded.plan
    assert plan is not None
    tree = plan.model_dump(mode="json")
    for path, value in values(tree):
        options = get_args(type(plan).model_fields[path[0]].annotation)
        choices = [c for c in options if isinstance(c, str)]  # of a Literal
        forged_value = 3 if value is None else next((c for c in choices if c != value), None)
        forged_value = forged_value or other(value)
        forged = type(plan).model_validate(changed(tree, path, forged_value))
        names = pair.differing(plan=forged)
        assert any(name.startswith(("plan of step_", f"plan.{path[-1]}")) for name in names), path


def test_every_tag_of_a_version_is_compared(pair: Pair) -> None:
    tags = pair.recorded.tags
    for name in tags.keys() - TAGS_NOT_REPEATED:
        forged = "0.01" if name in ("val_bpb", "val_loss") else f"{tags[name]}x"
        assert f"tag.{name}" in pair.differing(tags={**tags, name: forged}), name
    assert {"val_bpb", "val_loss", "dataset", "checkpoint", "run"} <= tags.keys()


def test_every_figure_that_the_report_copies_is_compared(pair: Pair) -> None:
    for page, text in pair.recorded.pages.items():
        compared = Comparisons()
        compare_results(compared, pair.recorded, pair.rebuilt)
        names = [r for r in compared.rows if r.name.startswith(f"report/{page}: ")]
        assert len(names) > 15
        for row in names:
            shown = row.recorded
            digit = next(c for c in shown if c.isdigit()) if any(map(str.isdigit, shown)) else None
            if digit is None:
                continue
            figure = shown.replace(digit, str((int(digit) + 1) % 10), 1)
            forged = text
            for place in (">{}<", ">{} <", "| {} |", "value: {}\n"):
                before, after = (place.format(each) for each in (shown, figure))
                forged = forged.replace(before, after)
                forged = forged.replace(*(t.replace("_", "\\_") for t in (before, after)))
            assert forged != text, row
            pages = {**pair.recorded.pages, page: forged}
            assert row.name in pair.differing(pages=pages), row


def test_figures_are_read_from_tables_and_not_from_samples() -> None:
    page = "| | |\n|---|---|\n| to\\|kens | 12 |\n\n| loss | took |\n|---|---|\n| 2 | 3 s |\n"
    assert page_figures(page) == [("to|kens", "12"), ("loss", "2"), ("took", "3 s")]
    assert page_figures(f"````text\n{page}````\n") == []
    assert page_figures('<tr><th scope="row">a&amp;b</th><td>1</td></tr>') == [("a&b", "1")]


# ---- as a user sees it ------------------------------------------------------------------------


def forge(run: Path, folder: str, kind: type[Record], **fields: Any) -> None:
    """Write a record with other fields and its hash renewed, in the run's record as well."""
    record = storage.read_record(run / folder, kind, verify=False)
    assert record is not None
    storage.write_record(run / folder, record.model_copy(update=fields))


def test_false_figures_of_the_evaluation_are_named(tmp_path: Path) -> None:
    """The documents are counted anew, not as many as the record claims."""
    run = copy_run(tmp_path)
    evaluation = RunFolder(run).evaluation
    assert evaluation is not None
    forge(run, "evaluation", Evaluation, val_bpb=0.01, documents=evaluation.documents - 1)
    reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "diverged"
    assert names_of(reproduction) == ["evaluation.documents", "evaluation.val_bpb"]
    assert reproduction.first_difference is not None
    assert reproduction.first_difference.what == "evaluation.documents"
    counts = f"recorded {evaluation.documents - 1}, rebuilt {evaluation.documents}"
    assert f"diverged at evaluation.documents: {counts}" in reproduction.sentence
    assert "the weights are bit-identical, so the recorded figure is wrong" in reproduction.sentence


def names_of(reproduction: Reproduction) -> list[str]:
    return [row.name for row in reproduction.compared if not row.same]


def test_false_counts_of_the_data_are_named_and_the_training_is_compared(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    source = RunFolder(run).source
    assert source is not None
    held = source.splits["train"].model_copy(update={"documents": 79})
    storage.write_record(
        source.path, source.model_copy(update={"splits": {**source.splits, "train": held}})
    )
    reproduction = reproduce(RunFolder(run))
    assert names_of(reproduction) == ["source.splits.train.documents"]
    assert "run.val_bpb" in {row.name for row in reproduction.compared}


def test_a_checkpoint_that_the_run_does_not_list_so_cannot(tmp_path: Path) -> None:
    """Its record was written anew, and the run's record has the hash of the one before."""
    run = copy_run(tmp_path)
    record = RunFolder(run).last
    assert record is not None
    storage.write_record(record.path, record.model_copy(update={"train_loss": 0.5}))
    reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "cannot"
    assert "step_000004/record.json: " in reproduction.sentence


def test_a_false_size_in_the_record_of_a_run_cannot(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    record = RunFolder(run).record
    assert record is not None
    journal = record.files["metrics.jsonl"]
    larger = journal.model_copy(update={"bytes": journal.bytes + 1})
    forge(run, ".", Run, files={**record.files, "metrics.jsonl": larger})
    reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "cannot"
    assert "metrics.jsonl: " in reproduction.sentence


def test_a_false_column_of_the_journal_is_named_with_its_step(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    record = RunFolder(run).record
    assert record is not None
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (entry,) = (e for e in lines if e["event"] == "step" and e["step"] == 2)
    entry["lr"] *= 2
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = storage.describe_files(run, [run / "metrics.jsonl"])
    forge(run, ".", Run, files={**record.files, **entries})
    reproduction = reproduce(RunFolder(run))
    assert reproduction.verdict == "diverged"
    assert reproduction.first_difference is not None
    assert (reproduction.first_difference.what, reproduction.first_difference.step) == ("lr", 2)
    assert reproduction.sentence.startswith(f"diverged at lr of step 2: recorded {entry['lr']}")


def test_a_run_that_was_interrupted_is_bit_identical(
    tmp_path: Path,
) -> None:
    """It has a line more for each interruption, and a checkpoint that no other run saves."""
    config = RunFolder(copy_run(tmp_path / "first")).config
    shards = encode(config, download(config, root=tmp_path), root=tmp_path)
    run = launch.prepare(config, shards, root=tmp_path)
    steps = iter((False, False, True))
    with pytest.raises(Interrupted):
        train(run, should_stop=lambda: next(steps))
    assert (run.path / "checkpoints" / "step_000003").is_dir()
    record = train(run)
    assert record is not None
    evaluate(config, record, shards)
    assert {"resume", "checkpoint"} <= {entry["event"] for entry in run.journal}
    reproduction = reproduce(run)
    assert reproduction.verdict == "bit-identical", reproduction.sentence
    assert {"journal.resume.step 3", "journal.checkpoint.name of step 3"} <= {
        row.name for row in reproduction.compared
    }


def test_a_damaged_spare_checkpoint_is_no_obstacle(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    shutil.copytree(run / "checkpoints" / "step_000004", run / "checkpoints" / "step_000003")
    (run / "checkpoints" / "step_000003" / "model.safetensors").write_bytes(b"damaged")
    assert reproduce(RunFolder(run)).verdict == "bit-identical"
