"""`occflow weights`: which files the cue models want, where upstream publishes them, and what is here."""

from pathlib import Path
from typing import Annotated

import typer

from occflow_shell import say, verb

app = typer.Typer(help="Model weights: what the cue backends want, and what is here.", no_args_is_help=True)

NamesArgument = Annotated[list[str] | None, typer.Argument(help="Names of `occflow weights list`; default all.")]


@app.command("list")
@verb
def show() -> None:
    """Every known file and folder: who wants it, where it is published, under which licence, and where it is here."""
    from pipelines.weights import HOME_VARIABLE, SOURCES, look, weights_home

    wide = max(len(row.name) for row in SOURCES)
    for backend in dict.fromkeys(row.backend for row in SOURCES):
        say(f"{backend}:")
        for row in (row for row in SOURCES if row.backend == backend):
            found = look(row, digest=False)
            here = str(found.path) if found.state == "ok" else found.state
            say(f"  {row.name:{wide}}  {here}")
            say(f"  {'':{wide}}  {row.published} ({'; '.join(filter(None, (row.licence, row.note)))})")
    say(f"found by name in {weights_home()} (${HOME_VARIABLE} moves it), then in the hub cache; a path serves as well")
    say("next: occflow weights check    or    occflow weights path NAME")


@app.command()
@verb
def check(
    names: NamesArgument = None,
    at: Annotated[Path | None, typer.Option("--at", help="Look at this file or folder instead (one name).")] = None,
) -> None:
    """Are the files whole, and are they the published ones? Prints their SHA-256; exits with 1 on damage."""
    from occflow_shell import CommandError
    from pipelines.weights import SOURCES, look, source

    if at is not None and len(names or []) != 1:
        raise CommandError("--at needs exactly one name: occflow weights check NAME --at PATH")
    rows = [source(name) for name in names] if names else SOURCES
    bad = 0
    for row in rows:
        found = look(row, at)
        bad += found.state == "damaged" or (found.state == "absent" and bool(names))
        if found.state == "ok":
            other = "whole, but not the published file" if row.sha256 else "whole"
            known = "the published file" if found.digest == row.sha256 else other
            say(f"{row.name}: {known}, sha256 {found.digest}, {found.path}")
        elif found.state == "damaged" or names:
            say(f"{row.name}: {found.state}: {found.detail}")
    absent = [row.name for row in rows if look(row, at, digest=False).state == "absent"]
    if absent and not names:
        say(f"not here: {', '.join(absent)}")
    raise typer.Exit(1 if bad else 0)


@app.command()
@verb
def path(
    name: Annotated[str, typer.Argument(help="A name of `occflow weights list`, a path, or a hub id.")],
    download: Annotated[bool, typer.Option(help="Fetch a hub model that is not here.")] = False,
) -> None:
    """Where weights are; says where to get them if they are nowhere."""
    from pipelines.weights import check_weights, locate

    found = locate(name, download)
    check_weights(found)
    say(str(found))
