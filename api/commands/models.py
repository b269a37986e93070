"""models list, info, pull: which weights are here, what they are, and getting more."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from api.terminal import JsonOption, say, say_json, table

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="NAME|PATH", help="A file, a folder, or a Hugging Face name ORG/REPO[:FILE][@REVISION]."
    ),
]


def register(app: typer.Typer) -> None:
    models = typer.Typer(no_args_is_help=True, help="Models on this machine, and getting more.")
    models.command("list")(list_models)
    models.command()(info)
    models.command()(pull)
    app.add_typer(models, name="models", rich_help_panel="Models")


def list_models(as_json: JsonOption = False) -> None:
    """The bundled model and those downloaded before."""
    from rwkv_embed import hub

    found = hub.list_models()
    if as_json:
        say_json({"models": [asdict(model) for model in found]})
    else:
        table(
            ("NAME", "MB", "SOURCE", "PATH"),
            [(model.name, round(model.bytes / 1e6, 1), model.source, model.path) for model in found],
        )


def info(name: ModelName, as_json: JsonOption = False) -> None:
    """What a checkpoint is: generation, sizes, purpose, and where it lies."""
    from rwkv_embed import hub, load_model

    files = hub.resolve(name)
    facts = {"name": files.name, "path": str(files.weights), **asdict(load_model(files.weights).config)}
    if as_json:
        say_json(facts)
    else:
        table(("", ""), [(key, str(value)) for key, value in facts.items()])


def pull(name: ModelName, as_json: JsonOption = False) -> None:
    """Download a model once, checked against its checksum, so that it works offline from then on."""
    from rwkv_embed import hub

    files = hub.resolve(name, progress=not as_json)
    if as_json:
        say_json({"name": files.name, "path": str(files.weights)})
    else:
        say(str(files.weights))
