"""Download and encode in a plan."""

from typing import Any

from slm.planning.inputs import SourceKey, file_changes, source_key
from slm.planning.lines import Lines
from slm.planning.results import Result
from slm.planning.stage import OWN, UNEXPLAINED, after
from slm.records import Shards, Source, Vocabulary
from slm.source.download import generator_version, hub_keys
from slm.tokens.encode import encode_key, units_folder
from slm.tokens.vocabulary import known_key


def plan_download(lines: Lines) -> Source | None:
    """Add the download; returns the source that it would reuse."""
    known = source_key(lines.config, lines.results, verify=lines.verify)
    candidates = lines.pinned(lines.results.sources)
    facts: dict[str, Any] = {"assumed": known.assumed}
    reasons = [known.note] if known.note else []
    damage = ""
    if known.key:
        folder = lines.results.root.folder("sources", lines.config.folder_name, known.key)
        source, damage = lines.complete(folder, Source, known.key)
        if source:
            lines.reuse("download", source, candidates, reasons=tuple(reasons), **facts)
            return source
        facts["result"] = str(folder)
    for key in _possible_keys(lines, known):
        if entry := lines.stored("source", key):
            folder = lines.results.root.folder("sources", lines.config.folder_name, key)
            if source := lines.pull("download", entry, folder, Source):
                return source
    if damage:
        reasons.append(f"damaged: {damage}")
    best = lines.make("download", known.key, candidates, reasons=reasons, **facts)
    if best and isinstance(best.record, Source):
        _explain_source(lines, best.record, known)
    return None


def _possible_keys(lines: Lines, known: SourceKey) -> list[str]:
    """The keys that a source can have: of a dataset of the hub that was not listed yet, both."""
    if known.key:
        return [known.key]
    return [*reversed(hub_keys(lines.config, known.commit))] if known.commit else []


def _explain_source(lines: Lines, old: Source, known: SourceKey) -> None:
    """Say of a new source what differs besides settings: files, a commit, the generator."""
    line = lines.stages.pop()
    changed, files = dict(line.changed), file_changes(old, known.origin)
    if lines.config.data.source == "files" and old.origin and not files:
        changed.pop("data.path", None)  # another path to the same files
    if lines.config.data.revision == old.revision:
        changed.pop("data.revision", None)  # the commit that a branch was resolved to
    reasons = [reason for reason in line.reasons if reason != UNEXPLAINED] + files
    today = generator_version()
    if lines.config.data.source == old.dataset == "stories" and old.revision != today:
        reasons.append(f"the generator of stories: {old.revision} → {today}")
    if known.commit and known.commit != old.revision and "data.revision" not in changed:
        reasons.append(f"commit {old.revision[:12]} → {known.commit[:12]}")
    if not (reasons or changed or line.version):
        reasons = [UNEXPLAINED]
    update = {"changed": changed, "reasons": tuple(reasons)}
    lines.stages.append(line.model_copy(update=update))


def plan_tokenizer(lines: Lines, source: Source | None) -> Vocabulary | None:
    """Add the vocabulary of `data.tokenizer`; returns the one that it would reuse."""
    candidates = lines.pinned(lines.results.vocabularies)
    settings = lines.config.data.tokenizer
    upstream = OWN["download"](lines.config) if not settings.path else ()
    if source is None and not settings.path:
        lines.make("tokenizer", None, candidates, upstream=upstream, reasons=[after("download")])
        return None
    key, note = known_key(lines.config, source, lines.results.root)
    if key is None:
        lines.make("tokenizer", None, candidates, reasons=[note])
        return None
    folder = lines.results.root.folder("tokenizers", lines.config.folder_name, key)
    vocabulary, damage = lines.complete(folder, Vocabulary, key)
    if vocabulary:
        reasons = (note,) if note else ()
        lines.reuse("tokenizer", vocabulary, candidates, assumed=bool(note), reasons=reasons)
        return vocabulary
    if (entry := lines.stored("tokenizer", key)) and (
        vocabulary := lines.pull("tokenizer", entry, folder, Vocabulary)
    ):
        return vocabulary
    lines.make(
        "tokenizer", key, candidates, upstream=upstream, result=str(folder),
        reasons=[f"damaged: {damage}"] if damage else [],
        inputs=source.key if source and not settings.path else None,
    )  # fmt: skip
    return None


def plan_encode(lines: Lines, source: Source | None) -> Shards | None:
    """Add the encoding of a source; returns the shards that it would reuse."""
    candidates = lines.pinned(lines.results.shards)
    upstream = OWN["download"](lines.config)
    if source is None:
        lines.make("encode", None, candidates, upstream=upstream, reasons=[after("download")])
        return None
    if lines.start is None and not lines.start_known:
        lines.make("encode", None, candidates, upstream=upstream, reasons=[after("init_from")])
        return None
    if lines.config.data.makes_vocabulary and lines.vocabulary is None:
        lines.make("encode", None, candidates, upstream=upstream, reasons=[after("tokenizer")])
        return None
    given = lines.start or lines.vocabulary
    key = encode_key(lines.config, source, given.tokenizer_sha256 if given else None)
    shards, folder, reasons = lines.complete_shards("encode", key, candidates)
    if shards:
        return shards
    facts: dict[str, Any] = {"result": str(folder)}
    if any(units_folder(folder).glob("*")):
        facts["action"] = "resumed"
        reasons.append("an interrupted encoding left the units that it had finished")
    best = lines.make(
        "encode", key, candidates,
        upstream=upstream, inputs=source.key, reasons=reasons, **facts,
    )  # fmt: skip
    if best and best.inputs != source.key:
        lines.add_reason(f"other documents: {source.name} instead of {_of(best)}")
    return None


def _of(result: Result) -> str:
    """The name of what a result was made from, as its folder's name shows it."""
    return f"{result.recipe}-{(result.inputs or '')[:12]}"
