"""The commands that let a model write: once, in turns with a person, or in another program."""

import io
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slm.cli.options import AsJson, RunName, show, suggest
from slm.config import Weights
from slm.errors import UserError
from slm.registry.opening import load_model, model_folder

if TYPE_CHECKING:
    from slm.model.sample import Sample

Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Top-k; 0 disables.")]
TopP = Annotated[float, typer.Option(help="Top-p (nucleus); 1 disables.")]
MinP = Annotated[float, typer.Option(help="Min-p; 0 disables.")]
Penalty = Annotated[float, typer.Option(help="Repetition penalty; 1 disables.")]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of new tokens.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        help="Beginning of the text; may be repeated. Default: the first one of its report."
    ),
]
Copies = Annotated[
    int,
    typer.Option("-n", "--samples", min=1, help="Texts per prompt, each with its own seed."),
]
Greedy = Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")]
WeightsOption = Annotated[
    Weights, typer.Option(help="int8 rounds the weights to eight bits: faster on a CPU.")
]


def sample(
    run: RunName,
    prompt: Prompts = None,
    copies: Copies = 1,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    greedy: Greedy = False,
    stop: Stop = None,
    max_new_tokens: MaxNewTokens = 200,
    seed: Seed = 1,
    weights: WeightsOption = "float32",
    as_json: AsJson = False,
) -> None:
    """Generate text. A text longer than the context continues from its last half.

    Example: slm sample RUN --prompt "Once upon a time" -n 3 --temperature 0.7
    """
    from slm.model.decode import Decoder
    from slm.model.sample import generate, row_seeds
    from slm.report.prompts import example_prompt

    rows = len(prompt or [""]) * copies
    seeds = row_seeds(seed, rows)
    temperature = 0.0 if greedy else temperature
    if copies > 1 and temperature == 0:
        raise UserError(
            f"-n {copies} with temperature 0: greedy texts of one prompt are all the same, so give "
            "a temperature above 0"
        )
    folder = model_folder(run)
    model, tokenizer = load_model(folder, device="cpu" if weights == "int8" else None)
    prompts = [text for text in prompt or [example_prompt(folder)] for _ in range(copies)]
    decoder = Decoder(model, weights)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or (),
    }
    if as_json:
        samples = generate(decoder, tokenizer, prompts, seed=seeds, **settings)
        show({"weights": weights, "samples": list(map(_fields, samples))}, as_json)
        return
    for number, (text, row_seed) in enumerate(zip(prompts, seeds, strict=True)):
        write = _writer("\n" * (number > 0) + text)
        generate(decoder, tokenizer, [text], seed=row_seed, on_text=write, **settings)
        write(0, "\n")
    suggest(as_json, f"slm chat {run}", f"slm export {run} FOLDER")


def _fields(sample: "Sample") -> dict[str, Any]:
    fields = ("prompt", "completion", "tokens", "seconds", "seed")
    return {name: getattr(sample, name) for name in fields}


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
    weights: WeightsOption = "float32",
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON on stdout for every text.")
    ] = False,
) -> None:
    """Write in turns with a model: you begin, it continues. Ctrl-C stops a text, Ctrl-D ends.

    Example: slm chat models:/slm@champion
    """
    from slm.cli.chat import Chat
    from slm.model.decode import Decoder
    from slm.model.sample import generate

    if isinstance(sys.stdin, io.TextIOWrapper):  # a stray byte is refused with its line
        sys.stdin.reconfigure(errors="surrogateescape")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ctrl-C stops a text here; this still ends us
    model, tokenizer = load_model(run, device="cpu" if weights == "int8" else None)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    generate(model, tokenizer, [], **settings)  # refuses what means nothing
    turns = Chat(Decoder(model, weights), tokenizer, settings, sys.stdout)
    if as_json:
        turns.stream = sys.stderr
        turns.on_sample = lambda sample: show(_fields(sample), as_json)
    turns.run(_read_from_stdin if as_json else input)
    suggest(as_json, f"slm export {run} FOLDER")


def _read_from_stdin(prompt: str) -> str:
    """`input` without its prompt, which goes to stdout."""
    return input()
