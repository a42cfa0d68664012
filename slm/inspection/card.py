"""A data card: what a dataset is, on one page that needs nothing else.

What is said of all documents comes from the records. Scripts are counted on held-out documents and
on a sample of train, at even distances; the page says of how many.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import UserError
from slm.figures import size
from slm.inspection.shards import open_shards
from slm.inspection.texts import Origins, PartText, origins_of, train_texts
from slm.records import Shards
from slm.report import plots, vocabulary
from slm.report.templates import environment, stylesheet
from slm.run_folder import DataRoot
from slm.storage import make_folder, read_made, write_file
from slm.tokens.exclusions import has_exclusions, read_excluded
from slm.tokens.shards.layout import Tokens
from slm.tokens.shards.reading import documents
from slm.tokens.tokenizer.bpe import TOKENIZER, Tokenizer

CARDS = "cards"  # the folder of the pages
MAX_VAL_DOCUMENTS = 2000
SAMPLE = 1000  # documents of each source of train
MAX_DOCUMENT_TOKENS = 2000  # of a document that is looked at
MAX_SCRIPTS = 12
MAX_EXAMPLES = 3  # of a reason
NOT_STATED = "not stated"


def data_card(
    shards: "str | Path | Shards", html: "str | Path | None" = None, root: Path | None = None
) -> Path:
    """Write the data card of shards as one HTML page; return the file.

    >>> slm.data_card("quickstart", "card.html")

    Args:
        shards: their folder or its name; a recipe's name, of which the newest are taken; a run.
        html: where to write it; None: under `data/cards/`.

    Raises UserError where there are no such shards, or the file cannot be written.
    """
    opened, data = open_shards(shards, root), DataRoot(root)
    path = Path(html) if html else data.path / CARDS / f"{opened.name}.html"
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file, such as {path / 'card.html'}")
    page = render(opened, data)
    make_folder(path.absolute().parent)
    write_file(path, page)
    return path.resolve()


def render(shards: Shards, root: DataRoot) -> bytes:
    """The page of some shards."""
    from markupsafe import Markup

    origins = origins_of(shards, root)
    tokenizer = Tokenizer.load(shards.path / TOKENIZER)
    scripts = script_shares(shards, tokenizer)
    text = (
        environment(Path(__file__).parent)
        .get_template("card.html.j2")
        .render(
            title=f"Data card of {shards.name}",
            css=Markup(stylesheet(Path(__file__).with_name("card.css"))),
            name=shards.name,
            headline=_headline(shards, scripts),
            figures=_figures(shards),
            splits=[
                (name, each.documents, each.tokens, each.bytes, each.bytes / max(1, each.tokens))
                for name, each in sorted(shards.splits.items())
            ],
            sources=[_source(shards, name, origin) for name, origin in origins.items()],
            scripts=scripts,
            cleaning=list(_cleaning(shards, origins)),
            settings=_settings(origins),
            unknown=[
                n or "" for n, o in origins.items() if not (o.shards and has_exclusions(o.shards))
            ],
            lengths=[Markup(plot) for plot in plots.data_plots(shards)],
            vocabulary=[("tokens", f"{shards.vocab_size:,}"), *vocabulary.facts(shards, tokenizer)],
        )
    )
    return text.encode("utf-8", "replace")


# ---- facts ------------------------------------------------------------------------------------


def _headline(shards: Shards, scripts: Mapping[str, Any]) -> str:
    train = shards.splits["train"]
    rows = scripts["rows"]
    first = f", {rows[0]['train']:.0%} {rows[0]['script']}" if rows else ""
    of = f" of {len(shards.parts)} sources" if shards.parts else ""
    return f"{train.documents:,} documents{of}, {size(train.bytes)} of text{first}"


def _figures(shards: Shards) -> list[tuple[str, str, str]]:
    train, val = shards.splits["train"], shards.splits["val"]
    left_out = sum(shards.dropped.values()) + sum(
        sum(part.excluded.values()) for part in shards.parts.values()
    )
    return [
        ("train", f"{train.documents:,}", "documents"),
        ("tokens of train", f"{train.tokens:,}", f"{train.bytes / train.tokens:.2f} bytes each"),
        ("held out", f"{val.documents:,}", f"documents, {val.tokens:,} tokens"),
        ("left out", f"{left_out:,}", "documents, by cleaning and as duplicates"),
        ("vocabulary", f"{shards.vocab_size:,}", "tokens"),
    ]


def _source(shards: Shards, name: str | None, origin: Origins) -> dict[str, Any]:
    part, source = shards.parts.get(name or ""), origin.source
    train = part.train if part else shards.splits["train"]
    val = part.val if part else shards.splits["val"]
    dataset = source.dataset if source else "no longer on this machine"
    if Path(dataset).is_absolute():  # a card is public, and folders are not
        dataset = Path(dataset).name
    return {
        "name": name or dataset,
        "dataset": dataset,
        "revision": source.revision if source else NOT_STATED,
        "license": (part and part.license) or NOT_STATED,
        "documents": train.documents,
        "tokens": train.tokens,
        "bytes": train.bytes,
        "share": train.tokens / shards.splits["train"].tokens,
        "val": val.documents,
        "splits": ", ".join(source.splits) if source else NOT_STATED,
    }


def _cleaning(shards: Shards, origins: Mapping[str | None, Origins]) -> Iterator[dict[str, Any]]:
    """Why documents are left out: the rows that were not read, cleaning, other sources."""
    for name, origin in origins.items():
        for reason, count in (origin.source.dropped if origin.source else {}).items():
            if count:
                yield {
                    "part": name,
                    "reason": f"not read: {reason}",
                    "documents": count,
                    "texts": [],
                }
        examples = _examples(origin)
        for reason, count in sorted((origin.shards.dropped if origin.shards else {}).items()):
            texts = examples.get(reason, [])
            yield {"part": name, "reason": reason, "documents": count, "texts": texts}
        part = shards.parts.get(name or "")
        for reason, count in sorted((part.excluded if part else {}).items()):
            if count:
                yield {"part": name, "reason": reason, "documents": count, "texts": []}


def _examples(origin: Origins) -> dict[str, list[str]]:
    """How the first documents of each reason begin."""
    examples: dict[str, list[str]] = {}
    if origin.shards is None or not has_exclusions(origin.shards):
        return examples
    missing = set(origin.shards.dropped)
    for each in read_excluded(origin.shards):
        shown = examples.setdefault(each.reason, [])
        shown.append(each.text.strip() or "(white space)")
        if len(shown) == min(MAX_EXAMPLES, origin.shards.dropped[each.reason]):
            missing.discard(each.reason)
        if not missing:
            break
    return {reason: texts[:MAX_EXAMPLES] for reason, texts in examples.items()}


def _settings(origins: Mapping[str | None, Origins]) -> list[tuple[str, str]]:
    """How the documents were cleaned, as far as it was recorded."""
    pairs = []
    for name, origin in origins.items():
        made = read_made(origin.shards.path) if origin.shards else None
        for key, value in (made.settings if made else {}).items():
            if key.startswith(("data.clean.", "data.val_fraction")) and value not in (None, False):
                pairs.append((f"{name}: {key}" if name else key, str(value)))
    return pairs


# ---- scripts ----------------------------------------------------------------------------------


def script_shares(shards: Shards, tokenizer: Tokenizer) -> dict[str, Any]:
    """Of each script its share of the bytes of val, and of a sample of each source of train.

    Returns `columns`: the name and the documents of each sample; `rows`, the most frequent first:
    `script`, `shares`, `train` (the share of train, to which each source adds by its bytes), and
    `rate`, the bytes per token over all samples.
    """
    weights = [part.train.bytes for part in shards.parts.values()] or [1]
    samples = {"val": list(islice(documents(shards, "val"), MAX_VAL_DOCUMENTS))}
    for text in train_texts(shards):
        samples[text.name or "train"] = sample_documents(text, shards.eot)
    sizes = {
        name: vocabulary.sizes_by_script((ids[:MAX_DOCUMENT_TOKENS] for ids in sample), tokenizer)
        for name, sample in samples.items()
    }
    totals = {name: max(1, sum(b for b, _ in each.values())) for name, each in sizes.items()}
    rows = list[dict[str, Any]]()
    for script in {script for each in sizes.values() for script in each}:
        counted = [each.get(script, [0, 0]) for each in sizes.values()]
        shares = [count[0] / total for count, total in zip(counted, totals.values(), strict=True)]
        read, tokens = (sum(count[i] for count in counted) for i in (0, 1))
        rate = read / tokens if tokens else None
        train = float(np.average(shares[1:], weights=weights))
        rows.append({"script": script, "shares": shares, "train": train, "rate": rate})
    rows.sort(key=lambda row: (-row["train"], row["script"]))
    of = {"val": shards.splits["val"].documents}
    of |= {name: part.train.documents for name, part in shards.parts.items()} or {
        "train": shards.splits["train"].documents
    }
    columns = [
        {"name": name, "documents": len(sample), "of": of[name], "bytes": totals[name]}
        for name, sample in samples.items()
    ]
    return {"columns": columns, "rows": rows[:MAX_SCRIPTS]}


def sample_documents(text: PartText, eot: int, count: int = SAMPLE) -> list[Tokens]:
    """Documents at even distances, or all where there are few; (T,) each, without end-of-text.

    Of each, at most `MAX_DOCUMENT_TOKENS` are read.
    """
    size, chosen = int(text.starts[-1]), dict[tuple[int, int], Tokens]()
    for place in np.unique(np.arange(count) * size // count).tolist():
        which = int(np.searchsorted(text.starts, place, "right")) - 1
        tokens = text.segments[which].tokens
        start = place - int(text.starts[which])
        ahead = np.flatnonzero(tokens[start : start + 50 * MAX_DOCUMENT_TOKENS] == eot)
        if len(ahead):
            begin = start + int(ahead[0]) + 1
            window = tokens[begin : begin + MAX_DOCUMENT_TOKENS]
            borders = np.flatnonzero(window == eot)
            chosen[which, begin] = window[: borders[0]] if len(borders) else window
    return list(chosen.values())
