"""Writes docs/cli.md from the commands themselves: `python -m api.docs docs/cli.md`.

It is made from the same tree of commands that `--help` prints, not from its rendering, which differs between
versions of typer. A test fails when the page is stale.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from api.errors import MEANINGS


def page() -> str:
    """The whole page as Markdown."""
    from api.cli import app
    from api.settings import Settings

    root = typer.main.get_command(app)
    parts = [
        "# The command line\n\nMade by `make docs` from the commands themselves; do not edit.",
        *_commands(root, "rwkv-embed"),
        "## Exit codes\n\n" + _table(("Code", "Meaning"), _exit_codes()),
        "## Settings of the server\n\nEnvironment variables; lists are written with commas.\n\n"
        + _table(("Variable", "Default", "Meaning"), _settings(Settings)),
    ]
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, name: str) -> Iterator[str]:
    children = getattr(command, "commands", {})
    yield f"## {name}\n\n{_describe(command, name, bool(children))}"
    for child in children.values():
        yield from _commands(child, f"{name} {child.name}")


def _describe(command: Any, name: str, group: bool) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(
        [name, "[OPTIONS]", *(_metavar(each) for each in arguments), *(["COMMAND"] if group else [])]
    )
    parts = [f"`{usage}`", (command.help or "").strip()]
    rows = [(f"`{_metavar(each)}`", each.help or "") for each in arguments]
    rows += [(f"`{_option(each)}`", _option_help(each)) for each in options]
    if rows:
        parts.append(_table(("", ""), rows))
    return "\n\n".join(part for part in parts if part)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {option.metavar or _value(option.type)}"


def _value(kind: Any) -> str:
    """What an option without a metavar takes: its choices, a number or text."""
    if hasattr(kind, "choices"):
        return "|".join(str(getattr(choice, "value", choice)) for choice in kind.choices)
    return "NUMBER" if kind.name.startswith(("int", "float")) else "TEXT"


def _option_help(option: Any) -> str:
    text = option.help or ""
    default = getattr(option.default, "value", option.default)
    if default not in (None, False, "") and not callable(default) and not option.is_flag:
        text += f" Default: {default}."
    if option.envvar:
        text += f" Environment: `{option.envvar}`."
    return text


def _exit_codes() -> list[tuple[Any, ...]]:
    fixed = [
        (0, "success"),
        (1, "a fault of ours; RWKV_EMBED_DEBUG=1 shows the traceback"),
        (2, "wrong usage"),
    ]
    known = [
        (meaning.exit_code, _first_line(cls)) for cls, meaning in MEANINGS.items() if meaning.exit_code > 2
    ]
    stopped = "stopped with Ctrl-C (what `index` had finished is kept), or by a no to a question"
    return [*fixed, *sorted(known), (130, stopped)]


def _first_line(cls: type[BaseException]) -> str:
    return f"{cls.__name__}: {(cls.__doc__ or '').strip().splitlines()[0]}"


def _settings(settings: Any) -> list[tuple[Any, ...]]:
    rows = []
    for name, field in settings.model_fields.items():
        default = "the user data folder" if field.default_factory else field.default
        shown = ",".join(default) if isinstance(default, list) else "" if default is None else str(default)
        rows.append((f"`RWKV_EMBED_{name.upper()}`", shown, field.description or ""))
    return rows


def _table(headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def main() -> None:
    """Write the page to the file named on the command line."""
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
