"""The command line, `rwkv-embed`. Commands live in `api.commands`, one file per group; none imports anything
heavy before it runs, so that `--help` and shell completion are quick."""

import io
import os
import sys
from typing import Annotated

import typer

from api.commands import ask, documents, embed, evaluate, models, search, servers, store, train
from api.terminal import Commands
from rwkv_embed import __version__

app = typer.Typer(
    name="rwkv-embed",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 2 wrong usage, 8 some files could not be read, 12 no such collection, "
    "14 no such document, 130 Ctrl-C; the whole table is in docs/cli.md.",
)
for group in (documents, search, ask, embed, store, models, train, evaluate, servers):
    group.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rwkv-embed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Search and ask your documents, in any language, on a CPU, with the state of an RNN (RWKV)."""


def main() -> None:
    """Entry point of the `rwkv-embed` script."""
    _complete_streams()
    for stream in (sys.stdout, sys.stderr):
        # results are UTF-8 whatever the locale says; undecodable names stay visible
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    app()


def _complete_streams() -> None:
    """A caller may have closed a standard stream (`2>&-`, some supervisors): it is empty, or swallows all."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  open as long as we run


if __name__ == "__main__":
    main()
