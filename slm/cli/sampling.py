"""The commands that let a model write: once, in turns with a person, or elsewhere."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from slm.cli.options import AsJson, RunName, show

Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(help="Choose among so many tokens; 0: among all.")]
TopP = Annotated[float | None, typer.Option(help="… or among those that make up this share.")]
MinP = Annotated[
    float | None, typer.Option(help="… or among those at least this share as likely as the first.")
]
Penalty = Annotated[float, typer.Option(help="Above 1, weaken what the text has already.")]
MaxNewTokens = Annotated[int, typer.Option(help="Write at most so many tokens.")]
Seed = Annotated[int, typer.Option(help="The same seed writes the same text.")]


def sample(
    run: RunName,
    prompt: Annotated[
        list[str] | None, typer.Option(help="How the text begins; may be given more than once.")
    ] = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")] = False,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given more than once.")
    ] = None,
    max_new_tokens: MaxNewTokens = 200,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Let a model write. A text that outgrows the context goes on from its last half."""
    from slm.cli.runs import write_samples

    samples = write_samples(
        run,
        prompt or ["Once upon a time"],
        stream=None if as_json else sys.stdout,
        max_new_tokens=max_new_tokens,
        temperature=0.0 if greedy else temperature,
        top_k=top_k or None,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop or (),
        seed=seed,
    )
    if as_json:
        show({"samples": samples}, as_json)


def chat(
    run: RunName,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = 1.0,
    max_new_tokens: MaxNewTokens = 200,
    seed: Seed = 1,
) -> None:
    """Write in turns with a model: you begin a text, it goes on. Ctrl-C stops it, Ctrl-D ends."""
    from slm.cli.chat import Chat
    from slm.cli.runs import checkpoint_folder
    from slm.evaluation.evaluate import device_of
    from slm.model.saved import load_model

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ctrl-C stops a text here; this still ends us
    folder = checkpoint_folder(run)
    model, tokenizer = load_model(folder, device_of(folder))
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
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    as_json: AsJson = False,
) -> None:
    """Write a model as a Hugging Face folder that `transformers` loads."""
    from slm.cli.runs import checkpoint_folder
    from slm.model.export.hugging_face import export as write

    files = write(checkpoint_folder(run), folder)
    result = {"folder": str(folder.resolve()), "files": files if as_json else ", ".join(files)}
    show(result, as_json)
