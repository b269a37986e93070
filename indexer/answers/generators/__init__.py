"""The answer generators behind one small protocol (`base.py`), made from a short specification."""

from collections.abc import Mapping
from pathlib import Path

from indexer.answers.generators.base import Generator
from indexer.errors import GeneratorError


def make_generator(
    spec: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    template: str | Path | None = None,
    max_tokens: int = 400,
    temperature: float = 0.0,
    environ: Mapping[str, str] | None = None,
) -> Generator:
    """The generator that `spec` names: "extractive", "rwkv:PATH" or "openai:MODEL".

    `base_url` and `api_key` are for openai and default to OPENAI_BASE_URL and OPENAI_API_KEY in `environ`
    (the process's own). `template` is for rwkv: "world", "g1", or a JSON file (see `prompts.Template`).
    An rwkv model is loaded here, so make it once and keep it: its state cache lives with it.
    Raises GeneratorError for an unknown specification and rwkv_embed's errors for a bad checkpoint.
    """
    if max_tokens < 1 or temperature < 0:
        raise GeneratorError(
            f"max_tokens is {max_tokens} and temperature {temperature}; expected at least 1 and at least 0"
        )
    kind, _, name = spec.partition(":")
    if template is not None and kind != "rwkv":
        raise GeneratorError(f"template {str(template)!r} is for rwkv:PATH, not for {spec}; leave it out")
    if kind == "extractive" and not name:
        from indexer.answers.generators.extractive import Extractive

        return Extractive()
    if kind == "rwkv" and name:
        from indexer.answers.generators.rwkv import RWKVGenerator

        return RWKVGenerator.load(name, template=template, max_tokens=max_tokens, temperature=temperature)
    if kind == "openai" and name:
        from indexer.answers.generators.openai import OpenAIGenerator

        return OpenAIGenerator.from_environment(
            name,
            base_url=base_url,
            api_key=api_key,
            max_tokens=max_tokens,
            temperature=temperature,
            environ=environ,
        )
    raise GeneratorError(f"unknown generator {spec!r}; use extractive, rwkv:PATH or openai:MODEL")
