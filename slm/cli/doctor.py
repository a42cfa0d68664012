"""`slm doctor`: what this machine offers, and what is broken."""

import typer

from slm.cli.options import AsJson, show, show_line, show_wide, suggest


def doctor(as_json: AsJson = False) -> None:
    """Look at Python, device, CPU, memory, disk, ports, servers and data; report what is broken.

    Exits 1 where something is broken, and shows what to do.

    Example: slm doctor
    """
    from slm.cli import tables
    from slm.orchestration.health import doctor as look

    health = look()
    if as_json:
        show({"ok": health.ok, **health.model_dump(mode="json")}, as_json)
    else:
        show_wide(tables.health(health))
        for problem in health.problems:
            show_line(f"{problem.state}: {problem.name}: {problem.remedy}")
        if health.ok:
            show_line("nothing is broken")
        suggest(as_json, "slm run" if health.ok else "slm doctor  # again")
    raise typer.Exit(0 if health.ok else 1)
