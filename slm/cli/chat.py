"""`slm chat`: a person begins a text and the model continues it, as often as they like."""

from collections.abc import Callable
from typing import Any, TextIO

from slm.errors import UserError, check_utf8, unknown
from slm.model.decode import Decoder
from slm.model.sample import Sample, generate
from slm.tokens.tokenizer.bpe import Tokenizer

HELP = """\
Begin a text and press Enter: the model continues it. An empty line continues the last text.
  /settings         show the settings      /set NAME VALUE   change one, such as /set top_k 20
  /help             this list
Ctrl-C stops a text, Ctrl-D ends. The model continues texts like those it was trained on; it does
not answer questions. Every text starts afresh: only an empty line continues what is there.
"""


class Chat:
    """Reads lines and continues them. Each text has the next seed, so none comes twice.

    Args:
        on_sample: takes every text that was not stopped, once it is whole.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        settings: dict[str, Any],
        stream: TextIO,
        on_sample: Callable[[Sample], None] = lambda sample: None,
    ) -> None:
        self.on_sample = on_sample
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.settings = settings
        self.stream = stream
        self.text = ""  # the last one, its beginning included

    def run(self, read: Callable[[str], str]) -> None:
        """Take lines from `read`, which is passed the prompt to show, until EOFError."""
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
        """Carry out a line. Raises UserError for a command that does not exist, or no UTF-8."""
        check_utf8(line, "the line", "write it in UTF-8")
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
            raise UserError(f"unknown command {line!r}: /settings, /set NAME VALUE or /help")

    def write(self, prompt: str) -> None:
        """Write a text, its beginning included, and keep it, even if it is stopped."""
        self.text = prompt
        self.stream.write(prompt)

        def show(_: int, characters: str) -> None:
            self.text += characters
            self.stream.write(characters)
            self.stream.flush()

        try:
            (sample,) = generate(
                self.decoder, self.tokenizer, [prompt], on_text=show, **self.settings
            )
            self.on_sample(sample)
        finally:
            self.settings["seed"] += 1
            self.stream.write("\n")

    def _end(self) -> str:
        """The last text's end, of half a context at most, so that there is room to continue.

        A token may end inside a character: the end begins at the next whole one.
        """
        ids = self.tokenizer.encode(self.text)[-max(1, self.decoder.config.seq_len // 2) :]
        while ids and not self.text.endswith(self.tokenizer.decode(ids)):
            ids = ids[1:]
        return self.tokenizer.decode(ids)

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
        shown = [f"{name} {'none' if v is None else v}" for name, v in self.settings.items()]
        self.stream.write(" · ".join(shown) + "\n")


def _number(name: str, text: str) -> float | int | None:
    """The value of a setting. Raises UserError for text that is not one."""
    optional = name in ("top_k", "top_p", "min_p")
    if text == "none" and optional:
        return None
    kind = int if name in ("seed", "max_new_tokens", "top_k") else float
    try:
        return kind(text)
    except ValueError as error:
        expected = "a whole number" if kind is int else "a number"
        raise UserError(f"{name}={text}: give {expected}{' or none' * optional}") from error
