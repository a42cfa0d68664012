"""What of a dataset is taken how; where that is doubtful it is asked, or a rule decides."""

import glob
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from slm.config import DataConfig
from slm.errors import UserError, excerpt, listing, unknown
from slm.figures import size
from slm.project.inputs import Input, hub_inputs, is_packed, local_inputs
from slm.project.survey import columns
from slm.source import hub
from slm.source.documents import format_of
from slm.source.files import find_files, list_files
from slm.source.formats.contents import recognise
from slm.source.splits import Layout, counted, examples, split_of, split_word
from slm.tokens.holdout import MIN_VAL_DOCUMENTS

HUB = "hub:"
END_OF_TEXT = "<|endoftext|>"
BETWEEN = {  # separators that are no part of any text
    END_OF_TEXT: f"{END_OF_TEXT} is between the documents",
    "\n%\n": "a line with % alone is between the documents, as in files of fortunes",
}
_SEARCHED = 1 << 20  # bytes of a text file in which separators are looked for
_PROBED = 4096  # bytes by which text is distinguished from other files
_OTHER_SHARE = 0.1  # of the bytes in files of another kind, from which it is asked which to take
MAX_CHOICES = 12  # of a question


@dataclass(frozen=True)
class Question:
    """What is doubtful, the answers that there are, and the one that the rule gives."""

    key: str  # the setting that it decides
    text: str
    choices: dict[str, str]  # answer → what it means
    default: str
    rule: str  # why that is the default


Ask = Callable[[Question], str]


def by_rule(question: Question) -> str:
    """Answer every question by its rule."""
    return question.default


@dataclass
class Dataset:
    """A dataset with its settings decided, and how they were."""

    data: DataConfig
    ask: Ask = by_rule
    commit: str = ""  # of the hub
    layout: Layout[Path] | Layout[hub.HubFile] | None = None
    splits: dict[str, list[Input]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    decided: list[tuple[Question, str]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)  # setting → why it has its value

    def put(self, question: Question) -> str:
        """The answer to a question, which is noted."""
        answer = self.ask(question)
        if answer not in question.choices:
            raise unknown("answer", answer, question.choices)
        self.decided.append((question, answer))
        return answer

    def set(self, why: str = "", **fields: object) -> None:
        """Change settings of `data`, all for one reason."""
        self.data = self.data.model_copy(update=fields)
        self.facts |= dict.fromkeys(fields, why)


def dataset(given: str, results: Path, ask: Ask = by_rule) -> Dataset:
    """The dataset of `--data`, looked at as far as its settings need it.

    Args:
        given: a file, a folder or a glob; or `hub:OWNER/NAME`, with `:CONFIGURATION` and
            `@REVISION` after it where they are needed.
        results: the data folder of the project, which is never part of its dataset.

    Raises UserError for what cannot be read, SlmError where the hub cannot be reached.
    """
    chosen = _on_hub(given, ask) if given.startswith(HUB) else _on_disk(given, results, ask)
    _decide_val(chosen)
    _decide_columns(chosen)
    _decide_separator(chosen)
    return chosen


# ---- local files ------------------------------------------------------------------------------


def _on_disk(given: str, results: Path, ask: Ask) -> Dataset:
    path = Path(given).expanduser().absolute()
    if not path.exists() and not glob.has_magic(given):
        like_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", given)
        remedy = f"; a dataset of the hub is hub:{given}" if like_hub else ""
        raise UserError(f"--data {given} does not exist: give a file, a folder or a glob{remedy}")
    chosen = Dataset(DataConfig(source="files", path=str(path)), ask)
    if path.is_file():
        if format_of(path) is None:
            _decide_format(chosen, path)
    else:
        _decide_kind(chosen, path, results)
    _, layout = find_files(chosen.data)
    chosen.layout = layout
    chosen.splits = {split: local_inputs(paths) for split, paths in layout.files.items()}
    return chosen


def _decide_format(chosen: Dataset, path: Path) -> None:
    """The format of a file whose name gives none: text, where its bytes are no other."""
    content = recognise(_head(path))
    if content and content.name not in ("parquet", "arrow"):
        raise UserError(f"--data {path} {content.describe(1)}: {content.remedy}")
    kinds = {
        name: f"read as {name}" for name in ("text", "jsonl", "csv", "tsv", "parquet", "arrow")
    }
    if content:
        default, rule = content.name, f"the file begins like {content.noun}"
    elif _head(path).lstrip()[:1] == b"{":
        default, rule = "jsonl", "the file begins with a JSON object"
    else:
        default, rule = "text", f"the name {path.name} gives no format, and its bytes are text"
    question = Question("data.format", f"In which format is {path.name}?", kinds, default, rule)
    chosen.set(rule, format=chosen.put(question))


@dataclass
class _Kind:
    """The files of one suffix in a folder."""

    suffix: str
    format: str | None  # None: not by the name, but they are text
    files: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        how = "" if self.format else ", read as text"
        return f"{counted(self.files)}, {size(self.bytes)}{how}"


def _decide_kind(chosen: Dataset, path: Path, results: Path) -> None:
    """Which files of a folder or glob are read, where they are of several kinds.

    Where the project's results are inside the folder, files directly in it are, by a glob.
    """
    inside = path.is_dir() and (results == path or path in results.parents)
    searched = DataConfig(source="files", path=str(path / "*") if inside else str(path))
    base, files, others = list_files(searched)
    kinds = _kinds(base, files, others)
    if inside and not kinds:
        raise UserError(
            f"--data {path}: no files directly in it, and {results} in it is where results go: "
            "give the folder that holds the documents, or point SLM_DATA at another folder"
        )
    if not kinds:
        return  # find_files reports it
    total = sum(kind.bytes for kind in kinds)
    readable = {kind.format for kind in kinds if kind.format}
    first = kinds[0]
    large = [kind for kind in kinds if kind.bytes >= _OTHER_SHARE * total]
    if first.format and len(readable) == 1 and len(large) == 1 and not inside:
        return
    if len(kinds) > 1 and (len(large) > 1 or len(readable) > 1):
        choices = {kind.suffix: str(kind) for kind in kinds[:MAX_CHOICES]}
        rule = "the files with the most bytes"
        question = Question("data.path", "Which files are read?", choices, first.suffix, rule)
        suffix = chosen.put(question)
        first = next(kind for kind in kinds if kind.suffix == suffix)
    if glob.has_magic(str(path)):
        if not first.format:
            chosen.set("the names give no format, and the bytes are text", format="text")
        return
    pattern = f"*{first.suffix}" if inside else f"**/*{first.suffix}"
    left_out = listing(f"{kind.suffix} ({kind})" for kind in kinds if kind is not first)
    where = ", those directly in the folder" if inside else ""
    why = f"{first}{where}; left out: {left_out}"
    chosen.set(why, path=str(Path(glob.escape(str(path))) / pattern))
    if not first.format:
        chosen.set(f"{first.suffix} is no format's suffix, and the bytes are text", format="text")


def _kinds(base: Path, files: Sequence[PurePath], others: Sequence[PurePath]) -> list[_Kind]:
    """What is in a folder by suffix, the most bytes first; of other formats what is text."""
    kinds: dict[str, _Kind] = {}
    for name in files:
        packed = is_packed(name)
        suffix = "".join(name.suffixes[-2:]) if packed else name.suffix
        kind = kinds.setdefault(suffix, _Kind(suffix, format_of(name)))
        kind.files += 1
        kind.bytes += (base / name).stat().st_size
    unread: dict[str, list[PurePath]] = defaultdict(list)
    for name in others:
        unread[name.suffix].append(name)
    for suffix, names in unread.items():
        if suffix and recognise(_head(base / names[0])) is None:
            sizes = [(base / name).stat().st_size for name in names]
            kinds[suffix] = _Kind(suffix, None, len(names), sum(sizes))
    return sorted(kinds.values(), key=lambda kind: (-kind.bytes, kind.suffix))


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_PROBED)


# ---- the hub ----------------------------------------------------------------------------------


def _on_hub(given: str, ask: Ask) -> Dataset:
    address, _, revision = given.removeprefix(HUB).partition("@")
    name, _, configuration = address.partition(":")
    if not name:
        raise UserError(f"--data {given}: write hub:OWNER/NAME, such as hub:roneneldan/TinyStories")
    data = DataConfig(
        source="hub", path=name, config_name=configuration or None, revision=revision or None
    )
    chosen = Dataset(data, ask)
    chosen.commit = commit = hub.resolve_commit(data)
    if not configuration:
        names = hub.configurations(data, commit)
        if len(names) > 1 and "default" not in names:
            chosen.set("asked", config_name=_ask_configuration(chosen, names))
    layout = hub.find_files(chosen.data, commit, check_columns=False)
    chosen.layout = layout
    chosen.splits = {
        split: hub_inputs(chosen.data, commit, files) for split, files in layout.files.items()
    }
    return chosen


def _ask_configuration(chosen: Dataset, names: list[str]) -> str:
    """One of several configurations. Raises UserError where nobody is asked: no rule is right."""
    if chosen.ask is by_rule:
        raise UserError(
            f"--data hub:{chosen.data.path} has several configurations: name one, such as "
            f"hub:{chosen.data.path}:{names[0]}; there are {listing(names)}"
        )
    choices = dict.fromkeys(names, "")
    return chosen.put(
        Question("data.config_name", "Which configuration?", choices, names[0], "the first")
    )


# ---- splits and columns -----------------------------------------------------------------------


def _decide_val(chosen: Dataset) -> None:
    """Which files are held out, where several words of names say so, or doubtfully."""
    if chosen.data.source != "files":
        return
    inputs = chosen.splits.get("val") or []
    words = _words(inputs)
    if len(words) > 1:
        choices = {"all": counted(len(inputs))} | words
        rule = "every file that is named like validation is held out"
        question = Question(
            "data.val_split", "Several splits are named like validation: which is held out?",
            choices, "all", rule,
        )  # fmt: skip
    elif not inputs and (words := _words(chosen.splits["train"])):
        choices = {"none": "part of train"} | words
        rule = "nothing is named like train, so that the words may be part of titles"
        question = Question("data.val_split", "Is this split held out?", choices, "none", rule)
    else:
        return
    if (answer := chosen.put(question)) not in ("all", "none"):
        chosen.set("chosen", val_split=answer)
        _, layout = find_files(chosen.data)
        chosen.layout = layout
        chosen.splits = {split: local_inputs(paths) for split, paths in layout.files.items()}


def _words(inputs: Sequence[Input]) -> dict[str, str]:
    """The words for validation in names of files or their folders → the files."""
    files: dict[str, list[str]] = defaultdict(list)
    for each in inputs:
        name = next((p for p in (each.path.name, each.path.parent.name) if split_of(p)), "")
        if name and split_of(name) == "val":
            files[str(split_word(name))].append(each.path.name)
    return {word: examples(names) for word, names in files.items()}


def _decide_columns(chosen: Dataset) -> None:
    """Which column is the text; where that is doubtful, one or all of them joined."""
    data = chosen.data
    present = columns(chosen.splits["train"], data)
    if present is None:
        return
    if not present.names:
        raise UserError(f"--data {excerpt(chosen.splits['train'][0].path)} has no rows")
    chosen.columns = present.names
    column, why, doubtful = present.choice()
    if column is None:
        raise UserError(
            f"--data: no column of {excerpt(chosen.splits['train'][0].path)} holds text; its "
            f"columns: {listing(present.names)}"
        )
    if doubtful:
        shown = dict(list(present.shares.items())[:MAX_CHOICES])
        choices = {name: present.describe(name) for name in shown}
        every = "all of them"
        plain = all("{" not in name and "}" not in name for name in shown)
        if plain:
            choices[every] = "joined by empty lines, in the order of the file"
        rule = f"the column with the most text, {why}"
        question = Question("data.text_column", "Which column is the text?", choices, column, rule)
        column, why = chosen.put(question), rule
        if column == every:
            ordered = sorted(shown, key=lambda name: _place(name, present.names))
            template = "\n\n".join("{" + name + "}" for name in ordered)
            chosen.set("all columns of text, joined", template=template)
            return
    chosen.set(why, text_column=column)


def _place(name: str, names: Sequence[str]) -> int:
    """Where the column of a path is in the file."""
    return next((i for i, column in enumerate(names) if name.startswith(column)), len(names))


def _decide_separator(chosen: Dataset) -> None:
    """Where text files are split: at a separator where they have it; of few it is asked.

    A file without empty lines may be a list, with a document in each line.
    """
    inputs = chosen.splits["train"]
    if format_of(inputs[0].path, chosen.data.format) != "text" or is_packed(inputs[0].path):
        return
    head = inputs[0].read(lambda stream: stream.read(_SEARCHED)).replace(b"\r\n", b"\n")
    for separator, why in BETWEEN.items():
        if head.count(separator.encode()) >= (1 if separator == END_OF_TEXT else MIN_VAL_DOCUMENTS):
            chosen.set(why, separator=separator)
            return
    answer, separator, end = "empty lines", "\n\n", "at an empty line"
    if b"\n\n" not in head.strip():
        answer, separator, end = "lines", "\n", "with its line"
    pieces = sum(1 for piece in head.split(separator.encode()) if piece.strip())
    if len(inputs) >= MIN_VAL_DOCUMENTS or pieces < MIN_VAL_DOCUMENTS:
        return
    choices = {
        "files": f"{counted(len(inputs), 'document')}, as one book or log is",
        answer: f"about {counted(pieces * inputs[0].size // max(1, len(head)), 'document')} "
        f"in {inputs[0].path.name}",
    }
    question = Question(
        "data.separator", "What is a document?", choices, "files",
        "each file is one document, which keeps long passages together",
    )  # fmt: skip
    if chosen.put(question) == answer:
        chosen.set(f"a document ends {end}", separator=separator)
