"""`slm export`: a model for other programs; and whether a published one is ours."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slm.cli.options import AsJson, RunName, show, show_line, suggest
from slm.records import Export


def export(
    run: RunName,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|FILE", help="A folder that does not exist yet; of GGUF, such a file."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="hf|gguf",
            help="hf: a folder for transformers; gguf: a file for llama.cpp. By default by the "
            "name: FILE.gguf is the latter.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="f32|f16|bf16|q8_0",
            help="How weights are stored; q8_0, eight bits each, is of GGUF.",
        ),
    ] = "f32",
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME", help="Send it to this repository of the hub too; needs HF_TOKEN."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for transformers or llama.cpp, checked: it is read back and compared.

    Example: slm export models:/slm@champion out.gguf --dtype q8_0
    """
    import slm

    record = slm.export(run, target, to=to, dtype=dtype, push=push)  # type: ignore[arg-type]
    if as_json:
        show(facts(record, target), as_json)
        return
    for line in lines(record, target):
        show_line(line)
    _suggest(run, record, target)


def facts(record: Export, target: Path) -> dict[str, Any]:
    """What `--json` prints."""
    place = target.resolve()
    common = {
        "to": record.to,
        "dtype": record.dtype,
        "files": sorted(record.files),
        "claim": record.claim,
        "parity": record.parity,
        "warnings": record.warnings,
        "pushed": record.pushed,
    }
    if record.to == "hf":
        hashes = {name: entry.sha256 for name, entry in record.files.items()}
        return {"folder": str(place), "sha256": hashes, **common}
    return {"file": str(place), "sha256": record.files[target.name].sha256, **common}


def lines(record: Export, target: Path) -> list[str]:
    """What a person sees."""
    from slm.model.export.parity import Parity
    from slm.orchestration.display import shorten

    kind = "folder" if record.to == "hf" else "file"
    shown = [
        f"{kind:<9} {shorten(target.resolve())}",
        f"files     {', '.join(sorted(record.files))}",
        f"parity    {Parity.model_validate(record.parity).summary}",
    ]
    if record.to == "gguf":
        shown.insert(1, f"sha256    {record.files[target.name].sha256}")
    shown += [f"note      {line}" for line in record.warnings]
    return shown + ([f"pushed    {record.pushed}"] if record.pushed else [])


def _suggest(run: str, record: Export, target: Path) -> None:
    if record.to == "gguf":
        suggest(False, f"llama-cli -m {target} -no-cnv -p 'Once upon a time'")
    elif "README.md" in record.files:
        suggest(False, f"{target / 'README.md'} has an example for transformers")
    else:  # the card is part of the report
        suggest(False, f"slm report {run}  # before an export, which then has a model card")


def verify_published(place: str, model: str | None, as_json: bool) -> None:
    """Print whether each part of what was published is that of our model; exit 1 where not."""
    import slm

    result = slm.verify_published(place, model)
    if as_json:
        verdict = {"identical": result.identical}
        show({**result.model_dump(mode="json"), **verdict}, as_json)
    else:
        commit = f" at {result.revision[:12]}" if result.revision else ""
        show_line(f"published {result.place}{commit}, {result.to}, {result.dtype}")
        show_line(f"model     {result.model}, weights {result.weights_sha256[:12]}…")
        for part in result.parts:
            state = "identical" if part.identical else f"differs: {part.difference}"
            show_line(f"{part.name:<9} {state}")
    if not result.identical:
        raise typer.Exit(1)
