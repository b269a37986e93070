"""Everything about the server that can be set, from RWKV_EMBED_* environment variables or arguments."""

from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api.locations import default_store


class Settings(BaseSettings):
    """One server. Lists are written with commas: `RWKV_EMBED_API_KEYS=first,second`."""

    model_config = SettingsConfigDict(env_prefix="RWKV_EMBED_", extra="ignore", frozen=True)

    store: str = Field(default_factory=default_store, description="directory of the store, or postgresql://user@host/name")
    model: str | None = Field(
        default=None, description="embedding model: a name or a path; the bundled one if not given"
    )
    reranker: str | None = Field(
        default=None,
        description="what searches with `rerank` score with: the reranker trained with the embedding model, or an "
        "RWKV language model, a name or a path",
    )
    model_aliases: Annotated[list[str], NoDecode] = Field(
        default=[], description="other names that /v1/embeddings accepts, such as text-embedding-3-small"
    )
    generators: Annotated[list[str], NoDecode] = Field(
        default=["extractive"],
        min_length=1,
        description="what may write answers: extractive, rwkv:PATH, openai:MODEL; requests name the "
        "kind, the first is the default",
    )
    template: str | None = Field(
        default=None, description="chat template of the rwkv generator: world, g1 or a JSON file"
    )

    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        default=[], description="any of these opens the API; none: it is open"
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="of one key (or address); more gets 429"
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default=[], description="web origins whose pages may call the API"
    )

    threads: int = Field(
        default=2, ge=1, le=256, description="requests worked on at once; writes have one more of their own"
    )
    queue_limit: int = Field(
        default=1024, ge=1, description="inputs (texts, queries, documents) waiting or in work; more gets 429"
    )
    batch_inputs: int = Field(
        default=32, ge=1, description="texts of one model call, taken from any number of requests"
    )
    max_inputs: int = Field(default=2048, ge=1, description="texts or documents in one request")
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024, description="of a JSON request")
    max_upload_bytes: int = Field(default=200 * 2**20, ge=1024, description="of a file upload")
    shutdown_seconds: int = Field(
        default=15, ge=0, description="how long running requests may finish when the server stops"
    )

    @field_validator("store", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        return value or default_store()  # "" would be the current directory

    @field_validator("generators")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for spec in value:
            kind, _, name = spec.partition(":")
            if kind not in ("extractive", "rwkv", "openai") or (kind == "extractive") == bool(name):
                raise ValueError(f"{spec!r} is no generator; use extractive, rwkv:PATH or openai:MODEL")
        return value

    @field_validator("api_keys", "generators", "model_aliases", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )
