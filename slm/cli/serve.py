"""The command that serves models over HTTP."""

import sys
from functools import partial
from typing import Annotated

import typer

from slm.cli.completion import run_references
from slm.cli.options import REFERENCE, show, show_line, suggest
from slm.cli.sampling import WeightsOption
from slm.config import data_root
from slm.recipes import default_recipe, load_recipe
from slm.records import model_uri

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...",
        help=f"{REFERENCE} May be repeated. Without it: the champion of the default recipe.",
        autocompletion=run_references,
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")]
Host = Annotated[str, typer.Option(help="Address to listen on. Any but loopback needs an API key.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        envvar="SLM_API_KEY",
        help="Key that requests must bring.",
        show_default=False,
    ),
]
MaxBatch = Annotated[
    int, typer.Option(min=1, max=1024, help="Texts that are generated together, per model.")
]
Queue = Annotated[int, typer.Option(min=1, help="Texts that wait for a place; 429 beyond.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds of a request; 504 beyond.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most that a request may ask for, per text.")]
ServingJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout once it answers.")
]


def serve(
    models: Models = None,
    port: Port = 8000,
    host: Host = "127.0.0.1",
    api_key: ApiKey = None,
    max_batch: MaxBatch = 32,
    queue: Queue = 256,
    timeout: Timeout = 300.0,
    max_tokens: MaxTokens = 2048,
    weights: WeightsOption = "float32",
    as_json: ServingJson = False,
) -> None:
    """Serve models over HTTP as OpenAI's API does, until Ctrl-C. Open requests finish first.

    Example: slm serve slm@champion --port 8000
    """
    from slm.server.listen import serve as run

    names = models or [model_uri(load_recipe(default_recipe()).model_name, alias="champion")]
    run(
        *names,
        host=host,
        port=port,
        api_key=api_key,
        weights=weights,
        root=data_root(),
        on_ready=partial(show_serving, as_json),
        max_batch=max_batch,
        queue=queue,
        timeout=timeout,
        max_tokens=max_tokens,
    )


def show_serving(as_json: bool, url: str, served: list[str]) -> None:
    """Print what is served, where, and a request."""
    if as_json:
        show({"url": url, "models": served}, as_json)
    else:
        for name in served:
            show_line(f"serving   {name}")
        show_line(f"at        {url}    Ctrl-C ends it")
        example = (
            f"curl {url}/v1/completions -H 'Content-Type: application/json' "
            """-d '{"prompt": "Once upon a time", "max_tokens": 40}'"""
        )
        suggest(as_json, example)
    sys.stdout.flush()
