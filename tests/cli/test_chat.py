"""`slm chat`: what it does with each line, and with Ctrl-C and Ctrl-D."""

import io
from collections.abc import Callable, Iterator

import pytest
from tiny_model import BYTES, tiny_model

from slm.cli import chat as module
from slm.cli.chat import Chat
from slm.model.decode import Decoder
from slm.model.sample import generate

SETTINGS = {"temperature": 0.9, "top_k": 20, "top_p": None, "min_p": None,
            "repetition_penalty": 1.0, "max_new_tokens": 30, "seed": 5}  # fmt: skip


def lines(*given: str | type[BaseException]) -> Callable[[str], str]:
    left: Iterator[str | type[BaseException]] = iter((*given, EOFError))

    def read(_: str) -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    return read


def conversation(*given: str | type[BaseException]) -> tuple[Chat, str]:
    stream = io.StringIO()
    chat = Chat(Decoder(tiny_model("qwen3")), BYTES, dict(SETTINGS), stream)
    chat.run(lines(*given))
    return chat, stream.getvalue().removeprefix(module.HELP)


def test_it_continues_a_line_and_its_own_text() -> None:
    chat, shown = conversation("A girl", "")
    (first,) = generate(tiny_model("qwen3"), BYTES, ["A girl"], **SETTINGS)  # type: ignore[arg-type]
    whole = "A girl" + first.completion
    assert shown.startswith(whole + "\n")
    assert chat.text[:8] == BYTES.decode(BYTES.encode(whole)[-12:])[:8]
    assert chat.settings["seed"] == 7
    assert shown.endswith("\n\n")  # Ctrl-D


def test_settings_are_shown_changed_and_refused() -> None:
    chat, shown = conversation(
        "/set top-k 3", "/set temperature none", "/set temperature -1", "/set seed 1.5",
        "/set colour 3", "/set top_p [", "caf\udce9", "/dance", "/settings", "/help",
    )  # fmt: skip
    assert chat.settings == {**SETTINGS, "top_k": 3}
    assert r"the line caf\xe9 is not UTF-8" in shown
    for words in ("top_k 3 ", "temperature=none: give a number", "temperature=-1.0", "whole number",
                  "unknown setting 'colour'", "unknown command", "Ctrl-D ends"):  # fmt: skip
        assert words in shown


def test_ctrl_c_stops_the_text_and_not_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, on_text: Callable[[int, str], None], **__: object) -> None:
        on_text(0, " went")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "generate", interrupted)
    chat, shown = conversation("A girl", KeyboardInterrupt, "/settings")
    assert shown.startswith("A girl went\n")
    assert chat.text == "A girl went"
    assert "top_k 20" in shown


def test_what_is_kept_begins_with_a_whole_character() -> None:
    """Of 24 tokens the last 12 are kept, here bytes: é has two of them, € three and 𝄞 four."""
    for text in ("é" * 8 + "a", "€" * 7 + "a", "€" * 7 + "aa", "𝄞" * 5 + "a"):
        chat, _ = conversation()
        chat.text = text
        chat.settings["max_new_tokens"] = 0
        chat.answer("")
        assert "\ufffd" not in chat.text
        assert text.endswith(chat.text)
        assert 12 - 3 <= len(chat.text.encode()) <= 12


def test_a_beginning_that_is_too_long_is_refused() -> None:
    _, shown = conversation("x" * 100)
    assert "room for 23" in shown
