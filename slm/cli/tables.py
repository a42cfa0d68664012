"""What the commands print: tables, trees, two runs side by side."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from slm.config import PipelineConfig
from slm.figures import count, date, duration, size
from slm.recipes import Setting, describe
from slm.size import DIALS

if TYPE_CHECKING:
    from slm.history.compare import PairComparison
    from slm.history.lineage import Lineage, Link
    from slm.history.runs import RunFacts
    from slm.orchestration.health import Health
    from slm.planning.plan import ModelSize
    from slm.reproduction.comparing import Compared
    from slm.training.forecast import Forecast
    from slm.training.needs import Needs

STYLES = {
    "unchanged": "green",
    "changed": "bold red",
    "gone": "bold red",
    "not checked": "dim",
}
MAX_SAMPLES = 3  # pairs that are shown
MAX_DIFFERENCES = 20  # rows of a table of what differs from the rebuilt run
MIN_WIDTH_OF_RUNS = 110  # characters, for all columns of the list of runs
MIN_WIDTH_OF_DATES = 56  # below it the list has names and bits per byte
MAX_VALUE = 40  # characters of one of their values
# Columns that are never broken over lines.
WHOLE = (
    "name",
    "state",
    "aliases",
    "decision",
    "val_bpb",
    "in training",
    "started",
    "step",
    "seconds",
)


# ---- values -----------------------------------------------------------------------------------


def cell(value: Any) -> Text:
    """A value for a person: thousands in groups, four decimals, a dash for what is not known."""
    if value in (None, "", [], ()):
        return Text("–")
    if isinstance(value, list | tuple):
        return Text(", ".join(map(str, value)))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Text(str(value))
    return Text(f"{value:,}" if isinstance(value, int) else f"{value:,.4f}")


def accuracies(benchmarks: Mapping[str, float]) -> str:
    """The accuracy of each task, such as `blimp 61.2 %`."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in benchmarks.items())


def pairs(values: Mapping[str, Any]) -> Table:
    """Names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(Text(name), cell(value))
    return table


def listing(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table with a header; columns of numbers are aligned to the right."""
    filled = list(rows)
    table = Table(box=None, pad_edge=False)
    for column, name in enumerate(names):
        numeric = any(isinstance(row[column], int | float) for row in filled)
        justify: Literal["right", "left"] = "right" if numeric else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in WHOLE)
    for row in filled:
        table.add_row(*map(cell, row))
    return table


def sources(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """How well a model predicts the held-out documents of each source of a mixture."""
    names = ("source", "val_bpb", "95 %", "val_loss", "documents", "tokens", "bytes")
    return listing(
        names,
        [
            (name, f["val_bpb"], ends(f["low"], f["high"]), *(f[column] for column in names[3:]))
            for name, f in figures.items()
        ],
    )


def ends(low: float | None, high: float | None) -> str | None:
    """An interval; None where there is none, such as of too few documents."""
    return None if low is None or high is None else f"{low:.4f} to {high:.4f}"


# ---- recipes and shards -----------------------------------------------------------------------


def recipes(by_name: Mapping[str, Any]) -> Table:
    """The recipes of `pipelines.yaml`, each with its description, else what it states."""
    rows = [(name, describe(name, recipe) or _stated(recipe)) for name, recipe in by_name.items()]
    return listing(("name", "description"), rows)


def _stated(recipe: Any) -> str:
    """The settings of a recipe without a description, by their names alone."""
    sections = (recipe or {}).items()
    keys = [key for _, section in sections if isinstance(section, dict) for key in section]
    return f"sets {', '.join(map(str, keys))}"


def stated(config: PipelineConfig) -> Table:
    """The settings in force that a recipe and `--set` state; all others have their defaults."""
    lines = {"recipe": config.recipe}
    given = config.model_dump(mode="json", exclude_unset=True)
    lines |= {name: f"{given[name]}, with what is derived" for name in DIALS if given.get(name)}
    for name, section in given.items():
        if isinstance(section, dict):
            lines[name] = "  ".join(f"{key}={value}" for key, value in section.items())
    return pairs(lines)


def parameters(model: "Needs | ModelSize") -> str:
    """A model's parameters; those inside the blocks, which `size` counts, and the vocabulary's."""
    return (
        f"{count(model.parameters)} ({model.parameters:,}): {count(model.non_embedding)} inside "
        f"the blocks, {count(model.vocabulary)} of the vocabulary"
    )


def compute(model: "Needs | ModelSize") -> str:
    """A model's FLOPs in training; those of the output layer apart."""
    whole, vocabulary = model.flops_per_token, model.vocabulary_flops_per_token
    return (
        f"{count(whole, 'FLOP')} per token: {count(whole - vocabulary, 'FLOP')} inside the blocks, "
        f"{count(vocabulary, 'FLOP')} of the vocabulary"
    )


def needs(measured: "Needs") -> Table:
    """What a model is, by its shape alone."""
    lines = {
        "parameters": parameters(measured),
        "compute": compute(measured),
        "state": f"{size(measured.state)} of weights, gradients and optimizer",
        "checkpoint": size(measured.checkpoint),
    }
    return pairs(lines)


def forecast(cost: "Forecast", memory: int) -> Table:
    """What a training is estimated to take; `memory`: bytes of this machine."""
    lines = {
        "steps": f"{cost.max_steps:,}",
        "tokens": f"{count(cost.tokens)} ({cost.tokens:,})",
        "compute": count(cost.flops, "FLOP"),
        "speed": f"{cost.tok_per_sec:,.0f} tokens/s",
        "time": f"about {duration(cost.seconds)}",
        "memory": f"{size(cost.memory_bytes)} per process; this machine has {size(memory)}",
        "processes": f"{cost.processes}",
    }
    if cost.compile_seconds:
        lines["time"] += f", of which compiling takes {duration(cost.compile_seconds)}"
    return pairs(lines)


def settings(explained: Iterable[Setting]) -> RenderableType:
    """Settings with their defaults, types and texts."""
    parts: list[RenderableType] = []
    for setting in explained:
        head = Text.assemble(
            (setting.key, "bold"), f" = {setting.default}  ", (setting.kind, "dim")
        )
        parts += [head, Padding(Text(setting.text), (0, 0, 0, 4), expand=False)]
    return Group(*parts)


def shards(report: Mapping[str, Any]) -> RenderableType:
    """What `inspect` reports: counts, documents left out, lengths, frequent tokens."""
    splits = listing(
        ("split", "documents", "tokens", "bytes", "bytes per token", "files"),
        [
            (name, s["documents"], s["tokens"], s["bytes"], s["bytes"] / s["tokens"], s["files"])
            for name, s in report["splits"].items()
        ],
    )
    reasons = [(f"not read: {reason}", n) for reason, n in report.get("not_read", {}).items() if n]
    reasons += report["dropped"].items()
    for part, counts in report.get("excluded_between_sources", {}).items():
        reasons += [(f"{part}: {reason}", n) for reason, n in counts.items() if n]
    dropped = listing(("reason", "documents left out"), reasons)
    histogram = sorted(report["length_histogram"].items(), key=lambda entry: int(entry[0]))
    lengths = listing(("tokens, at most", "documents"), [(int(n), count) for n, count in histogram])
    frequent = [(repr(entry["token"]), entry["share"]) for entry in report["frequent"]]
    tokens = listing(("token", "share of the most frequent tokens"), frequent)
    return Group(*_spaced(pairs({"shards": report["shards"]}), splits, dropped, lengths, tokens))


def document(report: Mapping[str, Any]) -> RenderableType:
    """A document as text, and how it was cut into tokens."""
    shown = report["document"]
    pieces = " ".join(f"{i}:{t!r}" for i, t in zip(shown["ids"], shown["tokens"], strict=True))
    head = {"document": shown["number"], "split": shown["split"]}
    if shown["part"]:
        head["source"] = shown["part"]
    if shown["file"]:
        head["from"] = f"{shown['file']}, row {shown['row']:,}"
    if shown["columns"] is not None:
        head["columns"] = json.dumps(shown["columns"], ensure_ascii=False)
    return Group(*_spaced(pairs(head), Text(shown["text"]), Text(pieces)))


def _spaced(*parts: RenderableType) -> Iterable[RenderableType]:
    for part in parts:
        if not isinstance(part, Table) or part.row_count:
            yield part
            yield ""


def health(looked_at: "Health") -> Table:
    """What `slm doctor` looked at; what is not ok is marked."""
    styles = {"ok": "", "note": "yellow", "broken": "bold red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in looked_at.findings:
        mark = "" if finding.state == "ok" else f"{finding.state}: "
        table.add_row(Text(finding.name), Text(mark + finding.value, styles[finding.state]))
    return table


# ---- history ----------------------------------------------------------------------------------


def runs(facts: "Iterable[RunFacts]", width: int) -> Table:
    """Runs, a line each; the settings that differ by their names without the section.

    A line of few characters has bits per byte in one column, in brackets where they are only those
    of the slice that training scores.
    """
    narrow = width < MIN_WIDTH_OF_RUNS
    short = width < MIN_WIDTH_OF_DATES
    facts = list(facts)
    names = ("name", "state", "started", "step", "val_bpb", "in training", "benchmarks", "seconds",
             "sweep", "differs in")  # fmt: skip
    left_out = ["in training", "benchmarks", "seconds"] if narrow else []
    left_out += [] if any(f.benchmarks for f in facts) else ["benchmarks"]
    left_out += [] if any(f.sweep for f in facts) and not narrow else ["sweep"]
    left_out += ["state", "started", "step", "differs in"] if short else []
    rows = []
    for f in facts:
        in_training = f.slice_val_bpb and f"({f.slice_val_bpb:,.4f})"
        values = {
            "name": f.run,
            "state": f.state,
            "started": (date(f.started) or "")[5 if narrow else 0 :],
            "step": f.step,
            "val_bpb": in_training if narrow and f.val_bpb is None else f.val_bpb,
            "in training": f.slice_val_bpb,
            "benchmarks": accuracies(f.benchmarks),
            "seconds": f.seconds and round(f.seconds),
            "sweep": f.sweep,
            "differs in": " ".join(f"{k.rpartition('.')[2]}={v}" for k, v in f.differs.items()),
        }
        rows.append([value for name, value in values.items() if name not in left_out])
    return listing([name for name in names if name not in left_out], rows)


def lineage(chain: "Lineage") -> RenderableType:
    """The chain as trees: each result at its root, what it was made of below it, once."""
    links = {link.name: link for link in chain.links}
    drawn: set[str] = set()

    def grow(tree: Tree, link: "Link") -> None:
        for name in link.made_from:
            if name not in drawn:
                drawn.add(name)
                grow(tree.add(_link(links[name])), links[name])

    used = {name for link in chain.links for name in link.made_from}
    trees = []
    for link in chain.links:
        if link.name not in used:
            trees.append(Tree(_link(link), guide_style="dim"))
            grow(trees[-1], link)
    broken = [f"{link.name} {link.state}" for link in chain.broken]
    ending = Text(", ".join(broken), "bold red") if broken else Text("nothing is gone or changed")
    return Group(*trees, ending)


def _link(link: "Link") -> Text:
    text = Text.assemble((f"{link.name:<11} ", "bold"), link.value)
    if link.digest:
        text.append(f"  {link.digest[:12]}", "cyan")
    if link.files:
        text.append(f"  {len(link.files)} {'file' if len(link.files) == 1 else 'files'}", "dim")
    text.append(f"  {link.state}", STYLES[link.state])
    for note in link.notes:
        text.append(f"\n{note}", "red" if link.state in ("gone", "changed") else "dim")
    return text


def differences(rows: "Sequence[Compared]") -> RenderableType:
    """What was recorded and what was rebuilt, where they differ; hashes by their beginnings."""
    shown = [
        (row.name, *(value if len(value) <= MAX_VALUE else f"{value[:12]}…" for value in pair))
        for row in rows[:MAX_DIFFERENCES]
        for pair in [(row.recorded, row.rebuilt)]
    ]
    table = listing(("differs", "recorded", "rebuilt"), shown)
    more = len(rows) - len(shown)
    return Group(table, f"and {more:,} more: --json lists all of them") if more else table


def pair(compared: "PairComparison") -> RenderableType:
    """Two runs side by side."""
    by_setting = listing(
        ("setting", "A", "B"),
        [(name, *map(str, values)) for name, values in compared.config.items()],
    )
    figures = listing(
        ("metric", "A", "B"),
        [(name, *map(_figure, values)) for name, values in compared.figures.items()],
    )
    curves = listing(
        ("tokens", "val_bpb of A", "of B", "B - A"),
        [(tokens, a, b, b - a) for tokens, a, b in compared.at_equal_tokens],
    )
    if compared.interval:
        count = f"{compared.interval.documents:,} documents, paired bootstrap"
        result = f"{compared.interval.sentence}, B - A, 95 % interval over {count}"
    else:
        result = f"no interval: {compared.no_interval}"
    result += "".join(f"\nsource {name}: {i.sentence}" for name, i in compared.sources.items())
    result += "".join(f"\n{task.task}: {task.sentence}" for task in compared.benchmarks)
    result += "".join(f"\n{name}: {why}" for name, why in compared.not_compared.items())
    parts: list[RenderableType] = [Text(f"A  {compared.a}\nB  {compared.b}\n\n{result}"), ""]
    parts += [by_setting if compared.config else "the same settings", "", figures, ""]
    parts += [curves, ""] if compared.at_equal_tokens else []
    for pair in compared.samples[:MAX_SAMPLES]:
        title = Text(f"{pair.prompt} …  (temperature {pair.temperature:g}, top_k {pair.top_k})")
        texts = (Panel(Text(pair.a.lstrip()), title="A"), Panel(Text(pair.b.lstrip()), title="B"))
        parts += [title, Columns(texts, equal=True, expand=True), ""]
    return Group(*parts[:-1])


def _figure(value: float | None) -> float | int | None:
    """Counts, and figures so large that decimals mean nothing, as whole numbers."""
    if value is None:
        return None
    return round(value) if value >= 100 or float(value).is_integer() else value
