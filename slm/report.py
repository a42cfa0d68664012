"""The report of a run: one HTML file that needs nothing else, and its Markdown twin.

All text that comes from outside (prompts, samples, names, settings) reaches the page through
Jinja's escaping, and the page's policy allows no scripts and no addresses. The same inputs give
the same bytes: there is no clock in it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm import plots
from slm.checkpoint import load_model
from slm.config import LIMITS, PipelineConfig, ReportConfig, data_root, load_recipe
from slm.errors import SlmError
from slm.model import GPT
from slm.records import Checkpoint, Evaluation, Progress, Report, Run, Shards, Source, silent
from slm.sample import generate
from slm.storage import content_hash, read_record, run_stage, stage_key
from slm.tokenizer import Tokenizer

REPORT_VERSION = 1


def write_report(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    *,
    root: Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Samples from the checkpoint that was evaluated, and writes `<run>/report/`."""
    inputs = [run.key, run.weights_sha256, content_hash(evaluation)]
    key = stage_key("report", REPORT_VERSION, config.report.model_dump(mode="json"), inputs)

    def build(staging: Path) -> Report:
        report = Report(key=key, run=run.name)
        facts = _facts(config, run, evaluation, root or data_root(), progress)
        samples = [asdict(sample) for sample in facts.pop("samples")]
        (staging / report.html).write_text(render("report.html.j2", facts), "utf-8")
        (staging / report.markdown).write_text(render("report.md.j2", facts), "utf-8")
        text = json.dumps(samples, indent=1, ensure_ascii=False)
        (staging / "samples.json").write_text(text + "\n", "utf-8")
        return report

    return run_stage(run.path / "report", Report, key, build)


# ---- samples ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class GridSample:
    """A sample and where it stands in the grid."""

    prompt: str
    completion: str
    temperature: float
    top_k: int
    seed: int
    tokens: int
    ended: bool


def write_samples(
    model: GPT, tokenizer: Tokenizer, settings: ReportConfig, progress: Progress = silent
) -> list[GridSample]:
    """Every prompt at every temperature and top-k, each with a seed of its own."""
    cells = [(t, k) for t in settings.temperatures for k in settings.top_ks]
    samples = []
    for number, (temperature, top_k) in enumerate(cells):
        progress("sampling", number, len(cells))
        first = settings.seed + number * len(settings.prompts)
        seeds = range(first, first + len(settings.prompts))
        written = generate(
            model,
            tokenizer,
            settings.prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seeds,
        )
        samples += [
            GridSample(s.prompt, s.completion, temperature, top_k, seed, s.tokens, s.ended)
            for s, seed in zip(written, seeds, strict=True)
        ]
    return samples


# ---- facts ------------------------------------------------------------------------------------

Pairs = list[tuple[str, str]]


def _facts(
    config: PipelineConfig, run: Run, evaluation: Evaluation, root: Path, progress: Progress
) -> dict[str, Any]:
    """Everything that the two templates show."""
    folder = run.path / "checkpoints" / evaluation.checkpoint
    checkpoint = read_record(folder, Checkpoint, verify=False)
    shards = _find(root / "shards", config.recipe, run.shards_key, Shards)
    source = _find(root / "sources", config.recipe, shards.source_key, Source) if shards else None
    model, tokenizer = load_model(folder)
    samples = write_samples(model, tokenizer, config.report, progress)
    curves = plots.read_curves(run.path)
    return {
        "title": f"{run.name}, step {checkpoint.step:,}" if checkpoint else run.name,
        "verdict": {"sentence": _sentence(run, evaluation), "findings": []},
        "figures": _key_figures(run, evaluation),
        "samples": samples,
        "first": _shown(samples[len(samples) // 2]) if samples else None,
        "count": len(samples),
        "marked": False,
        "settings": config.report,
        "grid": [(p, [_shown(s) for s in samples if s.prompt == p]) for p in config.report.prompts],
        "quality": None,
        "plots": _training_plots(curves),
        "evaluation": _evaluation_pairs(evaluation),
        "evaluation_plots": _evaluation_plots(evaluation),
        "data": _data_pairs(config, shards, source),
        "data_plots": _data_plots(shards),
        "model": _model_pairs(config, run, model),
        "commands": _commands(config, run),
        "promise": _promise(run),
        "lineage": _lineage(config, run, evaluation, shards, source),
        "config": _settings(config),
    }


def _find(parent: Path, recipe: str, key: str, kind: Any) -> Any:
    """The record of an earlier stage, or None where its folder is gone."""
    return read_record(parent / f"{recipe}-{key[:12]}", kind, verify=False)


def _shown(sample: GridSample) -> dict[str, Any]:
    return {**asdict(sample), "parts": [{"text": sample.completion, "copied": False}]}


def _sentence(run: Run, evaluation: Evaluation) -> str:
    return (
        f"{run.parameters / 1e6:,.1f} million parameters, trained on "
        f"{run.tokens / 1e6:,.1f} million tokens: {evaluation.val_bpb:.3f} bits a byte."
    )


def _key_figures(run: Run, evaluation: Evaluation) -> list[dict[str, str]]:
    return [
        _figure("bits a byte", f"{evaluation.val_bpb:.3f}", _interval(evaluation)),
        _figure("loss", f"{evaluation.val_loss:.3f}", "nats a token, held-out"),
        _figure("parameters", _short(run.parameters), f"{run.parameters:,}"),
        _figure("trained on", f"{_short(run.tokens)} tokens", f"{run.step:,} steps"),
        _figure("took", _duration(run.seconds), f"{run.tok_per_sec:,.0f} tokens a second"),
    ]


def _figure(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _interval(evaluation: Evaluation) -> str:
    interval = evaluation.details.get("val_bpb_interval")
    return f"95 %: {interval[0]:.3f} to {interval[1]:.3f}" if interval else "of held-out text"


def _evaluation_pairs(evaluation: Evaluation) -> Pairs:
    known = [
        ("checkpoint", evaluation.checkpoint),
        ("held-out documents, each scored once", f"{evaluation.documents:,}"),
        ("tokens", f"{evaluation.tokens:,}"),
        ("UTF-8 bytes", f"{evaluation.bytes:,}"),
        ("loss, nats a token", f"{evaluation.val_loss:.4f}"),
        ("bits a UTF-8 byte", f"{evaluation.val_bpb:.4f}"),
    ]
    if "val_bpb_interval" in evaluation.details:
        known.append(("its 95 % interval, documents resampled", _interval(evaluation)[6:]))
    return known


def _data_pairs(config: PipelineConfig, shards: Shards | None, source: Source | None) -> Pairs:
    pairs: Pairs = []
    if source:
        pairs += [("dataset", source.dataset), ("revision", source.revision)]
    else:
        pairs += [("dataset", config.data.path or config.data.source)]
    if shards is None:
        return [*pairs, ("shards", "are no longer on this machine")]
    for name, split in sorted(shards.splits.items()):
        pairs += [
            (f"{name} documents", f"{split.documents:,}"),
            (f"{name} tokens", f"{split.tokens:,}"),
            (f"{name} UTF-8 bytes", f"{split.bytes:,}"),
        ]
    pairs += [("vocabulary", f"{shards.vocab_size:,} tokens")]
    pairs += [(f"dropped: {why}", f"{n:,}") for why, n in sorted(shards.dropped.items())]
    return pairs


def _model_pairs(config: PipelineConfig, run: Run, model: GPT) -> Pairs:
    shape, train = config.model, config.train
    heads = f"{shape.n_head}"
    if shape.n_kv_head not in (None, shape.n_head):
        heads += f", keys and values {shape.n_kv_head}"
    return [
        ("architecture", shape.architecture),
        ("parameters", f"{run.parameters:,}"),
        ("of them, embedding", f"{model.embed.weight.numel():,}"),
        ("layers", f"{shape.n_layer}"),
        ("heads", heads),
        ("width", f"{shape.n_embd}"),
        ("context", f"{shape.seq_len} tokens"),
        ("optimizer", f"{train.optimizer}, {train.schedule} schedule"),
        ("tokens a step", f"{train.tokens_per_step:,}"),
        ("steps", f"{run.step:,}"),
        ("use", "research and teaching: it writes text like its data, and knows nothing else"),
    ]


# ---- plots ------------------------------------------------------------------------------------


def _training_plots(curves: plots.Curves) -> list[Any]:
    from markupsafe import Markup

    steps, evaluations = curves.steps, curves.evaluations
    if not steps:
        return []

    def column(name: str, rows: Sequence[Mapping[str, float]]) -> list[float]:
        return [row[name] for row in rows]

    drawn = []
    for axis in ("tokens", "seconds"):
        train = plots.Line("train", column(axis, steps), column("train_loss", steps))
        lines = [train]
        if evaluations:
            held_out = column(axis, evaluations), column("val_loss", evaluations)
            lines.append(plots.Line("held-out", *held_out, plots.SECOND, marked=True))
        alt = (
            f"Loss over {axis}: train from {train.ys[0]:.2f} to {train.ys[-1]:.2f} nats a token"
            + (f", held-out to {lines[1].ys[-1]:.2f}." if evaluations else ".")
        )
        drawn.append(plots.line_plot(f"loss-{axis}", alt, axis, "loss, nats a token", lines))
    speed = plots.Line("tokens a second", column("step", steps), column("tok_per_sec", steps))
    alt = f"Throughput: {_short(sum(speed.ys) / len(steps))} tokens a second on average."
    drawn.append(plots.line_plot("speed", alt, "step", "tokens a second", [speed]))
    rate = plots.Line("learning rate", column("step", steps), column("lr", steps))
    alt = f"Learning rate: at most {max(rate.ys):.2g}, at the end {rate.ys[-1]:.2g}."
    drawn.append(plots.line_plot("rate", alt, "step", "learning rate", [rate]))
    return [Markup(svg) for svg in drawn]  # our own: the letters in it are ours and escaped


def _evaluation_plots(evaluation: Evaluation) -> list[Any]:
    from markupsafe import Markup

    ranges = evaluation.details.get("by_position") or []
    if len(ranges) < 2:
        return []
    bars = {f"{a}" if a == b else f"{a}–{b}": nats for a, b, nats in ranges}
    alt = (
        f"Loss by place in the document: {ranges[0][2]:.2f} nats at the first token, "
        f"{ranges[-1][2]:.2f} from token {ranges[-1][0]} on."
    )
    title = "loss by place in the document, nats"
    return [Markup(plots.bar_plot("by-position", alt, "token", title, bars))]


def _data_plots(shards: Shards | None) -> list[Any]:
    from markupsafe import Markup

    if shards is None or not shards.length_histogram:
        return []
    bars = {name: float(count) for name, count in shards.length_histogram.items()}
    alt = f"Lengths of the {sum(shards.length_histogram.values()):,} documents, in tokens."
    return [Markup(plots.bar_plot("lengths", alt, "tokens, at most", "documents by length", bars))]


# ---- where it comes from ----------------------------------------------------------------------


def _commands(config: PipelineConfig, run: Run) -> list[str]:
    """The command that makes this run again, and those that use it."""
    import shlex

    changes = [f"--set {shlex.quote(f'{k}={v}')}" for k, v in _overrides(config)]
    return [
        " ".join(["slm run", config.recipe, *changes]),
        f"slm evaluate {run.name}",
        f"slm sample {run.name} --prompt {shlex.quote(config.report.prompts[0])}"
        if config.report.prompts
        else f"slm sample {run.name}",
    ]


def _overrides(config: PipelineConfig) -> list[tuple[str, str]]:
    """What the config has that its recipe, as `pipelines.yaml` has it now, has not."""
    ours = _leaves(config.model_dump(mode="json"))
    try:
        recipe = _leaves(load_recipe(config.recipe, _given(ours)).model_dump(mode="json"))
    except SlmError:  # the recipe has gone, or is another one: everything must be told
        recipe = {}
    given = {k: v for k, v in ours.items() if k != "recipe" and recipe.get(k) != v}
    return [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in sorted(given.items())]


def _given(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe may leave to the command line, so that it loads at all."""
    return {"data.path": leaves["data.path"]}


def _promise(run: Run) -> str:
    promises = {
        "C": "On a CPU of the same kind, with the same torch and as many threads, the weights "
        "come out bit for bit the same.",
        "D": "On a GPU of the same model with the same driver and torch, the weights come out bit "
        "for bit the same.",
        "E": "On as many GPUs of the same model, driver and torch, the weights come out bit for "
        "bit the same.",
    }
    shards = "The shards come out bit for bit the same on any machine."
    return f"{shards} {promises.get(run.level, '')}".strip()


def _lineage(
    config: PipelineConfig,
    run: Run,
    evaluation: Evaluation,
    shards: Shards | None,
    source: Source | None,
) -> list[dict[str, str]]:
    steps = []
    if source:
        steps.append(("source", f"{source.dataset} at {source.revision}", source.key))
    steps.append(("shards", "tokens of every document", run.shards_key))
    if shards:
        steps.append(("tokenizer", f"{shards.vocab_size:,} tokens", shards.tokenizer_sha256))
    code = run.environment.get("commit") or "not recorded"
    dirty = " and changes that are in no commit" if run.environment.get("dirty") else ""
    steps += [
        ("code", f"commit {code}{dirty}", str(run.environment.get("diff_sha256") or "")),
        ("run", run.name, run.key),
        ("weights", evaluation.checkpoint, evaluation.weights_sha256),
        ("evaluation", f"{evaluation.documents:,} documents", evaluation.key),
    ]
    return [{"name": name, "what": what, "sha256": sha256} for name, what, sha256 in steps]


def _settings(config: PipelineConfig) -> list[tuple[str, Pairs]]:
    """The whole config, a table a section; limits that are not set are left out."""
    sections = config.model_dump(mode="json")
    return [
        (name, _flat({k: v for k, v in section.items() if v is not None or k not in LIMITS}))
        for name, section in sections.items()
        if isinstance(section, dict)
    ]


def _leaves(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def _flat(section: Mapping[str, Any]) -> Pairs:
    """The leaves of a mapping as text, those that are tables or long lists left out."""
    return [
        (key, _text(value))
        for key, value in _leaves(section).items()
        if not (isinstance(value, list) and (len(value) > 12 or isinstance(value[:1], dict)))
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# ---- templates --------------------------------------------------------------------------------


def render(template: str, facts: Mapping[str, Any]) -> str:
    """A template beside this module, filled; HTML is escaped as it is filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
    )
    environment.filters |= {"md": escape_markdown, "fenced": fenced}
    css = Markup((folder / "report.css").read_text("utf-8"))
    return environment.get_template(template).render(**facts, css=css)


def escape_markdown(text: object) -> str:
    """Text as one line of Markdown in which nothing is markup, HTML included."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>#|~&:@])", r"\\\1", line) if line else " "


def fenced(text: str) -> str:
    """Text as a code block, whose fence is longer than any that the text has."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
