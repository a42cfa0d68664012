"""The commands that share results with other machines: push, pull."""

from typing import Annotated

import typer

from slm.cli.completion import result_names
from slm.cli.options import AsJson, display_for, show, suggest
from slm.errors import UserError
from slm.figures import size
from slm.recipes import store_address

Result = Annotated[
    str,
    typer.Argument(
        metavar="RUN|SHARDS|SOURCE|VERSION",
        help="A run, as in every command; shards or a source, by name; or NAME@ALIAS.",
        autocompletion=result_names,
    ),
]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A run, shards or a source by name or the beginning of its key; or a version: "
        "NAME@ALIAS, models:/NAME/NUMBER.",
    ),
]
WithoutData = Annotated[
    bool, typer.Option("--no-data", help="Of a run or a version: without its shards and source.")
]
HELP = "file:///FOLDER, s3://BUCKET/PREFIX, gs://…; by default SLM_STORE or `store:`."


def push(
    result: Result,
    to: Annotated[str | None, typer.Option("--to", metavar="URL", help=HELP)] = None,
    no_data: WithoutData = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hash what the store has too, and replace what is damaged."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a finished result to a store, with all that another machine needs to use it.

    Example: slm push quickstart-3693316e0b15 --to s3://BUCKET/slm
    """
    import slm.store.push

    address = to or _configured("--to")
    with display_for(as_json) as display, display.progress("push") as progress:
        pushed = slm.store.push.push(
            result, address, data=not no_data, verify=verify, progress=progress
        )
    if as_json:
        show(pushed.model_dump(mode="json"), as_json)
        return
    show(
        {
            "store": pushed.store,
            "results": ", ".join(pushed.results),
            "sent": f"{pushed.sent} files, {size(pushed.sent_bytes)}",
            "was there": f"{pushed.kept} files, {size(pushed.bytes - pushed.sent_bytes)}",
        },
        as_json,
    )
    suggest(as_json, f"slm pull {result} --from {pushed.store}  # on another machine")


def pull(
    name: Name,
    from_store: Annotated[str | None, typer.Option("--from", metavar="URL", help=HELP)] = None,
    no_data: WithoutData = False,
    as_json: AsJson = False,
) -> None:
    """Get a result from a store, complete as if it was made here; a version is registered.

    Example: slm pull quickstart-3693316e0b15 --from s3://BUCKET/slm
    """
    import slm.store.pull

    address = from_store or _configured("--from")
    with display_for(as_json) as display, display.progress("pull") as progress:
        pulled = slm.store.pull.pull(name, address, data=not no_data, progress=progress)
    if as_json:
        show(pulled.model_dump(mode="json"), as_json)
        return
    was_here = [result for result in pulled.results if result not in pulled.pulled]
    shown = {
        "store": pulled.store,
        "pulled": ", ".join(pulled.pulled) or "nothing",
        "size": size(pulled.bytes),
        "was here": ", ".join(was_here),
        "path": pulled.path,
        "version": pulled.version,
    }
    show({key: value for key, value in shown.items() if value}, as_json)
    if pulled.version:
        suggest(as_json, f"slm promote {pulled.version}", f"slm lineage {pulled.version}")
    elif pulled.path:
        suggest(as_json, f"slm verify {pulled.path.rpartition('/')[2]}")


def _configured(option: str) -> str:
    address = store_address()
    if address is None:
        raise UserError(
            f"no store is named: give {option} URL, set SLM_STORE, or add `store: URL` to "
            "pipelines.yaml"
        )
    return address
