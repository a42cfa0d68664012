"""A comparison as one HTML page that needs nothing else: no scripts, no addresses.

It has the look of a run's report. The horizontal axis of its charts is chosen by radio buttons,
which the stylesheet alone follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.comparison.charts import MAX_OWN_COLOURS, Charts, colours, standing
from slm.comparison.drawing import line_points
from slm.comparison.naming import (
    amount,
    brief_settings,
    settings_text,
    short_names,
    shown_value,
    signed,
)
from slm.comparison.reading import ReadRun
from slm.comparison.results import Comparison, Difference, Group, Ranking
from slm.errors import UserError
from slm.figures import counted
from slm.history.compare import written_samples
from slm.report.templates import environment, stylesheet
from slm.storage import make_folder, write_file

MAX_ROWS = 30  # of a ranking that are shown before they are unfolded
MAX_WRITERS = 6  # groups whose samples are shown
MAX_SAMPLES = 3  # prompts
VERDICTS = {"best": "the best", "tied": "not distinguishable from the best", "worse": "worse"}


def write_page(compared: Comparison, read: Sequence[ReadRun], path: Path) -> Path:
    """Write the page of a comparison. `read`: its runs, from which the samples come.

    Raises UserError where the file cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file, such as {path / 'comparison.html'}")
    make_folder(path.absolute().parent)
    write_file(path, render(compared, {run.name: run for run in read}))
    return path.resolve()


def render(compared: Comparison, read: Mapping[str, ReadRun]) -> bytes:
    """The page of a comparison."""
    from markupsafe import Markup

    folder = Path(__file__).parent
    templates = environment(folder)
    templates.filters |= {"signed": signed, "value": shown_value, "amount": amount}
    points = line_points(len(compared.runs))
    text = templates.get_template("comparison.html.j2").render(
        title=f"{counted(len(compared.runs), 'run')} compared",
        sentence=headline(compared),
        css=Markup(stylesheet(folder / "comparison.css") + _highlights(compared)),
        compared=compared,
        rankings=[_facts(i, each, compared, read) for i, each in enumerate(compared.rankings, 1)],
        settings_names=short_names(compared.settings),
        brief=brief_settings(compared),
        max_rows=MAX_ROWS,
        max_writers=MAX_WRITERS,
        points=points,
        thinned=any(len(run.curve) > points for run in compared.runs),
    )
    return text.encode("utf-8", "replace")


def headline(compared: Comparison) -> str:
    """The result in a sentence."""
    if not compared.rankings:
        return "No run is evaluated, so none is ranked"
    ranking, *apart = compared.rankings
    if apart:
        others = counted(sum(len(other.groups) for other in apart), "group")
        of_first = compared.model_copy(update={"rankings": [ranking]})
        return f"{headline(of_first)}; {others} scored on other held-out text"
    best = ranking.groups[0]
    name = settings_text(best.settings, brief_settings(compared)) or best.runs[0]
    if len(ranking.groups) == 1:
        return f"{name}: {best.val_bpb:.4f} bits per byte, {counted(len(best.seeds), 'seed')}"
    return f"{name} is the best: {best.val_bpb:.4f} bits per byte; {ranking.verdict.text()}"


# ---- a ranking --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A group in the table."""

    rank: int
    group: Group
    classes: str  # by which its lines are coloured
    verdict: str
    bar: tuple[float, float, float] | None  # low, middle and high of its difference, from 0 to 100


def _facts(
    number: int, ranking: Ranking, compared: Comparison, read: Mapping[str, ReadRun]
) -> dict[str, Any]:
    """Everything that the page shows of a ranking.

    Runs that are not ranked are drawn where they were trained on the shards of one that is.
    """
    ranked = [read[name] for group in ranking.groups for name in group.runs]
    shards = {run.inputs["shards"] for run in ranked}
    unranked = [r for r in compared.not_ranked if read[r.run].inputs.get("shards") in shards]
    charts = Charts(ranking, {run.run: run for run in compared.runs}, unranked)
    rows = _rows(ranking)
    return {
        "id": number,
        "ranking": ranking,
        "rows": rows,
        "tasks": list(dict.fromkeys(t for group in ranking.groups for t in group.benchmarks)),
        "axes": charts.axes,
        "curves": charts.curves,
        "panels": charts.panels(brief_settings(compared)),
        "own_colours": len(rows) <= MAX_OWN_COLOURS,
        "has_unranked": any(each.classes == "open" for each in charts.drawn),
        "samples": _samples(rows, read),
        "slices_differ": len({r.settings["train.evaluate_documents"] for r in ranked}) > 1,
    }


def _rows(ranking: Ranking) -> list[Row]:
    ends = [abs(end) for g in ranking.groups if g.to_best for end in g.to_best.ends]
    widest = sorted(ends)[int(0.9 * (len(ends) - 1))] if ends else 1.0
    return [
        Row(rank, group, classes, VERDICTS[standing(group)], _bar(group.to_best, widest))
        for rank, (group, classes) in enumerate(
            zip(ranking.groups, colours(ranking), strict=True), 1
        )
    ]


def _bar(difference: Difference | None, widest: float) -> tuple[float, float, float] | None:
    """An interval within a bar of which 25 is 0 and 100 the widest; what is beyond is cut off."""
    if difference is None:
        return None
    (start, stop), at = difference.ends, difference.difference
    ends = (start, at, stop)
    low, middle, high = (25 + 75 * max(-1 / 3, min(1.0, end / (widest or 1.0))) for end in ends)
    return low, middle, high


# ---- samples ----------------------------------------------------------------------------------


def _samples(rows: Sequence[Row], read: Mapping[str, ReadRun]) -> list[dict[str, Any]]:
    """What the best groups wrote after the same prompts with the same settings."""
    writers: list[tuple[Row, str, dict[tuple[str, float, int], str]]] = []
    for row in rows:
        texts = ((name, written_samples(read[name].folder)) for name in row.group.runs)
        if first := next(((name, each) for name, each in texts if each), None):
            writers.append((row, *first))
        if len(writers) == MAX_WRITERS:
            break
    if len(writers) < 2:
        return []
    shared = [key for key in writers[0][2] if any(key in texts for _, _, texts in writers[1:])]
    chosen = {}
    for prompt in dict.fromkeys(key[0] for key in shared):  # of each prompt the settings midway
        same = [key for key in shared if key[0] == prompt]
        chosen[prompt] = same[len(same) // 2]
    return [
        {
            "prompt": prompt,
            "temperature": key[1],
            "top_k": key[2],
            "texts": [(row, name, texts[key]) for row, name, texts in writers if key in texts],
        }
        for prompt, key in list(chosen.items())[:MAX_SAMPLES]
    ]


# ---- style ------------------------------------------------------------------------------------


def _highlights(compared: Comparison) -> str:
    """The rules by which a row that is pointed at, or focused, brings out its lines."""
    longest = max((len(ranking.groups) for ranking in compared.rankings), default=0)
    return "".join(
        f".rank:has(.t{i}:is(:hover,:focus-within)) .c.g{i}{{opacity:1;stroke-width:3px}}"
        for i in range(1, longest + 1)
    )
