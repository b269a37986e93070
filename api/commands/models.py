"""models list, info, pull, convert: which weights are here, what they are, and getting more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from api.terminal import JsonOption, facts, progress, say, say_json, table

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="NAME|PATH", help="A file, a folder, or a Hugging Face name ORG/REPO[:FILE][@REVISION]."
    ),
]

ModelOrBundled = Annotated[
    str | None, typer.Argument(metavar="[NAME|PATH]", help="As for `pull`; the bundled model if not given.")
]


def register(app: typer.Typer) -> None:
    models = typer.Typer(no_args_is_help=True, help="Models on this machine, and getting more.")
    models.command("list")(list_models)
    models.command()(info)
    models.command()(pull)
    models.command()(convert)
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


def info(name: ModelOrBundled = None, as_json: JsonOption = False) -> None:
    """What a model is: generation, precision, sizes, tokenizer, how it runs here and what it can be used for."""
    from rwkv_embed import catalogue, hub

    files = hub.resolve(name)
    known = catalogue.describe(files.weights).to_dict()
    trained = {"dims": files.settings["dims"]} if "dims" in files.settings else {}
    _print({"name": files.name} | known | trained | asdict(catalogue.engine(files)), as_json)


def pull(name: ModelName, as_json: JsonOption = False) -> None:
    """Download a model once, checked against its checksum, so that it works offline from then on."""
    from rwkv_embed import hub

    files = hub.resolve(name, progress=not as_json)
    if as_json:
        say_json({"name": files.name, "path": str(files.weights)})
    else:
        say(str(files.weights))


class Type(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


def convert(
    name: ModelName,
    target: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="A new file.")],
    dtype: Annotated[
        Type | None, typer.Option("--dtype", help="Store weights like this; as they are if not given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint of any packaging as one .safetensors file, perhaps smaller."""
    from rwkv_embed import catalogue, hub

    with progress("Converting", "bytes") as advance:
        written = catalogue.convert(
            hub.resolve(name).weights, target, dtype.value if dtype else None, advance
        )
    _print(written.to_dict(), as_json)


def _print(known: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(known)
    else:
        facts(known)
