"""The figures that the pages of a report copy from the records, read back from the pages."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from slm.config import PipelineConfig
from slm.errors import CorruptionError
from slm.records import Checkpoint, Evaluation, Report, Run, Shards
from slm.report import cards
from slm.storage import read_record

METRIC = "metric "  # before the name of a metric at the head of a model card
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
_FENCED = re.compile(r"^(`{3,})\w*\n.*?^\1$", re.MULTILINE | re.DOTALL)


def read_pages(folder: Path) -> dict[str, str]:
    """The pages of a report that is whole, by their files; none of any other."""
    with suppress(CorruptionError):
        if report := read_record(folder, Report):
            names = (report.html, report.markdown, report.card)
            return {name: (folder / name).read_text("utf-8") for name in names}
    return {}


def copied_figures(
    config: PipelineConfig,
    run: Run,
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    shards: Shards | None,
) -> dict[str, list[str]]:
    """What the pages of a run must show: the name of a figure → its values, as they are written.

    The number of parameters, for example, is written in two ways.
    """
    pairs = [
        (each["name"], each["value"]) for each in cards.key_figures(run, checkpoint, evaluation)
    ]
    pairs += cards.evaluation_card(evaluation)
    if shards:
        pairs += cards.data_card(config, shards, None)
        pairs += cards.model_card(config, run, checkpoint, shards.vocab_size)
    pairs += [
        (f"{METRIC}bits_per_byte", repr(evaluation.val_bpb)),
        (f"{METRIC}loss", repr(evaluation.val_loss)),
    ]
    figures: dict[str, list[str]] = {}
    for name, value in pairs:
        figures.setdefault(name, []).append(value)
    return figures


def compare_page(
    text: str, expected: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, str]]:
    """The name of each figure of a page, its value, and what it must be.

    An older page that words a figure otherwise is not compared in it.
    """
    for name, value in (*page_figures(text), *_metrics(text)):
        alike = [each for each in expected.get(name, ()) if _words(each) == _words(value)]
        if alike:
            is_right = any(_rounds_to(value, each) for each in alike)
            yield name, value, value if is_right else alike[0]


def page_figures(text: str) -> list[tuple[str, str]]:
    """The names and values in the tables of a page, Markdown or HTML.

    | | |                 | loss | took |
    |---|---|       and   |---|---|         are ("tokens", "12"), ("loss", "2"), ("took", "3 s")
    | tokens | 12 |       | 2 | 3 s |
    """
    pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)\s*<small>", text)
    pairs += re.findall(r'<tr><th scope="row">([^<]*)</th><td>([^<]*)</td></tr>', text)
    figures = [(html.unescape(name), html.unescape(value)) for name, value in pairs]
    for table in re.findall(r"(?:^\|.*\n?)+", _FENCED.sub("", text), re.MULTILINE):
        head, *rows = [_cells(line) for line in table.splitlines()]
        rows = rows[1:]  # without the rule under the head
        if len(rows) == 1 and len(rows[0]) == len(head) and all(head):
            figures += zip(head, rows[0], strict=True)
        else:
            figures += [(row[0], row[1]) for row in rows if len(row) == 2]
    return figures


def _cells(line: str) -> list[str]:
    """The cells of a table's line in Markdown: `| a\\|b | 2 |` has "a|b" and "2"."""
    cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells]


def _metrics(text: str) -> list[tuple[str, str]]:
    """The metrics in the YAML at the head of a model card, with all their digits."""
    with suppress(yaml.YAMLError, LookupError, TypeError):
        results = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
        metrics = [metric for result in results for metric in result["metrics"]]
        return [(METRIC + metric["type"], repr(metric["value"])) for metric in metrics]
    return []


def _words(value: str) -> str:
    """A value without its numbers."""
    return _NUMBER.sub("#", value)


def _rounds_to(shown: str, expected: str) -> bool:
    """Whether two texts of the same words have the same numbers, to the digits that both show."""
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(expected), strict=True)
    return all(
        a == b or (_decimals(a) != _decimals(b) and abs(_number(a) - _number(b)) <= _half(a, b))
        for a, b in pairs
    )


def _half(a: str, b: str) -> float:
    """Half of the last digit that both show."""
    return 0.5001 * 10.0 ** -min(_decimals(a), _decimals(b))


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _number(text: str) -> float:
    return float(text.replace(",", ""))
