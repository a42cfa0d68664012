"""A mixture in a plan: each of its sources as that alone, then all of them joined, and mixed."""

from slm.planning.data import plan_download, plan_encode
from slm.planning.lines import Lines
from slm.planning.results import Changed
from slm.planning.stage import OWN, Stage, after
from slm.records import Shards, Source
from slm.source.mixture import joined_record, naming
from slm.tokens.mixture.identity import mix_key


def plan_sources(lines: Lines) -> Source | None:
    """Add the downloads of a mixture; returns its source as far as those of its parts are here."""
    config = lines.config
    parts: dict[str, Source] = {}
    for name in config.data.sources:
        own = Lines(
            config.of_source(name), lines.results,
            verify=lines.verify, against=lines.against, explain=lines.explain,
        )  # fmt: skip
        lines.of_sources[name] = own
        with naming(name):
            own.source = plan_download(own)
        _take(lines, own, name)
        if own.source:
            parts[name] = own.source
    candidates = lines.pinned(lines.results.sources)
    if len(parts) < len(config.data.sources):
        lines.make("download", None, candidates, reasons=["after the download of each source"])
        return None
    record = joined_record(config, parts)
    folder = lines.results.root.folder("sources", config.folder_name, record.key)
    source, damage = lines.complete(folder, Source, record.key)
    if source:
        lines.reuse("download", source, candidates)
        return source
    if (entry := lines.stored("source", record.key)) and (
        source := lines.pull("download", entry, folder, Source)
    ):
        return source
    reasons = [f"damaged: {damage}"] if damage else ["its sources are linked together"]
    lines.make("download", record.key, candidates, reasons=reasons, result=str(folder))
    return record.model_copy(update={"path": folder})


def plan_mix(lines: Lines) -> Shards | None:
    """Add the encoding of each source of a mixture, and the mix; returns what that would reuse."""
    config = lines.config
    keys: dict[str, str] = {}
    for name, own in lines.of_sources.items():
        own.start, own.start_known = lines.start, lines.start_known
        own.vocabulary, own.stages = lines.vocabulary, []
        if config.data.makes_vocabulary and lines.vocabulary is None and lines.start is None:
            upstream = OWN["download"](own.config)
            reasons = [after("tokenizer")]
            candidates = own.pinned(lines.results.shards)
            own.make("encode", None, candidates, upstream=upstream, reasons=reasons)
        else:
            own.shards = plan_encode(own, own.source)
        if key := own.stages[-1].key:
            keys[name] = key
        _take(lines, own, name)
    candidates = lines.pinned(lines.results.shards)
    upstream = OWN["download"](config)
    if len(keys) < len(lines.of_sources):
        lines.make("mix", None, candidates, upstream=upstream, reasons=[after("encode")])
        return None
    key = mix_key(config, keys)
    shards, folder, reasons = lines.complete_shards("mix", key, candidates)
    if shards:
        return shards
    source = lines.source.key if lines.source else None
    lines.make(
        "mix", key, candidates, upstream=upstream, inputs=source, reasons=reasons,
        result=str(folder),
    )  # fmt: skip
    return None


def _take(lines: Lines, own: Lines, name: str) -> None:
    """Add the stages of one source, whose settings are those of that source in the mixture."""
    for stage in own.stages:
        update = {"part": name, "changed": _in_mixture(stage, lines, name)}
        lines.stages.append(stage.model_copy(update=update))


def _in_mixture(stage: Stage, lines: Lines, name: str) -> Changed:
    """What changed in a source, by the dotted keys of the mixture."""
    begin = f"data.sources.{name}."
    moved = {
        key: f"{begin}{key.removeprefix('data.')}"
        for key in stage.changed
        if f"{begin}{key.removeprefix('data.')}" in lines.flat
    }
    return {moved.get(key, key): pair for key, pair in stage.changed.items()}
