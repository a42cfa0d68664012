"""The commands that let a model write: once, in turns with a person, or in another program."""

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from slm.cli.options import AsJson, RunName, show
from slm.registry.opening import load_model, model_folder

Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Top-k; 0 disables.")]
TopP = Annotated[float, typer.Option(help="Top-p (nucleus); 1 disables.")]
MinP = Annotated[float, typer.Option(help="Min-p; 0 disables.")]
Penalty = Annotated[float, typer.Option(help="Repetition penalty; 1 disables.")]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of new tokens.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]


def sample(
    run: RunName,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Beginning of the text; may be repeated.")
    ] = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")] = False,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be repeated.")
    ] = None,
    max_new_tokens: MaxNewTokens = 200,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Generate text. A text longer than the context continues from its last half."""
    from slm.model.sample import generate

    model, tokenizer = load_model(run)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k or None,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or (),
        "seed": seed,
    }
    samples = []
    for number, text in enumerate(prompt or ["Once upon a time"]):
        on_text = None if as_json else _writer("\n" * (number > 0) + text)
        samples += generate(model, tokenizer, [text], on_text=on_text, **settings)
        if not as_json:
            print("" if samples[-1].completion else text)
    if as_json:
        fields = ("prompt", "completion", "tokens", "seconds")
        show({"samples": [{f: getattr(s, f) for f in fields} for s in samples]}, as_json)


def _writer(prompt: str) -> Callable[[int, str], None]:
    """Write to stdout; the prompt comes with the first characters that follow it."""
    before = [prompt]

    def write(_: int, characters: str) -> None:
        sys.stdout.write((before.pop() if before else "") + characters)
        sys.stdout.flush()

    return write


def chat(
    run: RunName,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    max_new_tokens: MaxNewTokens = 200,
    seed: Seed = 1,
) -> None:
    """Write in turns with a model: you begin, it continues. Ctrl-C stops a text, Ctrl-D ends."""
    from slm.cli.chat import Chat

    if isinstance(sys.stdin, io.TextIOWrapper):  # a stray byte is refused with its line
        sys.stdin.reconfigure(errors="surrogateescape")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ctrl-C stops a text here; this still ends us
    model, tokenizer = load_model(run)
    settings = {
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    Chat(model, tokenizer, settings, sys.stdout).run(input)


def export(
    run: RunName,
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Write a model as a Hugging Face folder that `transformers` loads."""
    from slm.model.export.hugging_face import export as write

    files = write(model_folder(run), folder)
    result = {"folder": str(folder.resolve()), "files": files if as_json else ", ".join(files)}
    show(result, as_json)
