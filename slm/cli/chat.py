"""`slm chat`: a person begins a text, the model goes on, as often as they like."""

from collections.abc import Callable
from typing import Any, TextIO

from slm.errors import UserError, unknown
from slm.model.decode import Decoder
from slm.model.gpt import GPT
from slm.model.sample import generate
from slm.tokens.tokenizer.bpe import Tokenizer

HELP = """\
Begin a text and press Enter: the model goes on. An empty line lets it write on.
  /settings         show the settings      /set NAME VALUE   change one, such as /set top_k 20
  /help             this list
Ctrl-C stops a text, Ctrl-D ends. It continues texts like those it was trained on; it does not
answer. Each text by itself: nothing is remembered but what an empty line goes on with.
"""


class Chat:
    """Reads lines, writes what follows. Each text has the next seed, so none comes twice."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, settings: dict[str, Any], stream: TextIO
    ) -> None:
        self.decoder = Decoder(model)
        self.tokenizer = tokenizer
        self.settings = settings
        self.stream = stream
        self.text = ""  # the last one, beginning and all

    def run(self, read: Callable[[str], str]) -> None:
        """Takes lines from `read`, which is given what to show before each, until EOFError."""
        self.stream.write(HELP)
        while True:
            try:
                line = read("\n> ")
                self.answer(line)
            except EOFError:
                self.stream.write("\n")
                return
            except KeyboardInterrupt:
                self.stream.write("\n")
            except UserError as error:
                self.stream.write(f"{error}\n")

    def answer(self, line: str) -> None:
        """Does what a line says. Raises UserError for a command that is none."""
        if not line.startswith("/"):
            self.write(line or self._end())
            return
        command, *words = line[1:].split()[:3] or [""]
        if command == "help":
            self.stream.write(HELP)
        elif command == "settings":
            self._show_settings()
        elif command == "set" and len(words) == 2:
            self._set(*words)
        else:
            raise UserError(f"{line!r} is no command: /settings, /set NAME VALUE or /help")

    def write(self, prompt: str) -> None:
        """Writes a text, beginning and all, and remembers it, stopped or not."""
        self.text = prompt
        self.stream.write(prompt)

        def show(_: int, characters: str) -> None:
            self.text += characters
            self.stream.write(characters)
            self.stream.flush()

        try:
            generate(self.decoder, self.tokenizer, [prompt], on_text=show, **self.settings)
        finally:
            self.settings["seed"] += 1
            self.stream.write("\n")

    def _end(self) -> str:
        """The last text's end, of half a context at most, so that there is room to write on."""
        ids = self.tokenizer.encode(self.text)
        return self.tokenizer.decode(ids[-max(1, self.decoder.config.seq_len // 2) :])

    def _set(self, name: str, text: str) -> None:
        name = name.replace("-", "_")
        if name not in self.settings:
            raise unknown("setting", name, self.settings)
        value = _number(name, text)
        changed = {**self.settings, name: value}
        generate(self.decoder, self.tokenizer, [], **changed)  # refuses what means nothing
        self.settings = changed
        self._show_settings()

    def _show_settings(self) -> None:
        told = [f"{name} {'none' if v is None else v}" for name, v in self.settings.items()]
        self.stream.write(" · ".join(told) + "\n")


def _number(name: str, text: str) -> float | int | None:
    """The value that a setting is given. Raises UserError for what is none."""
    optional = name in ("top_k", "top_p", "min_p")
    if text == "none" and optional:
        return None
    kind = int if name in ("seed", "max_new_tokens", "top_k") else float
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{name}={text}: give {what}{' or none' * optional}") from error
