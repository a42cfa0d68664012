"""Functions of one's own that drop or change documents: `data.clean.filter` and `data.clean.map`.

    # my_filters.py
    def keep(text: str, columns: dict[str, Any]) -> bool:
        return columns["lang"] == "en" and "http" not in text

    # pipelines.yaml
    data: {columns: [lang], clean: {filter: my_filters.py:keep}}

A function of one parameter is called with the text alone.

The bytes of the file are in the key of the shards. They are code, so that only a file which the
user's own `pipelines.yaml` names is ever run: a config that came with a pulled run, in the request
of a deployment or from the command line may name one only if it is the same, byte for byte.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

from slm.config import PIPELINES, CleanConfig, project_root
from slm.errors import SlmError, UserError, excerpt, listing
from slm.recipes import read_pipelines

KINDS = ("map", "filter")  # in the order in which they are applied
CHECKED = 8  # documents of a unit for which a function is called twice
MAX_FILE_BYTES = 1 << 20  # of a file: workers get it with each unit
MAX_SHOWN = 60  # characters of a document in a message

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Function:
    """A function and the file that it is in."""

    kind: str  # map or filter
    path: str
    name: str
    source: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    def __str__(self) -> str:
        return f"data.clean.{self.kind}={Path(self.path).name}:{self.name}"


Functions = tuple[Function, ...]


def functions_of(settings: CleanConfig) -> Functions:
    """The functions that settings name, whose files are read and not run. Raises UserError."""
    given = {kind: getattr(settings, kind) for kind in KINDS}
    return tuple(_read(kind, text) for kind, text in given.items() if text is not None)


def _read(kind: str, text: str) -> Function:
    """The function that a text names: of a run from another machine, whose path is none here, the
    user's own of the same file name. The key of the shards shows whether it is the same one.
    """
    path, _, name = text.rpartition(":")
    try:
        source = Path(path).expanduser().read_bytes()
    except OSError as error:
        for own in _own():
            if (Path(own.path).name, own.name) == (Path(path).name, name):
                return replace(own, kind=kind)
        raise UserError(
            f"data.clean.{kind}={text}: the file cannot be read ({error.strerror}); in a recipe it "
            "is relative to the folder of its pipelines.yaml"
        ) from error
    if len(source) > MAX_FILE_BYTES:
        raise UserError(
            f"data.clean.{kind}={text}: the file has more than {MAX_FILE_BYTES:,} bytes"
        )
    return Function(kind, path, name, source)


def key_fields(functions: Functions) -> dict[str, Any]:
    """What the key of shards has of the functions that made them."""
    return {each.kind: {"function": each.name, "sha256": each.sha256} for each in functions}


def check_functions(functions: Functions, columns: Sequence[str]) -> None:
    """Raises UserError where the user's own `pipelines.yaml` names no such file, it has no such
    function, or that takes something else than a text and, where there are any, its columns.

    `columns`: those of `data.columns`.
    """
    own = {(each.sha256, each.name) for each in _own()} if functions else set()
    for each in functions:
        if (each.sha256, each.name) not in own:
            raise UserError(
                f"{each}: {each.path} is not run, since a file that pipelines.yaml does not name "
                f"may be anybody's code; read it, and write `data: {{clean: {{{each.kind}: "
                f"{Path(each.path).name}:{each.name}}}}}` into a recipe of "
                f"{project_root() / PIPELINES}, with the file next to it"
            )
        if takes_columns(each, columns) and not columns:
            raise UserError(
                f"{each} takes the text and its columns, and data.columns names none: name those "
                "that it needs, such as data.columns=[lang]"
            )


def takes_columns(function: Function, columns: Sequence[str]) -> bool:
    """Whether a function is called with a document's columns too, next to its text.

    It has two parameters without a default; or, where columns are kept, its second is `columns`.

    Raises UserError where the file cannot be run, or the function takes neither.
    """
    try:
        parameters = list(inspect.signature(load(function)).parameters.values())
    except ValueError:  # of some that are not written in Python
        return False
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in _ANY_NUMBER]
    takes_text = positional or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if not takes_text or len(needed) > 2 or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise UserError(
            f"{function} takes {_parameters(p.name for p in needed)}: give it one for the text, or "
            f"two for the text and its columns: `def {function.name}(text, columns)`"
        )
    named = len(positional) > 1 and positional[1].name == "columns"
    return len(needed) == 2 or (named and bool(columns))


def _parameters(names: Iterable[str]) -> str:
    every = list(names)
    if not every:
        return "no parameter for the text"
    return f"the parameters {listing(every)}"


def _own() -> Iterator[Function]:
    """The functions that the user's own `pipelines.yaml` names, as far as their files are there."""
    file = project_root() / PIPELINES
    if not file.is_file():
        return
    for recipe in read_pipelines(file)["recipes"].values():
        sources = _at(recipe, "data", "sources")
        texts = [_at(recipe, "data"), *(sources.values() if isinstance(sources, Mapping) else ())]
        for kind, data in product(KINDS, texts):
            text = _at(data, "clean", kind)
            if isinstance(text, str):
                path, _, name = text.rpartition(":")
                place = file.parent / Path(path).expanduser()
                with suppress(OSError):
                    yield Function(kind, str(place), name, place.read_bytes())


def _at(value: Any, *path: str) -> Any:
    """What is in nested mappings; None where it is not."""
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


@lru_cache(8)
def load(function: Function) -> Callable[..., Any]:
    """Run the file, and return the function. Raises UserError where that fails."""
    module = ModuleType(f"slm_functions_{function.sha256}")
    module.__file__ = function.path
    sys.modules[module.__name__] = module  # where a dataclass of the file looks for itself
    try:
        exec(compile(function.source, function.path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{function}: {function.path} fails: {type(error).__name__}: {excerpt(str(error))}"
        ) from error
    loaded = getattr(module, function.name, None)
    if not callable(loaded):
        raise UserError(f"{function}: {function.path} has no function {function.name!r}")
    called: Callable[..., Any] = loaded
    return called


class Applied:
    """The functions, applied to the documents of a unit in order; their results are checked.

    `columns`: the names of those that are kept next to each document.
    """

    def __init__(self, functions: Functions, columns: Sequence[str] = ()) -> None:
        self._functions = {each.kind: each for each in functions}
        self._with_columns = {each.kind for each in functions if takes_columns(each, columns)}
        self._count = 0

    @property
    def takes_columns(self) -> bool:
        """Whether any of them is called with a document's columns."""
        return bool(self._with_columns)

    def __call__(
        self, text: str, where: Callable[[], str], columns: str | None = None
    ) -> str | None:
        """The text as `map` makes it; None where it is dropped by `map` or by `filter`.

        Args:
            where: names the document, for a message.
            columns: of the document, as JSON.

        Raises UserError where a function fails, returns something else, or does not return the
        same again.
        """
        self._count += 1
        mapped: str | None = text
        if "map" in self._functions:
            mapped = self._call("map", text, where, columns)
        if mapped is None:
            return None
        if "filter" in self._functions and not self._call("filter", mapped, where, columns):
            return None
        return mapped

    def _call(self, kind: str, text: str, where: Callable[[], str], columns: str | None) -> Any:
        function = self._functions[kind]
        loaded = load(function)
        kept = columns if kind in self._with_columns else None

        def call() -> Any:  # each time with values of its own, which it may change
            return loaded(text) if kept is None else loaded(text, json.loads(kept))

        try:
            result = call()
            again = call() if self._count <= CHECKED else result
        except SlmError:
            raise
        except (Exception, SystemExit) as error:
            given = f" (columns: {excerpt(kept)})" if kept is not None else ""
            raise UserError(
                f"{function} raises {type(error).__name__}: {excerpt(str(error))}, for "
                f"{_named(where, text)}{given}"
            ) from error
        _check(function, result, where, text)
        if again != result:
            raise UserError(
                f"{function} does not return the same again for {_named(where, text)}: it must "
                "depend on the text and its columns alone, or the same shards could not be rebuilt"
            )
        return result


def _check(function: Function, result: Any, where: Callable[[], str], text: str) -> None:
    """Raises UserError unless a function has returned what it may."""
    if function.kind == "filter":
        right, expected = isinstance(result, bool), "True or False"
    else:
        right, expected = result is None or isinstance(result, str), "a str, or None to drop it"
    if not right:
        raise UserError(
            f"{function} returns a {type(result).__name__}, not {expected}, for "
            f"{_named(where, text)}"
        )
    if isinstance(result, str):
        try:
            result.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{function} returns text that has no UTF-8 form ({error.reason}), for "
                f"{_named(where, text)}"
            ) from error


def _named(where: Callable[[], str], text: str) -> str:
    return f"{where()}, {excerpt(ascii(text)[1:-1], MAX_SHOWN)!r}"
